"""The decoder of the Llama family in Flax Linen, used as a pure function of its parameters.

    hidden, cache = model.apply({'params': params}, ids, positions, cache)
    logits        = model.apply({'params': params}, hidden, method='logits')

Axis letters: B conversations, K new tokens, L positions of the cache, H key/value heads, G query heads that share a
key/value head, D head size, W residual width, M MLP width, V vocabulary.

Parameters come in two layouts. With `stacked=True`, every layer parameter has a leading layer axis and the layers run
under `nn.scan` with rematerialization; this layout is trained, checkpointed and sharded. With `stacked=False`, every
layer is a subtree of its own and the loop is unrolled, which samples faster. `unstack` and `stack` in models/layout.py
convert between them. The stacked layout can also sample, so that the frozen base of an adapter (models/lora.py) is in
memory only once; the cache then has a leading layer axis, too.
"""

from typing import Any, Optional

from einops import rearrange
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Float, Int
import numpy as np

from epo_jax.models.attention import Keys, Values, attend_by_blocks, attend_so_far
from epo_jax.models.config import ModelConfig
from epo_jax.runtime.parallel import constrain
from epo_jax.text.tokens import Array

# The keys of a layer are transposed, so that a query for one token reads them in the order in which they are stored.
LayerCache = tuple[Keys, Values]
StackedCache = tuple[Float[Array, 'layers B H D L'], Float[Array, 'layers B H L D']]
KVCache = tuple[LayerCache, ...] | StackedCache

REMAT = {
    'none': None,
    'dots': jax.checkpoint_policies.save_from_both_policies(  # keep the outputs of attention, recompute its scores
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names('attention')),
    'full': jax.checkpoint_policies.nothing_saveable,
}


def rope_frequencies(config: ModelConfig) -> np.ndarray:
    """Return the rotary frequencies f32[D / 2] in radians per position, with Llama 3.1's scaling if it is set."""
    freq = config.rope_theta ** (-np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim)
    scaling = config.rope_scaling
    if scaling is not None:
        turns = scaling.original_positions * freq / (2 * np.pi)
        keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        keep = np.clip(keep, 0.0, 1.0)
        freq = keep * freq + (1 - keep) * freq / scaling.factor
    return freq.astype(np.float32)


def rotation(config: ModelConfig, positions: Int[Array, 'B K']) -> tuple[jax.Array, jax.Array]:
    """Return the sine and the cosine of the rotary angles at `positions`, each f32[B, K, 1, D / 2]."""
    angle = positions[:, :, None, None].astype(jnp.float32) * rope_frequencies(config)
    return jnp.sin(angle), jnp.cos(angle)


def rotate(x: Float[Array, 'B K heads D'], rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Apply the rotary embedding. It rotates pairs (i, i + D / 2), not neighboring dimensions."""
    sin, cos = rotation
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


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
    """RMS normalization over the last axis, x / rms(x) * scale, in float32.

    Attributes:
      eps: added to the mean square.
      axis: logical name of the normalized axis.
    """

    eps: float
    axis: str = 'embed'

    @nn.compact
    def __call__(self, x):
        """Normalize x over its last axis."""
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
          carry: (x [B, K, W], cache), where the cache is a LayerCache, a StackedCache, or None.
          layer: index of the layer in a StackedCache; None for a LayerCache.
          positions: i32[B, K].
          rotation: the result of the function `rotation` for these positions.

        Returns:
          (carry, None), the form that `nn.scan` requires.
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
      dtype: dtype of activations and matrix products; parameters keep their own dtype.
      stacked: whether the parameters are in the stacked layout; see the docstring of this module.
      remat: key of REMAT, what the forward pass of the stacked layout saves for the backward pass.
      mesh: the mesh over which rows and heads are split; None leaves the sharding to the compiler.
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
                unroll=c.num_layers if self.remat == 'none' else 1,  # a loop would copy all residuals
                metadata_params={nn.PARTITION_NAME: 'layers'})(c, self.mesh)
        else:
            self.layer = [Block(c, self.mesh) for _ in range(c.num_layers)]
        self.final_norm = RMSNorm(c.norm_eps)
        if not c.tied:
            self.head = Linear((c.vocab_size,), ('embed', 'vocab'), mesh=self.mesh)

    def __call__(self, ids: Int[Array, 'B K'], positions: Int[Array, 'B K'], cache: Optional[KVCache] = None):
        """Run the layers.

        Args:
          ids: token ids.
          positions: the positions of the tokens, at which keys and values are written to the cache. A position outside
            the cache marks padding and writes nothing.
          cache: keys and values of all earlier tokens. If None, `ids` attend only to each other and must be at
            positions 0, 1, 2, ...

        Returns:
          Hidden states [B, K, W] after the last norm, and the new cache (None without a cache).
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
        """Project hidden states [..., W] to logits f32[..., V]."""
        if self.config.tied:
            return jnp.einsum('...w,vw->...v', hidden, self.embed.astype(hidden.dtype)).astype(jnp.float32)
        return self.head(hidden).astype(jnp.float32)

    def init_boxed(self, key):
        """Return random float32 parameters whose leaves carry the names of their logical axes."""
        def forward(module, ids):
            return module.logits(module(ids, ids)[0])
        return self.init(key, jnp.zeros((1, 1), jnp.int32), method=forward)['params']

    def init_params(self, key):
        """Return random float32 parameters as a plain nested dict without sharding metadata."""
        return nn.meta.unbox(self.init_boxed(key))

    def init_cache(self, batch: int, capacity: int) -> KVCache:
        """Return a cache of zeros for `batch` conversations of at most `capacity` tokens."""
        c = self.config
        shapes = ((batch, c.num_kv_heads, c.head_dim, capacity), (batch, c.num_kv_heads, capacity, c.head_dim))
        place = lambda x, *axes: constrain(self.mesh, x, *axes, 'rows', 'kv_heads', None, None)
        if self.stacked:
            return tuple(place(jnp.zeros((c.num_layers, *shape), self.dtype), None) for shape in shapes)
        return tuple(tuple(place(jnp.zeros(shape, self.dtype)) for shape in shapes) for _ in range(c.num_layers))
