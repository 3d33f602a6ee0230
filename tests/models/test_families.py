"""Decoders of all families: cached decoding, scoring, adapters and meshes agree with one plain forward pass."""

import os
import subprocess
import sys
import textwrap

from families import CONFIGS
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epo_jax.models import scoring
from epo_jax.models.families import decoder
from epo_jax.models.layout import unstack
from epo_jax.models.lora import LoRA

LENGTH = 13  # longer than the windows
NEW = ('smollm3', 'gemma3', 'gemma3, global, not tied')


def small_params(config, seed=0):
    """Return random parameters in the stacked layout, of a size that keeps activations moderate."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(decoder(config, stacked=True).init_params, jax.random.key(0))
    scale = lambda x: 0.3 if x.ndim < 3 else 2 * x.shape[1] ** -0.5
    return jax.tree.map(lambda x: jnp.asarray(scale(x) * rng.normal(size=x.shape), jnp.float32), shapes)


def token_ids(config, rows=2):
    return np.random.default_rng(1).integers(0, config.vocab_size, (rows, LENGTH)).astype(np.int32)


def forward(model, params, ids):
    hidden, _ = model.apply({'params': params}, ids, jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape))
    return model.apply({'params': params}, hidden, method='logits')


@pytest.mark.parametrize('stacked', [False, True])
@pytest.mark.parametrize('name', NEW)
def test_decoding_with_a_cache_equals_a_full_forward_pass(name, stacked):
    """Some tokens are read together, with padding, and the others one by one."""
    config = CONFIGS[name]
    model, params, ids = decoder(config, stacked=stacked), small_params(config), token_ids(config)
    params = params if stacked else unstack(params)
    expected = jax.jit(lambda params: forward(model, params, ids))(params)
    step = jax.jit(lambda params, ids, at, cache: model.apply({'params': params}, ids, at, cache))
    at = np.array([[0, 1, 2, 3, 4, 5, 99], [0, 1, 2, 3, 4, 5, 99]])
    out, cache = step(params, ids[:, :7], at, model.init_cache(2, 16))
    hidden = [out[:, :6]]
    for i in range(6, LENGTH):
        out, cache = step(params, ids[:, i:i + 1], np.full((2, 1), i), cache)
        hidden.append(out)
    actual = model.apply({'params': params}, jnp.concatenate(hidden, axis=1), method='logits')
    np.testing.assert_allclose(actual, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize('name', NEW)
def test_the_gradient_of_scores_is_that_of_plain_logits(name):
    config = CONFIGS[name]
    params, ids = small_params(config), token_ids(config)
    weights = jnp.asarray(np.random.default_rng(2).normal(size=ids.shape), jnp.float32)
    weighted = lambda logprob, entropy, weights: weights * logprob

    def plain(params):
        logprob = jax.nn.log_softmax(forward(decoder(config), unstack(params), ids))
        chosen = jnp.take_along_axis(logprob[:, :-1], ids[:, 1:, None], axis=-1)[..., 0]
        return (weights[:, 1:] * chosen).sum()

    expected_value, expected = jax.jit(jax.value_and_grad(plain))(params)
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(expected))
    for remat in ('none', 'full'):
        model = decoder(config, stacked=True, remat=remat)
        scored = lambda params: scoring.summed_loss(
            model, params, ids, jnp.ones(ids.shape, bool), weighted, weights, 8)[0]
        value, actual = jax.jit(jax.value_and_grad(scored))(params)
        np.testing.assert_allclose(value, expected_value, rtol=1e-4)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4 * np.abs(b).max()), actual, expected)


@pytest.mark.parametrize('name', NEW)
def test_both_layouts_have_the_same_logits_and_kinds_of_layers_matter(name):
    config = CONFIGS[name]
    params, ids = small_params(config), token_ids(config)
    expected = np.asarray(forward(decoder(config), unstack(params), ids))
    stacked = forward(decoder(config, stacked=True), params, ids)
    np.testing.assert_allclose(stacked, expected, atol=2e-5 * np.abs(expected).max())
    swapped = jax.tree.map(lambda x: x[::-1], params['layers'])
    assert np.abs(forward(decoder(config, stacked=True), params | {'layers': swapped}, ids) - expected).max() > 0.1


@pytest.mark.parametrize('name', NEW)
def test_parameters_are_counted(name):
    config = CONFIGS[name]
    assert config.num_params == sum(x.size for x in jax.tree.leaves(small_params(config)))


@pytest.mark.parametrize('name', NEW)
def test_adapters_equal_the_merged_model(name):
    config, lora = CONFIGS[name], LoRA(3, 6.0)
    model, params, ids = decoder(config, stacked=True), small_params(config), token_ids(config)
    shapes = jax.eval_shape(lambda: lora.init(model, jax.random.key(0)))
    rng = np.random.default_rng(3)
    adapter = jax.tree.map(lambda x: jnp.asarray(0.1 * rng.normal(size=x.shape), jnp.float32), shapes)
    logits = jax.jit(lambda params: forward(model, params, ids))
    actual, expected = logits(lora.join(params, adapter)), logits(lora.merge(params, adapter))
    np.testing.assert_allclose(actual, expected, atol=2e-5 * np.abs(expected).max())
    assert np.abs(expected - logits(params)).max() > 1e-2


def test_meshes_do_not_change_the_logits():
    program = textwrap.dedent('''
        import sys, jax, numpy as np
        jax.config.update('jax_platforms', 'cpu')
        jax.config.update('jax_num_cpu_devices', 4)
        from families import CONFIGS
        from test_families import NEW, forward, small_params, token_ids
        from epo_jax.models.families import decoder
        from epo_jax.models.layout import unstack
        from epo_jax.runtime.parallel import make_mesh, param_shardings
        mesh = make_mesh((1, 2, 2))
        for name in NEW:
            config = CONFIGS[name]
            params, ids = small_params(config), token_ids(config)
            expected = forward(decoder(config, stacked=True), params, ids)
            for stacked in (False, True):
                model = decoder(config, stacked=stacked, mesh=mesh)
                placed = jax.device_put(params if stacked else unstack(params), param_shardings(model, mesh))
                logits = jax.jit(lambda params: forward(model, params, ids))(placed)
                np.testing.assert_allclose(logits, expected, atol=2e-5 * np.abs(expected).max(), err_msg=name)
        print('all logits are equal')
    ''')
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True,
                          env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)})
    assert 'all logits are equal' in done.stdout, done.stderr
