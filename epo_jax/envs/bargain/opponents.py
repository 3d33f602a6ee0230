"""The fixed opponent family: kinds of partner, each a row of numbers, told apart only by what they offer.

An opponent has an aspiration, the value out of 10 below which it makes no offer and accepts none. It follows a
schedule over its actions, and comes down further as the other side comes towards it. It takes an offer that is
worth less to it than `respect` as an insult: it answers with silence, and when that has happened more often than
its `patience` allows, it leaves.

Axis letters: B rows, P splits, I = 3 items.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from epo_jax.envs.bargain.language import MAX_ROUNDS


@dataclasses.dataclass(frozen=True)
class Opponent:
    """One kind of partner.

    Attributes:
      name: of the kind.
      schedule: aspiration at its first, second, ... action; the last one stays.
      floor: the aspiration never falls below it.
      reciprocity: points it comes down for every point that the other side's best offer so far is better for it
        than the other side's first.
      respect: an offer worth less to it is an insult.
      patience: insults that it bears.
    """

    name: str
    schedule: tuple[int, ...]
    floor: int
    reciprocity: int = 0
    respect: int = 0
    patience: int = 0


FAMILY = (
    Opponent('eager', (8, 4, 3), floor=3),
    Opponent('slow', (10, 8, 4), floor=4),
    Opponent('stubborn', (7,), floor=7),
    Opponent('mirror', (10,), floor=3, reciprocity=2),
    Opponent('proud', (7, 5), floor=5, respect=4, patience=1),
    Opponent('fading', (4, 8, 10), floor=4),
    Opponent('hasty', (4, 10), floor=4),
)
NAMES = tuple(opponent.name for opponent in FAMILY)

SCHEDULES = np.array([(o.schedule + o.schedule[-1:] * MAX_ROUNDS)[:MAX_ROUNDS] for o in FAMILY], np.int32)
FLOORS, RECIPROCITIES, RESPECTS, PATIENCES = (
    np.array([getattr(o, name) for o in FAMILY], np.int32)
    for name in ('floor', 'reciprocity', 'respect', 'patience'))


def aspiration(kind, action, first, best):
    """i32[B] the value it insists on.

    Args:
      kind: i32[B] row of FAMILY.
      action: i32[B] number of its action, from 0.
      first, best: i32[B], value to it of the other side's first offer and of the best so far.
    """
    wanted = jnp.asarray(SCHEDULES)[kind, action] - jnp.asarray(RECIPROCITIES)[kind] * (best - first)
    return jnp.maximum(wanted, jnp.asarray(FLOORS)[kind])


def insulting(kind, worth):
    """bool[B] an offer of this value to it is an insult."""
    return worth < jnp.asarray(RESPECTS)[kind]


def leaves(kind, insults):
    """bool[B] so many insults were too many."""
    return insults > jnp.asarray(PATIENCES)[kind]
