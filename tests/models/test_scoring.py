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


def weighted(logprob, entropy, weights):
    """A linear loss: weights of log-probabilities and, if there are two, of entropies."""
    total = weights[..., 0] * logprob
    return total if entropy is None else total + weights[..., 1] * entropy


def curved(logprob, entropy, weights):
    """A loss that is not linear, has a kink and, of two numbers, multiplies log-probability and entropy."""
    ratio = jnp.exp(logprob + 3)
    total = jnp.minimum(ratio * weights[..., 0], jnp.clip(ratio, 0.8, 1.2) * weights[..., 0])
    return total if entropy is None else total + logprob * entropy ** 2 * weights[..., 1]


@pytest.mark.parametrize('loss', (weighted, curved))
@pytest.mark.parametrize('share, count, tied', [
    (1.0, 1, True), (0.2, 1, True), (0.0, 1, True), (1.0, 2, True), (0.2, 2, False)])
def test_the_sum_and_its_gradient_are_those_of_all_logits(loss, share, count, tied):
    """All, few or no tokens count; few leave whole chunks empty."""
    rng, length = np.random.default_rng(0), 21
    ids, counts = jnp.asarray(rng.integers(0, V, (2, length))), jnp.asarray(rng.random((2, length)) < share)
    counts = counts.at[:, 0].set(False)
    weights = jnp.asarray(rng.normal(size=(2, length, count)), jnp.float32)
    model, params = make_model(layers=1), make_params(1)
    if not tied:
        model = dataclasses.replace(model, config=dataclasses.replace(model.config, tied=False))
        params = params | {'head': {'kernel': jnp.asarray(rng.normal(size=(model.config.width, V)), jnp.float32)}}

    def literal(params):
        statistics = [jnp.where(counts, f(model, params, ids), 0) for f in (literal_score, literal_entropy)]
        losses = loss(statistics[0], statistics[1] if count == 2 else None, weights)
        return 3 * jnp.where(counts, losses, 0).sum(), statistics[:count]

    def ours(params):
        total, statistics = scoring.summed_loss(model, params, ids, counts, loss, weights, 8, entropy=count == 2)
        return 3 * total, [x for x in statistics if x is not None]

    gradient = lambda f: jax.value_and_grad(f, has_aux=True)(params)
    ((total, statistics), d_params), ((expected_total, expected), d_expected) = jax.jit(
        lambda: (gradient(ours), gradient(literal)))()
    np.testing.assert_allclose(total, expected_total, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(statistics, expected, atol=1e-5)
    largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(d_expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * largest), d_params, d_expected)
    np.testing.assert_allclose(jax.jit(ours)(params)[1], expected, atol=1e-5)  # without a gradient


def test_tokens_that_do_not_count_may_have_any_data():
    ids, params = jnp.asarray(np.random.default_rng(0).integers(0, V, (2, 21))), make_params(1)
    counts = jnp.arange(21) % 3 == 1
    counts, ratio = jnp.stack([counts, counts]), lambda logprob, entropy, old: jnp.exp(logprob - old) * old
    gradient = jax.jit(jax.grad(lambda params, old: scoring.summed_loss(
        make_model(layers=1), params, ids, counts, ratio, old, 8)[0]))
    zeros, holes = (gradient(params, jnp.where(counts, -2.0, other)) for other in (0.0, jnp.nan))
    jax.tree.map(np.testing.assert_array_equal, zeros, holes)


def test_a_loss_must_return_one_number_per_token():
    ids, params = jnp.zeros((2, 5), jnp.int32), make_params(1)
    with pytest.raises(ValueError, match='one number per token'):
        scoring.summed_loss(make_model(layers=1), params, ids, ids == 0, lambda logprob, *_: logprob.sum(axis=1), (), 8)


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


def test_differentiating_a_loss_by_its_data_raises():
    ids, params = jnp.zeros((1, 5), jnp.int32), make_params(1)
    with pytest.raises(TypeError, match='the data of a loss is not differentiated'):
        jax.grad(lambda data: scoring.summed_loss(
            make_model(layers=1), params, ids, ids == 0, weighted, data, 8)[0])(jnp.ones((1, 5, 1)))


def test_no_gradient_of_a_frozen_head_is_computed():
    model, params, ids = make_model(layers=1), make_params(1), jnp.zeros((1, 21), jnp.int32)
    all_tokens = jnp.ones(ids.shape, bool), weighted, jnp.ones((*ids.shape, 1))

    def count_products(trained, frozen):
        """Return the number of matrix products whose result has a vocabulary axis."""
        loss = lambda trained: scoring.summed_loss(model, frozen | trained, ids, *all_tokens, 8)[0]
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

    all_tokens = jnp.ones((rows, length), bool), weighted, jnp.ones((rows, length, 1))
    with_vocabulary = {
        s for s in shapes(lambda p, i: scoring.summed_loss(model, p, i, *all_tokens, chunk)[0]) if vocab in s}
    assert any(np.prod(s) == chunk * vocab for s in with_vocabulary)
    assert max(np.prod(s) for s in with_vocabulary) < rows * length * vocab / 2
    assert any(np.prod(s) == rows * length * vocab for s in shapes(lambda p, i: literal_score(model, p, i).sum()))
