"""Self-play: who plays whom in which iteration, and the pool of snapshots."""

import dataclasses
from typing import Any, Sequence

from flax import struct
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from epo_jax.rl.credit import assign
from epo_jax.rl.learner import TrainState
from epo_jax.runtime import streams

# The strategist of a seat: the policy in training, its last snapshot, a random snapshot from the pool, the model before
# training, none, or none but with an actor that reasons before it acts. Every other name is that of a model.
KINDS = ('policy', 'snapshot', 'pool', 'prompted', 'none', 'react')


@struct.dataclass
class RunState:
    """The state that a run carries from one iteration to the next and saves in its checkpoints.

    Attributes:
      train: parameters and optimizer state of the policy.
      snapshots: parameters of earlier policies, oldest first; empty unless a seat plays snapshots.
      memory: what the credit method remembers, f32[seats]; () if it remembers nothing.
    """

    train: TrainState
    snapshots: tuple[Any, ...]
    memory: Any = ()


@dataclasses.dataclass(frozen=True)
class Match:
    """The strategists of the seats for some of an iteration's episodes.

    Attributes:
      kinds: one of KINDS, or a model, for each seat.
      episodes: numbers of the episodes within the iteration.
    """

    kinds: tuple[str, ...]
    episodes: tuple[int, ...]


def matches(kinds: Sequence[str], episodes: int, group: int) -> list[Match]:
    """Split the episodes of an iteration into matches.

    Every match plays another rotation of the strategists around the seats, so that no strategist always acts first. The
    matches get equal shares of the groups; the first ones get one group more where the number does not divide.

    Args:
      kinds: one of KINDS, or a model, for each seat.
      episodes: number of episodes, a multiple of `group`.
      group: number of neighboring episodes that share a scenario; a match plays whole groups.
    """
    kinds = tuple(kinds)
    rotations = list(dict.fromkeys(kinds[s:] + kinds[:s] for s in range(len(kinds))))
    shares = np.array_split(np.arange(episodes).reshape(-1, group), len(rotations))
    return [Match(rotation, tuple(share.ravel().tolist()))
            for rotation, share in zip(rotations, shares, strict=True) if share.size]


def draw_snapshot(seed: int, iteration: int, count: int) -> int:
    """Draw which of `count` snapshots an iteration plays against, uniformly."""
    return int(streams.generator('snapshot', seed, iteration).integers(count))


def add_snapshot(snapshots: tuple, params, size: int) -> tuple:
    """Return the pool with a new snapshot at its end; the oldest beyond `size` are dropped."""
    return (*snapshots, params)[-size:] if size else ()


def uses_pool(config: ConfigDict) -> bool:
    """Return whether any seat plays a snapshot."""
    return bool({'snapshot', 'pool'} & set(config.seats))


def pool_size(config: ConfigDict, iterations: int) -> int:
    """Return how many snapshots a run holds after `iterations` iterations."""
    return min(-(-iterations // config.pool_every), config.pool_size) if uses_pool(config) else 0


def empty_memory(config: ConfigDict) -> Any:
    """Return the memory of the credit method before the first iteration, see `RunState.memory`."""
    remembers = assign.from_config(config.reward, config.credit).needs('memory')
    return jnp.zeros(len(config.seats)) if remembers else ()
