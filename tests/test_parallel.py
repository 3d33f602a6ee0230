"""Meshes of eight devices against one device: the same numbers, wherever parameters and rows lie."""

import dataclasses
import functools
import os
import pathlib
import pickle
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
import numpy as np
import pytest

from epo_jax import sampling
from epo_jax.learner import Batch, Learner
from epo_jax.models.transformer import Transformer
from epo_jax.parallel import AXES, MeshError, make_mesh, param_shardings, row_sharding
from epo_jax.telemetry import CompileCounter
from epo_jax.testing import dummy_config
from epo_jax.text.tokens import pack

N, L, T, V = 8, 24, 2, 64
MESHES = ((8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4))
CONFIG = dataclasses.replace(dummy_config(V), num_heads=8, num_kv_heads=4)
TRAINED = Transformer(CONFIG, stacked=True, remat='none')
SAMPLER = Transformer(dataclasses.replace(CONFIG, num_layers=1))
LEARNER = Learner(TRAINED, learning_rate=1e-2, total_steps=10, warmup_ratio=0.0, micro_batch=N, chunk=8)
SAMPLING = sampling.SamplingConfig(max_tokens=8, stop=(0,))


# What is computed on every mesh.

def make_params(model):
    """Random numbers everywhere, large enough that the most probable tokens differ from place to place."""
    shapes = jax.eval_shape(model.init_params, jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: (0.4 * rng.normal(size=x.shape)).astype(np.float32), shapes)


def make_batch():
    rng = np.random.default_rng(1)
    turn = np.full((N, L), -1, np.int32)
    turn[:, 5:9], turn[::2, 13:20] = 0, 1
    return Batch(
        ids=rng.integers(0, V, (N, L)).astype(np.int32), turn=turn, logprob=np.zeros((N, L), np.float32),
        advantage=rng.normal(size=(N, T)).astype(np.float32), valid=np.ones((N, T), bool))


@jax.jit
def forward(params, ids):
    """Logits of all positions, and log-probabilities of all tokens."""
    hidden, _ = TRAINED.apply({'params': params}, ids, jnp.broadcast_to(jnp.arange(L), ids.shape))
    logits = TRAINED.apply({'params': params}, hidden, method='logits')
    return logits, sampling.score(TRAINED, params, ids, 8)


@jax.jit
def speak(params, session, prompt, keys):
    """Reads a prompt and samples a message in every row."""
    session = sampling.extend(SAMPLER, params, session, prompt, 8)
    return sampling.generate(SAMPLER, params, session, keys, jnp.ones(N, bool), SAMPLING)[1]


def layout(state):
    """By parameter: the shape of one device's share of it, and of both its moments."""
    share = lambda *xs: [x.sharding.shard_shape(x.shape) for x in xs]
    adam = state.optimizer[1][0]
    return {jax.tree_util.keystr(path): shapes for path, shapes in jax.tree.leaves_with_path(
        jax.tree.map(share, state.params, adam.mu, adam.nu), is_leaf=lambda x: isinstance(x, list))}


def compute(place_params=lambda params, model: params, place_rows=lambda rows: rows):
    """The results by name, as NumPy arrays; the two functions put parameters and rows where they belong."""
    params, batch = place_params(make_params(TRAINED), TRAINED), place_rows(make_batch())
    logits, logprob = forward(params, batch.ids)
    state = LEARNER.init(params)
    where = layout(state)
    state, metrics = LEARNER.step(state, batch)
    after = jax.tree.map(np.asarray, (state.params, state.optimizer[1][0].mu))
    with CompileCounter() as compiles:
        LEARNER.step(state, batch)

    rng = np.random.default_rng(2)
    prompt = pack([rng.integers(1, V, n).tolist() for n in (3, 9, 1, 5, 5, 2, 7, 8)], 10)
    keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(3), row))(jnp.arange(N))
    rows = place_rows((sampling.open_session(SAMPLER, N, L), prompt, keys))
    message = speak(place_params(make_params(SAMPLER), SAMPLER), *rows)
    numbers = {'logits': logits, 'logprob': logprob, 'loss': metrics['loss'],
               'gradient_norm': metrics['gradient_norm'], 'params': after[0], 'moments': after[1]}
    return {'numbers': jax.tree.map(np.asarray, numbers), 'message': message.rows(), 'layout': where,
            'more_compilations': compiles.count}


UNFIT = {'width': ((1, 8, 1), dict(width=36)), 'vocabulary': ((1, 2, 4), dict(vocab_size=62)),
         'heads': ((2, 1, 4), dict(num_kv_heads=2))}


def complaint(shape, change):
    """What is said of a model that does not split over a mesh."""
    try:
        param_shardings(Transformer(dataclasses.replace(CONFIG, **change), stacked=True), make_mesh(shape))
    except MeshError as error:
        return str(error)


def main(file):
    """Computes on one device and on every mesh, in a process that has eight devices."""
    results = {'one device': compute()}
    results['complaints'] = {name: complaint(*case) for name, case in UNFIT.items()}
    results['rows of a device'] = [
        row_sharding(make_mesh((2, 2, 2)), rows).shard_shape((rows, 3)) for rows in (4, 12, 6, 1)]
    results['what is left'] = [
        tuple(make_mesh(shape).shape.values()) for shape in ((-1, 1, 1), (2, -1, 2), (1, 2, -1), (8, 1, -1))]
    for shape in MESHES:
        mesh = make_mesh(shape)
        results[shape] = compute(
            lambda params, model: jax.device_put(params, param_shardings(model, mesh)),
            lambda rows: jax.device_put(rows, row_sharding(mesh, N)))
    pathlib.Path(file).write_bytes(pickle.dumps(results))


# The tests.

@functools.cache
def results():
    """What `main` finds with eight CPU devices; programs are compiled quickly rather than well."""
    environment = {
        **os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(pathlib.Path(sampling.__file__).parents[1]),
        'XLA_FLAGS': '--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0'}
    with tempfile.TemporaryDirectory() as directory:
        file = pathlib.Path(directory) / 'results'
        done = subprocess.run([sys.executable, __file__, file], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return pickle.loads(file.read_bytes())


@pytest.mark.parametrize('shape', MESHES)
def test_a_mesh_computes_what_one_device_does(shape):
    got, want = results()[shape], results()['one device']

    def close(path, a, b):
        error = np.abs(a - b).max() / np.abs(b).max()
        assert error <= 1e-4, (jax.tree_util.keystr(path), error)  # float32 sums in another order

    jax.tree_util.tree_map_with_path(close, got['numbers'], want['numbers'])
    assert got['message'] == want['message']
    assert 0 < max(map(len, got['message'])) and len({tuple(m) for m in got['message']}) == N


@pytest.mark.parametrize('shape', MESHES)
def test_parameters_and_optimizer_are_split_by_the_rules(shape):
    _, fsdp, tensor = shape
    where = results()[shape]['layout']
    heads, kv, width, mlp = 8 // tensor, 4 // tensor, 32 // fsdp, 64 // tensor
    expected = {
        "['embed']": (V // tensor, width), "['final_norm']['scale']": (width,),
        "['layers']['attn_norm']['scale']": (2, width), "['layers']['mlp_norm']['scale']": (2, width),
        "['layers']['q']['kernel']": (2, width, heads, 8), "['layers']['k']['kernel']": (2, width, kv, 8),
        "['layers']['v']['kernel']": (2, width, kv, 8), "['layers']['o']['kernel']": (2, 64 // tensor, width),
        "['layers']['gate']['kernel']": (2, width, mlp), "['layers']['up']['kernel']": (2, width, mlp),
        "['layers']['down']['kernel']": (2, mlp, width)}
    assert where == {name: [share] * 3 for name, share in expected.items()}


def test_a_second_step_is_the_same_program():
    assert [results()[mesh]['more_compilations'] for mesh in ('one device', *MESHES)] == [0] * (len(MESHES) + 1)


def test_a_shape_that_does_not_split_is_an_error_that_names_the_parameter():
    said = results()['complaints']
    assert "['embed'] of shape (64, 36)" in said['width'] and "8 along the mesh axis 'fsdp'" in said['width']
    assert "['embed'] of shape (62, 32)" in said['vocabulary'] and "4 along" in said['vocabulary']
    assert "['layers']['k']['kernel'] of shape (2, 32, 2, 8)" in said['heads'] and "'tensor'" in said['heads']


def test_rows_are_split_where_they_divide():
    assert results()['rows of a device'] == [(1, 3), (3, 3), (6, 3), (1, 3)]


def test_one_size_may_be_what_is_left():
    assert results()['what is left'] == [(8, 1, 1), (2, 2, 2), (1, 2, 4), (8, 1, 1)]
    mesh = make_mesh((-1, 1, 1))
    assert mesh.axis_names == AXES == ('data', 'fsdp', 'tensor') and mesh.axis_types == (AxisType.Auto,) * 3
    assert mesh.shape == {'data': jax.device_count(), 'fsdp': 1, 'tensor': 1}


@pytest.mark.parametrize('shape', (
    (1, 1), (1, 1, 1, 1), (-1, -1, 1), (0, 1, 1), (-2, 1, 1), (1009, 1, 1), (-1, 1009, 1)))
def test_a_mesh_that_does_not_fit_the_devices_is_an_error(shape):
    with pytest.raises(MeshError):
        make_mesh(shape)


if __name__ == '__main__':
    main(sys.argv[1])
