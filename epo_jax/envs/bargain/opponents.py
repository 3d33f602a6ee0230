"""The fixed family of opponents. Each kind is a row of numbers; only its offers distinguish it from the other kinds.

An opponent has an aspiration: it neither makes nor accepts an offer that gives it fewer points. The aspiration follows
a schedule over its actions, and falls further as the offers of the other side improve. An offer of fewer than `respect`
points is an insult: the opponent answers with silence, and walks away after more than `patience` insults.

Axis letters: B rows.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from epo_jax.envs.bargain.language import MAX_ROUNDS


@dataclasses.dataclass(frozen=True)
class Opponent:
    """One kind of opponent.

    Attributes:
      name: name of the kind.
      schedule: aspiration at its first, second, ... action; later actions keep the last one.
      floor: smallest aspiration.
      reciprocity: how far the aspiration falls for every point by which the best offer of the other side is better for
        the opponent than its first one.
      respect: an offer that is worth fewer points is an insult.
      patience: number of insults after which it still stays.
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
    """Return the fewest points that opponents accept, and ask for in their own offers, i32[B].

    Args:
      kind: i32[B], rows of FAMILY.
      action: i32[B], number of the action of the opponent, from 0.
      first: i32[B], points to the opponent of the first offer of the other side.
      best: i32[B], points to the opponent of the best offer of the other side so far.
    """
    aim = jnp.asarray(SCHEDULES)[kind, action] - jnp.asarray(RECIPROCITIES)[kind] * (best - first)
    return jnp.maximum(aim, jnp.asarray(FLOORS)[kind])


def insulting(kind, worth):
    """Return whether an offer of `worth` i32[B] points insults opponents of `kind` i32[B], bool[B]."""
    return worth < jnp.asarray(RESPECTS)[kind]


def leaves(kind, insults):
    """Return whether opponents of `kind` i32[B] walk away after `insults` i32[B] insults, bool[B]."""
    return insults > jnp.asarray(PATIENCES)[kind]
