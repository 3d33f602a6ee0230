"""The parts of decoder layers in Flax Linen, which the families combine.

Axis letters: B conversations, K new tokens, L positions of the cache, H key/value heads, G query heads that share a
key/value head, D head size, W residual width, M MLP width, V vocabulary.
"""

from typing import Callable, Optional

from einops import rearrange
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from epo_jax.models.attention import attend_by_blocks, attend_so_far
from epo_jax.models.config import ModelConfig
from epo_jax.models.rope import rotate
from epo_jax.runtime.parallel import constrain


class Linear(nn.Module):
    """A linear layer from [..., in] to [..., *out] whose parameters carry logical axis names for sharding.

    Attributes:
      out: the output axes.
      axes: logical names of the input axis and the output axes.
      bias: whether to add a bias.
      mesh: the mesh of the parameters, or None.
    """

    out: tuple[int, ...]
    axes: tuple[str, ...]
    bias: bool = False
    mesh: Optional[Mesh] = None

    @nn.compact
    def __call__(self, x):
        """Apply the layer to x [..., in]."""
        init = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal', in_axis=0, out_axis=range(1, len(self.axes)))
        kernel = self.param('kernel', nn.with_logical_partitioning(init, self.axes), (x.shape[-1], *self.out))
        # Gather the kernel over fsdp. Otherwise XLA passes shards around in a ring and adds up partial products.
        gather = lambda x, axes: constrain(self.mesh, x, *(None if axis == 'embed' else axis for axis in axes))
        kernel = gather(kernel.astype(x.dtype), self.axes)
        # Multiply 2D matrices: with more row axes, XLA's CPU backend computes the gradient of the kernel slowly.
        y = x.reshape(-1, x.shape[-1]) @ kernel.reshape(x.shape[-1], -1)
        y = y.reshape(*x.shape[:-1], *self.out)
        if self.has_variable('params', 'a'):  # a low-rank adapter, see models/lora.py
            a = gather(self.get_variable('params', 'a').astype(x.dtype), (self.axes[0], None))
            b = gather(self.get_variable('params', 'b').astype(x.dtype), (None, *self.axes[1:]))
            y += ((x.reshape(-1, x.shape[-1]) @ a) @ b.reshape(b.shape[0], -1)).reshape(y.shape)
        if self.bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[1:])
            y += self.param('bias', zeros, self.out).astype(x.dtype)
        return y


class RMSNorm(nn.Module):
    """RMS normalization over the last axis, x / rms(x) * (offset + scale), in float32.

    Attributes:
      eps: added to the mean square.
      axis: logical name of the normalized axis.
      offset: added to the scale; new parameters normalize without scaling.
    """

    eps: float
    axis: str = 'embed'
    offset: float = 0.0

    @nn.compact
    def __call__(self, x):
        """Normalize x over its last axis."""
        init = nn.with_logical_partitioning(nn.initializers.constant(1.0 - self.offset), (self.axis,))
        scale = self.param('scale', init, (x.shape[-1],)).astype(jnp.float32)
        y = x.astype(jnp.float32)
        y *= jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        return (y * (scale + self.offset if self.offset else scale)).astype(x.dtype)


class Layer(nn.Module):
    """A decoder layer; a family combines its parts in `__call__`.

    Attributes:
      config: the shape of the decoder.
      mesh: the mesh over which rows and heads are split, or None.
    """

    config: ModelConfig
    mesh: Optional[Mesh] = None

    def __call__(self, carry, layer, positions, kinds):
        """Run the layer.

        Args:
          carry: (x [B, K, W], cache), where the cache is a LayerCache, a StackedCache, or None.
          layer: (index of the layer in a StackedCache or None, index of its kind in `kinds` or None).
          positions: i32[B, K].
          kinds: (rotation, window) of this layer, see models/rope.py and models/attention.py; or, if the layer has an
            index, of all kinds of layers, along a leading axis.

        Returns:
          (carry, None), the form that `nn.scan` requires.
        """
        raise NotImplementedError

    def norm(self, name: str, x, axis: str = 'embed'):
        """Normalize x over its last axis, whose logical name is `axis`."""
        return RMSNorm(self.config.norm_eps, axis, self.config.norm_offset, name=name)(x)

    def attention(self, x, cache, layer, positions, kinds):
        """Return the output of self-attention [B, K, W] for x [B, K, W], and the new cache; see `__call__`."""
        c, (number, kind) = self.config, layer
        rotation, window = kinds if kind is None else jax.tree.map(lambda of_kinds: of_kinds[kind], kinds)
        heads = lambda name, count, axis: Linear(
            (count, c.head_dim), ('embed', axis, 'head_dim'), c.qkv_bias, self.mesh, name=name)(x)
        q, k, v = heads('q', c.num_heads, 'heads'), *(heads(name, c.num_kv_heads, 'kv_heads') for name in 'kv')
        if c.qk_norm:
            q, k = self.norm('q_norm', q, 'head_dim'), self.norm('k_norm', k, 'head_dim')
        q, k = rotate(q, rotation), rotate(k, rotation)
        q = rearrange(q, 'b k (h g) d -> b k h g d', h=c.num_kv_heads)
        if cache is None:
            keys, values = rearrange(k, 'b l h d -> b h d l'), rearrange(v, 'b l h d -> b h l d')
            y = attend_by_blocks(q, keys, values, positions, window, c.attention_scale)
        else:
            rows = jnp.arange(x.shape[0])[:, None]
            k, v = k.astype(cache[0].dtype), v.astype(cache[1].dtype)
            if number is None:
                cache = (cache[0].at[rows, :, :, positions].set(k, mode='drop'),
                         cache[1].at[rows, :, positions, :].set(v, mode='drop'))
                keys, values = cache
            else:
                cache = (cache[0].at[number, rows, :, :, positions].set(k, mode='drop'),
                         cache[1].at[number, rows, :, positions, :].set(v, mode='drop'))
                keys, values = cache[0][number], cache[1][number]
            y = attend_so_far(q, keys, values, positions, window, c.attention_scale)
        y = rearrange(y, 'b k h g d -> b k (h g d)')
        return Linear((c.width,), ('heads', 'embed'), mesh=self.mesh, name='o')(y), cache

    def mlp(self, x, activation: Callable[[jax.Array], jax.Array]):
        """Return the output of the gated MLP [B, K, W] for x [B, K, W]."""
        c = self.config
        gate = Linear((c.mlp_width,), ('embed', 'mlp'), mesh=self.mesh, name='gate')(x)
        up = Linear((c.mlp_width,), ('embed', 'mlp'), mesh=self.mesh, name='up')(x)
        return Linear((c.width,), ('mlp', 'embed'), mesh=self.mesh, name='down')(activation(gate) * up)
