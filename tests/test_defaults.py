"""Presets are valid, and errors name the keys of impossible combinations."""

import dataclasses
import functools

import counting
from ml_collections import ConfigDict
import pytest

from epo_jax.config import ConfigError
from epo_jax.defaults import MAY_DIFFER, default_config, validate
from epo_jax.presets import load_config

PRESETS = {
    'alfworld': ('quickstart', 'tiny', 'llama3_8b'),
    'bargain': ('family', 'selfplay', 'tiny', 'words', 'words_quick'),
    'sotopia': ('quickstart', 'tiny', 'llama3_8b', 'llama3_8b_lora', 'llama3_70b_lora'),
    'webshop': ('quickstart', 'tiny', 'llama3_8b')}


def changed(**changes):
    """Return the default configuration with some keys replaced; a key a.b is written a__b."""
    config = default_config()
    for name, value in changes.items():
        *groups, key = name.split('__')
        group = config
        for part in groups:
            group = group[part]
        group[key] = value
    return config


def complaints(config):
    """Return the message of the error about a configuration."""
    with pytest.raises(ConfigError) as error:
        validate(config)
    return str(error.value)


def test_the_defaults_are_valid():
    validate(default_config())


@pytest.mark.parametrize('name, preset', [(name, preset) for name, presets in PRESETS.items() for preset in presets])
def test_presets_are_valid(name, preset):
    config = load_config(f'{name}:{preset}')
    validate(config)
    assert config.to_json() != default_config(config.environment.name).to_json()


def test_a_configuration_has_the_options_of_its_environment():
    config = default_config('counting')  # the module tests/counting.py
    assert config.environment.to_dict() == dict(longest=5, name='counting', timeout=0.0)
    config.rollout.compiled = True
    validate(config)
    config.environment.longest = 0
    assert complaints(config) == 'environment.longest must be positive'
    assert 'max_turns' not in config.environment and 'max_turns' in default_config().environment


@pytest.mark.parametrize('name', ['chess', '', '.chess', 'epo_jax.testing', 'epo_jax.envs.base', 5])
def test_the_error_about_an_unknown_environment_names_the_known_ones(name):
    with pytest.raises(ValueError, match='no environment.*alfworld, bargain, bargain_selfplay, bargain_words, bargain_words_selfplay, sotopia'):
        default_config(name)
    config = ConfigDict(default_config().to_dict())
    config.environment = ConfigDict(dict(config.environment, name=name))
    assert complaints(config).startswith('environment.name: there is no environment')
    config.environment = ConfigDict()
    assert complaints(config).startswith('environment.name: ')


def test_a_compiled_iteration_needs_an_environment_on_the_device(monkeypatch):
    config = default_config('counting')
    config.rollout.compiled = True
    monkeypatch.setattr(counting, 'DOMAIN', dataclasses.replace(counting.DOMAIN, device_environment=None))
    assert complaints(config) == 'rollout.compiled: the environment counting cannot be compiled; set it to False'


@pytest.mark.parametrize('name', PRESETS)
def test_the_error_about_an_unknown_preset_names_the_known_ones(name):
    with pytest.raises(ValueError, match=f"'huge'.*{', '.join(PRESETS[name])}"):
        load_config(f'{name}:huge')


@pytest.mark.parametrize('name', PRESETS)
def test_a_configuration_has_a_default_preset(name):
    assert load_config(name).to_json() == load_config(f'{name}:{PRESETS[name][0]}').to_json()


@pytest.mark.parametrize('changes', [
    dict(seats=('policy', 'none')), dict(seats=('pool', 'policy'), pool_size=1),
    dict(seats=('policy', 'snapshot'), pool_size=0), dict(reward__process='critical', reward__combine='official'),
    dict(credit__baseline='group', rollout__group=4), dict(credit__gamma=1), dict(credit__name='grpo', rollout__group=4),
    dict(credit__name='rae', loss__name='ppo', loss__clip_high=0.28, loss__aggregation='token_mean'),
    dict(loss__kl='k3', loss__kl_weight=0.1, reward__kl_weight=0.1), dict(learner__optimizer='muon'),
    dict(reward__process='graded', reward__combine='process'), dict(evaluation__episodes=0),
    dict(environment__allowed=('speak',), environment__begun=True), dict(actor__choose_action=True),
    dict(strategist__temperature=0, strategist__top_k=5, strategist__top_p=1),
    dict(evaluation__conditions=('policy',)),
    dict(seats=('policy', 'snapshot'), evaluation__partner='pool', evaluation__conditions=('pool', 'policy')),
    dict(reward__outcome='epo_jax.testing:share_of_e', reward__process='none')], ids=str)
def test_valid_combinations_pass(changes):
    validate(changed(**changes))


@pytest.mark.parametrize('changes, key', [
    (dict(seats=('policy',)), 'seats'),
    (dict(seats=('policy',) * 3), 'seats'),
    (dict(seats=('policy', 'best')), 'seats'),
    (dict(seats=('prompted', 'none')), 'seats'),
    (dict(seats=('policy', 'pool'), pool_size=0), 'pool_size'),
    (dict(evaluation__conditions=('none', 'best')), 'evaluation.conditions'),
    (dict(evaluation__partner='policy'), 'evaluation.partner'),
    (dict(evaluation__partner='pool'), 'no seat plays snapshots'),
    (dict(evaluation__conditions=('pool',)), 'evaluation.conditions'),
    (dict(pool_every=0), 'pool_every'),
    (dict(model__dtype='float16'), 'model.dtype'),
    (dict(model__remat='some'), 'model.remat'),
    (dict(reward__process='turns'), 'reward.process'),
    (dict(reward__combine='product'), 'reward.combine'),
    (dict(reward__combine='official'), 'reward.combine'),
    (dict(reward__combine='official', reward__process='none'), 'reward.process'),
    (dict(credit__baseline='mean'), 'credit.baseline'),
    (dict(credit__baseline='group'), 'rollout.group'),
    (dict(credit__normalise='all'), 'credit.normalise'),
    (dict(credit__name='best'), 'credit.name'),
    (dict(credit__name='grpo'), 'rollout.group > 1'),
    (dict(credit__name='gigpo', rollout__group=4), 'do not repeat'),
    (dict(credit__name='branched'), 'rollout.compiled'),
    (dict(credit__drop_equal_groups=True), 'credit.drop_equal_groups'),
    (dict(reward__combine='process', reward__process='none'), 'reward.combine'),
    (dict(loss__name='best'), 'loss.name'),
    (dict(loss__aggregation='sum'), 'loss.aggregation'),
    (dict(loss__kl='k3'), 'loss.kl_weight'),
    (dict(loss__kl_weight=0.1), 'loss.kl'),
    (dict(loss__dual_clip=0.5), 'loss.dual_clip'),
    (dict(loss__ratio_low=3.0), 'loss.ratio_low'),
    (dict(learner__optimizer='muon', lora__rank=4), 'learner.optimizer'),
    (dict(learner__schedule='linear'), 'learner.schedule'),
    (dict(credit__gamma=0), 'credit.gamma'),
    (dict(credit__gamma=1.01), 'credit.gamma'),
    (dict(rollout__group=3), 'rollout.group'),
    (dict(rollout__group=4, rollout__batch=6), 'rollout.batch'),
    (dict(learner__micro_batch=5), 'learner.micro_batch'),
    (dict(environment__allowed=('leave',)), 'environment.allowed'),
    (dict(environment__allowed=('speak', 'shout')), 'environment.allowed'),
    (dict(environment__begun=True, actor__choose_action=True), 'actor.choose_action'),
    *((dict([(name.replace('.', '__'), value)]), name) for value in (0, -1) for name in (
        'iterations', 'environment.max_turns', 'rollout.episodes', 'rollout.batch', 'rollout.chunk', 'rollout.group',
        'learner.batch', 'learner.epochs', 'learner.micro_batch', 'learner.length_bucket', 'checkpoint.every',
        'checkpoint.keep')),
    *((dict([(f'{role}__{key}', value)]), name) for role in ('strategist', 'actor') for key, value, name in (
        ('capacity', 1024, f'{role}.capacity'), ('top_p', 0.0, f'{role}.top_p'), ('top_p', 1.5, f'{role}.top_p'),
        ('temperature', -0.1, role), ('top_k', -1, role), ('max_tokens', 0, f'{role}.max_tokens'))),
], ids=str)
def test_the_error_about_an_impossible_combination_names_the_key(changes, key):
    assert key in complaints(changed(**changes))


def test_one_error_lists_everything_that_is_wrong():
    message = complaints(changed(iterations=0, credit__gamma=2.0, model__remat='some', seats=('none', 'none')))
    assert all(key in message for key in ('iterations', 'credit.gamma', 'model.remat', 'seats'))
    assert len(message.splitlines()) == 4


@pytest.mark.parametrize('name, nearest', [
    ('learner__learning_rat', 'learner.learning_rate'), ('rollout__episode', 'rollout.episodes'),
    ('iteration', 'iterations'), ('actor__chose_action', 'actor.choose_action')])
def test_the_error_about_an_unknown_key_names_the_nearest_one(name, nearest):
    config = default_config().unlock()
    *groups, key = name.split('__')
    (config[groups[0]] if groups else config)[key] = 1
    message = complaints(config)
    assert name.replace('__', '.') in message and nearest in message


def test_a_value_of_the_wrong_type_is_refused():
    assert 'iterations' in complaints(ConfigDict(default_config().to_dict() | {'iterations': 'five'}))


def test_the_keys_that_a_resumed_run_may_change_exist():
    config = default_config()
    for name in MAY_DIFFER:
        functools.reduce(lambda group, part: group[part], name.split('.'), config)
