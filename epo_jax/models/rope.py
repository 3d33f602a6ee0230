"""Rotary position embeddings (Su et al., 2021) and the scalings of their frequencies."""

from typing import Optional

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int
import numpy as np

from epo_jax.models.config import LinearScaling, RopeScaling
from epo_jax.text.tokens import Array

Rotation = tuple[jax.Array, jax.Array]


def rope_frequencies(head_dim: int, theta: Optional[float],
                     scaling: Optional[RopeScaling | LinearScaling] = None) -> np.ndarray:
    """Return the rotary frequencies f32[D / 2] in radians per position.

    Args:
      head_dim: size of a head, D.
      theta: base of the frequencies; None for no rotation, which has frequencies of 0.
      scaling: scaling of the frequencies, or None.
    """
    if theta is None:
        return np.zeros(head_dim // 2, np.float32)
    freq = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if isinstance(scaling, LinearScaling):
        freq /= scaling.factor
    elif scaling is not None:
        turns = scaling.original_positions * freq / (2 * np.pi)
        keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        keep = np.clip(keep, 0.0, 1.0)
        freq = keep * freq + (1 - keep) * freq / scaling.factor
    return freq.astype(np.float32)


def rotation(frequencies: np.ndarray, positions: Int[Array, 'B K']) -> Rotation:
    """Return the sine and the cosine of the rotary angles at `positions`, each f32[B, K, 1, D / 2]."""
    angle = positions[:, :, None, None].astype(jnp.float32) * frequencies
    return jnp.sin(angle), jnp.cos(angle)


def rotate(x: Float[Array, 'B K heads D'], rotation: Rotation) -> jax.Array:
    """Apply the rotary embedding. It rotates pairs (i, i + D / 2), not neighboring dimensions."""
    sin, cos = rotation
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
