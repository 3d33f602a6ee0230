"""All bargaining scenarios: every set of items and every pair of valuations that the rules allow.

The rules are those of Lewis et al. 2017, Deal or No Deal?: there are 5 to 7 items of three kinds, at least one of each
kind; all items together are worth 10 points to either side; every kind has a value for at least one side, and at least
one kind has a value for both.

Axis letters: E scenarios, S = 2 sides, I = 3 kinds of items, P splits (padded).
"""

import dataclasses
import itertools
from typing import Optional, Sequence

from flax import struct
import numpy as np

from epo_jax.envs.bargain import opponents
from epo_jax.envs.bargain.language import MAX_COUNT, TOTAL

# BOARDS: i32[boards, I], the sets of items. SPLITS: i32[boards, I, P], the items of seat 0 in every split of a set.
# VALID_SPLITS: bool[boards, P], which columns of SPLITS are splits; the others are padding.
BOARDS = np.array([n for n in itertools.product(range(1, MAX_COUNT + 1), repeat=3) if 5 <= sum(n) <= 7], np.int32)
_SPLITS = [list(itertools.product(*(range(n + 1) for n in counts))) for counts in BOARDS.tolist()]
P = max(map(len, _SPLITS))
SPLITS = np.array([np.pad(s, ((0, P - len(s)), (0, 0))).T for s in _SPLITS], np.int32)
VALID_SPLITS = np.array([np.arange(P) < len(s) for s in _SPLITS])

# An action is the number of the split that is offered, or one of these. PASSED is an action without effect, and NOTHING
# an action that has not happened.
ACCEPTED, WALKED, PASSED, NOTHING = -1, -2, -3, -4

HELD_OUT = 8  # one in this many pairs of valuations is held out for evaluation


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One bargain.

    Attributes:
      counts: number of items of each kind.
      values: for each side, the points of one item of each kind.
      opponent: name of the opponent's kind; None if a second seat plays.
      split: 'train' or 'held_out'.
    """

    counts: tuple[int, ...]
    values: tuple[tuple[int, ...], tuple[int, ...]]
    opponent: Optional[str]
    split: str

    @property
    def category(self) -> str:
        """Return the kind of the opponent, or 'seat'."""
        return self.opponent or 'seat'

    @property
    def opening(self) -> tuple:
        """Return what seat 0 observes at the beginning: the items, and their values to itself."""
        return self.counts, self.values[0]

    @property
    def id(self) -> str:
        """Return the unique id, which is made of the numbers of the scenario and its category."""
        return '/'.join([*('-'.join(map(str, numbers)) for numbers in (self.counts, *self.values)), self.category])


@struct.dataclass
class Queue:
    """Scenarios as arrays.

    Attributes:
      board: i32[E], rows of BOARDS.
      values: i32[E, S, I], see Scenario.
      kind: i32[E], rows of opponents.FAMILY.
    """

    board: np.ndarray
    values: np.ndarray
    kind: np.ndarray


def every_scenario(opponent: str) -> list[Scenario]:
    """Return all scenarios in a fixed random order in which the kinds of opponents alternate.

    A pair of valuations belongs to one split only, no matter which side has which of the two.

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
    """Return the unordered pairs of valuations that the rules allow for a set of items."""
    each = [v for v in itertools.product(range(TOTAL + 1), repeat=len(counts)) if np.dot(v, counts) == TOTAL]
    return [pair for pair in itertools.combinations_with_replacement(each, 2)
            if all(map(any, zip(*pair))) and any(map(all, zip(*pair)))]


def encode(scenarios: Sequence[Scenario]) -> Queue:
    """Return scenarios as arrays.

    Raises:
      ValueError: the items, values or opponent of a scenario break the rules.
    """
    counts = np.array([s.counts for s in scenarios], np.int32)
    values = np.array([s.values for s in scenarios], np.int32)
    same_board = (counts[:, None] == BOARDS).all(axis=2)
    valid = same_board.any(axis=1) & ((values * counts[:, None]).sum(axis=2) == TOTAL).all(axis=1)
    valid &= (values >= 0).all(axis=(1, 2))
    kinds = {name: i for i, name in enumerate(opponents.NAMES)} | {None: 0}
    valid &= np.array([s.opponent in kinds for s in scenarios], bool)
    if not valid.all():
        wrong = int(np.flatnonzero(~valid)[0])
        raise ValueError(
            f'scenario {wrong} ({scenarios[wrong].id}) breaks the rules: it needs 5 to 7 items, values that add up to '
            f'{TOTAL} points for either side, and an opponent that is {", ".join(opponents.NAMES)} or None')
    kind = np.array([kinds[s.opponent] for s in scenarios], np.int32)
    return Queue(same_board.argmax(axis=1).astype(np.int32), values, kind)
