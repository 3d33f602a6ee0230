"""What there is to bargain over: every set of items and every pair of valuations that the game's rules allow.

The rules are those of Lewis et al. 2017, Deal or No Deal?: 5 to 7 items of three kinds, each kind present; all items
together are worth 10 to either side; every kind is worth something to one side, and some kind to both.

Axis letters: E scenarios, S = 2 sides, I = 3 items, P splits (padded).
"""

import dataclasses
import itertools
from typing import Optional, Sequence

from flax import struct
import numpy as np

from epo_jax.envs.bargain import opponents
from epo_jax.envs.bargain.language import MAX_COUNT, TOTAL

BOARDS = np.array([n for n in itertools.product(range(1, MAX_COUNT + 1), repeat=3) if 5 <= sum(n) <= 7], np.int32)
_SPLITS = [list(itertools.product(*(range(n + 1) for n in counts))) for counts in BOARDS.tolist()]
P = max(map(len, _SPLITS))
SPLITS = np.array([np.pad(s, ((0, P - len(s)), (0, 0))).T for s in _SPLITS], np.int32)    # [boards, I, P] to seat 0
REAL = np.array([np.arange(P) < len(s) for s in _SPLITS])

# An action is the number of the split that is offered, or one of these; NOTHING is an action that is still to come.
ACCEPTED, WALKED, PASSED, NOTHING = -1, -2, -3, -4

HELD_OUT = 8    # one of so many pairs of valuations is kept for evaluation


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One bargain.

    Attributes:
      counts: how many there are of each item.
      values: to each side, the points of one item of each kind.
      opponent: name of the kind of seat 1's player; None: there is a second seat.
      split: 'train' or 'held_out'.
    """

    counts: tuple[int, ...]
    values: tuple[tuple[int, ...], tuple[int, ...]]
    opponent: Optional[str]
    split: str

    @property
    def category(self) -> str:
        """The opponent's kind, or 'seat'."""
        return self.opponent or 'seat'

    @property
    def opening(self) -> tuple:
        """What seat 0 is told: the items, and their values to itself."""
        return self.counts, self.values[0]

    @property
    def id(self) -> str:
        """The numbers in a row."""
        return '/'.join([*('-'.join(map(str, numbers)) for numbers in (self.counts, *self.values)), self.category])


@struct.dataclass
class Queue:
    """Scenarios as arrays.

    Attributes:
      board: i32[E] row of BOARDS.
      values: i32[E, S, I].
      kind: i32[E] row of opponents.FAMILY.
    """

    board: np.ndarray
    values: np.ndarray
    kind: np.ndarray


def every_scenario(opponent: str) -> list[Scenario]:
    """All scenarios, in an order that is mixed and always the same; kinds of opponents alternate.

    A pair of valuations is in one split only, whichever side has which.

    Args:
      opponent: 'family' or 'seat', as in `game.Bargain`.
    """
    pairs = [(counts, *pair) for counts in map(tuple, BOARDS.tolist()) for pair in _pairs(counts)]
    names = opponents.NAMES if opponent == 'family' else (None,)
    scenarios = []
    for i, at in enumerate(np.random.default_rng(0).permutation(len(pairs))):
        counts, first, second = pairs[at]
        split = 'train' if i % HELD_OUT else 'held_out'
        for values in {(first, second): None, (second, first): None}:
            scenarios += [Scenario(counts, values, name, split) for name in names]
    order = np.random.default_rng(1).permutation(len(scenarios) // len(names))
    return [scenarios[at * len(names) + k] for at in order for k in range(len(names))]


def _pairs(counts: tuple[int, ...]) -> list[tuple]:
    """Unordered pairs of valuations that the rules allow for a set of items."""
    each = [v for v in itertools.product(range(TOTAL + 1), repeat=len(counts)) if np.dot(v, counts) == TOTAL]
    return [pair for pair in itertools.combinations_with_replacement(each, 2)
            if all(map(any, zip(*pair))) and any(map(all, zip(*pair)))]


def encode(scenarios: Sequence[Scenario]) -> Queue:
    """Scenarios as arrays.

    Raises:
      ValueError: items, values or an opponent that there are not.
    """
    counts = np.array([s.counts for s in scenarios], np.int32)
    values = np.array([s.values for s in scenarios], np.int32)
    same = (counts[:, None] == BOARDS).all(axis=2)
    right = same.any(axis=1) & ((values * counts[:, None]).sum(axis=2) == TOTAL).all(axis=1)
    right &= (values >= 0).all(axis=(1, 2))
    kinds = {name: i for i, name in enumerate(opponents.NAMES)} | {None: 0}
    right &= np.array([s.opponent in kinds for s in scenarios], bool)
    if not right.all():
        wrong = int(np.flatnonzero(~right)[0])
        raise ValueError(f'scenario {wrong} ({scenarios[wrong].id}): needs {", ".join(opponents.NAMES)} or None as '
                         f'opponent, 5 to 7 items, and values that make {TOTAL} points of them for either side')
    kind = np.array([kinds[s.opponent] for s in scenarios], np.int32)
    return Queue(same.argmax(axis=1).astype(np.int32), values, kind)
