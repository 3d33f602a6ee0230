"""Reading a run from its workdir."""

import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from epo_jax import defaults, offline, runs
from epo_jax.config import to_json
from epo_jax.models.lora import LoRA
from epo_jax.rl import learner as learning
from epo_jax.rl.selfplay import RunState
from epo_jax.runtime.checkpoint import CheckpointError, Checkpoints
from epo_jax.testing import byte_tokenizer
from epo_jax.text.chat import TEMPLATES

ROOT = pathlib.Path(__file__).parent.parent


def online_config(rank=0):
    config = defaults.default_config()
    config.model.path, config.lora.rank, config.seats = 'dummy', rank, ('policy', 'snapshot')
    return config


def save_run(workdir, config, step):
    """Saves a fresh state as the checkpoint of `step` and returns its parameters."""
    workdir.mkdir(exist_ok=True)
    (workdir / 'config.json').write_text(to_json(config))
    language, lora = runs.load_run_language(config), runs.lora_of(config)
    learner = learning.from_config(config.learner, language.learner('none'), 1, lora)
    params = (language.with_params(dtype=np.float32).params if lora is None
              else lora.init(learner.model, jax.random.key(1)))
    state = learner.init(params)
    with Checkpoints(workdir) as checkpoints:
        # One snapshot: with the default pool_every, a run holds one after its first iteration.
        checkpoints.save(step, state if runs.is_offline(config) else RunState(state, (state.params,)), {}, force=True)
        checkpoints.wait()
    return state.params


@pytest.mark.parametrize('config', [offline.default_config(), online_config(), online_config(rank=2)])
def test_the_parameters_of_a_checkpoint_are_restored(tmp_path, config):
    config.model.path = 'dummy'
    if runs.is_offline(config):
        config.data = 'prepared.json'
    saved = save_run(tmp_path, config, step=1)
    config = runs.read_config(tmp_path)
    language = runs.load_run_language(config)
    for step in (None, 1):
        found, params = runs.restore_params(tmp_path, config, language, step)
        assert found == 1
        jax.tree.map(np.testing.assert_array_equal, params, saved)
    with pytest.raises(CheckpointError):
        runs.restore_params(tmp_path, config, language, 7)


def test_a_workdir_without_a_run_or_a_checkpoint_is_named(tmp_path):
    with pytest.raises(runs.RunError, match='cannot read .*config.json .*is .* the workdir of a run?'):
        runs.read_config(tmp_path)
    (tmp_path / 'config.json').write_text('[]')
    with pytest.raises(runs.RunError, match='expected a JSON object'):
        runs.read_config(tmp_path)
    config = online_config()
    with pytest.raises(runs.RunError, match='holds no checkpoint yet'):
        runs.restore_params(tmp_path / 'run', config, runs.load_run_language(config))


def test_the_adapter_is_the_one_of_the_configuration():
    assert runs.lora_of(offline.default_config()) is None and runs.lora_of(online_config()) is None
    config = online_config(rank=2)
    assert runs.lora_of(config) == LoRA(2, config.lora.alpha, tuple(config.lora.targets))


def test_the_chat_template_is_the_one_of_the_configuration(tmp_path):
    config, tokenizer = offline.default_config(), byte_tokenizer()
    assert runs.chat_template_text(config, tokenizer) == tokenizer.chat_template
    tokenizer.chat_template = {'default': 'a', 'tool_use': 'b'}
    assert runs.chat_template_text(config, tokenizer) == 'a'
    tokenizer.chat_template = None
    assert runs.chat_template_text(config, tokenizer) is None
    config.model.chat_template = 'chatml'
    assert runs.chat_template_text(config, tokenizer) == TEMPLATES['chatml']
    (tmp_path / 'own.jinja').write_text('c')
    config.model.chat_template = str(tmp_path / 'own.jinja')
    assert runs.chat_template_text(config, tokenizer) == 'c'


def test_reading_a_run_does_not_import_the_training_loops():
    program = ('import sys; from epo_jax import runs; '
               'assert not {"epo_jax.experiment", "epo_jax.iteration", "epo_jax.offline"} & set(sys.modules)')
    subprocess.run([sys.executable, '-c', program], cwd=ROOT, check=True)
