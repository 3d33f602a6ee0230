"""The log-probabilities that the learner sees, against all logits at once."""

import jax
import jax.numpy as jnp
import numpy as np

from epo_jax import sampling
from epo_jax.models.transformer import Transformer
from epo_jax.testing import dummy_config
from little_model import V, full_logits, make_model, make_params, score


def literal_score(model, params, ids):
    logprob = jax.nn.log_softmax(full_logits(model, params, ids), axis=-1)
    chosen = jnp.take_along_axis(logprob[:, :-1], ids[:, 1:, None], axis=-1)[..., 0]
    return jnp.pad(chosen, ((0, 0), (1, 0)))


def test_score_and_its_gradient_are_those_of_all_logits():
    rng, length = np.random.default_rng(0), 21
    ids, weight = jnp.asarray(rng.integers(0, V, (2, length))), jnp.asarray(rng.normal(size=(2, length)), jnp.float32)
    model, params = make_model(layers=1), make_params(1)

    def gradient(score, *options):
        def total(params):
            logprob = score(model, params, ids, *options)
            return (weight * logprob).sum(), logprob
        return jax.grad(total, has_aux=True)(params)

    (got, logprob), (reference, want) = jax.jit(lambda: (gradient(sampling.score, 8), gradient(literal_score)))()
    np.testing.assert_allclose(logprob, want, atol=1e-5)
    assert not logprob[:, 0].any()
    largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(reference))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * largest), got, reference)
    np.testing.assert_allclose(score(model, params, ids, 32), want, atol=1e-5)  # one chunk, not quite full


def avals(jaxpr):
    """Shapes of everything computed anywhere in a program."""
    for equation in jaxpr.eqns:
        yield from (v.aval.shape for v in equation.outvars)
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')):
            inner = getattr(value, 'jaxpr', value)
            if hasattr(inner, 'eqns'):
                yield from avals(inner)


def test_score_never_holds_all_logits():
    rows, length, chunk, vocab = 2, 96, 8, 997
    model = Transformer(dummy_config(vocab), stacked=True)
    params = jax.eval_shape(model.init_params, jax.random.key(0))
    ids = jax.ShapeDtypeStruct((rows, length), jnp.int32)

    def shapes(score):
        return set(avals(jax.make_jaxpr(jax.value_and_grad(lambda p, i: score(p, i).sum()))(params, ids).jaxpr))

    with_vocabulary = {s for s in shapes(lambda p, i: sampling.score(model, p, i, chunk)) if vocab in s}
    assert any(np.prod(s) == chunk * vocab for s in with_vocabulary)
    assert max(np.prod(s) for s in with_vocabulary) < rows * length * vocab / 2
    assert any(np.prod(s) == rows * length * vocab for s in shapes(lambda p, i: literal_score(model, p, i)))
