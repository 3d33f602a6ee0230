"""The interface between a decoder and the code that samples from it, scores with it and adapts it."""

from typing import Any, Optional, Protocol

import jax
from jax.sharding import Mesh
from jaxtyping import Float, PyTree

from epo_jax.models.config import ModelConfig
from epo_jax.text.tokens import Array

# Keys and values of all earlier tokens. The decoder chooses structure and shapes, but the conversations are axis 0 of
# every leaf, or axis 1 in the stacked layout.
KVCache = PyTree[Float[Array, '...']]


class Decoder(Protocol):
    """A decoder-only language model as a pure function of its parameters.

    A model family is a Flax module with these members; `nn.Module` provides `apply`. Parameters are a plain nested dict
    in one of the two layouts of models/layout.py. `logits` must read no parameters except 'embed' and, if the embedding
    is not tied, 'head', because scoring differentiates it separately. Adapters (models/lora.py) are leaves `a` and `b`
    next to the `kernel` of a matrix.

    Attributes:
      config: the shape; sampling and scoring read only `width` and `tied`.
      dtype: dtype of activations and of the cache.
      stacked: whether layer parameters and the cache have a leading layer axis.
      mesh: the mesh over which rows and heads are split, or None for a single device.
    """

    config: ModelConfig
    dtype: Any
    stacked: bool
    mesh: Optional[Mesh]

    def apply(self, variables: Any, *args: Any, method: Optional[str] = None) -> Any:
        """Run the layers or project to logits.

        `apply({'params': params}, ids, positions, cache=None)` maps ids i32[B, K] at positions i32[B, K] to hidden
        states [B, K, W] and the new cache. A position outside the cache marks padding, which is not written.
        `apply({'params': params}, hidden, method='logits')` maps hidden states [..., W] to float32 logits [..., V].
        """

    def init_cache(self, batch: int, capacity: int) -> KVCache:
        """Return an empty cache for `batch` conversations of at most `capacity` tokens."""

    def init_params(self, key: jax.Array) -> Any:
        """Return random float32 parameters as a plain nested dict."""

    def init_boxed(self, key: jax.Array) -> Any:
        """Return random float32 parameters whose leaves carry the names of their logical axes, for sharding."""
