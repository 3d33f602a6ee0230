"""Environments: what a table talks about.

Two forms. A `TextEnvironment` is one episode in plain Python and text: what a researcher writes. An `Environment`
is a batch of episodes in tokens: what the rollout drives. `envs/host.py` turns the first into the second; an
environment in array code is of the second form from the start, and a whole rollout with it can be one program.

Axis letters: B slots, each with one episode at a time; E episodes of a rollout; S seats; A actions of all seats
together; K tokens.
"""

import dataclasses
import importlib
from typing import Any, Callable, Mapping, NamedTuple, Optional, Protocol, Sequence

from flax import struct
from ml_collections import ConfigDict

from epo_jax.models.config import ModelConfig
from epo_jax.text.chat import ChatSegments
from epo_jax.text.tokens import Tokens


class View(NamedTuple):
    """What one seat gets to read, text or Tokens [B, K]; strategist and actor read different things."""

    strategist: Any
    actor: Any


class TextStep(NamedTuple):
    """What follows from one action in one episode.

    Attributes:
      views: a View of text for every seat ('' for nothing new).
      done: the episode is over.
      rewards: the environment's own reward for every seat.
      events: names of things to count ('action/repaired', ...).
    """

    views: tuple[View, ...]
    done: bool
    rewards: tuple[float, ...]
    events: tuple[str, ...] = ()


class TextEnvironment(Protocol):
    """One episode at a time; the state is an immutable value.

    Attributes:
      num_seats: seats at the table, which speak in turn, seat 0 first.
      max_turns: actions of all seats together, at most.
      advice: text put before and after a strategy in what the actor reads.
      prefixes: with what replies may begin, where the actor is made to choose their kind first.
      closing: a character with which a reply ends, such as the quotation mark that its cue opened; '': none.
    """

    num_seats: int
    max_turns: int
    advice: tuple[str, str]
    prefixes: tuple[str, ...]
    closing: str

    def reset(self, scenario: Any, advised: Sequence[bool]) -> tuple[Any, tuple[View, ...]]:
        """Starts an episode: (state, opening View of every seat); `advised`: which seats have a strategist."""

    def step(self, state: Any, seat: int, message: str) -> tuple[Any, TextStep]:
        """The actor of `seat` has written `message`."""

    def cues(self, state: Any, seat: int) -> View:
        """Text with which the strategist's and the actor's next reply begin; '' leaves it to them."""

    def choices(self, state: Any, seat: int) -> Sequence[str]:
        """The only replies that the actor may give now, after its cue; () where it may say anything."""

    def transcript(self, state: Any) -> Sequence[tuple[int, str]]:
        """(seat, what everybody at the table could see), one entry an action, in order."""

    def brief(self, state: Any, seat: int) -> str:
        """What a judge of the seat's goal reads before the transcript."""

    def score(self, state: Any, seat: int) -> Optional[float]:
        """How well the seat reached its goal, 0 to 10, where that can be checked; None: ask the judge."""

    def describe(self, state: Any) -> Mapping[str, Any]:
        """Facts for the episode's record, as JSON: scenario, environment, category, situation, and the name and
        goal of every seat under 'seats'."""


@struct.dataclass
class Observation:
    """What follows from one action in every slot.

    Attributes:
      views: for every seat a View of Tokens.
      done: bool[B] the episode is over.
      reward: f32[B, S].
      failed: bool[B] the environment raised or stalled, or its text did not fit.
    """

    views: tuple[View, ...]
    done: Any
    reward: Any
    failed: Any


@dataclasses.dataclass(frozen=True)
class Account:
    """A finished episode in text, for the judge and the record.

    Attributes:
      facts: see TextEnvironment.describe.
      lines: (seat, text), see TextEnvironment.transcript.
      briefs, scores: by seat, see TextEnvironment.brief and score.
      events: names of what happened, to be counted.
      failure: why the environment broke off the episode; None where it did not.
    """

    facts: Mapping[str, Any]
    lines: Sequence[tuple[int, str]]
    briefs: Sequence[str]
    scores: Sequence[Optional[float]]
    events: Sequence[str] = ()
    failure: Optional[str] = None


class Environment(Protocol):
    """Episodes in B slots.

    Attributes:
      num_seats, max_turns: as in TextEnvironment.
      width: tokens of every View.
      on_device: everything but `encode` and `accounts` is array code that can be traced.
    """

    num_seats: int
    max_turns: int
    width: int
    on_device: bool

    def encode(self, scenarios: Sequence[Any]) -> Any:
        """Scenarios in the form that `deal` takes: arrays [E, ...] on the device, or what suits the environment."""

    def start(self, batch: int) -> Any:
        """The state of `batch` slots in which nothing has begun."""

    def deal(self, state: Any, queue: Any, episode, rows) -> tuple[Any, tuple[View, ...]]:
        """Starts episodes: in every slot of rows bool[B], number episode i32[B] of the encoded queue.

        Returns:
          (state, opening View of Tokens of every seat; rows that do not start have no tokens).
        """

    def advice(self, seat: int) -> tuple[Sequence[int], Sequence[int]]:
        """Ids put before and after a strategy in what the actor of `seat` reads."""

    def cues(self, state: Any, seat: int) -> View:
        """Tokens with which the next replies of a seat begin."""

    def choices(self, state: Any, seat: int) -> Optional[Tokens]:
        """Tokens [B, C, K] (lengths i32[B, C]): the only replies the actor may give now, empty ones not counted;
        None, or a row without any: it may say anything."""

    def step(self, state: Any, seat: int, message: Tokens, live) -> tuple[Any, Observation]:
        """Applies the messages of `seat` in the live slots."""

    def accounts(self, scenarios: Sequence[Any], state: Any, messages: Tokens) -> list[Account]:
        """What happened, in text, on the host.

        Args:
          scenarios: E of them.
          state: the state by episode, B = E, as it was when each ended.
          messages: Tokens [E, A, K] (lengths i32[E, A]), the messages in their order.
        """


@dataclasses.dataclass(frozen=True)
class Domain:
    """How an experiment meets an environment. A module with a `DOMAIN` of this type can be named in a config.

    Attributes:
      seats: at its table.
      options: keys of config.environment with their defaults.
      check: of config.environment, what is wrong with it, one message each.
      scenarios: (config.scenarios, config.environment) -> the scenarios, each with an `id`, a `category` and a
        `split`, 'train' or 'held_out'; '' names the set that comes with the environment.
      environment: of config.environment, the TextEnvironment; None: there is only the form in tokens.
      tokens: (config.environment, tokenizer of everybody, width of views) -> an Environment on the device; None:
        there is none.
      language: (config, tokenizer, chat segments) of a small model of the environment's own, trained from scratch.
      variant: of config.environment, the name under which results are reported; others are not to be compared with.
    """

    seats: int
    options: Mapping[str, Any]
    check: Callable[[ConfigDict], list[str]]
    scenarios: Callable[[str, ConfigDict], Sequence[Any]]
    environment: Optional[Callable[[ConfigDict], TextEnvironment]] = None
    tokens: Optional[Callable[[ConfigDict, Any, int], Environment]] = None
    language: Optional[Callable[[], tuple[ModelConfig, Any, ChatSegments]]] = None
    variant: Callable[[ConfigDict], str] = lambda environment: environment.name


NAMES = ('alfworld', 'bargain', 'sotopia', 'webshop')


def load_domain(name: str) -> Domain:
    """The DOMAIN of a named environment, or of a module of one's own, 'package.module'.

    Raises:
      ValueError: there is none; the message names those that there are.
    """
    module = f'epo_jax.envs.{name}.domain' if name in NAMES else name
    try:
        return importlib.import_module(module).DOMAIN
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f'no environment {name!r}: {", ".join(NAMES)}, or a module with a DOMAIN ({error})') from None
