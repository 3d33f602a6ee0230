"""Checkpoints restore bit for bit, survive kills, and detect damage."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from epo_jax.runtime import checkpoint
from epo_jax.runtime.checkpoint import CheckpointError, Checkpoints


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict
    optimizer: tuple
    key: jax.Array
    odd: dict


def make_state(seed=0) -> State:
    key = jax.random.key(seed)
    params = {'layers': {'w': jax.random.normal(key, (4, 16, 8)), 'b': jnp.full((3,), 0.1, jnp.bfloat16)}}
    odd = {
        'keys': jax.random.split(jax.random.key(seed, impl='rbg'), (2, 3)),
        'noise': jax.random.bits(key, (4096,)),
        'nan': jnp.array([jnp.nan, -0.0, jnp.inf, 1e-45]),
        'i8': jnp.arange(-4, 4, dtype=jnp.int8),
        'flags': jnp.array([True, False, True]),
        'half': jnp.linspace(0, 1, 7, dtype=jnp.float16),
        'none': jnp.zeros((0, 3)),
        'list': [jnp.int32(-7), (jnp.uint32(2**32 - 1),)],
    }
    return State(jnp.int32(5), params, optax.adamw(1e-3).init(params), key, odd)


def bits(x) -> tuple:
    data = jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    return str(x.dtype), x.shape, np.asarray(data).tobytes()


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b)):
        assert bits(x) == bits(y), path


def run(code: str, *arguments, devices=1) -> subprocess.CompletedProcess:
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu',
                   'XLA_FLAGS': f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count={devices}'}
    return subprocess.run([sys.executable, '-c', textwrap.dedent(code), *map(str, arguments)], env=environment,
                          capture_output=True, text=True)


def test_state_comes_back_bit_for_bit(tmp_path):
    state, extra = make_state(), {'ratings': [1000.0, 0.1 + 0.2], 'pool': {'3': 'snapshot ü'}, 'best': None}
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() is None
        assert checkpoints.save(7, state, extra) is True
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 7
        restored, restored_extra = checkpoints.restore(7, checkpoint.abstract(state))
    assert_same(state, restored)
    assert restored_extra == extra
    assert bits(jax.random.normal(restored.key, (3,))) == bits(jax.random.normal(state.key, (3,)))


def test_donating_the_saved_state_does_not_change_the_checkpoint(tmp_path):
    add = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    state = add({str(i): jnp.full((1024, 1024), i, jnp.float32) for i in range(4)})
    abstract = checkpoint.abstract(state)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        for _ in range(3):
            state = add(state)
        jax.block_until_ready(state)
        restored, _ = checkpoints.restore(1, abstract)
    assert all((restored[str(i)] == i + 1).all() for i in range(4))


def test_every_keep_and_force(tmp_path):
    state = {'x': jnp.ones(3)}
    with Checkpoints(tmp_path, keep=2, every=2) as checkpoints:
        saved = [step for step in range(1, 8) if checkpoints.save(step, state, {'step': step})]
        assert saved == [2, 4, 6]
        assert checkpoints.save(7, state, {'step': 7}, force=True) is True
        assert checkpoints.save(7, state, {'step': 7}, force=True) is False
        checkpoints.wait()
        assert sorted(path.name for path in (tmp_path / 'checkpoints').iterdir()) == ['6', '7']
        with pytest.raises(CheckpointError, match='step 6 cannot be saved.*already at step 7'):
            checkpoints.save(6, state, {})
        with pytest.raises(CheckpointError, match=r'no checkpoint 4; it has \[6, 7\]'):
            checkpoints.restore(4, checkpoint.abstract(state))
    with pytest.raises(ValueError):
        Checkpoints(tmp_path, keep=0)


def test_an_invalid_state_is_refused_at_once(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(TypeError):
            checkpoints.save(1, {'x': jnp.ones(3)}, {'f': print})
        with pytest.raises(TypeError, match='leaf a.1 of the state is a float'):
            checkpoints.save(1, {'a': (jnp.ones(3), 1.0)}, {})
        with pytest.raises(ValueError, match='same dotted name'):
            checkpoints.save(1, {'a': {'b': jnp.ones(3)}, 'a.b': jnp.ones(3)}, {})
        assert checkpoints.latest() is None


@pytest.mark.parametrize('missing', ['commit_success.txt', 'record', None])
def test_an_interrupted_save_is_ignored(tmp_path, missing):
    state = {'x': jnp.arange(3)}
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, state, {})
    directory = tmp_path / 'checkpoints'
    left = directory / '2.orbax-checkpoint-tmp'  # the name until a save is complete
    shutil.copytree(directory / '1', left)
    if missing == 'record':
        shutil.rmtree(left / missing)
    elif missing is not None:
        (left / missing).unlink()
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert checkpoints.latest() == 1
        assert_same(state, checkpoints.restore(1, checkpoint.abstract(state))[0])
        assert checkpoints.save(2, {'x': jnp.arange(4)}, {'again': True}) is True
        checkpoints.wait()
        assert checkpoints.latest() == 2
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        restored, extra = checkpoints.restore(2, checkpoint.abstract({'x': jnp.arange(4)}))
    assert extra == {'again': True} and restored['x'].tolist() == [0, 1, 2, 3]
    assert [path.name for path in directory.iterdir()] == ['2']


def test_sigkill_in_the_middle_of_a_save(tmp_path):
    done = run('''
        import os, signal, sys
        import jax
        from epo_jax.runtime.checkpoint import Checkpoints
        checkpoints = Checkpoints(sys.argv[1], keep=1)
        def state(seed):
            return {'x': jax.random.normal(jax.random.key(seed), (16, 1024, 1024))}
        checkpoints.save(1, state(1), {'seed': 1})
        checkpoints.wait()
        following = jax.block_until_ready(state(2))
        checkpoints.save(2, following, {'seed': 2})
        os.kill(os.getpid(), signal.SIGKILL)
        ''', tmp_path)
    assert done.returncode == -signal.SIGKILL, done.stderr
    abstract = checkpoint.abstract({'x': jnp.zeros((16, 1024, 1024))})
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        latest = checkpoints.latest()
        restored, extra = checkpoints.restore(latest, abstract)
    assert latest == extra['seed'] and latest in (1, 2)
    assert_same(restored, {'x': jax.random.normal(jax.random.key(latest), (16, 1024, 1024))})


def damage_everything(workdir):
    """Damage, truncate and remove each file: restoring must fail and name the checkpoint, or give the right state."""
    state = make_state()
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(3, state, {'rating': 1000.0})
    detected = set()
    for path in sorted(workdir.joinpath('checkpoints', '3').rglob('*')):
        content = path.read_bytes() if path.is_file() else b''
        if not content:
            continue
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 0x15]) + content[middle + 1:]
        for damage in (flipped, content[:middle], None):
            if damage is None:
                path.unlink()
            else:
                path.write_bytes(damage)
            try:
                with Checkpoints(workdir) as checkpoints:
                    restored, extra = checkpoints.restore(3, checkpoint.abstract(state))
                assert_same(state, restored)
                assert extra == {'rating': 1000.0}
            except CheckpointError as error:
                assert f'{workdir}/checkpoints/3 is damaged' in str(error) and '\n' not in str(error)
                detected.add((path.relative_to(workdir).parts[2], 'flip' if damage is flipped else 'other'))
            path.write_bytes(content)
    assert detected == {('state', 'flip'), ('state', 'other'), ('record', 'flip'), ('record', 'other')}


def test_all_damage_is_detected(tmp_path):
    # A separate process, because Orbax's abandoned reads report errors until the process ends.
    done = run('''
        import pathlib, sys
        sys.path.insert(0, sys.argv[2])
        import test_checkpoint
        test_checkpoint.damage_everything(pathlib.Path(sys.argv[1]))
        print('all detected')
        ''', tmp_path, os.path.dirname(__file__))
    assert done.returncode == 0 and 'all detected' in done.stdout, done.stderr


def test_a_state_that_does_not_fit_is_named_leaf_by_leaf(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {'params': {'w': jnp.ones((3, 4)), 'old': jnp.ones(2), 'half': jnp.ones(2)},
                             'key': jax.random.key(0)}, {})
        other = {'params': {'w': jnp.ones((3, 5)), 'new': jnp.ones(2), 'half': jnp.ones(2, jnp.bfloat16)},
                 'key': jax.random.key(0, impl='rbg')}
        with pytest.raises(CheckpointError) as error:
            checkpoints.restore(1, checkpoint.abstract(other))
        for line in ('checkpoints/1 does not fit the state',
                     'params.w: saved as float32[3,4], but the state has float32[3,5]',
                     'params.old: saved as float32[2], but the state has no such leaf',
                     'params.new: not saved, but the state has float32[2]',
                     'params.half: saved as float32[2], but the state has bfloat16[2]',
                     'key: saved as key<fry>[], but the state has key<rbg>[]'):
            assert line in str(error.value)
        checkpoints.save(2, {'x': jnp.ones(3)}, {})
        with pytest.raises(CheckpointError, match='x: abstract_state gives no sharding'):
            checkpoints.restore(2, {'x': jax.ShapeDtypeStruct((3,), jnp.float32)})


def test_restoring_into_shards(tmp_path):
    state = {'w': jnp.arange(64 * 16, dtype=jnp.float32).reshape(64, 16), 'step': jnp.int32(3),
             'keys': jax.random.split(jax.random.key(1), 8)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
    done = run('''
        import json, sys
        import jax, jax.numpy as jnp, numpy as np
        from jax.sharding import NamedSharding, PartitionSpec as P
        from epo_jax.runtime import checkpoint
        assert jax.device_count() == 8
        mesh = jax.make_mesh((4, 2), ('fsdp', 'tensor'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
        def struct(shape, dtype, *spec):
            return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*spec)))
        key = jax.random.key(0).dtype
        def target(w, keys):
            return {'w': struct((64, 16), jnp.float32, *w), 'step': struct((), jnp.int32),
                    'keys': struct((8,), key, *keys)}
        def check(state, w, shard, keys):
            assert state['w'].sharding == NamedSharding(mesh, P(*w))
            assert {s.data.shape for s in state['w'].addressable_shards} == {shard}
            assert state['keys'].sharding.is_equivalent_to(NamedSharding(mesh, P(*keys)), 1)
            np.testing.assert_array_equal(state['w'], np.arange(1024, dtype=np.float32).reshape(64, 16))
            np.testing.assert_array_equal(jax.random.key_data(state['keys']),
                                          jax.random.key_data(jax.random.split(jax.random.key(1), 8)))
            assert int(state['step']) == 3
        with checkpoint.Checkpoints(sys.argv[1]) as checkpoints:
            state, _ = checkpoints.restore(1, target(('fsdp', 'tensor'), ('fsdp',)))
            check(state, ('fsdp', 'tensor'), (16, 8), ('fsdp',))
            assert checkpoints.save(2, state, {'from': 8})
            state, extra = checkpoints.restore(2, target((None, 'fsdp'), ()))
            check(state, (None, 'fsdp'), (64, 4), ())
            assert extra == {'from': 8}
        ''', tmp_path, devices=8)
    assert done.returncode == 0, done.stderr
    with Checkpoints(tmp_path) as checkpoints:  # one device restores what eight devices saved
        restored, _ = checkpoints.restore(2, checkpoint.abstract(state))
    assert_same(state, restored)
