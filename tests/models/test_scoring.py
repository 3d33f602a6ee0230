"""Log-probabilities and entropies in chunks, against those of all logits at once."""

import dataclasses

import jax
import jax.numpy as jnp
from little_model import V, full_logits, make_model, make_params, score
import numpy as np
import pytest

from epo_jax.models import scoring
from epo_jax.models.transformer import Transformer
from epo_jax.testing import dummy_config


def literal_score(model, params, ids):
    logprob = jax.nn.log_softmax(full_logits(model, params, ids), axis=-1)
    chosen = jnp.take_along_axis(logprob[:, :-1], ids[:, 1:, None], axis=-1)[..., 0]
    return jnp.pad(chosen, ((0, 0), (1, 0)))


def literal_entropy(model, params, ids):
    logprob = jax.nn.log_softmax(full_logits(model, params, ids), axis=-1)
    return jnp.pad(-(jnp.exp(logprob) * logprob).sum(axis=-1)[:, :-1], ((0, 0), (1, 0)))


@pytest.mark.parametrize('share, count, tied', [
    (1.0, 1, True), (0.2, 1, True), (0.0, 1, True), (1.0, 2, True), (0.2, 2, False)])
def test_the_sum_and_its_gradient_are_those_of_all_logits(share, count, tied):
    """All, few or no tokens count; few leave whole chunks empty."""
    rng, length = np.random.default_rng(0), 21
    ids, counts = jnp.asarray(rng.integers(0, V, (2, length))), jnp.asarray(rng.random((2, length)) < share)
    weights = jnp.asarray(rng.normal(size=(count, 2, length)), jnp.float32)
    model, params = make_model(layers=1), make_params(1)
    if not tied:
        model = dataclasses.replace(model, config=dataclasses.replace(model.config, tied=False))
        params = params | {'head': {'kernel': jnp.asarray(rng.normal(size=(model.config.width, V)), jnp.float32)}}

    def literal(params):
        statistics = jnp.stack([f(model, params, ids) for f in (literal_score, literal_entropy)][:count])
        statistics = jnp.where(counts, statistics, 0)
        return 3 * (weights * statistics).sum(), statistics

    def ours(params):
        total, statistics = scoring.weighted_sum(model, params, ids, counts, weights, 8)
        return 3 * total, statistics

    gradient = lambda f: jax.value_and_grad(f, has_aux=True)(params)
    ((total, statistics), d_params), ((expected_total, expected), d_expected) = jax.jit(
        lambda: (gradient(ours), gradient(literal)))()
    np.testing.assert_allclose(total, expected_total, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(statistics, expected, atol=1e-5)
    assert not statistics[:, :, 0].any()
    largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(d_expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * largest), d_params, d_expected)
    np.testing.assert_allclose(jax.jit(ours)(params)[1], expected, atol=1e-5)  # without a gradient


def test_scores_are_those_of_all_logits():
    ids = jnp.asarray(np.random.default_rng(0).integers(0, V, (2, 21)))
    model, params = make_model(layers=1), make_params(1)
    expected = literal_score(model, params, ids)
    for chunk in (8, 32):  # several chunks; one incomplete chunk
        np.testing.assert_allclose(score(model, params, ids, chunk), expected, atol=1e-5)


def test_differentiating_the_statistics_raises():
    ids, params = jnp.zeros((1, 5), jnp.int32), make_params(1)
    with pytest.raises(TypeError, match='cannot be differentiated, only the sum'):
        jax.grad(lambda params: scoring.score(make_model(layers=1), params, ids).sum())(params)


def test_no_gradient_of_a_frozen_head_is_computed():
    model, params, ids = make_model(layers=1), make_params(1), jnp.zeros((1, 21), jnp.int32)
    all_tokens = jnp.ones(ids.shape, bool), jnp.ones((1, *ids.shape))

    def count_products(trained, frozen):
        """Return the number of matrix products whose result has a vocabulary axis."""
        loss = lambda trained: scoring.weighted_sum(model, frozen | trained, ids, *all_tokens, 8)[0]
        return sum(V in shape for shape in result_shapes(jax.make_jaxpr(jax.grad(loss))(trained).jaxpr, 'dot_general'))

    head = 'embed' if model.config.tied else 'head'
    others = {name: x for name, x in params.items() if name != head}
    assert count_products(params, {}) == count_products(others, {head: params[head]}) + 1


def result_shapes(jaxpr, name=''):
    """Yield the shapes of all results in a program and its subprograms, or only of the operation `name`."""
    for equation in jaxpr.eqns:
        if name in ('', equation.primitive.name):
            yield from (v.aval.shape for v in equation.outvars)
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')):
            inner = getattr(value, 'jaxpr', value)
            if hasattr(inner, 'eqns'):
                yield from result_shapes(inner, name)


def test_logits_never_exist_for_all_positions():
    rows, length, chunk, vocab = 2, 96, 8, 997
    model = Transformer(dummy_config(vocab), stacked=True)
    params = jax.eval_shape(model.init_params, jax.random.key(0))
    ids = jax.ShapeDtypeStruct((rows, length), jnp.int32)

    def shapes(total):
        return set(result_shapes(jax.make_jaxpr(jax.value_and_grad(total))(params, ids).jaxpr))

    all_tokens = jnp.ones((rows, length), bool), jnp.ones((1, rows, length))
    with_vocabulary = {
        s for s in shapes(lambda p, i: scoring.weighted_sum(model, p, i, *all_tokens, chunk)[0]) if vocab in s}
    assert any(np.prod(s) == chunk * vocab for s in with_vocabulary)
    assert max(np.prod(s) for s in with_vocabulary) < rows * length * vocab / 2
    assert any(np.prod(s) == rows * length * vocab for s in shapes(lambda p, i: literal_score(model, p, i).sum()))
