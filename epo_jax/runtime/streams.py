"""Independent random streams by purpose and position.

A seed is used for many things. Every use names its purpose, so that no two uses share a stream: NumPy pads seeds with
zeros, which makes (seed, 1) and (seed, 1, 0) the same, and JAX keys that are folded with small numbers meet the keys
of iterations.
"""

import zlib

import jax
import numpy as np


def generator(purpose: str, *position: int) -> np.random.Generator:
    """Return a NumPy generator.

    Args:
      purpose: what the numbers are for.
      position: non-negative numbers, such as the seed and the iteration.
    """
    return np.random.default_rng([zlib.crc32(purpose.encode()), len(position), *position])


def key(purpose: str, seed: int) -> jax.Array:
    """Return a JAX key that differs from those of all iterations (see `rollout.episode_keys`)."""
    return jax.random.fold_in(jax.random.key(seed), np.uint32(zlib.crc32(purpose.encode()) | 1 << 31))
