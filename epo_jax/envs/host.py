"""Text environments on the host, driven in tokens.

With several processes, each one holds the episodes of its own slots (see `epo_jax.runtime.hosts`) and only their
texts are exchanged.
"""

import dataclasses
import json
import math
from typing import Any, Optional, Sequence

from flax import struct
import numpy as np

from epo_jax.agents.base import Seat
from epo_jax.envs.base import EnvironmentStep, EpisodeText, Observation, TextEnvironment, TextStep
from epo_jax.runtime import hosts
from epo_jax.runtime.errors import InputError
from epo_jax.runtime.hostcalls import Failure, call_all
from epo_jax.text import tokenizer as text
from epo_jax.text.tokens import Tokens, TooLongError, pack

CUE_TOKENS = 32  # longest beginning of a reply


class StepError(InputError):
    """An environment returned a value that breaks its contract; the message says what is wrong."""


@struct.dataclass
class HostState:
    """The episodes in the slots.

    Attributes:
      episodes: object[B], states of the TextEnvironment; None for an empty slot, or one of another process.
      failures: object[B], why the environment failed, or None.
      events: object[B], tuples of names.
      messages: object[B], tuples of (seat, message) as the actors wrote them; () for a slot of another process.
      begun: bool[B, S, 2], whether strategist and actor of a seat have something to read; what comes next continues it.
    """

    episodes: np.ndarray
    failures: np.ndarray
    events: np.ndarray
    messages: np.ndarray
    begun: np.ndarray

    def copy(self) -> 'HostState':
        """Return a state whose arrays may be written to."""
        return HostState(*(getattr(self, field.name).copy() for field in dataclasses.fields(self)))


@dataclasses.dataclass(frozen=True)
class HostEnvironment:
    """Drives one TextEnvironment for B episodes. Every text is tokenized once, when it enters.

    Attributes:
      env: the environment.
      seats: the agents, whose tokenizers the texts are encoded with.
      width: largest number of tokens of one observation.
      timeout: seconds that a step of all episodes may take; None sets no limit and steps them one after the other.
      choice_shape: largest number of choices of one reply, and largest number of tokens of one.
    """

    env: TextEnvironment
    seats: tuple[Seat, ...]
    width: int
    timeout: Optional[float] = None
    choice_shape: tuple[int, int] = (512, 64)

    on_device = False

    @property
    def num_seats(self) -> int:
        """See Environment."""
        return self.env.num_seats

    @property
    def max_turns(self) -> int:
        """See Environment."""
        return self.env.max_turns

    def advice(self, seat: int) -> tuple[list[int], list[int]]:
        """See Environment.advice."""
        before, after = self.env.advice
        tokenizer = self.seats[seat].actor.tokenizer
        return text.encode(tokenizer, before), text.encode(tokenizer, after)

    def encode(self, scenarios: Sequence[Any], advised: Sequence[bool]) -> Sequence[Any]:
        """See Environment.encode; the scenarios stay as they are."""
        return scenarios

    def start(self, batch: int) -> HostState:
        """See Environment.start."""
        nothing, empty = np.full(batch, None, object), np.empty(batch, object)
        empty[:] = [()] * batch
        return HostState(nothing, nothing, empty, empty, np.zeros((batch, self.num_seats, 2), bool))

    def reset(self, state: HostState, queue: Sequence[Any], episode, rows) -> tuple[HostState, tuple[Observation, ...]]:
        """See Environment.reset.

        Raises:
          StepError: the environment does not return a state and an observation for every seat.
          TooLongError: a first observation is longer than `width`.
        """
        advised = [seat.advised for seat in self.seats]
        state, observations = state.copy(), self._no_observations(len(rows))

        def reset(b):
            result = self.env.reset(queue[episode[b]], advised)
            if not isinstance(result, tuple) or len(result) != 2:
                raise StepError(
                    f'{type(self.env).__name__}.reset must return (state, observations), not {result!r:.80}')
            check_observations(result[1], self.num_seats, f'{type(self.env).__name__}.reset')
            state.episodes[b], first = result
            return first

        first = hosts.share(np.flatnonzero(rows & hosts.local_slots(len(rows))), reset)
        for b in np.flatnonzero(rows):
            state.failures[b], state.events[b], state.messages[b], state.begun[b] = None, (), (), False
            try:
                self._encode_observations(observations, state, b, first[b])
            except TooLongError as error:
                raise TooLongError(
                    f'the opening of an episode is too long ({error}): raise rollout.view_tokens') from None
        return state, self._pack(observations)

    def cues(self, state: HostState, seat: int) -> Observation:
        """See Environment.cues.

        Raises:
          StepError: the environment does not return an Observation.
        """
        cues = hosts.share(_local(state), lambda b: self._cue(state.episodes[b], seat))
        cues = [cues.get(b, Observation('', '')) for b in range(len(state.episodes))]
        return Observation(*(
            pack([self._encode(seat, role, cue[role], 'reply') for cue in cues], CUE_TOKENS) for role in (0, 1)))

    def choices(self, state: HostState, seat: int) -> Optional[Tokens]:
        """See Environment.choices; the arrays have the shape `choice_shape`, or are None if all replies are allowed.

        Raises:
          TooLongError: there are more choices than the shape holds, or one is longer than the actor can write.
          StepError: the environment does not return texts.
        """
        def ask(b):  # choices continue the cue, if there is one
            choices = self.env.choices(state.episodes[b], seat)
            if not isinstance(choices, (tuple, list)) or not all(isinstance(c, str) and c for c in choices):
                raise StepError(f'{type(self.env).__name__}.choices must return a tuple of texts that are not empty, '
                                f'not {choices!r:.80}')
            return choices, 'part' if choices and self._cue(state.episodes[b], seat).actor else 'reply'

        answers = hosts.share(_local(state), ask)
        rows, places = zip(*(answers.get(b, ((), 'reply')) for b in range(len(state.episodes))))
        if not any(rows):
            return None
        count, width = self.choice_shape
        ids, length = np.zeros((len(rows), count, width), np.int32), np.zeros((len(rows), count), np.int32)
        for b, row in enumerate(rows):
            if len(row) > count:
                raise TooLongError(f'the environment allows {len(row)} replies; at most {count} fit')
            encoded = [self._encode(seat, 1, choice, places[b]) for choice in row]
            longest = max(map(len, encoded), default=0)
            if longest >= self.seats[seat].actor.agent.width:  # the end token takes one more
                raise TooLongError(f'an allowed reply has {longest} tokens: raise actor.max_tokens above that')
            packed = pack(encoded, width)
            ids[b, :len(row)], length[b, :len(row)] = packed.ids, packed.length
        return Tokens(ids, length)

    def _cue(self, episode: Any, seat: int) -> Observation:
        """Return how the replies of strategist and actor begin."""
        cue = self.env.cues(episode, seat)
        check_observation(cue, f'{type(self.env).__name__}.cues for seat {seat}')
        return Observation(*cue)

    def step(self, state: HostState, seat: int, message: Tokens, live) -> tuple[HostState, EnvironmentStep]:
        """See Environment.step. An error, a stall or a wrong return value of the environment fails its own episode."""
        live = np.asarray(live)
        messages = message.rows()
        actor = self.seats[seat].actor
        local = [b for b in _local(state) if live[b]]

        texts = {b: text.decode(actor.tokenizer, messages[b], actor.leads[1]) for b in local}
        calls = [lambda b=b: self._checked_step(state.episodes[b], seat, texts[b]) for b in local]
        results = dict(zip(local, call_all(calls, self.timeout), strict=True))

        state, observations = state.copy(), self._no_observations(len(live))
        done = np.zeros(len(live), bool)
        reward = np.full((len(live), self.num_seats), np.nan, np.float32)

        def without_state(b):  # states stay in their own process
            if isinstance(results[b], Failure):
                return results[b]
            state.episodes[b], step = results[b]
            state.messages[b] += ((seat, texts[b]),)
            return step

        steps = hosts.share(local, without_state)
        for b in np.flatnonzero(live):
            step = steps[b]
            if isinstance(step, Failure):
                state.failures[b] = step.reason
                continue
            done[b], state.events[b] = step.done, (*state.events[b], *step.events)
            if step.rewards:
                reward[b] = [math.nan if r is None else r for r in step.rewards]
            state.begun[b, seat] = False  # everything before this turn has been read
            try:
                self._encode_observations(observations, state, b, step.observations)
            except TooLongError as error:
                state.failures[b] = str(error)
        failed = np.array([reason is not None for reason in state.failures])
        return state, EnvironmentStep(self._pack(observations), done, reward, failed)

    def _checked_step(self, episode: Any, seat: int, message: str) -> tuple[Any, TextStep]:
        result = self.env.step(episode, seat, message)
        check_step(result, self.num_seats, f'{type(self.env).__name__}.step')
        return result

    def texts(self, scenarios: Sequence[Any], state: HostState) -> list[EpisodeText]:
        """See Environment.texts.

        Raises:
          StepError: the environment describes an episode by something else than JSON and texts.
        """
        seats = range(self.num_seats)
        judged = type(self.env).judge_prompt is not TextEnvironment.judge_prompt

        def episode_text(b):
            episode, name = state.episodes[b], type(self.env).__name__
            facts, lines = self.env.describe(scenarios[b], episode), self.env.transcript(episode, state.messages[b])
            check_facts(facts, f'{name}.describe')
            check_lines(lines, self.num_seats, f'{name}.transcript')
            prompts = [self.env.judge_prompt(episode, seat) for seat in seats] if judged else ()
            overview = self.env.overview(episode, state.messages[b]) if judged else ''
            for method, text_of in (*(('judge_prompt', prompt) for prompt in prompts), ('overview', overview)):
                if not isinstance(text_of, str):
                    raise StepError(f'{name}.{method} must return a text, not {text_of!r:.80}')
            return EpisodeText(facts, lines, prompts, state.events[b], state.failures[b], overview)

        episodes = hosts.share(_local(state), episode_text)
        return [episodes[b] for b in range(len(state.episodes))]

    def _encode(self, seat: int, role: int, part: str, place: str) -> list[int]:
        """Return the ids of what a role (0 strategist, 1 actor) of a seat reads.

        `place` is 'message' or 'reply' for text that begins one, and 'part' for text that continues one.
        """
        player = (self.seats[seat].strategist, self.seats[seat].actor)[role]
        if not player or not part:
            return []
        leads = dict(zip(('message', 'reply', 'part'), (*player.leads, text.CONTINUATION)))
        ids = text.encode(player.tokenizer, part, leads[place])
        if len(ids) > self.width:
            raise TooLongError(f'a text of {len(ids)} tokens does not fit into {self.width} tokens')
        return ids

    def _no_observations(self, batch: int) -> list[Observation]:
        return [Observation([()] * batch, [()] * batch) for _ in range(self.num_seats)]

    def _encode_observations(self, into: list[Observation], state: HostState, b: int,
                             observations: Sequence[Observation]) -> None:
        for seat, (rows, observation) in enumerate(zip(into, observations, strict=True)):
            for role in (0, 1):
                place = 'part' if state.begun[b, seat, role] else 'message'
                rows[role][b] = self._encode(seat, role, observation[role], place)
                state.begun[b, seat, role] |= bool(observation[role])

    def _pack(self, observations: Sequence[Observation]) -> tuple[Observation, ...]:
        return tuple(Observation(*(pack(ids, self.width) for ids in rows)) for rows in observations)


def check_observations(observations: Any, seats: int, source: str) -> None:
    """Raise StepError unless there is one Observation of two texts for every seat."""
    if not isinstance(observations, (tuple, list)) or len(observations) != seats:
        count = len(observations) if isinstance(observations, (tuple, list)) else repr(observations)[:80]
        raise StepError(f'{source} must return one Observation for each of {seats} seats, not {count}')
    for seat, observation in enumerate(observations):
        check_observation(observation, f'{source}: the Observation of seat {seat}')


def check_observation(observation: Any, what: str) -> None:
    """Raise StepError unless an Observation is two texts."""
    if not isinstance(observation, tuple) or len(observation) != 2 or not all(
            isinstance(part, str) for part in observation):
        raise StepError(f'{what} must be two texts, for strategist and actor, not {observation!r:.80}')


def check_facts(facts: Any, source: str) -> None:
    """Raise StepError unless `facts` are what TextEnvironment.describe must return."""
    try:
        sound = isinstance(facts, dict) and bool(json.dumps(facts, allow_nan=False))
    except (TypeError, ValueError):
        sound = False
    if not sound:
        raise StepError(f'{source} must return a dict of JSON values, not {facts!r:.80}')


def check_lines(lines: Any, seats: int, source: str) -> None:
    """Raise StepError unless `lines` are what TextEnvironment.transcript must return."""
    is_line = lambda line: (isinstance(line, tuple) and len(line) == 2 and line[0] in range(seats)
                            and isinstance(line[1], str))
    if not isinstance(lines, (tuple, list)) or not all(map(is_line, lines)):
        raise StepError(f'{source} must return pairs of a seat and a text, not {lines!r:.80}')


def check_step(result: Any, seats: int, source: str) -> None:
    """Raise StepError unless `result` is what TextEnvironment.step must return."""
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], TextStep):
        raise StepError(f'{source} must return (state, TextStep), not {result!r:.80}')
    step = result[1]
    check_observations(step.observations, seats, source)
    if not isinstance(step.done, (bool, np.bool_)):
        raise StepError(f'{source}: done must be a bool, not {step.done!r:.80}')
    rewards = step.rewards
    number = lambda r: r is None or isinstance(r, (int, float, np.number)) and math.isfinite(r)
    if not isinstance(rewards, (tuple, list)) or len(rewards) not in (0, seats) or not all(map(number, rewards)):
        raise StepError(f'{source}: rewards must be one finite number or None for each of {seats} seats, or (); not '
                        f'{rewards!r:.80}')
    if not isinstance(step.events, (tuple, list)) or not all(isinstance(event, str) for event in step.events):
        raise StepError(f'{source}: events must be a sequence of names, not {step.events!r:.80}')


def _local(state: HostState) -> list[int]:
    """Return the slots whose episodes this process holds."""
    return [b for b, episode in enumerate(state.episodes) if episode is not None]
