"""Runs that start from an adapter: its shape, its numbers as PEFT merges them, and what a run leaves."""

import dataclasses
import json

import jax
from ml_collections import ConfigDict
import numpy as np
import pytest
from test_experiment import numbers, small_config

from epo_jax import experiment, export, roles, runs
from epo_jax.envs.base import load_domain
from epo_jax.models import peft, weights
from epo_jax.models.lora import LoRA
from epo_jax.models.transformer import Transformer
from epo_jax.runtime.errors import InputError
from epo_jax.runtime.parallel import make_mesh
from epo_jax.testing import byte_tokenizer, dummy_config, dummy_params

SHAPE = LoRA(3, 12.0, ('q', 'v', 'down'))


def share_of_ascii(prompts):
    """Return an outcome that differs between random strategies: the share of characters that are ASCII."""
    texts = [''.join(prompt.strategies) for prompt in prompts]
    return [sum(map(str.isascii, text)) / max(len(text), 1) for text in texts]


def random_tree(create):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(scale=0.2, size=x.shape).astype(np.float32), jax.eval_shape(create))


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """Return the folders of a base model and of an adapter with random numbers."""
    base, adapter = (tmp_path_factory.mktemp('init') / name for name in ('base', 'adapter'))
    weights.save(base, dummy_config(), random_tree(lambda: dummy_params(dummy_config(), stacked=True)))
    byte_tokenizer().save_pretrained(base)
    peft.save(adapter, SHAPE, random_tree(
        lambda: SHAPE.init(Transformer(dummy_config(), stacked=True), jax.random.key(0))), str(base))
    return base, adapter


def config_of(folders, **lora):
    config = small_config()
    config.model.path, config.lora.init = map(str, folders)
    config.lora.update(lora)
    return config


def experiment_of(config):
    """Return the parts of a run, and its state before training."""
    config, mesh = roles.with_adapter_shape(config), make_mesh((1, 1, 1))
    found = roles.build_roles(config, mesh, load_domain('sotopia'))
    exp = experiment.Experiment(config, None, found, experiment.make_learner(config, found), None, None, None)
    state = experiment.initial_state(exp.learner, mesh, config.seed, found.strategist.params, found.adapter)
    return exp, state


def test_training_starts_from_the_model_that_peft_merges(folders):
    torch = pytest.importorskip('torch')
    library = pytest.importorskip('peft')
    import transformers
    theirs = library.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(folders[0], dtype=torch.float32), folders[1])
    ids = np.random.default_rng(0).integers(0, 259, (2, 20))
    with torch.no_grad():
        expected = theirs.merge_and_unload().eval()(torch.tensor(ids)).logits.numpy()
    exp, state = experiment_of(config_of(folders))
    model = exp.roles.strategist.sampler()
    positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)

    def logits(params):
        hidden, _ = model.apply({'params': params}, ids, positions)
        return np.asarray(model.apply({'params': params}, hidden, method='logits'))
    for params in (exp.sampling_params(state.params), exp.params_before_training(),
                   exp.seat('prompted', True, None, (), 0).strategist.params,
                   exp.seat('snapshot', True, None, (), 0).strategist.params):
        np.testing.assert_allclose(logits(params), expected, atol=1e-4 * np.abs(expected).max())
    assert np.abs(logits(exp.roles.strategist.params) - expected).max() > 0.01 * np.abs(expected).max()
    assert exp.seat('prompted', True, None, (), 0).actor.params is exp.roles.strategist.params


@pytest.mark.slow
def test_a_run_takes_the_shape_of_the_adapter_trains_and_resumes(folders, tmp_path, capsys):
    config = config_of(folders)
    config.learner.update(schedule='constant', warmup_ratio=0.0)
    config.judge.capacity = 9000
    config.evaluation.update(episodes=2, conditions=('prompted', 'policy'))
    config.reward.update(outcome='test_lora_init:share_of_ascii')
    config.seats = ('policy', 'snapshot')
    experiment.run(config, tmp_path / 'whole')
    assert 'warning: judge.capacity is 9000 tokens, but the model supports at most 8192' in ' '.join(
        capsys.readouterr().out.split())
    saved = ConfigDict(json.loads((tmp_path / 'whole' / 'config.json').read_text()))
    assert roles.adapter(saved) == SHAPE and saved.lora.init == str(folders[1])
    config.iterations, config.evaluation.episodes = 1, 0
    experiment.run(config, tmp_path / 'parts')
    config.iterations = 2
    experiment.run(config, tmp_path / 'parts')
    assert numbers(tmp_path / 'whole') == numbers(tmp_path / 'parts')

    export.export(str(tmp_path / 'whole'), str(tmp_path / 'out'))
    shape, trained = peft.load(tmp_path / 'out', dummy_config())
    _, before = peft.load(folders[1], dummy_config())
    moved = max(jax.tree.leaves(jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before, trained)))
    assert shape == SHAPE and 1e-5 < moved < 0.05  # close to where it started, so it started there
    read = runs.read_config(tmp_path / 'whole')
    assert runs.restore_params(tmp_path / 'whole', read, runs.load_run_language(read))[0] == 2


def test_a_shape_may_be_stated_but_must_be_that_of_the_adapter(folders):
    stated = dict(rank=3, alpha=12.0, targets=('down', 'v', 'q'))
    for lora in ({}, stated):
        found = roles.adapter(roles.with_adapter_shape(config_of(folders, **lora)))
        assert (found.rank, found.alpha, set(found.targets)) == (3, 12.0, {'q', 'v', 'down'})
    for wrong in (dict(rank=4), dict(alpha=6.0), dict(targets=('q',))):
        with pytest.raises(InputError, match='has rank 3, alpha 12 and the targets q, v, down, but .*lora.rank=0 takes'):
            roles.with_adapter_shape(config_of(folders, **stated | wrong))


def test_an_adapter_that_cannot_be_read_is_an_error_before_the_run_begins(folders, tmp_path):
    config = config_of(folders)
    config.lora.init = str(tmp_path / 'none')
    with pytest.raises(InputError, match='there is no model at'):
        experiment.run(config, tmp_path / 'run')
    config.lora.init = str(folders[0])
    with pytest.raises(InputError, match='adapter_config.json: no such file'):
        experiment.run(config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_the_base_must_have_the_shape_of_the_adapter(folders, tmp_path):
    config = config_of(folders)
    wider = dataclasses.replace(dummy_config(), width=64)
    weights.save(tmp_path / 'wide', wider, random_tree(lambda: dummy_params(wider, stacked=True)))
    byte_tokenizer().save_pretrained(tmp_path / 'wide')
    config.model.path = str(tmp_path / 'wide')
    with pytest.raises(InputError, match='lora_B.weight. has shape .32, 3., expected .64, 3.'):
        experiment_of(config)
