"""Causal attention: at once, in blocks for training, and over a key/value cache that may be mostly empty.

Axis letters: B conversations, K new tokens, L positions of the cache, H key/value heads, G query heads that share a
key/value head, D head size.
"""

import functools
from typing import Optional

from einops import rearrange
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from jaxtyping import Float, Int

from epo_jax.text.tokens import Array

Queries = Float[Array, 'B K H G D']
Keys = Float[Array, 'B H D L']
Values = Float[Array, 'B H L D']
Positions = Int[Array, 'B K']
Window = int | Int[Array, '']  # an array if it differs between the layers of a loop


def attend(q: Queries, keys: Keys, values: Values, positions: Positions, window: Optional[Window] = None,
           scale: Optional[float] = None) -> Queries:
    """Compute causal attention. Key l is at position l, so the mask does not depend on lengths.

    Args:
      q: the queries.
      keys: the keys.
      values: the values.
      positions: the positions of the queries.
      window: size of the sliding window; None for full attention.
      scale: factor of the scores; None for 1 / sqrt(D).

    Returns:
      The outputs in the dtype of `q`. Scores and softmax are float32.
    """
    mask = _mask(positions, q.shape[3], jnp.arange(keys.shape[-1]), window)
    _, total, out = _unnormalized(_merge_groups(q), keys, values, mask, scale)
    return _split_groups((out / total).astype(q.dtype), q.shape[3])


def _factor(q, scale: Optional[float]) -> float:
    return q.shape[-1] ** -0.5 if scale is None else scale


def _merge_groups(q):
    """Turn [B, K, H, G, D] into [B, H, G K, D], the order of axes that XLA's CPU backend multiplies fastest."""
    return rearrange(q, 'b k h g d -> b h (g k) d')


def _split_groups(x, groups: int):
    """Undo `_merge_groups`."""
    return rearrange(x, 'b h (g k) d -> b k h g d', g=groups)


def _mask(positions, groups: int, key_positions, window: Optional[Window]):
    """Return which keys (at positions [L]) the queries (at positions [B, K]) attend to, bool[B, 1, G K, L]."""
    own = jnp.tile(positions, groups)[:, None, :, None]
    return key_positions <= own if window is None else (key_positions <= own) & (key_positions > own - window)


def _scores(q, keys, mask, scale: Optional[float]):
    """Return the scores f32[B, H, G K, L] of q [B, H, G K, D]; -1e30 where the mask is False."""
    scores = jnp.einsum('bhqd,bhdl->bhql', q, keys).astype(jnp.float32) * _factor(q, scale)
    return jnp.where(mask, scores, -1e30)


def _unnormalized(q, keys, values, mask, scale: Optional[float], lower_bound=-1e30):
    """Compute attention of q [B, H, G K, D] without dividing by the sum of the weights.

    Returns:
      In float32: the maximum score, at least `lower_bound` [B, H, G K, 1]; the sum of the weights exp(score - maximum)
      [B, H, G K, 1]; the weighted sum of the values [B, H, G K, D].
    """
    scores = _scores(q, keys, mask, scale)
    maximum = jnp.maximum(lower_bound, scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores - maximum)
    out = jnp.einsum('bhql,bhld->bhqd', weights.astype(q.dtype), values).astype(jnp.float32)
    return maximum, weights.sum(axis=-1, keepdims=True), out


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def attend_by_blocks(q: Queries, keys: Keys, values: Values, positions: Positions,
                     window: Optional[Window] = None, scale: Optional[float] = None) -> Queries:
    """Compute `attend` for positions 0 to K - 1, in blocks of a sixteenth of the queries but at least 128.

    A block ignores the keys after its end, which saves up to 15/32 of all pairs of query and key. Scores are recomputed
    in the backward pass (Dao et al., 2022); the residuals it needs have the checkpoint name 'attention'.
    """
    return _forward(q, keys, values, positions, window, scale)[0]


def _blocks(queries: int) -> list[slice]:
    size = max(128, -(-queries // 16))
    return [slice(start, min(start + size, queries)) for start in range(0, queries, size)]


def _forward(q, keys, values, positions, window, scale):
    outputs, logsumexp = [], []
    for block in _blocks(q.shape[1]):
        end = block.stop
        mask = _mask(positions[:, block], q.shape[3], jnp.arange(end), window)
        maximum, total, out = _unnormalized(
            _merge_groups(q[:, block]), keys[..., :end], values[:, :, :end], mask, scale)
        outputs.append(_split_groups((out / total).astype(q.dtype), q.shape[3]))
        logsumexp.append(maximum + jnp.log(total))
    out = checkpoint_name(jnp.concatenate(outputs, axis=1), 'attention')
    return out, (q, keys, values, positions, window, out, checkpoint_name(logsumexp, 'attention'))


def _backward(scale, residuals, d_out):
    q, keys, values, positions, window, out, logsumexp = residuals
    inner = (d_out.astype(jnp.float32) * out).sum(axis=-1, keepdims=True)
    d_q, d_keys, d_values = [], jnp.zeros_like(keys), jnp.zeros_like(values)
    for block, normalizer in zip(_blocks(q.shape[1]), logsumexp):
        end = block.stop
        q_block, d_block, inner_block = (_merge_groups(x[:, block]) for x in (q, d_out, inner))
        mask = _mask(positions[:, block], q.shape[3], jnp.arange(end), window)
        weights = jnp.exp(_scores(q_block, keys[..., :end], mask, scale) - normalizer)
        d_weights = jnp.einsum('bhqd,bhld->bhql', d_block, values[:, :, :end]).astype(jnp.float32)
        d_scores = (weights * (d_weights - inner_block) * _factor(q, scale)).astype(q.dtype)
        d_q.append(_split_groups(jnp.einsum('bhql,bhdl->bhqd', d_scores, keys[..., :end]), q.shape[3]))
        d_keys = d_keys.at[..., :end].add(jnp.einsum('bhql,bhqd->bhdl', d_scores, q_block))
        d_values = d_values.at[:, :, :end].add(jnp.einsum('bhql,bhqd->bhld', weights.astype(q.dtype), d_block))
    return jnp.concatenate(d_q, axis=1), d_keys, d_values, None, None


attend_by_blocks.defvjp(_forward, _backward)


def attend_so_far(q: Queries, keys: Keys, values: Values, positions: Positions, window: Optional[Window] = None,
                  scale: Optional[float] = None, block: int = 256) -> Queries:
    """Compute `attend` over a cache, reading only the blocks of `block` keys up to the last query's position.

    The softmax is accumulated over the blocks (Milakov and Gimelshein, 2018). A block that is masked for a query does
    not change a single bit of its output, so the output does not depend on the other rows. Positions outside the cache
    mark padding.

    Each block is copied before it is read, which is cheap if there are many queries. For a single query per row,
    reading the whole cache is faster as soon as the cache is half full.
    """
    capacity = keys.shape[-1]
    if capacity <= 2 * block or q.shape[1] == 1:
        return attend(q, keys, values, positions, window, scale)
    positions = jnp.where(positions < capacity, positions, 0)
    groups, q = q.shape[3], _merge_groups(q)

    def add_block(number, carry):
        maximum, total, out = carry
        start = jnp.minimum(number * block, capacity - block)  # the last block overlaps the previous one
        key_positions = start + jnp.arange(block)
        mask = _mask(positions, groups, key_positions, window) & (key_positions >= number * block)
        new_maximum, block_total, block_out = _unnormalized(
            q, jax.lax.dynamic_slice_in_dim(keys, start, block, 3),
            jax.lax.dynamic_slice_in_dim(values, start, block, 2), mask, scale, maximum)
        kept = jnp.exp(maximum - new_maximum)
        return new_maximum, total * kept + block_total, out * kept + block_out

    zeros, last = jnp.zeros((*q.shape[:3], 1), jnp.float32), positions.max() // block
    _, total, out = jax.lax.fori_loop(
        0, -(-capacity // block),
        lambda number, carry: jax.lax.cond(number <= last, add_block, lambda _, carry: carry, number, carry),
        (zeros - 1e30, zeros, jnp.zeros(q.shape, jnp.float32)))
    return _split_groups((out / total).astype(q.dtype), groups)
