"""Plans of runs on TPU slices without the hardware, where the TPU compiler is installed."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

from epo_jax.defaults import default_config
from epo_jax.models import hub
from epo_jax.models.config import SHAPES, ModelConfig
from epo_jax.plan import programs
from epo_jax.testing import dummy_config

REPO = pathlib.Path(__file__).parents[2]
needs_compiler = pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='libtpu is not installed')


def run(*flags, path=None):
    """Run the command line."""
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
    if path:
        environment['PYTHONPATH'] = str(path)
    return subprocess.run([sys.executable, '-m', 'epo_jax.plan', *flags], cwd=REPO, env=environment,
                          capture_output=True, text=True, timeout=500)


@needs_compiler
@pytest.mark.slow
def test_a_small_plan(tmp_path):
    file = tmp_path / 'plan.json'
    done = run('--config=configs/sotopia.py:tiny', '--topology=v5e:2x2', '--config.mesh=1,4,1',
               '--config.learner.micro_batch=4', f'--json={file}')
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(file.read_text())
    assert result['fits'] and result['chips'] == 4 and result['mesh'] == {'data': 1, 'fsdp': 4, 'tensor': 1}
    assert set(result['programs']) == {*programs.PROGRAMS, 'actor_turn'}
    for name, program in result['programs'].items():
        assert 0 < program['memory_gib'] < 1 and program['flops'] > 0 and program['estimated_seconds'] > 0, name
        assert 0 < program['share_of_peak'] < 1 and program['collectives'], name
    step, config = result['programs']['train_step'], dummy_config()
    tokens, layers = 8 * 1536, config.num_params - config.vocab_size * config.width
    # Forward, recomputation and two products backward give 8 FLOP per parameter and token; attention adds to them.
    assert 8 * tokens * (layers - 5 * config.width) < step['flops'] < 40 * 8 * tokens * config.num_params
    for word in ('train_step', 'GiB', 'of peak', 'an iteration', 'dominates', 'fits'):
        assert word in done.stdout


SCRIPT = """
import sys
from epo_jax.plan import programs, search
from epo_jax.defaults import default_config
from epo_jax.runtime.parallel import MeshError
programs.use_compiler_only()
config = default_config('sotopia')
config.mesh = (1, -1, 1)
"""


def script(text):
    """Run SCRIPT and `text` in a new process, and return the lines that it prints."""
    done = subprocess.run([sys.executable, '-c', SCRIPT + text], cwd=REPO, capture_output=True, text=True,
                          env={**os.environ, 'JAX_PLATFORMS': 'cpu'}, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


@needs_compiler
@pytest.mark.slow
def test_a_search_compares_all_meshes_and_plans_with_the_best(tmp_path):
    file = tmp_path / 'plan.json'
    done = run('--config=configs/sotopia.py:tiny', '--topology=v5e:2x2', '--search', f'--json={file}')
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line for line in done.stdout.splitlines() if line.startswith('mesh ')]
    # The model of the preset does not split along `tensor`; a batch has eight conversations.
    assert [row.partition(':')[0] for row in rows] == [
        f'mesh {mesh}, micro-batch 8' for mesh in ((1, 4, 1), (4, 1, 1))]
    assert all('fits, ' in row and 'train step' in row and 'decode step' in row for row in rows)
    result = json.loads(file.read_text())
    assert result['fits'] and result['micro_batch'] == 8
    assert set(result['programs']) == {*programs.PROGRAMS, 'actor_turn'}
    assert tuple(result['mesh'].values()) in ((1, 4, 1), (4, 1, 1))


@needs_compiler
@pytest.mark.slow
def test_a_program_that_the_compiler_rejects_does_not_fit():
    row, verdict = script("""
config.model.path = 'dummy'
config.rollout.batch = 4
config.learner.update(batch=16384, micro_batch=16384, chunk=2**26)
large = programs.plan_target(config, 'v5e:2x2')
search.candidates = lambda *rest: [[large]]
try:
    search.search(config, 'v5e:2x2')
except programs.PlanError as error:
    print(error)
""")
    assert row.startswith('mesh (1, -1, 1), micro-batch 16384: train_step does not fit a chip: RESOURCE_EXHAUSTED')
    assert verdict.startswith('no mesh of 4 chips holds')


@needs_compiler
def test_candidates_divide_parameters_and_rows_and_fit():
    targets = [eval(line) for line in script("""
config.model.path = 'Meta-Llama-3-8B'
config.rollout.batch = config.learner.batch = 16
for targets in search.candidates(config, 'v5p:2x2x2', 8):
    print([(target.config.mesh, target.config.learner.micro_batch) for target in targets])
""")]
    meshes = [of_mesh[0][0] for of_mesh in targets]
    assert meshes == [(1, 8, 1), (1, 4, 2), (4, 1, 2), (1, 2, 4), (2, 1, 4), (1, 1, 8)]  # (8, 1, 1) does not fit
    for mesh, of_mesh in zip(meshes, targets):
        rows = mesh[0] * mesh[1]
        assert of_mesh == [(mesh, n) for n in (16, 8, 4, 2, 1) if n >= rows]


@needs_compiler
def test_rows_that_do_not_split_and_offloaded_moments():
    message, on_device, offloaded = script("""
config.model.path = 'Meta-Llama-3-8B'
try:
    programs.plan_target(config, 'v5p:2x2x2')
except MeshError as error:
    print(error)
config.learner.micro_batch = 8
for config.learner.offload in (False, True):
    print(programs.device_bytes(programs.plan_target(config, 'v5p:2x2x2').state()))
""")
    assert message.startswith('learner.micro_batch=1 rows do not split over the 8 devices')
    assert int(on_device) == pytest.approx(3 * int(offloaded), rel=1e-3)  # parameters and two moments


def test_without_the_compiler_the_error_says_what_to_install(tmp_path):
    (tmp_path / 'sitecustomize.py').write_text(
        'import importlib.util\nfind = importlib.util.find_spec\n'
        "importlib.util.find_spec = lambda name, *rest: None if name == 'libtpu' else find(name, *rest)\n")
    done = run('--config=configs/sotopia.py:tiny', '--topology=v5e:2x2', path=tmp_path)
    assert done.returncode == 1 and 'pip install libtpu' in done.stderr


def test_shapes_come_from_names_and_folders(tmp_path, monkeypatch):
    def unreachable(*args):
        raise hub.HubError('the hub cannot be reached')
    monkeypatch.setattr(hub, 'fetch', unreachable)
    assert programs.model_config('meta-llama/Meta-Llama-3-8B-Instruct').num_params == 8_030_261_248
    assert programs.model_config('meta-llama/Meta-Llama-3-70B-Instruct').num_params == 70_553_706_496
    small = ModelConfig(64, 32, 2, 4, 2, 8, 64)
    (tmp_path / 'config.json').write_text(json.dumps(small.to_hf()))
    assert programs.model_config(str(tmp_path)) == small
    with pytest.raises(programs.PlanError, match='unknown .the hub cannot be reached.; .* config.json'):
        programs.model_config('somebody/unknown')


def test_unknown_chips_are_refused():
    with pytest.raises(programs.PlanError, match='v4, v5e, v5p, v6e'):
        programs.plan_target(default_config('sotopia'), 'v99:2x2')


@needs_compiler
@pytest.mark.parametrize(('topology', 'chips'), (('v4:2x2x2', 8), ('v5e:4x4', 16), ('v5p:2x2x2', 8), ('v6e:4x4', 16)))
def test_topologies_of_every_kind_of_chip(topology, chips):
    size, state = map(int, script(f"""
config.model.path = 'Meta-Llama-3-8B'
config.rollout.batch = config.learner.micro_batch = 16
target = programs.plan_target(config, '{topology}')
print(target.mesh.size, programs.device_bytes(target.state()))
""")[0].split())
    assert size == chips and state * chips == pytest.approx(12 * SHAPES['Meta-Llama-3-8B'].num_params, rel=0.01)
