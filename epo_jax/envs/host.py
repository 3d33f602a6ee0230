"""Text episodes on the host, seen from the rollout as tokens.

With several processes, each holds the episodes of its own slots (see `epo_jax.runtime.hosts`), and only their texts travel.
"""

import dataclasses
from typing import Any, Optional, Sequence

from flax import struct
import numpy as np

from epo_jax.agents.base import Seat
from epo_jax.envs.base import Account, Observation, TextEnvironment, View
from epo_jax.runtime import hosts
from epo_jax.runtime.hostcalls import Failure, call_all
from epo_jax.text import tokenizer as text
from epo_jax.text.tokens import Tokens, TooLongError, pack

CUE_TOKENS = 32  # room for the beginning of a reply


@struct.dataclass
class HostState:
    """What is in the slots.

    Attributes:
      episodes: object[B] states of the TextEnvironment; None: nothing has begun, or another process has it.
      failures: object[B] why the environment broke, or None.
      events: object[B] tuples of names.
    """

    episodes: np.ndarray
    failures: np.ndarray
    events: np.ndarray


@dataclasses.dataclass(frozen=True)
class HostEnvironment:
    """Drives one TextEnvironment for B episodes; text is tokenized once, when it enters.

    Attributes:
      env: the environment.
      seats: who sits at the table (their tokenizers are the edges of the text).
      width: tokens of one view at most.
      timeout: seconds a step of all episodes may take; None: unlimited, one after the other.
      choice_shape: most choices of one reply, and tokens of one at most.
    """

    env: TextEnvironment
    seats: tuple[Seat, ...]
    width: int
    timeout: Optional[float] = None
    choice_shape: tuple[int, int] = (512, 64)

    on_device = False

    @property
    def num_seats(self) -> int:
        return self.env.num_seats

    @property
    def max_turns(self) -> int:
        return self.env.max_turns

    def advice(self, seat: int) -> tuple[list[int], list[int]]:
        """See Environment.advice."""
        before, after = self.env.advice
        tokenizer = self.seats[seat].actor.tokenizer
        return text.encode(tokenizer, before), text.encode(tokenizer, after)

    def encode(self, scenarios: Sequence[Any]) -> Sequence[Any]:
        """See Environment.encode: the scenarios themselves."""
        return scenarios

    def start(self, batch: int) -> HostState:
        """See Environment.start."""
        events = np.empty(batch, object)
        events[:] = [()] * batch
        return HostState(np.full(batch, None, object), np.full(batch, None, object), events)

    def deal(self, state: HostState, queue: Sequence[Any], episode, rows) -> tuple[HostState, tuple[View, ...]]:
        """See Environment.deal.

        Raises:
          TooLongError: an opening is longer than `width`.
        """
        advised = [seat.strategist is not None for seat in self.seats]
        episodes, failures, events = state.episodes.copy(), state.failures.copy(), state.events.copy()
        views = [View([()] * len(rows), [()] * len(rows)) for _ in self.seats]

        def reset(b):
            episodes[b], opening = self.env.reset(queue[episode[b]], advised)
            return opening

        openings = hosts.share(np.flatnonzero(rows & hosts.own(len(rows))), reset)
        for b in np.flatnonzero(rows):
            failures[b], events[b] = None, ()
            for s, view in enumerate(views):
                for role in (0, 1):
                    try:
                        view[role][b] = self._encode(s, role, openings[b][s][role])
                    except TooLongError as error:
                        raise TooLongError(f'{error}: an opening is too long, raise rollout.view_tokens') from None
        return HostState(episodes, failures, events), self._pack(views)

    def cues(self, state: HostState, seat: int) -> View:
        """See Environment.cues."""
        told = hosts.share(_here(state), lambda b: self.env.cues(state.episodes[b], seat))
        cues = [told.get(b, View('', '')) for b in range(len(state.episodes))]
        return View(*(pack([self._encode(seat, role, cue[role]) for cue in cues], CUE_TOKENS) for role in (0, 1)))

    def choices(self, state: HostState, seat: int) -> Optional[Tokens]:
        """See Environment.choices. The arrays have one shape, `choice_shape`, and there are none at all where no
        episode restricts its actor.

        Raises:
          TooLongError: there are more choices than the shape holds, or longer ones than the actor can write.
        """
        told = hosts.share(_here(state), lambda b: self.env.choices(state.episodes[b], seat))
        rows = [told.get(b, ()) for b in range(len(state.episodes))]
        if not any(rows):
            return None
        count, width = self.choice_shape
        ids, length = np.zeros((len(rows), count, width), np.int32), np.zeros((len(rows), count), np.int32)
        for b, row in enumerate(rows):
            if len(row) > count:
                raise TooLongError(f'{len(row)} replies to choose from do not fit into {count}')
            encoded = [self._encode(seat, 1, choice) for choice in row]
            longest = max(map(len, encoded), default=0)
            if longest >= self.seats[seat].actor.agent.width:  # its end takes one more
                raise TooLongError(f'a reply to choose from has {longest} tokens: raise actor.max_tokens above that')
            packed = pack(encoded, width)
            ids[b, :len(row)], length[b, :len(row)] = packed.ids, packed.length
        return Tokens(ids, length)

    def step(self, state: HostState, seat: int, message: Tokens, live) -> tuple[HostState, Observation]:
        """See Environment.step."""
        live = np.asarray(live)
        rows = np.flatnonzero(live)
        messages = message.rows()
        tokenizer = self.seats[seat].actor.tokenizer
        mine = [b for b in _here(state) if live[b]]

        texts = {b: text.decode(tokenizer, messages[b]) for b in mine}
        calls = [lambda b=b: self.env.step(state.episodes[b], seat, texts[b]) for b in mine]
        results = dict(zip(mine, call_all(calls, self.timeout)))

        episodes, failures, events = state.episodes.copy(), state.failures.copy(), state.events.copy()
        views = [View([()] * len(live), [()] * len(live)) for _ in range(self.num_seats)]
        done = np.zeros(len(live), bool)
        reward = np.zeros((len(live), self.num_seats), np.float32)

        def after(b):  # the state stays here
            if isinstance(results[b], Failure):
                return results[b]
            try:
                episodes[b], step = results[b]
                return step
            except (TypeError, ValueError) as error:
                return Failure(f'{type(error).__name__}: {error}')

        steps = hosts.share(mine, after)
        for b in rows:
            step = steps[b]
            if isinstance(step, Failure):
                failures[b] = step.reason
                continue
            try:
                done[b], reward[b], events[b] = step.done, step.rewards, events[b] + step.events
                for s, view in enumerate(views):
                    for role in (0, 1):
                        view[role][b] = self._encode(s, role, step.views[s][role])
            except TooLongError as error:
                failures[b] = str(error)
            except (TypeError, ValueError, AttributeError) as error:  # what came back is no step of this table
                failures[b] = f'{type(error).__name__}: {error}'
        failed = np.array([reason is not None for reason in failures])
        return HostState(episodes, failures, events), Observation(self._pack(views), done, reward, failed)

    def accounts(self, scenarios: Sequence[Any], state: HostState, messages: Tokens) -> list[Account]:
        """See Environment.accounts."""
        seats = range(self.num_seats)

        def account(b):
            episode = state.episodes[b]
            return Account(
                self.env.describe(episode), self.env.transcript(episode), [self.env.brief(episode, s) for s in seats],
                [self.env.score(episode, s) for s in seats], state.events[b], state.failures[b])

        told = hosts.share(_here(state), account)
        return [told[b] for b in range(len(state.episodes))]

    def _encode(self, seat: int, role: int, part: str) -> list[int]:
        """Ids of what a role (0 strategist, 1 actor) of a seat reads."""
        player = (self.seats[seat].strategist, self.seats[seat].actor)[role]
        ids = text.encode(player.tokenizer, part) if player and part else []
        if len(ids) > self.width:
            raise TooLongError(f'a text of {len(ids)} tokens does not fit into {self.width}')
        return ids

    def _pack(self, views: Sequence[View]) -> tuple[View, ...]:
        return tuple(View(*(pack(ids, self.width) for ids in view)) for view in views)


def _here(state: HostState) -> list[int]:
    """The slots whose episodes this process has."""
    return [b for b, episode in enumerate(state.episodes) if episode is not None]
