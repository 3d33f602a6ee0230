"""Low-rank adapters: initialization, joining, merging, and training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epo_jax.models import scoring
from epo_jax.models.lora import TARGETS, LoRA
from epo_jax.models.transformer import Transformer
from epo_jax.rl.learner import Batch, Learner
from epo_jax.testing import dummy_config, dummy_params

CONFIG = dummy_config(61)
MODEL = Transformer(CONFIG, stacked=True, remat='none')
BASE = dummy_params(CONFIG, stacked=True)
ATTENTION = LoRA(3, 6.0, ('q', 'v'))


def trained(lora, seed=0):
    """Return a random adapter; a new adapter would not change the model."""
    shapes = jax.eval_shape(lambda: lora.init(MODEL, jax.random.key(0)))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(0.1 * rng.normal(size=x.shape), jnp.float32), shapes)


def ids(rows=2, length=12):
    return np.random.default_rng(1).integers(0, 61, (rows, length)).astype(np.int32)


@jax.jit
def forward(params, ids):
    hidden, _ = MODEL.apply({'params': params}, ids, jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape))
    return MODEL.apply({'params': params}, hidden, method='logits')


def logits(params, ids):
    return np.asarray(forward(params, ids))


def test_a_new_adapter_does_not_change_the_logits_and_is_within_its_bounds():
    lora = LoRA(4, 8.0)
    fresh = lora.init(MODEL, jax.random.key(1))
    np.testing.assert_array_equal(logits(lora.join(BASE, fresh), ids()), logits(BASE, ids()))
    for name, pair in fresh['layers'].items():
        bound = BASE['layers'][name]['kernel'].shape[1] ** -0.5
        assert not pair['b'].any() and 0.8 * bound < np.abs(pair['a']).max() <= bound
    one, other = fresh['layers']['q']['a'], fresh['layers']['k']['a']
    assert not np.allclose(one, other) and not np.allclose(one[0], one[1])


@pytest.mark.parametrize('lora', (LoRA(4, 8.0), ATTENTION, LoRA(2, 1.0, ('down',))))
def test_merging_does_not_change_the_logits(lora):
    adapter = trained(lora)
    actual, plain = logits(lora.merge(BASE, adapter), ids()), logits(BASE, ids())
    expected = logits(lora.join(BASE, adapter), ids())
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())
    assert np.abs(expected - plain).max() > 1e-2 * np.abs(plain).max()
    assert jax.tree.structure(lora.merge(BASE, adapter)) == jax.tree.structure(BASE)


def test_merging_adds_the_scaled_product():
    lora, adapter = ATTENTION, trained(ATTENTION)
    merged = lora.merge(BASE, adapter)['layers']
    a, b = (np.asarray(adapter['layers']['v'][leaf], np.float64) for leaf in 'ab')
    expected = BASE['layers']['v']['kernel'][1] + 2.0 * (a[1] @ b[1].reshape(3, -1)).reshape(32, 2, 8)  # alpha / rank
    np.testing.assert_allclose(merged['v']['kernel'][1], expected, atol=1e-6)
    assert merged['k']['kernel'] is BASE['layers']['k']['kernel']


def test_join_does_not_copy_the_base():
    joined = ATTENTION.join(BASE, trained(ATTENTION))
    assert joined['embed'] is BASE['embed']
    assert joined['layers']['q']['kernel'] is BASE['layers']['q']['kernel']
    assert 'a' not in BASE['layers']['q']


def test_decoding_with_a_cache_equals_a_full_forward_pass():
    lora, adapter = LoRA(4, 8.0), trained(LoRA(4, 8.0))
    params, text = lora.join(BASE, adapter), ids(2, 9)
    step = jax.jit(lambda params, ids, at, cache: MODEL.apply({'params': params}, ids, at, cache))
    cache, hidden = MODEL.init_cache(2, 16), []
    for i in range(9):  # decode token by token
        out, cache = step(params, text[:, i:i + 1], np.full((2, 1), i), cache)
        hidden.append(out[:, 0])
    actual = MODEL.apply({'params': params}, jnp.stack(hidden, 1), method='logits')
    expected = logits(params, text)
    np.testing.assert_allclose(actual, expected, atol=2e-5 * np.abs(expected).max())


def test_the_gradient_is_that_of_the_merged_model():
    """With W + s a b and b = 0, d loss / d b is s a^T (d loss / d W), and d loss / d a is 0."""
    lora, fresh = ATTENTION, ATTENTION.init(MODEL, jax.random.key(2))
    text = ids()
    every, logprob = jnp.ones(text.shape, bool), lambda logprob, entropy, data: logprob
    loss = lambda params: scoring.summed_loss(MODEL, params, text, every, logprob, (), 4)[0]
    actual = jax.jit(jax.grad(lambda adapter: loss(lora.join(BASE, adapter))))(fresh)['layers']
    dense = jax.jit(jax.grad(loss))(BASE)['layers']
    for name in ('q', 'v'):
        expected = 2.0 * np.einsum('lir,li...->lr...', fresh['layers'][name]['a'], dense[name]['kernel'])
        np.testing.assert_allclose(actual[name]['b'], expected, atol=1e-4 * np.abs(expected).max())
        assert not np.any(actual[name]['a'])  # b is 0


def test_the_learner_trains_only_the_adapter():
    lora = ATTENTION
    turn = np.full((4, 12), -1, np.int32)
    turn[:, 5:9] = 0
    batch = Batch(ids(4), turn, np.zeros((4, 12), np.float32), np.ones((4, 1), np.float32), np.ones((4, 1), bool))
    results = []
    for micro_batch in (4, 2):
        learner = Learner(MODEL, 10, 1e-2, micro_batch=micro_batch, warmup_ratio=0.0, lora=lora, chunk=4)
        state = learner.init(lora.init(MODEL, jax.random.key(2)))
        before = jax.tree.map(np.asarray, state.params)
        state, metrics = learner.step(state, batch, BASE)
        assert jax.tree.structure(state.params) == jax.tree.structure(before)
        assert np.abs(state.params['layers']['q']['b']).max() > 1e-3 and metrics['gradient_norm'] > 0
        results.append(jax.tree.map(np.asarray, (metrics['loss'], state.optimizer[1][0].mu)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-8), *results)


@pytest.mark.parametrize('wrong', (dict(rank=0), dict(targets=('q', 'embed')), dict(targets=())))
def test_invalid_adapters_raise(wrong):
    with pytest.raises(ValueError, match='positive rank and targets'):
        dataclasses.replace(LoRA(2, 4.0, TARGETS), **wrong)
