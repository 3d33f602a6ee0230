"""Environments: what a table talks about.

Two forms. A `TextEnvironment` is one episode in plain Python and text: what a researcher writes. An `Environment`
is a batch of episodes in tokens: what the rollout drives. `envs/host.py` turns the first into the second.

Axis letters: B episodes, K tokens.
"""

from typing import Any, NamedTuple, Optional, Protocol, Sequence

from flax import struct

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
    """

    num_seats: int
    max_turns: int
    advice: tuple[str, str]

    def reset(self, scenario: Any, advised: Sequence[bool]) -> tuple[Any, tuple[View, ...]]:
        """Starts an episode: (state, opening View of every seat); `advised`: which seats have a strategist."""

    def step(self, state: Any, seat: int, message: str) -> tuple[Any, TextStep]:
        """The actor of `seat` has written `message`."""

    def cues(self, state: Any, seat: int) -> View:
        """Text with which the strategist's and the actor's next reply begin; '' leaves it to them."""

    def transcript(self, state: Any) -> tuple[tuple[int, str], ...]:
        """(seat, what everybody at the table could see), in order."""

    def brief(self, state: Any, seat: int) -> str:
        """What a judge of the seat's goal reads before the transcript."""

    def score(self, state: Any, seat: int) -> Optional[float]:
        """How well the seat reached its goal, 0 to 10, where that can be checked; None: ask the judge."""


@struct.dataclass
class Observation:
    """What follows from one action in every episode.

    Attributes:
      views: for every seat a View of Tokens.
      done: bool[B] the episode is over.
      reward: f32[B, seats].
      failed: bool[B] the environment raised or stalled, or its text did not fit.
    """

    views: tuple[View, ...]
    done: Any
    reward: Any
    failed: Any


class Environment(Protocol):
    """A batch of episodes.

    Attributes:
      num_seats, max_turns: as in TextEnvironment.
    """

    num_seats: int
    max_turns: int

    def advice(self, seat: int) -> tuple[Sequence[int], Sequence[int]]:
        """Ids put before and after a strategy in what the actor of `seat` reads."""

    def reset(self, scenarios: Sequence[Any]) -> tuple[Any, tuple[View, ...]]:
        """Starts an episode of every scenario: (state, opening View of Tokens for every seat)."""

    def cues(self, state: Any, seat: int) -> View:
        """Tokens with which the next replies of a seat begin."""

    def step(self, state: Any, seat: int, message: Tokens, live) -> tuple[Any, Observation]:
        """Applies the messages of `seat` in the live rows."""
