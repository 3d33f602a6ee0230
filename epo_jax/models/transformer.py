"""The decoder of the Llama family: Llama, SmolLM2, SmolLM3, Mistral, Qwen2 and Qwen3. See models/base.py."""

import flax.linen as nn

from epo_jax.models.base import LayeredDecoder
from epo_jax.models.layers import Layer
from epo_jax.runtime.parallel import constrain


class Block(Layer):
    """A layer with a norm before attention and a norm before the MLP."""

    @nn.compact
    def __call__(self, carry, layer, positions, kinds):
        """Run the layer, see Layer."""
        x, cache = carry
        x = constrain(self.mesh, x, 'rows', None, None)
        y, cache = self.attention(self.norm('attn_norm', x), cache, layer, positions, kinds)
        x += y
        x += self.mlp(self.norm('mlp_norm', x), nn.silu)
        return (constrain(self.mesh, x, 'rows', None, None), cache), None


class Transformer(LayeredDecoder):
    """The decoder of the Llama family."""

    layer_class = Block
