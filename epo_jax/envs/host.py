"""A batch of text episodes on the host, seen from the rollout as tokens."""

import dataclasses
from typing import Any, Optional, Sequence

import numpy as np

from epo_jax.agents.base import Seat
from epo_jax.envs.base import Observation, TextEnvironment, View
from epo_jax.hostcalls import Failure, call_all
from epo_jax.text import tokenizer as text
from epo_jax.text.tokens import TooLongError, Tokens, pack


CUE_TOKENS = 32  # room for the beginning of a reply


@dataclasses.dataclass(frozen=True)
class HostState:
    """States, failures and event counts of the episodes, by row."""

    episodes: tuple[Any, ...]
    failures: tuple[Optional[str], ...]
    events: tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True)
class HostEnvironment:
    """Drives one TextEnvironment for B episodes; text is tokenized once, when it enters.

    Attributes:
      env: the environment.
      seats: who sits at the table (their tokenizers are the edges of the text).
      width: tokens of one view at most.
      timeout: seconds a step of all episodes may take; None: unlimited, one after the other.
    """

    env: TextEnvironment
    seats: tuple[Seat, ...]
    width: int
    timeout: Optional[float] = None

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

    def reset(self, scenarios: Sequence[Any]) -> tuple[HostState, tuple[View, ...]]:
        """See Environment.reset.

        Raises:
          TooLongError: an opening is longer than `width`.
        """
        advised = [seat.strategist is not None for seat in self.seats]
        states, openings = zip(*(self.env.reset(scenario, advised) for scenario in scenarios))
        try:
            views = tuple(
                View(*(self._pack(s, role, [opening[s][role] for opening in openings]) for role in (0, 1)))
                for s in range(self.num_seats))
        except TooLongError as error:
            raise TooLongError(f'{error}: an opening is too long, raise rollout.view_tokens') from None
        none = (None,) * len(states)
        return HostState(states, none, ((),) * len(states)), views

    def cues(self, state: HostState, seat: int) -> View:
        """See Environment.cues."""
        cues = [self.env.cues(episode, seat) for episode in state.episodes]
        return View(*(pack([self._encode(seat, role, cue[role]) for cue in cues], CUE_TOKENS) for role in (0, 1)))

    def step(self, state: HostState, seat: int, message: Tokens, live) -> tuple[HostState, Observation]:
        """See Environment.step."""
        live = np.asarray(live)
        rows = np.flatnonzero(live)
        messages = message.rows()
        tokenizer = self.seats[seat].actor.tokenizer

        texts = {b: text.decode(tokenizer, messages[b]) for b in rows}
        calls = [lambda b=b: self.env.step(state.episodes[b], seat, texts[b]) for b in rows]

        episodes, failures, events = list(state.episodes), list(state.failures), list(state.events)
        views = [View([()] * len(live), [()] * len(live)) for _ in range(self.num_seats)]
        done = np.zeros(len(live), bool)
        reward = np.zeros((len(live), self.num_seats), np.float32)
        for b, result in zip(rows, call_all(calls, self.timeout)):
            if isinstance(result, Failure):
                failures[b] = result.reason
                continue
            try:
                episodes[b], step = result
                done[b], reward[b], events[b] = step.done, step.rewards, events[b] + step.events
                for s, view in enumerate(views):
                    for role in (0, 1):
                        view[role][b] = self._encode(s, role, step.views[s][role])
            except TooLongError as error:
                failures[b] = str(error)
            except (TypeError, ValueError, AttributeError) as error:  # what came back is no step of this table
                failures[b] = f'{type(error).__name__}: {error}'
        failed = np.array([reason is not None for reason in failures])
        views = tuple(View(*(pack(ids, self.width) for ids in view)) for view in views)
        return HostState(tuple(episodes), tuple(failures), tuple(events)), Observation(views, done, reward, failed)

    def _encode(self, seat: int, role: int, part: str) -> list[int]:
        """Ids of what a role (0 strategist, 1 actor) of a seat reads."""
        player = (self.seats[seat].strategist, self.seats[seat].actor)[role]
        ids = text.encode(player.tokenizer, part) if player and part else []
        if len(ids) > self.width:
            raise TooLongError(f'a text of {len(ids)} tokens does not fit into {self.width}')
        return ids

    def _pack(self, seat: int, role: int, parts: Sequence[str]) -> Tokens:
        return pack([self._encode(seat, role, part) for part in parts], self.width)
