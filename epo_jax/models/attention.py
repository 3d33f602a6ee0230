"""Causal attention: at once, among the tokens of a row, and in a cache of which most may still be empty.

Axis letters: B conversations, K new tokens, L positions of the cache, H key/value heads, G query heads sharing one
key/value head, D head size.
"""

from typing import Optional

from einops import rearrange
import jax
import jax.numpy as jnp


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


def attend_by_blocks(q: jax.Array, keys: jax.Array, values: jax.Array, positions: jax.Array,
                     window: Optional[int] = None) -> jax.Array:
    """The same as `attend` among K positions from 0 on, an eighth of the queries (256 or more) at a time.

    The queries of a block see no keys behind its end, which leaves out up to 7/16 of all pairs. Within a whole block
    one half comes after the other, forward and backward, so that few scores are held at once.
    """
    block = 2 * max(128, -(-q.shape[1] // 16))

    def one(q, keys, values, positions):
        if q.shape[1] < block:
            return attend(q, keys, values, positions, window)
        half = jax.checkpoint(lambda q, positions: attend(q, keys, values, positions, window), prevent_cse=False)
        cut = lambda x: rearrange(x, 'b (s k) ... -> s b k ...', s=2)
        out = jax.lax.map(lambda pair: half(*pair), (cut(q), cut(positions)))
        return rearrange(out, 's b k ... -> b (s k) ...')

    return jnp.concatenate([
        one(q[:, end - block:end], keys[..., :end], values[:, :, :end], positions[:, end - block:end])
        for end in range(block, q.shape[1] + block, block)], axis=1)


def attend_so_far(q: jax.Array, keys: jax.Array, values: jax.Array, positions: jax.Array,
                  window: Optional[int] = None, block: int = 256) -> jax.Array:
    """The same as `attend` in a cache, of which only as many blocks are looked at as the furthest query needs.

    The softmax is put together block by block (Milakov and Gimelshein, 2018). A block that a query does not see changes
    no bit of what it gets, so this does not depend on the other rows. Positions outside the cache are padding.
    """
    capacity = keys.shape[-1]
    if capacity <= 2 * block:  # blocks are copied; that is worth it where many are not looked at
        return attend(q, keys, values, positions, window)
    positions = jnp.where(positions < capacity, positions, 0)
    groups, scale = q.shape[3], q.shape[-1] ** -0.5
    q, own = rearrange(q, 'b k h g d -> b h (g k) d'), jnp.tile(positions, groups)[:, None, :, None]

    def look(number, carry):
        peak, total, out = carry
        start = jnp.minimum(number * block, capacity - block)  # the last block begins within the one before
        at = start + jnp.arange(block)
        seen = (at <= own) & (at >= number * block)
        if window is not None:
            seen &= at > own - window
        scores = jnp.einsum('bhqd,bhdl->bhql', q, jax.lax.dynamic_slice_in_dim(keys, start, block, 3))
        scores = jnp.where(seen, scores.astype(jnp.float32) * scale, -1e30)
        higher = jnp.maximum(peak, scores.max(axis=-1, keepdims=True))
        weights, shrink = jnp.exp(scores - higher), jnp.exp(peak - higher)
        part = jnp.einsum('bhql,bhld->bhqd', weights.astype(q.dtype),
                          jax.lax.dynamic_slice_in_dim(values, start, block, 2))
        return higher, total * shrink + weights.sum(axis=-1, keepdims=True), out * shrink + part.astype(jnp.float32)

    rest, last = jnp.zeros((*q.shape[:3], 1), jnp.float32), positions.max() // block
    _, total, out = jax.lax.fori_loop(
        0, -(-capacity // block),
        lambda number, carry: jax.lax.cond(number <= last, look, lambda _, carry: carry, number, carry),
        (rest - 1e30, rest, jnp.zeros(q.shape, jnp.float32)))
    return rearrange((out / total).astype(q.dtype), 'b h (g k) d -> b k h g d', g=groups)
