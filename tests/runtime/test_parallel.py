"""Meshes of eight devices give the same numbers as one device, however parameters and rows are split."""

import dataclasses
import functools
import os
import pathlib
import pickle
import subprocess
import sys
import tempfile
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType
import numpy as np
import pytest

from epo_jax.agents.local import LocalAgent
from epo_jax.models import sampling, scoring
from epo_jax.models.config import SHAPES
from epo_jax.models.lora import LoRA
from epo_jax.models.transformer import Transformer
from epo_jax.rl import objective
from epo_jax.rl.learner import Batch, Learner
from epo_jax.runtime.parallel import (
    AXES,
    MeshError,
    check_rows,
    constrain,
    make_mesh,
    mesh_axes,
    named_sharding,
    param_shardings,
)
from epo_jax.runtime.timing import CompileCounter
from epo_jax.testing import dummy_config
from epo_jax.text.chat import ChatSegments
from epo_jax.text.tokens import pack

N, ROWS, L, T, V = 8, 16, 24, 2, 64  # N rows in a session; ROWS rows in a gradient step of two micro-batches
MESHES = ((8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4))
CONFIG = dataclasses.replace(dummy_config(V), num_heads=8, num_kv_heads=4)
TRAINED = Transformer(CONFIG, stacked=True, remat='none')
SAMPLER = Transformer(dataclasses.replace(CONFIG, num_layers=1))
LORA = LoRA(4, 8.0, ('q', 'o', 'down'))
SAMPLING = sampling.SamplingConfig(max_tokens=8, stop=(0,))
CHAT = ChatSegments(open=(1,), close=(2, 3), between=(4,), end=0, stop=(0,))


def learner(model, lora=None):
    """Return a learner; an adapter is trained with ratios of turns and counts of tokens over the whole batch."""
    options = {name: key.default for name, key in objective.KEYS.items()}
    goal = objective.from_config(options | dict(name='gspo', aggregation='token_mean') if lora else options)
    return Learner(model, learning_rate=1e-2, total_steps=10, warmup_ratio=0.0, micro_batch=N, lora=lora, chunk=64,
                   objective=goal)


# The computations that run on every mesh.

def make_params(model, init=None):
    """Return random parameters, large enough that the most probable token differs between positions."""
    shapes = jax.eval_shape(init or model.init_params, jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: (0.4 * rng.normal(size=x.shape)).astype(np.float32), shapes)


def make_batch():
    rng = np.random.default_rng(1)
    turn = np.full((ROWS, L), -1, np.int32)
    turn[:, 5:9], turn[::2, 13:20] = 0, 1
    return Batch(
        ids=rng.integers(0, V, (ROWS, L)).astype(np.int32), turn=turn, logprob=np.full((ROWS, L), -4, np.float32),
        advantage=rng.normal(size=(ROWS, T)).astype(np.float32), valid=np.ones((ROWS, T), bool))


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, ids):
    """Return the logits of all positions and the log-probabilities of all tokens."""
    hidden, _ = model.apply({'params': params}, ids, jnp.broadcast_to(jnp.arange(L), ids.shape))
    logits = model.apply({'params': params}, hidden, method='logits')
    return logits, scoring.score(model, params, ids, 64)


def respond(model, params):
    """Let an agent read openings and reply; return its messages, and the shapes of its sessions on one device."""
    rng = np.random.default_rng(2)
    text = lambda *lengths: pack([rng.integers(5, V, n).tolist() for n in lengths], 10)
    keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(3), row))(jnp.arange(N))
    agent, live = LocalAgent(model, CHAT, SAMPLING, L + 8, chunk=8), np.ones(N, bool)
    memory = agent.start(N)
    empty = jax.tree.map(lambda x: x.sharding.shard_shape(x.shape), memory)
    memory = agent.begin(params, memory, text(3, 9, 1, 5, 5, 2, 7, 8), live)
    memory, message = agent.respond(
        params, memory, [text(1, 2, 3, 4, 3, 2, 1, 0)], text(*[1] * N), None, keys, 0, live)
    full = jax.tree.map(lambda x: x.sharding.shard_shape(x.shape), memory)
    return message.rows(), [(empty.ids, *empty.cache[0]), (full.ids, *full.cache[0])]


def layout(state):
    """Return, by parameter, the shapes on one device of the parameter and of its two moments."""
    shard_shapes = lambda *xs: [x.sharding.shard_shape(x.shape) for x in xs]
    adam = state.optimizer[1][0]
    return {jax.tree_util.keystr(path): shapes for path, shapes in jax.tree.leaves_with_path(
        jax.tree.map(shard_shapes, state.params, adam.mu, adam.nu), is_leaf=lambda x: isinstance(x, list))}


def train(model, state, base=None, lora=None):
    """Take two gradient steps; return the results of the first, the compilations of the second, and the layout."""
    shard_shapes = layout(state)
    state, metrics = learner(model, lora).step(state, make_batch(), base)
    params, moments = jax.tree.map(np.asarray, (state.params, state.optimizer[1][0].mu))
    with CompileCounter() as compiles:
        learner(model, lora).step(state, make_batch(), base)
    return {'loss': np.asarray(metrics['loss']), 'gradient_norm': np.asarray(metrics['gradient_norm']),
            'params': params, 'moments': moments}, compiles.count, shard_shapes


def compute(mesh=None):
    """Return all results by name, as NumPy arrays, computed on a mesh or on one device."""
    model, sampler = TRAINED.clone(mesh=mesh), SAMPLER.clone(mesh=mesh)
    place = lambda x, model, lora=None: x if mesh is None else jax.device_put(x, param_shardings(model, mesh, lora))
    params = place(make_params(TRAINED), TRAINED)
    logits, logprob = forward(model, params, make_batch().ids)
    numbers, recompilations, shard_shapes = train(model, learner(model).init(params))
    adapter = place(make_params(TRAINED, functools.partial(LORA.init, TRAINED)), TRAINED, LORA)
    adapted, _, _ = train(model, learner(model, LORA).init(adapter), params, LORA)
    message, sessions = respond(sampler, place(make_params(SAMPLER), SAMPLER))
    numbers |= {'logits': np.asarray(logits), 'logprob': np.asarray(logprob), 'adapted': adapted}
    return {'numbers': numbers, 'message': message, 'layout': shard_shapes, 'sessions': sessions,
            'recompilations': recompilations}


UNFIT = {'width': ((1, 8, 1), dict(width=36)), 'vocabulary': ((1, 2, 4), dict(vocab_size=62)),
         'heads': ((2, 1, 4), dict(num_kv_heads=2))}


def mesh_error(shape, change):
    """Return the error message for a model that does not split over a mesh."""
    try:
        param_shardings(Transformer(dataclasses.replace(CONFIG, **change), stacked=True), make_mesh(shape))
    except MeshError as error:
        return str(error)


def shard_shapes_of_8b(mesh):
    """Return, for every parameter of Llama-3-8B, its shape and its shape on one device."""
    model = Transformer(SHAPES['Meta-Llama-3-8B'], stacked=True)
    shapes = jax.eval_shape(model.init_params, jax.random.key(0))
    pairs = jax.tree.map(lambda x, s: (x.shape, s.shard_shape(x.shape)), shapes, param_shardings(model, mesh))
    return {'/'.join(key.key for key in path): pair for path, pair in jax.tree.leaves_with_path(
        pairs, is_leaf=lambda x: isinstance(x, tuple))}


def main(file):
    """Compute on one device and on every mesh, in a process with eight devices, and pickle the results to a file."""
    results = {'one device': compute()}
    results['errors'] = {name: mesh_error(*case) for name, case in UNFIT.items()}
    results['row shards'] = [
        named_sharding(make_mesh((2, 2, 2)), (rows,), 'rows').shard_shape((rows, 3)) for rows in (4, 12, 6, 1)]
    results['mesh sizes'] = [
        tuple(make_mesh(shape).shape.values()) for shape in ((-1, 1, 1), (2, -1, 2), (1, 2, -1), (8, 1, -1), (1, 1, 1))]
    for shape in MESHES:
        results[shape] = compute(make_mesh(shape))
        results['8B', shape] = shard_shapes_of_8b(make_mesh(shape))
    pathlib.Path(file).write_bytes(pickle.dumps(results))


# The tests.

@functools.cache
def results():
    """Return the results of `main` with eight CPU devices."""
    environment = {
        **os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(pathlib.Path(sampling.__file__).parents[2]),
        'XLA_FLAGS': f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count=8'}
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
        assert error <= 1e-4, (jax.tree_util.keystr(path), error)  # float32 sums in a different order

    jax.tree_util.tree_map_with_path(close, got['numbers'], want['numbers'])
    assert got['message'] == want['message']
    assert 0 < max(map(len, got['message'])) and len({tuple(m) for m in got['message']}) == N


@pytest.mark.parametrize('shape', MESHES)
def test_parameters_and_optimizer_are_split_by_the_rules(shape):
    _, fsdp, tensor = shape
    shard_shapes = results()[shape]['layout']
    heads, kv, width, mlp = 8 // tensor, 4 // tensor, 32 // fsdp, 64 // tensor
    expected = {
        "['embed']": (V // tensor, width), "['final_norm']['scale']": (width,),
        "['layers']['attn_norm']['scale']": (2, width), "['layers']['mlp_norm']['scale']": (2, width),
        "['layers']['q']['kernel']": (2, width, heads, 8), "['layers']['k']['kernel']": (2, width, kv, 8),
        "['layers']['v']['kernel']": (2, width, kv, 8), "['layers']['o']['kernel']": (2, 64 // tensor, width),
        "['layers']['gate']['kernel']": (2, width, mlp), "['layers']['up']['kernel']": (2, width, mlp),
        "['layers']['down']['kernel']": (2, mlp, width)}
    assert shard_shapes == {name: [shape] * 3 for name, shape in expected.items()}


@pytest.mark.parametrize('shape', MESHES)
def test_sessions_are_split_by_rows_and_heads(shape):
    rows, kv = N // (shape[0] * shape[1]), 4 // shape[2]
    expected = [(rows, L + 8), (rows, kv, 8, L + 8), (rows, kv, L + 8, 8)]
    assert [[tuple(x) for x in state] for state in results()[shape]['sessions']] == [expected] * 2


@pytest.mark.parametrize('shape', MESHES)
def test_every_parameter_of_the_8b_model_is_split_by_the_rules(shape):
    _, f, t = shape
    layers, width, heads, kv, mlp, vocabulary = 32, 4096 // f, 32 // t, 8 // t, 14336 // t, 128256 // t
    assert results()['8B', shape] == {
        'embed': ((128256, 4096), (vocabulary, width)),
        'head/kernel': ((4096, 128256), (width, vocabulary)),
        'final_norm/scale': ((4096,), (width,)),
        'layers/attn_norm/scale': ((32, 4096), (layers, width)),
        'layers/mlp_norm/scale': ((32, 4096), (layers, width)),
        'layers/q/kernel': ((32, 4096, 32, 128), (layers, width, heads, 128)),
        'layers/k/kernel': ((32, 4096, 8, 128), (layers, width, kv, 128)),
        'layers/v/kernel': ((32, 4096, 8, 128), (layers, width, kv, 128)),
        'layers/o/kernel': ((32, 4096, 4096), (layers, 4096 // t, width)),
        'layers/gate/kernel': ((32, 4096, 14336), (layers, width, mlp)),
        'layers/up/kernel': ((32, 4096, 14336), (layers, width, mlp)),
        'layers/down/kernel': ((32, 14336, 4096), (layers, mlp, width))}


def test_a_second_step_is_the_same_program():
    assert [results()[mesh]['recompilations'] for mesh in ('one device', *MESHES)] == [0] * (len(MESHES) + 1)


def test_a_shape_that_does_not_split_is_an_error_that_names_the_parameter():
    errors = results()['errors']
    assert "['embed'] of shape (64, 36)" in errors['width'] and "8 along the mesh axis 'fsdp'" in errors['width']
    assert 'choose a mesh whose fsdp divides 36' in errors['width']
    assert "['embed'] of shape (62, 32)" in errors['vocabulary'] and "4 along" in errors['vocabulary']
    assert "['layers']['k']['kernel'] of shape (2, 32, 2, 8)" in errors['heads'] and "'tensor'" in errors['heads']


def test_rows_are_split_where_they_divide():
    assert results()['row shards'] == [(1, 3), (3, 3), (6, 3), (1, 3)]


def test_rows_that_do_not_split_are_an_error_that_says_what_to_change():
    mesh = AbstractMesh((2, 3, 4), AXES)
    check_rows(mesh, {'rollout.batch': 12, 'learner.micro_batch': 6})
    with pytest.raises(MeshError) as error:
        check_rows(mesh, {'rollout.batch': 16, 'learner.micro_batch': 6, 'judge.rows': 3})
    first, second = str(error.value).split('\n')
    assert 'rollout.batch=16 rows do not split over the 6 devices of mesh (2, 3, 4)' in first
    assert '(data 2 x fsdp 3)' in first and 'make rollout.batch a multiple of 6, or choose another mesh' in first
    assert 'judge.rows=3' in second


def test_a_run_refuses_rows_that_its_mesh_does_not_split(tmp_path):
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '--xla_force_host_platform_device_count=2'}
    done = subprocess.run(
        [sys.executable, '-m', 'epo_jax.main', '--config=configs/sotopia.py:tiny', f'--workdir={tmp_path / "run"}',
         '--config.learner.micro_batch=1'], env=environment, capture_output=True, text=True,
        cwd=pathlib.Path(sampling.__file__).parents[2])
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert 'error: learner.micro_batch=1 rows do not split over the 2 devices of mesh (2, 1, 1)' in done.stderr
    assert not (tmp_path / 'run' / 'episodes').exists()


def test_unknown_axes_are_errors():
    mesh, x = AbstractMesh((1, 2, 1), AXES), jax.ShapeDtypeStruct((4,), jnp.float32)
    assert mesh_axes(mesh, 'rows') == ('data', 'fsdp') and mesh_axes(mesh, 'layers') == mesh_axes(mesh, None) == ()
    with pytest.raises(MeshError, match="logical axis 'row' is not known; the known axes are vocab, .*, rows"):
        named_sharding(mesh, x.shape, 'row')
    with pytest.raises(MeshError, match="logical axis 'row' is not known"):
        constrain(mesh, x, 'row')
    other = AbstractMesh((2,), ('x',))
    with pytest.raises(MeshError, match=r"'rows' is split over 'data', but the mesh has only the axes \('x',\)"):
        named_sharding(other, (4,), 'rows')
    model = types.SimpleNamespace(init_boxed=lambda key: {
        'wide': nn.LogicallyPartitioned(jnp.ones((2, 4)), ('embed', 'width'))})
    with pytest.raises(MeshError, match=r"\['wide'\]: the logical axis 'width' is not known"):
        param_shardings(model, mesh)
    with pytest.raises(MeshError, match=r"\['embed'\]: .*'tensor', but the mesh has only"):
        param_shardings(TRAINED, AbstractMesh((2,), ('fsdp',)))


def test_a_size_of_minus_one_uses_the_remaining_devices():
    assert results()['mesh sizes'] == [(8, 1, 1), (2, 2, 2), (1, 2, 4), (8, 1, 1), (1, 1, 1)]
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
