"""The loss against a plain loop over tokens in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epo_jax.rl.losses import epo_loss, has_turns, turn_means

N, L, T = 10, 40, 5


def exact(function, *args):
    """Return the result of a function in float64."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, jax.jit(function)(*args))


def ragged(seed):
    """Return (logprob, advantage, turn, valid) of conversations with 0 to T turns of 1 to 4 tokens, and context."""
    rng = np.random.default_rng(seed)
    turn = np.full((N, L), -1, np.int32)
    for n in range(N):
        at = 0
        for t in range(rng.permutation(T + 1)[0] if n else 0):
            at += rng.integers(0, 4)
            size = rng.integers(1, 5)
            turn[n, at:at + size] = t
            at += size
    return -rng.exponential(size=(N, L)), rng.normal(size=(N, T)), turn, rng.random((N, T)) < 0.7


def literal_loss(logprob, advantage, turn, valid):
    """Return -(1 / T) sum_t A_t (1 / k_t) sum_i log pi(a_ti) and its gradient, computed token by token."""
    loss, gradient = np.zeros(len(turn)), np.zeros_like(logprob)
    for n in range(len(turn)):
        segments = {}
        for i, t in enumerate(turn[n]):
            if t >= 0 and valid[n, t]:
                segments.setdefault(t, []).append(i)
        for t, tokens in segments.items():
            for i in tokens:
                weight = -advantage[n, t] / len(segments) / len(tokens)
                loss[n] += weight * logprob[n, i]
                gradient[n, i] = weight
    return loss, gradient


def loss_and_gradient(logprob, advantage, turn, valid):
    def total(logprob):
        loss = epo_loss(logprob, advantage, turn, valid)
        return loss.sum(), loss
    gradient, loss = jax.grad(total, has_aux=True)(logprob)
    return loss, gradient


@pytest.mark.parametrize('seed', range(5))
def test_loss_and_gradient_equal_a_loop_over_tokens(seed):
    batch = ragged(seed)
    loss, gradient = exact(loss_and_gradient, *batch)
    expected, expected_gradient = literal_loss(*batch)
    assert loss.dtype == np.float64 and np.count_nonzero(expected) >= 4
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-14)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-14)


def test_float32_is_precise_enough():
    batch = ragged(0)
    logprob, advantage, turn, valid = batch
    loss, gradient = jax.jit(loss_and_gradient)(
        jnp.asarray(logprob, jnp.float32), jnp.asarray(advantage, jnp.float32), turn, valid)
    expected, expected_gradient = literal_loss(*batch)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-7)


def test_context_is_ignored():
    logprob, advantage, turn, valid = ragged(1)
    other = np.where(turn < 0, -1e3, logprob)
    a, b = (exact(loss_and_gradient, x, advantage, turn, valid) for x in (logprob, other))
    np.testing.assert_allclose(a[0], b[0], rtol=1e-12)
    np.testing.assert_array_equal(a[1], b[1])
    assert not a[1][turn < 0].any()


def test_invalid_turns_and_turns_without_tokens_do_not_count():
    turn = np.array([[0, 0, -1, 2, 2, 2]], np.int32)
    logprob = np.array([[-1.0, -3.0, -50.0, -2.0, -4.0, -6.0]])
    advantage = np.array([[0.5, 7.0, 1.0, np.nan]])  # the second turn has no tokens; the last did not take place
    loss = lambda *valid: exact(epo_loss, logprob, advantage, turn, np.array([valid]))[0]
    assert loss(True, True, True, False) == pytest.approx((0.5 * 2 + 1.0 * 4) / 2)
    assert loss(True, True, False, False) == pytest.approx(0.5 * 2)
    assert loss(False, True, True, False) == pytest.approx(1.0 * 4)
    assert loss(False, True, False, False) == 0


def test_a_conversation_without_a_valid_turn_has_no_loss_and_no_gradient():
    logprob, advantage, turn, valid = ragged(2)
    loss, gradient = exact(loss_and_gradient, logprob, np.full_like(advantage, np.nan), turn, np.zeros_like(valid))
    assert not loss.any() and not gradient.any()


def test_turn_means_equal_a_loop_over_turns():
    logprob, _, turn, _ = ragged(3)
    mean, count = exact(lambda values, turn: turn_means(values, turn, T), logprob, turn)
    for n in range(N):
        for t in range(T):
            tokens = logprob[n][turn[n] == t]
            assert count[n, t] == len(tokens)
            assert mean[n, t] == pytest.approx(tokens.mean() if len(tokens) else 0, rel=1e-12)


def test_has_turns_is_true_if_a_token_is_trained():
    for seed in range(5):
        _, _, turn, valid = ragged(seed)
        expected = [any(valid[n, t] for t in turn[n] if t >= 0) for n in range(N)]
        assert exact(has_turns, turn, valid).tolist() == expected
