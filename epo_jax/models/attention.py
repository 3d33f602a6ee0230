"""Causal attention: in one piece, by blocks for training, and in a cache that may be mostly empty.

Axis letters: B conversations, K new tokens, L positions of the cache, H key/value heads, G query heads sharing one
key/value head, D head size.
"""

import functools
from typing import Optional

from einops import rearrange
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp


def attend(q: jax.Array, keys: jax.Array, values: jax.Array, positions: jax.Array,
           window: Optional[int] = None) -> jax.Array:
    """Causal attention. Key number l is at position l, so the mask needs no lengths.

    Args:
      q: [B, K, H, G, D], queries at `positions`.
      keys: [B, H, D, L].
      values: [B, H, L, D].
      positions: i32[B, K].
      window: sliding window, or None.

    Returns:
      [B, K, H, G, D] in q's dtype; scores and softmax are float32.
    """
    seen = _seen(positions, q.shape[3], jnp.arange(keys.shape[-1]), window)
    _, total, out = _look(_merge_groups(q), keys, values, seen)
    return _split_groups((out / total).astype(q.dtype), q.shape[3])


def _merge_groups(q):
    """Turn [B, K, H, G, D] into [B, H, G K, D], the order of axes that XLA's CPU backend multiplies fastest."""
    return rearrange(q, 'b k h g d -> b h (g k) d')


def _split_groups(x, groups: int):
    """Undo `_merge_groups`."""
    return rearrange(x, 'b h (g k) d -> b k h g d', g=groups)


def _seen(positions, groups: int, at, window: Optional[int]):
    """Return which of the keys at positions at[L] the queries at positions[B, K] see, bool[B, 1, G K, L]."""
    own = jnp.tile(positions, groups)[:, None, :, None]
    return at <= own if window is None else (at <= own) & (at > own - window)


def _scores(q, keys, seen):
    """Return the scores f32[B, H, G K, L] of q [B, H, G K, D]; -1e30 for keys that a query does not see."""
    scores = jnp.einsum('bhqd,bhdl->bhql', q, keys).astype(jnp.float32) * q.shape[-1] ** -0.5
    return jnp.where(seen, scores, -1e30)


def _look(q, keys, values, seen, least=-1e30):
    """Attention of q [B, H, G K, D] without the division by the sum of the weights.

    Returns:
      In float32: the highest score (at least `least`) and the sum of the weights exp(score - highest), both
      [B, H, G K, 1], and the weighted sum of the values [B, H, G K, D].
    """
    scores = _scores(q, keys, seen)
    peak = jnp.maximum(least, scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores - peak)
    out = jnp.einsum('bhql,bhld->bhqd', weights.astype(q.dtype), values).astype(jnp.float32)
    return peak, weights.sum(axis=-1, keepdims=True), out


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend_by_blocks(q: jax.Array, keys: jax.Array, values: jax.Array, positions: jax.Array,
                     window: Optional[int] = None) -> jax.Array:
    """Attend among the positions 0 to K - 1, as `attend`, for a sixteenth of the queries (128 or more) at a time.

    The queries of a block see no keys after its end, which saves up to 15/32 of all pairs. Scores are not kept for the
    backward pass (Dao et al., 2022); what it needs has the checkpoint name 'attention'.
    """
    return _forward(q, keys, values, positions, window)[0]


def _blocks(queries: int) -> list[slice]:
    size = max(128, -(-queries // 16))
    return [slice(start, min(start + size, queries)) for start in range(0, queries, size)]


def _forward(q, keys, values, positions, window):
    out, logsumexp = [], []
    for block in _blocks(q.shape[1]):
        end = block.stop
        seen = _seen(positions[:, block], q.shape[3], jnp.arange(end), window)
        peak, total, part = _look(_merge_groups(q[:, block]), keys[..., :end], values[:, :, :end], seen)
        out.append(_split_groups((part / total).astype(q.dtype), q.shape[3]))
        logsumexp.append(peak + jnp.log(total))
    out = checkpoint_name(jnp.concatenate(out, axis=1), 'attention')
    return out, (q, keys, values, positions, out, checkpoint_name(logsumexp, 'attention'))


def _backward(window, kept, change):
    q, keys, values, positions, out, logsumexp = kept
    inner = (change.astype(jnp.float32) * out).sum(axis=-1, keepdims=True)
    d_q, d_keys, d_values = [], jnp.zeros_like(keys), jnp.zeros_like(values)
    for block, normaliser in zip(_blocks(q.shape[1]), logsumexp):
        end = block.stop
        own, new, mean = (_merge_groups(x[:, block]) for x in (q, change, inner))
        scores = _scores(own, keys[..., :end], _seen(positions[:, block], q.shape[3], jnp.arange(end), window))
        weights = jnp.exp(scores - normaliser)
        slope = jnp.einsum('bhqd,bhld->bhql', new, values[:, :, :end]).astype(jnp.float32)
        slope = (weights * (slope - mean) * q.shape[-1] ** -0.5).astype(q.dtype)
        d_q.append(_split_groups(jnp.einsum('bhql,bhdl->bhqd', slope, keys[..., :end]), q.shape[3]))
        d_keys = d_keys.at[..., :end].add(jnp.einsum('bhql,bhqd->bhdl', slope, own))
        d_values = d_values.at[:, :, :end].add(jnp.einsum('bhql,bhqd->bhld', weights.astype(q.dtype), new))
    return jnp.concatenate(d_q, axis=1), d_keys, d_values, None


attend_by_blocks.defvjp(_forward, _backward)


def attend_so_far(q: jax.Array, keys: jax.Array, values: jax.Array, positions: jax.Array,
                  window: Optional[int] = None, block: int = 256) -> jax.Array:
    """Attend in a cache, as `attend`, and read only the blocks that the furthest query needs.

    The softmax is accumulated block by block (Milakov and Gimelshein, 2018). A block that a query does not see changes
    no bit of its result, so the result does not depend on the other rows. Positions outside the cache are padding.

    Blocks are copied before they are read, which costs little for many queries. A single query reads the whole cache,
    which is faster as soon as half of the cache is filled.
    """
    capacity = keys.shape[-1]
    if capacity <= 2 * block or q.shape[1] == 1:
        return attend(q, keys, values, positions, window)
    positions = jnp.where(positions < capacity, positions, 0)
    groups, q = q.shape[3], _merge_groups(q)

    def look(number, carry):
        peak, total, out = carry
        start = jnp.minimum(number * block, capacity - block)  # the last block overlaps the previous one
        at = start + jnp.arange(block)
        seen = _seen(positions, groups, at, window) & (at >= number * block)
        higher, more, change = _look(
            q, jax.lax.dynamic_slice_in_dim(keys, start, block, 3),
            jax.lax.dynamic_slice_in_dim(values, start, block, 2), seen, peak)
        shrink = jnp.exp(peak - higher)
        return higher, total * shrink + more, out * shrink + change

    rest, last = jnp.zeros((*q.shape[:3], 1), jnp.float32), positions.max() // block
    _, total, out = jax.lax.fori_loop(
        0, -(-capacity // block),
        lambda number, carry: jax.lax.cond(number <= last, look, lambda _, carry: carry, number, carry),
        (rest - 1e30, rest, jnp.zeros(q.shape, jnp.float32)))
    return _split_groups((out / total).astype(q.dtype), groups)
