"""The decoder: Flax Linen, used as a pure function of its parameters.

    hidden, cache = model.apply({'params': params}, ids, positions, cache)
    logits        = model.apply({'params': params}, hidden, method='logits')

Axis letters: B conversations, K new tokens, L positions of the cache, H key/value heads,
G query heads sharing one key/value head, D head size, W residual width, M MLP width, V vocabulary.

The same parameters come in two layouts. With `stacked=True`, every layer parameter has a leading layer axis and the
layers run under `nn.scan` with rematerialization; this layout is trained, checkpointed and sharded. With
`stacked=False`, there is one subtree a layer and an unrolled loop, which samples faster. `unstack` and `stack`
(models/layout.py) convert between them. The stacked layout samples too, so that the frozen base of an adapter
(models/lora.py) is held in memory once; its cache then has a leading layer axis.
"""

from typing import Any, Optional

from einops import rearrange
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from epo_jax.models.attention import attend_by_blocks, attend_so_far
from epo_jax.models.config import ModelConfig
from epo_jax.runtime.parallel import constrain

# One (keys, values) pair a layer: keys [B, H, D, L], values [B, H, L, D]. Keys lie transposed so that a
# one-token query reads them row by row. In the stacked layout one such pair with a leading layer axis.
KVCache = tuple[tuple[jax.Array, jax.Array], ...]

REMAT = {
    'none': None,
    'dots': jax.checkpoint_policies.save_from_both_policies(  # the output of attention, not the scores
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names('attention')),
    'full': jax.checkpoint_policies.nothing_saveable,
}


def rope_frequencies(config: ModelConfig) -> np.ndarray:
    """Return the rotary frequencies, f32[D / 2], in radians a position, with Llama 3.1's scaling if it is set."""
    freq = config.rope_theta ** (-np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim)
    scaling = config.rope_scaling
    if scaling is not None:
        turns = scaling.original_positions * freq / (2 * np.pi)
        keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        keep = np.clip(keep, 0.0, 1.0)
        freq = keep * freq + (1 - keep) * freq / scaling.factor
    return freq.astype(np.float32)


def rotation(config: ModelConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return sine and cosine of the rotary angles at positions[B, K], each f32[B, K, 1, D / 2]."""
    angle = positions[:, :, None, None].astype(jnp.float32) * rope_frequencies(config)
    return jnp.sin(angle), jnp.cos(angle)


def rotate(x: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Apply the rotary embedding to x[B, K, heads, D]; it pairs the halves of D, not neighbors."""
    sin, cos = rotation
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


class Linear(nn.Module):
    """A linear layer from [..., in] to [..., *out], with logical axis names for sharding."""

    out: tuple[int, ...]
    axes: tuple[str, ...]
    bias: bool = False
    mesh: Optional[Mesh] = None

    @nn.compact
    def __call__(self, x):
        """Apply the layer to x[..., in]."""
        init = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal', in_axis=0, out_axis=range(1, len(self.axes)))
        kernel = self.param('kernel', nn.with_logical_partitioning(init, self.axes), (x.shape[-1], *self.out))
        # Gather the kernel over fsdp. Otherwise XLA passes shards around in a ring and adds up partial products.
        whole = lambda x, axes: constrain(self.mesh, x, *(None if axis == 'embed' else axis for axis in axes))
        kernel = whole(kernel.astype(x.dtype), self.axes)
        # One matrix product: with several row axes, the gradient of the kernel takes a slow path of XLA on CPU.
        y = x.reshape(-1, x.shape[-1]) @ kernel.reshape(x.shape[-1], -1)
        y = y.reshape(*x.shape[:-1], *self.out)
        if self.has_variable('params', 'a'):  # a low-rank adapter, see models/lora.py
            a = whole(self.get_variable('params', 'a').astype(x.dtype), (self.axes[0], None))
            b = whole(self.get_variable('params', 'b').astype(x.dtype), (None, *self.axes[1:]))
            y += ((x.reshape(-1, x.shape[-1]) @ a) @ b.reshape(b.shape[0], -1)).reshape(y.shape)
        if self.bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[1:])
            y += self.param('bias', zeros, self.out).astype(x.dtype)
        return y


class RMSNorm(nn.Module):
    """RMS normalization over the last axis, x / rms(x) * scale, in float32."""

    eps: float
    axis: str = 'embed'

    @nn.compact
    def __call__(self, x):
        """Normalize x[..., W]."""
        ones = nn.with_logical_partitioning(nn.initializers.ones, (self.axis,))
        scale = self.param('scale', ones, (x.shape[-1],))
        y = x.astype(jnp.float32)
        y *= jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        return (y * scale.astype(jnp.float32)).astype(x.dtype)


class Block(nn.Module):
    """One decoder layer."""

    config: ModelConfig
    mesh: Optional[Mesh] = None

    @nn.compact
    def __call__(self, carry, layer, positions, rotation):
        """Run the layer.

        Args:
          carry: (x[B, K, W], cache), where the cache is the layer's (keys, values), those of all layers, or None.
          layer: number of the layer if the cache is that of all layers; else None.
          positions: i32[B, K].
          rotation: see the function `rotation`.

        Returns:
          (carry, None), as `nn.scan` requires.
        """
        c, (x, cache) = self.config, carry
        x = constrain(self.mesh, x, 'rows', None, None)
        y = RMSNorm(c.norm_eps, name='attn_norm')(x)
        heads = lambda name, count, axis: Linear(
            (count, c.head_dim), ('embed', axis, 'head_dim'), c.qkv_bias, self.mesh, name=name)(y)
        q, k, v = heads('q', c.num_heads, 'heads'), *(heads(name, c.num_kv_heads, 'kv_heads') for name in 'kv')
        if c.qk_norm:
            q = RMSNorm(c.norm_eps, 'head_dim', name='q_norm')(q)
            k = RMSNorm(c.norm_eps, 'head_dim', name='k_norm')(k)
        q, k = rotate(q, rotation), rotate(k, rotation)
        q = rearrange(q, 'b k (h g) d -> b k h g d', h=c.num_kv_heads)
        if cache is None:
            keys, values = rearrange(k, 'b l h d -> b h d l'), rearrange(v, 'b l h d -> b h l d')
            y = attend_by_blocks(q, keys, values, positions, c.sliding_window)
        else:
            rows = jnp.arange(x.shape[0])[:, None]
            k, v = k.astype(cache[0].dtype), v.astype(cache[1].dtype)
            if layer is None:
                cache = (cache[0].at[rows, :, :, positions].set(k, mode='drop'),
                         cache[1].at[rows, :, positions, :].set(v, mode='drop'))
                keys, values = cache
            else:
                cache = (cache[0].at[layer, rows, :, :, positions].set(k, mode='drop'),
                         cache[1].at[layer, rows, :, positions, :].set(v, mode='drop'))
                keys, values = cache[0][layer], cache[1][layer]
            y = attend_so_far(q, keys, values, positions, c.sliding_window)
        y = rearrange(y, 'b k h g d -> b k (h g d)')
        x += Linear((c.width,), ('heads', 'embed'), mesh=self.mesh, name='o')(y)
        y = RMSNorm(c.norm_eps, name='mlp_norm')(x)
        gate = Linear((c.mlp_width,), ('embed', 'mlp'), mesh=self.mesh, name='gate')(y)
        up = Linear((c.mlp_width,), ('embed', 'mlp'), mesh=self.mesh, name='up')(y)
        x += Linear((c.width,), ('mlp', 'embed'), mesh=self.mesh, name='down')(nn.silu(gate) * up)
        return (constrain(self.mesh, x, 'rows', None, None), cache), None


class Transformer(nn.Module):
    """The decoder of the Llama family.

    Attributes:
      config: the shape.
      dtype: of activations and matrix products; parameters keep their own dtype.
      stacked: layout of the parameters, see the docstring of the module.
      remat: what the forward pass keeps for the backward pass in the stacked layout, a key of REMAT.
      mesh: over which rows and heads are split; None leaves it to the compiler.
    """

    config: ModelConfig
    dtype: Any = jnp.float32
    stacked: bool = False
    remat: str = 'full'
    mesh: Optional[Mesh] = None

    def setup(self):
        """Create the submodules."""
        c = self.config
        table = nn.with_logical_partitioning(nn.initializers.normal(0.02), ('vocab', 'embed'))
        self.embed = self.param('embed', table, (c.vocab_size, c.width))
        if self.stacked:
            block = Block
            if self.remat != 'none':
                block = nn.remat(Block, policy=REMAT[self.remat], prevent_cse=False)
            self.layers = nn.scan(
                block, variable_axes={'params': 0}, split_rngs={'params': True},
                in_axes=(0, nn.broadcast, nn.broadcast), length=c.num_layers,
                unroll=c.num_layers if self.remat == 'none' else 1,  # a loop would copy everything that is kept
                metadata_params={nn.PARTITION_NAME: 'layers'})(c, self.mesh)
        else:
            self.layer = [Block(c, self.mesh) for _ in range(c.num_layers)]
        self.final_norm = RMSNorm(c.norm_eps)
        if not c.tied:
            self.head = Linear((c.vocab_size,), ('embed', 'vocab'), mesh=self.mesh)

    def __call__(self, ids, positions, cache: Optional[KVCache] = None):
        """Run the layers.

        Args:
          ids: i32[B, K], tokens.
          positions: i32[B, K], their positions. Keys and values are written to the cache at these positions; a position
            outside the cache writes nothing, which is how padding is fed.
          cache: keys and values of all earlier tokens. With None, `ids` attend among themselves, and must be at
            positions 0, 1, 2, ...

        Returns:
          Hidden states [B, K, W] after the last norm, and the new cache or None.
        """
        x = jnp.take(self.embed, ids, axis=0, mode='clip').astype(self.dtype)
        angles = rotation(self.config, positions)
        if self.stacked:
            numbers = None if cache is None else jnp.arange(self.config.num_layers)
            (x, cache), _ = self.layers((x, cache), numbers, positions, angles)
            return self.final_norm(x), cache
        caches = []
        for i, layer in enumerate(self.layer):
            (x, new), _ = layer((x, None if cache is None else cache[i]), None, positions, angles)
            caches.append(new)
        return self.final_norm(x), None if cache is None else tuple(caches)

    def logits(self, hidden):
        """Project hidden states [..., W] to float32 logits [..., V]."""
        if self.config.tied:
            return jnp.einsum('...w,vw->...v', hidden, self.embed.astype(hidden.dtype)).astype(jnp.float32)
        return self.head(hidden).astype(jnp.float32)

    def init_boxed(self, key):
        """Return random parameters, float32, every leaf with the names of its logical axes."""
        def everything(module, ids):
            return module.logits(module(ids, ids)[0])
        return self.init(key, jnp.zeros((1, 1), jnp.int32), method=everything)['params']

    def init_params(self, key):
        """Return random parameters, float32, as a plain nested dict without sharding metadata."""
        return nn.meta.unbox(self.init_boxed(key))

    def init_cache(self, batch: int, capacity: int) -> KVCache:
        """Return an empty cache: zeros of keys [B, H, D, L] and values [B, H, L, D] for every layer."""
        c = self.config
        shapes = ((batch, c.num_kv_heads, c.head_dim, capacity), (batch, c.num_kv_heads, capacity, c.head_dim))
        place = lambda x, *axes: constrain(self.mesh, x, *axes, 'rows', 'kv_heads', None, None)
        if self.stacked:
            return tuple(place(jnp.zeros((c.num_layers, *shape), self.dtype), None) for shape in shapes)
        return tuple(tuple(place(jnp.zeros(shape, self.dtype)) for shape in shapes) for _ in range(c.num_layers))
