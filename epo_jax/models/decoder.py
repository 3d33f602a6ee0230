"""What sampling, scoring, agents and judges need of a model. A model family is a class with these members."""

from typing import Any, Optional, Protocol

import jax
from jax.sharding import Mesh

from epo_jax.models.config import ModelConfig

# Keys and values of all earlier tokens: one (keys, values) pair a layer, or in the stacked layout one pair with a
# leading layer axis. The shapes are the decoder's own affair; its rows are the first axis, or the second where it is
# stacked.
KVCache = tuple[Any, ...]


class Decoder(Protocol):
    """A decoder-only language model as a pure function of its parameters.

    `apply({'params': params}, ids, positions, cache)` returns (hidden [B, K, W], the new cache), and
    `apply({'params': params}, hidden, method='logits')` returns float32 logits [..., V]. Flax modules have `apply`.

    Attributes:
      config: the shape; sampling and scoring read `width` and `tied` only.
      dtype: of activations and of the cache.
      stacked: whether layer parameters and cache have a leading layer axis.
      mesh: over which rows and heads are split; None for a single device.
    """

    config: ModelConfig
    dtype: Any
    stacked: bool
    mesh: Optional[Mesh]

    def apply(self, variables: Any, *args: Any, method: Optional[str] = None) -> Any:
        """Run the layers, or `method`, on parameters."""

    def init_cache(self, batch: int, capacity: int) -> KVCache:
        """Return an empty cache for `batch` conversations of `capacity` tokens."""

    def init_params(self, key: jax.Array) -> Any:
        """Return random parameters, float32, as a plain nested dict."""

    def init_boxed(self, key: jax.Array) -> Any:
        """Return random parameters, every leaf with the names of its logical axes, for sharding."""
