"""The decoder: Flax Linen, used as a pure function of its parameters.

    hidden, cache = model.apply({'params': params}, ids, positions, cache)
    logits        = model.apply({'params': params}, hidden, method='logits')

Axis letters: B conversations, K new tokens, L positions of the cache, H key/value heads,
G query heads sharing one key/value head, D head size, W residual width, M MLP width, V vocabulary.

The parameters come in two layouts of the same numbers. `stacked=True`: every layer parameter has a
leading layer axis and the layers run under `nn.scan` with rematerialisation; this is what is trained,
checkpointed and sharded. `stacked=False`: one subtree a layer and an unrolled loop; this is what samples,
because separate cache buffers are updated in place. `unstack` and `stack` go from one to the other.
"""

from typing import Any, Optional

from einops import rearrange
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from epo_jax.models.config import ModelConfig

# One (keys, values) pair a layer: keys [B, H, D, L], values [B, H, L, D]. Keys lie transposed so that a
# one-token query reads them row by row.
KVCache = tuple[tuple[jax.Array, jax.Array], ...]

REMAT = {
    'none': None,
    'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    'full': jax.checkpoint_policies.nothing_saveable,
}


def rope_frequencies(config: ModelConfig) -> np.ndarray:
    """Rotary frequencies, f32[D / 2], radians a position (Llama 3.1's scaling applied where it is set)."""
    freq = config.rope_theta ** (-np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim)
    scaling = config.rope_scaling
    if scaling is not None:
        turns = scaling.original_positions * freq / (2 * np.pi)
        keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        keep = np.clip(keep, 0.0, 1.0)
        freq = keep * freq + (1 - keep) * freq / scaling.factor
    return freq.astype(np.float32)


def rotation(config: ModelConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sine and cosine of the rotary angles at positions[B, K]: two f32[B, K, 1, D / 2]."""
    angle = positions[:, :, None, None].astype(jnp.float32) * rope_frequencies(config)
    return jnp.sin(angle), jnp.cos(angle)


def rotate(x: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotary embedding of x[B, K, heads, D]; halves of D are paired (not neighbours)."""
    sin, cos = rotation
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def attend(q: jax.Array, keys: jax.Array, values: jax.Array, positions: jax.Array,
           window: Optional[int] = None) -> jax.Array:
    """Causal attention; key number l sits at position l, so the mask needs no lengths.

    Args:
      q: [B, K, H, G, D] queries at `positions`.
      keys: [B, H, D, L].
      values: [B, H, L, D].
      positions: i32[B, K].
      window: sliding window, or None.

    Returns:
      [B, K, H, G, D] in q's dtype; scores and softmax are float32.
    """
    at = jnp.arange(keys.shape[-1])
    seen = at <= positions[:, :, None]
    if window is not None:
        seen &= at > positions[:, :, None] - window
    # Both products as plain batched matrix products, the queries of a group side by side: XLA's CPU backend runs
    # other orders of the axes several times slower, forward and backward.
    groups, scale = q.shape[3], q.shape[-1] ** -0.5
    q = rearrange(q, 'b k h g d -> b h (g k) d')
    scores = jnp.einsum('bhqd,bhdl->bhql', q, keys).astype(jnp.float32) * scale
    scores = rearrange(scores, 'b h (g k) l -> b h g k l', g=groups)
    weights = jax.nn.softmax(jnp.where(seen[:, None, None], scores, -1e30), axis=-1)
    weights = rearrange(weights, 'b h g k l -> b h (g k) l').astype(q.dtype)
    out = jnp.einsum('bhql,bhld->bhqd', weights, values)
    return rearrange(out, 'b h (g k) d -> b k h g d', g=groups)


class Linear(nn.Module):
    """x[..., in] -> [..., *out], with logical axis names for sharding."""

    out: tuple[int, ...]
    axes: tuple[str, ...]
    bias: bool = False

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal', in_axis=0, out_axis=range(1, len(self.axes)))
        kernel = self.param('kernel', nn.with_logical_partitioning(init, self.axes), (x.shape[-1], *self.out))
        # As one matrix product: with several row axes, the gradient of the kernel takes XLA's slow path on CPU.
        y = x.reshape(-1, x.shape[-1]) @ kernel.astype(x.dtype).reshape(x.shape[-1], -1)
        y = y.reshape(*x.shape[:-1], *self.out)
        if self.bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[1:])
            y += self.param('bias', zeros, self.out).astype(x.dtype)
        return y


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, computed in float32."""

    eps: float
    axis: str = 'embed'

    @nn.compact
    def __call__(self, x):
        ones = nn.with_logical_partitioning(nn.initializers.ones, (self.axis,))
        scale = self.param('scale', ones, (x.shape[-1],))
        y = x.astype(jnp.float32)
        y *= jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        return (y * scale.astype(jnp.float32)).astype(x.dtype)


class Block(nn.Module):
    """One decoder layer."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x, positions, rotation, cache):
        """x[B, K, W] at positions[B, K] with their rotation, cache (keys, values) or None -> (x, cache)."""
        c = self.config
        y = RMSNorm(c.norm_eps, name='attn_norm')(x)
        q = Linear((c.num_heads, c.head_dim), ('embed', 'heads', 'head_dim'), c.qkv_bias, name='q')(y)
        k = Linear((c.num_kv_heads, c.head_dim), ('embed', 'kv_heads', 'head_dim'), c.qkv_bias, name='k')(y)
        v = Linear((c.num_kv_heads, c.head_dim), ('embed', 'kv_heads', 'head_dim'), c.qkv_bias, name='v')(y)
        if c.qk_norm:
            q = RMSNorm(c.norm_eps, 'head_dim', name='q_norm')(q)
            k = RMSNorm(c.norm_eps, 'head_dim', name='k_norm')(k)
        q, k = rotate(q, rotation), rotate(k, rotation)
        q = rearrange(q, 'b k (h g) d -> b k h g d', h=c.num_kv_heads)
        if cache is None:
            keys, values = rearrange(k, 'b l h d -> b h d l'), rearrange(v, 'b l h d -> b h l d')
        else:
            rows = jnp.arange(x.shape[0])[:, None]
            keys = cache[0].at[rows, :, :, positions].set(k.astype(cache[0].dtype), mode='drop')
            values = cache[1].at[rows, :, positions, :].set(v.astype(cache[1].dtype), mode='drop')
            cache = keys, values
        y = attend(q, keys, values, positions, c.sliding_window)
        y = rearrange(y, 'b k h g d -> b k (h g d)')
        x += Linear((c.width,), ('heads', 'embed'), name='o')(y)
        y = RMSNorm(c.norm_eps, name='mlp_norm')(x)
        gate = Linear((c.mlp_width,), ('embed', 'mlp'), name='gate')(y)
        up = Linear((c.mlp_width,), ('embed', 'mlp'), name='up')(y)
        return x + Linear((c.width,), ('mlp', 'embed'), name='down')(nn.silu(gate) * up), cache


class Transformer(nn.Module):
    """The decoder without its loss.

    Attributes:
      config: the shape.
      dtype: dtype of activations and of matrix products; parameters keep their own.
      stacked: parameter layout, see the module's docstring.
      remat: what the backward pass keeps when stacked, a key of REMAT.
    """

    config: ModelConfig
    dtype: Any = jnp.float32
    stacked: bool = False
    remat: str = 'full'

    def setup(self):
        c = self.config
        table = nn.with_logical_partitioning(nn.initializers.normal(0.02), ('vocab', 'embed'))
        self.embed = self.param('embed', table, (c.vocab_size, c.width))
        if self.stacked:
            block = Block
            if self.remat != 'none':
                block = nn.remat(Block, policy=REMAT[self.remat], prevent_cse=False)
            self.layers = nn.scan(
                block, variable_axes={'params': 0}, split_rngs={'params': True},
                in_axes=(nn.broadcast, nn.broadcast, nn.broadcast), length=c.num_layers,
                metadata_params={nn.PARTITION_NAME: 'layers'})(c)
        else:
            self.layer = [Block(c) for _ in range(c.num_layers)]
        self.final_norm = RMSNorm(c.norm_eps)
        if not c.tied:
            self.head = Linear((c.vocab_size,), ('embed', 'vocab'))

    def __call__(self, ids, positions, cache: Optional[KVCache] = None):
        """Runs the layers.

        Args:
          ids: i32[B, K] tokens.
          positions: i32[B, K] their positions. With a cache, keys and values are written there; a position
            outside the cache writes nothing, which is how padding is fed.
          cache: keys and values of everything before, or None to attend among `ids` alone, which must then
            stand at positions 0, 1, 2, ... (the stacked layout knows only this form).

        Returns:
          (hidden [B, K, W] after the last norm, the new cache or None).
        """
        x = jnp.take(self.embed, ids, axis=0, mode='clip').astype(self.dtype)
        angles = rotation(self.config, positions)
        if self.stacked:
            if cache is not None:
                raise ValueError('the stacked layout has no cache; sample with unstack(params)')
            x, _ = self.layers(x, positions, angles, None)
            return self.final_norm(x), None
        caches = []
        for i, layer in enumerate(self.layer):
            x, new = layer(x, positions, angles, None if cache is None else cache[i])
            caches.append(new)
        return self.final_norm(x), None if cache is None else tuple(caches)

    def logits(self, hidden):
        """hidden [..., W] -> float32 logits [..., V]."""
        if self.config.tied:
            return jnp.einsum('...w,vw->...v', hidden, self.embed.astype(hidden.dtype)).astype(jnp.float32)
        return self.head(hidden).astype(jnp.float32)

    def init_boxed(self, key):
        """A fresh parameter tree, float32, every leaf with the names of its logical axes."""
        def everything(module, ids):
            return module.logits(module(ids, ids)[0])
        return self.init(key, jnp.zeros((1, 1), jnp.int32), method=everything)['params']

    def init_params(self, key):
        """A fresh parameter tree, float32, as a plain nested dict without sharding metadata."""
        return nn.meta.unbox(self.init_boxed(key))

    def init_cache(self, batch: int, capacity: int) -> KVCache:
        """An empty cache: zeros of keys [B, H, D, L] and values [B, H, L, D] for every layer."""
        c = self.config
        return tuple(
            (jnp.zeros((batch, c.num_kv_heads, c.head_dim, capacity), self.dtype),
             jnp.zeros((batch, c.num_kv_heads, capacity, c.head_dim), self.dtype))
            for _ in range(c.num_layers))


def unstack(params, dtype=None):
    """Stacked layout -> one subtree a layer (`layer_0`, ...), cast to `dtype` where given."""
    cast = lambda x: x if dtype is None else x.astype(dtype)
    rest = {k: jax.tree.map(cast, v) for k, v in params.items() if k != 'layers'}
    count = jax.tree.leaves(params['layers'])[0].shape[0]
    layers = {f'layer_{i}': jax.tree.map(lambda x: cast(x[i]), params['layers']) for i in range(count)}
    return rest | layers


def stack(params):
    """One subtree a layer -> stacked layout."""
    names = sorted((k for k in params if k.startswith('layer_')), key=lambda k: int(k[6:]))
    rest = {k: v for k, v in params.items() if k not in names}
    return rest | {'layers': jax.tree.map(lambda *xs: jnp.stack(xs), *(params[k] for k in names))}
