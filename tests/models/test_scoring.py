"""The log-probabilities that the learner sees, against all logits at once."""

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


@pytest.mark.parametrize('share, several, tied', [
    (1.0, 1, True), (0.2, 1, True), (0.0, 1, True), (1.0, 2, True), (0.2, 2, False)])
def test_the_sum_and_its_gradient_are_those_of_all_logits(share, several, tied):
    """With all tokens, with few, so that whole chunks are left out, and with none."""
    rng, length = np.random.default_rng(0), 21
    ids, counts = jnp.asarray(rng.integers(0, V, (2, length))), jnp.asarray(rng.random((2, length)) < share)
    weights = jnp.asarray(rng.normal(size=(several, 2, length)), jnp.float32)
    model, params = make_model(layers=1), make_params(1)
    if not tied:
        model = dataclasses.replace(model, config=dataclasses.replace(model.config, tied=False))
        params = params | {'head': {'kernel': jnp.asarray(rng.normal(size=(model.config.width, V)), jnp.float32)}}

    def literal(params):
        numbers = jnp.stack([f(model, params, ids) for f in (literal_score, literal_entropy)][:several])
        numbers = jnp.where(counts, numbers, 0)
        return 3 * (weights * numbers).sum(), numbers

    def ours(params):
        total, numbers = scoring.weighted_sum(model, params, ids, counts, weights, 8)
        return 3 * total, numbers

    gradient = lambda f: jax.value_and_grad(f, has_aux=True)(params)
    ((total, got), new), ((value, want), reference) = jax.jit(lambda: (gradient(ours), gradient(literal)))()
    np.testing.assert_allclose(total, value, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert not got[:, :, 0].any()
    largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(reference))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * largest), new, reference)
    np.testing.assert_allclose(jax.jit(ours)(params)[1], want, atol=1e-5)  # without a gradient


def test_score_is_that_of_all_logits():
    ids = jnp.asarray(np.random.default_rng(0).integers(0, V, (2, 21)))
    model, params = make_model(layers=1), make_params(1)
    want = literal_score(model, params, ids)
    for chunk in (8, 32):  # several; one, not quite full
        np.testing.assert_allclose(score(model, params, ids, chunk), want, atol=1e-5)


def test_what_was_summed_cannot_be_differentiated():
    ids, params = jnp.zeros((1, 5), jnp.int32), make_params(1)
    with pytest.raises(TypeError, match='only the sum'):
        jax.grad(lambda params: scoring.score(make_model(layers=1), params, ids).sum())(params)


def test_under_a_frozen_head_no_gradient_of_it_is_computed():
    model, params, ids = make_model(layers=1), make_params(1), jnp.zeros((1, 21), jnp.int32)
    every = jnp.ones(ids.shape, bool), jnp.ones((1, *ids.shape))

    def products(inner, rest):
        """Matrix products with the vocabulary in them."""
        loss = lambda inner: scoring.weighted_sum(model, rest | inner, ids, *every, 8)[0]
        found = avals(jax.make_jaxpr(jax.grad(loss))(inner).jaxpr, 'dot_general')
        return sum(V in shape for shape in found)

    head = 'embed' if model.config.tied else 'head'
    without = {name: x for name, x in params.items() if name != head}
    assert products(params, {}) == products(without, {head: params[head]}) + 1


def avals(jaxpr, name=''):
    """Shapes of everything computed anywhere in a program, or by the operation of that name."""
    for equation in jaxpr.eqns:
        if name in ('', equation.primitive.name):
            yield from (v.aval.shape for v in equation.outvars)
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')):
            inner = getattr(value, 'jaxpr', value)
            if hasattr(inner, 'eqns'):
                yield from avals(inner, name)


def test_never_are_there_all_logits():
    rows, length, chunk, vocab = 2, 96, 8, 997
    model = Transformer(dummy_config(vocab), stacked=True)
    params = jax.eval_shape(model.init_params, jax.random.key(0))
    ids = jax.ShapeDtypeStruct((rows, length), jnp.int32)

    def shapes(total):
        return set(avals(jax.make_jaxpr(jax.value_and_grad(total))(params, ids).jaxpr))

    every = jnp.ones((rows, length), bool), jnp.ones((1, rows, length))
    with_vocabulary = {s for s in shapes(lambda p, i: scoring.weighted_sum(model, p, i, *every, chunk)[0]) if vocab in s}
    assert any(np.prod(s) == chunk * vocab for s in with_vocabulary)
    assert max(np.prod(s) for s in with_vocabulary) < rows * length * vocab / 2
    assert any(np.prod(s) == rows * length * vocab for s in shapes(lambda p, i: literal_score(model, p, i).sum()))
