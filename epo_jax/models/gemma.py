"""The decoder of Gemma 3 (text only). See models/base.py."""

import functools

import flax.linen as nn
import jax.numpy as jnp

from epo_jax.models.base import LayeredDecoder
from epo_jax.models.layers import Layer
from epo_jax.runtime.parallel import constrain


class GemmaBlock(Layer):
    """A layer with norms before and after attention, and before and after the MLP."""

    @nn.compact
    def __call__(self, carry, layer, positions, kinds):
        """Run the layer, see Layer."""
        x, cache = carry
        x = constrain(self.mesh, x, 'rows', None, None)
        y, cache = self.attention(self.norm('attn_norm', x), cache, layer, positions, kinds)
        x += self.norm('attn_post_norm', y)
        y = self.mlp(self.norm('mlp_norm', x), functools.partial(nn.gelu, approximate=True))
        x += self.norm('mlp_post_norm', y)
        return (constrain(self.mesh, x, 'rows', None, None), cache), None


class Gemma(LayeredDecoder):
    """The decoder of Gemma 3; its `config` is a GemmaConfig."""

    layer_class = GemmaBlock

    def embedded(self, ids):
        """Return the input of the first layer: embeddings times sqrt(W), which is rounded to their dtype."""
        return super().embedded(ids) * jnp.asarray(self.config.width ** 0.5, self.dtype)

    def logits(self, hidden):
        """Project hidden states [..., W] to logits f32[..., V], which `logit_cap` limits."""
        logits, cap = super().logits(hidden), self.config.logit_cap
        return logits if cap is None else cap * jnp.tanh(logits / cap)
