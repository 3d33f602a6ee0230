"""Attention, in blocks and over a cache, against a plain softmax over the visible keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epo_jax.models.attention import attend, attend_by_blocks, attend_so_far

SIZES = dict(rows=2, kv_heads=2, groups=3, size=4)


def inputs(count, capacity, seed=0):
    """Return random q [B, K, H, G, D], keys [B, H, D, L] and values [B, H, L, D]."""
    rng, (B, H, G, D) = np.random.default_rng(seed), SIZES.values()
    shapes = (B, count, H, G, D), (B, H, D, capacity), (B, H, capacity, D)
    return tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)


def literal(q, keys, values, positions, window):
    """Compute attention query by query in float64."""
    q, keys, values = (np.asarray(x, np.float64) for x in (q, keys, values))
    out = np.zeros(q.shape)
    for b, k, h, g in np.ndindex(*q.shape[:4]):
        at = int(positions[b, k])
        first = 0 if window is None else max(0, at - window + 1)
        scores = np.array([q[b, k, h, g] @ keys[b, h, :, i] for i in range(first, at + 1)]) / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max())
        out[b, k, h, g] = weights / weights.sum() @ values[b, h, first:at + 1]
    return out


@pytest.mark.parametrize('window', [None, 7])
def test_attention_equals_its_formula(window):
    q, keys, values = inputs(5, 20)
    positions = np.array([[0, 3, 4, 11, 19], [2, 7, 8, 9, 10]])
    np.testing.assert_allclose(
        attend(q, keys, values, positions, window), literal(q, keys, values, positions, window), atol=1e-5)


@pytest.mark.parametrize('count, window', [(100, None), (256, None), (300, None), (513, 40), pytest.param(
    2300, None, marks=pytest.mark.slow)])
def test_attention_by_blocks_has_the_same_value_and_gradient(count, window):
    """2,300 positions make blocks of 288, the last of which is smaller."""
    q, keys, values = inputs(count, count)
    positions = jnp.broadcast_to(jnp.arange(count), (2, count))
    at = np.linspace(0, count - 1, 9).astype(int)
    np.testing.assert_allclose(
        attend_by_blocks(q, keys, values, positions, window)[:, at],
        literal(q[:, at], keys, values, positions[:, at], window), atol=1e-5)

    def gradient(attention):
        loss = lambda *args: jnp.sum(jnp.sin(attention(*args, positions, window)))
        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(q, keys, values)

    for actual, expected in zip(gradient(attend_by_blocks), gradient(attend)):
        np.testing.assert_allclose(actual, expected, atol=2e-5)


@pytest.mark.parametrize('window', [None, 40, 300])
def test_attention_reads_only_the_filled_blocks_of_a_cache(window):
    q, keys, values = inputs(3, 700)
    for last in (0, 255, 256, 511, 600, 699):
        positions = np.array([[last // 3, last // 2, last], [0, last // 5, last // 4]])
        unread = np.where(np.arange(700) <= -(-(last + 1) // 256) * 256, 0, np.nan)  # NaN in blocks that are not read
        actual = attend_so_far(q, keys + unread, values + unread[:, None], positions, window)
        np.testing.assert_allclose(actual, literal(q, keys, values, positions, window), atol=1e-5)


def test_other_rows_and_padding_do_not_change_a_bit():
    q, keys, values = inputs(2, 1000)
    so_far = jax.jit(attend_so_far)
    alone = so_far(q, keys, values, np.array([[5, 6], [5, 6]]))
    beside = so_far(q, keys, values, np.array([[5, 6], [998, 999]]))
    padded = so_far(q, keys, values, np.array([[5, 1000], [1000, 1000]]))
    np.testing.assert_array_equal(alone[0], beside[0])
    np.testing.assert_array_equal(alone[0, 0], padded[0, 0])
    assert np.isfinite(padded).all()
