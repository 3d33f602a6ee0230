"""Environments: the games, shops, houses and conversations in which agents act.

There are two forms. A `TextEnvironment` is one episode in plain Python and text; it is what a researcher writes. An
`Environment` is a batch of episodes in tokens; it is what a rollout drives. `envs/host.py` turns the first into the
second. An environment written in array code implements the second directly and can be compiled into one program with
the rollout.

Axis letters: B slots, each of which holds one episode at a time; E episodes of a rollout; S seats; A actions of all
seats together; K tokens.
"""

import dataclasses
import importlib
import pathlib
from typing import Any, Callable, Hashable, Mapping, NamedTuple, Optional, Protocol, Sequence

from flax import struct
from jaxtyping import Bool, Float, Int
from ml_collections import ConfigDict

from epo_jax.models.config import ModelConfig
from epo_jax.runtime.errors import InputError
from epo_jax.text.chat import ChatSegments
from epo_jax.text.tokens import Array, Tokens


class Observation(NamedTuple):
    """What one seat gets to read: text, or Tokens [B, K]. Strategist and actor may read different things."""

    strategist: Any
    actor: Any


class TextStep(NamedTuple):
    """The consequences of one action in one episode.

    Attributes:
      observations: one Observation of text for every seat; '' where there is nothing new to read.
      done: whether the episode is over.
      rewards: the reward of every seat for this step, or None for a seat that gets none. The rewards of an episode
        add up to the seat's outcome, which lies in [0, 1]; a judge rates the seats that never got one. An empty tuple
        means None for every seat.
      events: names of events to count, such as 'action/repaired'.
    """

    observations: Sequence[Observation]
    done: bool
    rewards: Sequence[Optional[float]] = ()
    events: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Scenario:
    """The fields that every scenario must have; environments add their own.

    Attributes:
      id: unique name.
      category: what kind of task it is; evaluations report each category.
      split: 'train' or 'held_out'.
    """

    id: str
    category: str = 'all'
    split: str = 'train'


class TextEnvironment:
    """An environment in text. Subclasses implement `reset` and `step`, and override the rest as needed.

    An instance holds settings only. The state of an episode is an immutable value that the methods take and return, so
    that an episode can be continued from any of its states.

    Attributes:
      num_seats: number of seats. They act in turn, and seat 0 begins.
      max_turns: largest number of actions of all seats together.
      advice: text before and after a strategy in what the actor reads.
      prefixes: how replies may begin, for `actor.choose_action`, which samples the kind of action first.
      closing: a character that ends a reply, such as the quotation mark that its cue opened; '' for none.
    """

    num_seats: int = 1
    max_turns: int = 10
    advice: tuple[str, str] = ('\nAdvice: ', '\n')
    prefixes: tuple[str, ...] = ()
    closing: str = ''

    def reset(self, scenario: Any, advised: Sequence[bool]) -> tuple[Any, Sequence[Observation]]:
        """Start an episode.

        Args:
          scenario: one of `Domain.scenarios`.
          advised: for every seat, whether it has a strategist.

        Returns:
          The state and the first Observation of every seat.
        """
        raise NotImplementedError

    def step(self, state: Any, seat: int, message: str) -> tuple[Any, TextStep]:
        """Apply the message that the actor of `seat` wrote; return the new state and the consequences."""
        raise NotImplementedError

    def cues(self, state: Any, seat: int) -> Observation:
        """Return the text with which the next replies of the strategist and of the actor begin; '' for none."""
        return Observation('', '')

    def choices(self, state: Any, seat: int) -> Sequence[str]:
        """Return the only replies that the actor may give after its cue; () allows any reply."""
        return ()

    def transcript(self, state: Any, messages: Sequence[tuple[int, str]]) -> Sequence[tuple[int, str]]:
        """Return (seat, text that everybody could see) for every action, in order.

        Args:
          state: the state at the end.
          messages: (seat, message) of every action, as the actors wrote them.
        """
        return messages

    def judge_prompt(self, state: Any, seat: int) -> str:
        """Return what a judge reads before the transcript to rate how well `seat` reached its goal.

        An environment that rewards every episode itself, and is trained without process rewards, needs none; its
        Domain has `judged=False`.
        """
        raise NotImplementedError

    def overview(self, state: Any, messages: Sequence[tuple[int, str]]) -> str:
        """Return what a judge of all seats reads: what each of them knows and wants, and what happened.

        '' lets the judge read the `judge_prompt` of every seat and the transcript. Arguments as in `transcript`.
        """
        return ''

    def describe(self, scenario: Any, state: Any) -> Mapping[str, Any]:
        """Return facts for the record of an episode, as JSON.

        The keys are scenario, environment, category, situation, and seats, a list of the name and goal of each seat.
        """
        return {
            'scenario': scenario.id, 'environment': type(self).__name__, 'category': scenario.category,
            'situation': '', 'seats': [{'name': f'seat {seat}', 'goal': ''} for seat in range(self.num_seats)]}


@struct.dataclass
class EnvironmentStep:
    """The consequences of one action in every slot.

    Attributes:
      observations: for every seat an Observation of Tokens [B, K].
      done: whether the episode is over.
      reward: reward of the step; NaN for a seat that gets none (see TextStep).
      failed: the environment raised an error, took too long, or wrote a text that does not fit.
    """

    observations: tuple[Observation, ...]
    done: Bool[Array, ' B']
    reward: Float[Array, 'B S']
    failed: Bool[Array, ' B']


@dataclasses.dataclass(frozen=True)
class EpisodeText:
    """A finished episode in text, for judges and records.

    Attributes:
      facts: see TextEnvironment.describe.
      lines: (seat, text) of every action, see TextEnvironment.transcript.
      judge_prompts: by seat, see TextEnvironment.judge_prompt; () where the environment is not judged.
      events: names of events to count.
      failure: why the environment cut the episode off, or None.
      overview: see TextEnvironment.overview.
    """

    facts: Mapping[str, Any]
    lines: Sequence[tuple[int, str]]
    judge_prompts: Sequence[str] = ()
    events: Sequence[str] = ()
    failure: Optional[str] = None
    overview: str = ''


class Environment(Protocol):
    """Episodes in B slots.

    Attributes:
      num_seats, max_turns: as in TextEnvironment.
      width: number of tokens of every observation.
      on_device: whether everything but `encode` and `texts` is array code that JAX can trace.
    """

    num_seats: int
    max_turns: int
    width: int
    on_device: bool

    def encode(self, scenarios: Sequence[Any], advised: Sequence[bool]) -> Any:
        """Return the scenarios in the form that `reset` takes: arrays [E, ...] on the device, else anything.

        Args:
          scenarios: of E episodes.
          advised: for every seat, whether it has a strategist, as in `TextEnvironment.reset`.
        """

    def start(self, batch: int) -> Any:
        """Return the state of `batch` slots without episodes."""

    def reset(self, state: Any, queue: Any, episode: Int[Array, ' B'],
              rows: Bool[Array, ' B']) -> tuple[Any, tuple[Observation, ...]]:
        """Start episodes.

        Args:
          state: the state of all slots.
          queue: the encoded scenarios of E episodes.
          episode: number of the episode that each slot starts.
          rows: the slots that start one.

        Returns:
          The state and the first Observation of every seat; rows that do not start have no tokens.
        """

    def advice(self, seat: int) -> tuple[Sequence[int], Sequence[int]]:
        """Return the ids before and after a strategy in what the actor of `seat` reads."""

    def cues(self, state: Any, seat: int) -> Observation:
        """Return the tokens that begin the next replies of a seat."""

    def choices(self, state: Any, seat: int) -> Optional[Tokens]:
        """Return the only replies the actor may give.

        Returns:
          Tokens [B, C, K] (lengths i32[B, C]); empty ones do not count. If it is None, or in a row without choices,
          every reply is allowed.
        """

    def step(self, state: Any, seat: int, message: Tokens, live: Bool[Array, ' B']) -> tuple[Any, EnvironmentStep]:
        """Apply the messages of `seat` in the live slots."""

    def judge_prompts(self, queue: Any, state: Any, seat: int) -> tuple[Tokens, Tokens]:
        """Return what a judge of a seat reads, where the environment is on the device and judged.

        Args:
          queue: the encoded scenarios.
          state: the state of every episode (B = E) when it ended.
          seat: whose goal is judged.

        Returns:
          The prompts, Tokens [E, K], and one line for every action, Tokens [E, A, K] (lengths i32[E, A]).
        """

    def texts(self, scenarios: Sequence[Any], state: Any) -> list[EpisodeText]:
        """Return the finished episodes in text (host).

        Args:
          scenarios: the E scenarios.
          state: the state of every episode (B = E) when it ended.
        """


@dataclasses.dataclass(frozen=True)
class Dimension:
    """What a chat model rates as judge of an episode, with a whole number.

    Attributes:
      name: in lower case, with underscores between words.
      low, high: range of the scores.
      description: what to rate, and what the ends of the range mean.
    """

    name: str
    low: int
    high: int
    description: str


# How well a seat reached its goal. Every rubric has a dimension of this name, which gives the outcome.
GOAL = Dimension('goal', 0, 10, 'How well was the goal reached? 0: not at all; 10: completely.')


@dataclasses.dataclass(frozen=True)
class Domain:
    """What an experiment needs to know about an environment. A config names a module with a `DOMAIN` of this type.

    Attributes:
      seats: number of seats.
      scenarios: (config.scenarios, config.environment) -> the scenarios, each with the attributes of `Scenario`. The
        path '' names the set that comes with the environment.
      text_environment: config.environment -> the TextEnvironment; None if there is only the form on the device.
      device_environment: (config.environment, tokenizer of all models, width of observations) -> an Environment on
        the device; None if there is none.
      options: the keys of config.environment, each a `config.Key` or a plain default.
      check: config.environment -> what is wrong with it, one message each.
      rewarded: whether every episode gets rewards from the environment (needed by reward.outcome='environment').
      judged: whether a judge can read its episodes (needed by process rewards and by reward.outcome='judge').
      repeats: whether a seat often reads exactly the same in several episodes of a scenario (needed by credit that
        compares turns in the same situation).
      scratch_model: () -> (shape, tokenizer, chat segments) of a small model in the environment's own language, which
        is trained from scratch.
      variant: config.environment -> the name under which results are reported. Only results of the same name may be
        compared.
      situation: scenario -> what it has in common with others from which it is not independent, such as the same story
        with another cast; an evaluation covers all situations and resamples them as a whole.
      rubric: what a chat model rates for every seat, `GOAL` among it.
      panels: fixed sets of held-out scenarios by name, each a file with the id of a scenario in every line.
    """

    seats: int
    scenarios: Callable[[str, ConfigDict], Sequence[Any]]
    text_environment: Optional[Callable[[ConfigDict], TextEnvironment]] = None
    device_environment: Optional[Callable[[ConfigDict, Any, int], Environment]] = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    check: Callable[[ConfigDict], list[str]] = lambda environment: []
    rewarded: bool = True
    judged: bool = True
    repeats: bool = False
    scratch_model: Optional[Callable[[], tuple[ModelConfig, Any, ChatSegments]]] = None
    variant: Callable[[ConfigDict], str] = lambda environment: environment.name
    situation: Callable[[Any], Hashable] = lambda scenario: scenario.id
    rubric: tuple[Dimension, ...] = (GOAL,)
    panels: Mapping[str, pathlib.Path] = dataclasses.field(default_factory=dict)


def check_environment(domain: Domain, options: ConfigDict) -> None:
    """Check that a domain's rubric and text environment keep their contracts.

    Raises:
      InputError: the rubric has no goal, a name twice, or a range that is empty; or the text environment is not a
        TextEnvironment, has the wrong number of seats, or is judged without a judge_prompt.
    """
    names = [dimension.name for dimension in domain.rubric]
    if GOAL.name not in names or len(set(names)) < len(names):
        raise InputError(f"{options.name}: the rubric of a Domain must have a dimension 'goal' and no name twice; it "
                         f'has {names}')
    for dimension in domain.rubric:
        if not dimension.low < dimension.high:
            raise InputError(f'{options.name}: the rubric rates {dimension.name} from {dimension.low} to '
                             f'{dimension.high}; the first number must be the smaller one')
    if domain.text_environment is None:
        return
    env = domain.text_environment(options)
    name = type(env).__name__
    if not isinstance(env, TextEnvironment):
        raise InputError(f'{options.name}: {name} must be a subclass of epo_jax.envs.base.TextEnvironment')
    if env.num_seats != domain.seats:
        raise InputError(f'{options.name}: {name} has {env.num_seats} seats, but its Domain has {domain.seats}; '
                         f'set num_seats = {domain.seats} in the class, or seats={env.num_seats} in the Domain')
    if domain.judged and type(env).judge_prompt is TextEnvironment.judge_prompt:
        raise InputError(f'{options.name}: {name} has no judge_prompt; write one, or set judged=False in its Domain')


DOMAINS = {
    'alfworld': 'epo_jax.envs.alfworld.domain', 'bargain': 'epo_jax.envs.bargain.domain',
    'bargain_selfplay': 'epo_jax.envs.bargain.domain:SELFPLAY', 'bargain_words': 'epo_jax.envs.bargain.domain:WORDS',
    'bargain_words_selfplay': 'epo_jax.envs.bargain.domain:WORDS_SELFPLAY', 'sotopia': 'epo_jax.envs.sotopia.domain',
    'webshop': 'epo_jax.envs.webshop.domain'}


def load_domain(name: str) -> Domain:
    """Return the domain of an environment.

    Args:
      name: a key of DOMAINS, or an importable module that has a `DOMAIN`: 'package.module', or 'package.module:NAME'
        where the domain has another name.

    Raises:
      ValueError: there is no such module, or no Domain in it; the message names the built-in environments.
    """
    module, _, attribute = str(DOMAINS.get(name, name)).partition(':')
    try:
        domain = getattr(importlib.import_module(module), attribute or 'DOMAIN')
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f'there is no environment {name!r} ({error}); choose one of {", ".join(DOMAINS)}, or name a '
                         'Python module that has a DOMAIN') from None
    if not isinstance(domain, Domain):
        raise ValueError(f'environment {name!r}: expected an epo_jax.envs.base.Domain, found {type(domain).__name__}')
    return domain
