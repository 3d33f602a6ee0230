"""Who plays whom in which iteration."""

import dataclasses
from typing import Any, Sequence

from flax import struct
from ml_collections import ConfigDict
import numpy as np

from epo_jax.rl.learner import TrainState

# What a strategist can be: the policy in training, its last snapshot, one drawn from the pool of snapshots, the
# model as it was before training, or nobody.
KINDS = ('policy', 'snapshot', 'pool', 'prompted', 'none')


@struct.dataclass
class RunState:
    """The state that a run carries from one iteration to the next and saves in its checkpoints.

    Attributes:
      train: Parameters and optimizer state of the policy.
      snapshots: Parameters of earlier policies, oldest first; empty unless a seat plays snapshots.
    """

    train: TrainState
    snapshots: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Match:
    """Strategists by seat for a share of an iteration's episodes.

    Attributes:
      kinds: one of KINDS a seat; every 'policy' seat is trained.
      episodes: numbers, within the iteration, of the episodes played so.
    """

    kinds: tuple[str, ...]
    episodes: tuple[int, ...]


def matches(kinds: Sequence[str], episodes: int) -> list[Match]:
    """Splits an iteration's episodes into matches.

    Seats of one kind play one match. Where they differ, the second half of the episodes is played with the seats
    turned round, so that nobody profits from speaking first.
    """
    kinds = tuple(kinds)
    if len(set(kinds)) == 1:
        return [Match(kinds, tuple(range(episodes)))]
    half = (episodes + 1) // 2
    return [match for match in (Match(kinds, tuple(range(half))), Match(kinds[::-1], tuple(range(half, episodes))))
            if match.episodes]


def draw_snapshot(seed: int, iteration: int, count: int) -> int:
    """Which of `count` pool members an iteration plays against, uniformly."""
    return int(np.random.default_rng((seed, iteration)).integers(count))


def add_snapshot(snapshots: tuple, params, size: int) -> tuple:
    """The pool with a new snapshot at its end; the oldest beyond `size` is dropped."""
    return (*snapshots, params)[-size:] if size else ()


def uses_pool(config: ConfigDict) -> bool:
    """Return whether any seat plays a snapshot."""
    return bool({'snapshot', 'pool'} & set(config.seats))


def pool_size(config: ConfigDict, iterations: int) -> int:
    """Return how many snapshots a run holds after `iterations` iterations."""
    return min(-(-iterations // config.pool_every), config.pool_size) if uses_pool(config) else 0
