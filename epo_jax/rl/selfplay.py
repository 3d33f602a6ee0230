"""Self-play: who plays whom in which iteration, and the pool of snapshots."""

import dataclasses
from typing import Any, Sequence

from flax import struct
from ml_collections import ConfigDict
import numpy as np

from epo_jax.rl.learner import TrainState

# The strategist of a seat: the policy in training, its last snapshot, a random snapshot from the pool, the model before
# training, or none.
KINDS = ('policy', 'snapshot', 'pool', 'prompted', 'none')


@struct.dataclass
class RunState:
    """The state that a run carries from one iteration to the next and saves in its checkpoints.

    Attributes:
      train: parameters and optimizer state of the policy.
      snapshots: parameters of earlier policies, oldest first; empty unless a seat plays snapshots.
    """

    train: TrainState
    snapshots: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Match:
    """The strategists of the seats for some of an iteration's episodes.

    Attributes:
      kinds: one of KINDS for each seat; every 'policy' seat is trained.
      episodes: numbers of the episodes within the iteration.
    """

    kinds: tuple[str, ...]
    episodes: tuple[int, ...]


def matches(kinds: Sequence[str], episodes: int) -> list[Match]:
    """Split the episodes of an iteration into matches.

    If all seats are of one kind, there is one match. Otherwise the second half of the episodes is played with the
    order of the seats reversed, so that no strategist always acts first.

    Args:
      kinds: one of KINDS for each seat.
      episodes: number of episodes.
    """
    kinds = tuple(kinds)
    if len(set(kinds)) == 1:
        return [Match(kinds, tuple(range(episodes)))]
    half = (episodes + 1) // 2
    return [match for match in (Match(kinds, tuple(range(half))), Match(kinds[::-1], tuple(range(half, episodes))))
            if match.episodes]


def draw_snapshot(seed: int, iteration: int, count: int) -> int:
    """Draw which of `count` snapshots an iteration plays against, uniformly."""
    return int(np.random.default_rng((seed, iteration)).integers(count))


def add_snapshot(snapshots: tuple, params, size: int) -> tuple:
    """Return the pool with a new snapshot at its end; the oldest beyond `size` are dropped."""
    return (*snapshots, params)[-size:] if size else ()


def uses_pool(config: ConfigDict) -> bool:
    """Return whether any seat plays a snapshot."""
    return bool({'snapshot', 'pool'} & set(config.seats))


def pool_size(config: ConfigDict, iterations: int) -> int:
    """Return how many snapshots a run holds after `iterations` iterations."""
    return min(-(-iterations // config.pool_every), config.pool_size) if uses_pool(config) else 0
