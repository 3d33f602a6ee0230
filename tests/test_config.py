"""Configurations: keys and types are checked, saved with a run, and compared when it resumes."""

import json

from ml_collections import ConfigDict, config_dict
import pytest

from epo_jax import config as config_lib
from epo_jax.config import ConfigError


def defaults() -> ConfigDict:
    return ConfigDict({
        'seed': 0,
        'debug': False,
        'name': 'run',
        'mesh': (1, -1),
        'anything': None,
        'revision': config_dict.placeholder(str),
        'learner': {'learning_rate': 1e-6, 'steps': 10, 'warmup': {'steps': 0}},
        'rollout': {'temperature': 1.0, 'max_tokens': 64},
    })


def set_key(tree: dict, key: str, value) -> None:
    *groups, last = key.split('.')
    for group in groups:
        tree = tree[group]
    tree[last] = value


def error_message(config, base=None) -> str:
    with pytest.raises(ConfigError) as error:
        config_lib.validate_keys(config, base or defaults())
    return str(error.value)


def test_defaults_are_valid():
    config_lib.validate_keys(defaults(), defaults())


@pytest.mark.parametrize('key, value', [
    ('learner.learning_rate', 1), ('mesh', [1, 2]), ('revision', 'main'), ('revision', None), ('anything', 3),
    ('anything', (1, 2)), ('debug', True), ('name', ''),
])
def test_values_of_the_right_kind_pass(key, value):
    tree = defaults().to_dict()
    set_key(tree, key, value)
    config_lib.validate_keys(ConfigDict(tree), defaults())


@pytest.mark.parametrize('key, value, words', [
    ('seed', 1.0, 'expected int, got float 1.0'),
    ('seed', True, 'expected int, got bool True'),
    ('learner.learning_rate', '1e-6', "expected float, got str '1e-6'"),
    ('learner.learning_rate', False, 'expected float, got bool False'),
    ('debug', 1, 'expected bool, got int 1'),
    ('mesh', 3, 'expected tuple, got int 3'),
    ('name', None, 'expected str, got NoneType None'),
    ('learner.warmup', 3, 'expected a group of keys, got int 3'),
])
def test_values_of_the_wrong_kind_are_named(key, value, words):
    tree = defaults().to_dict()  # a ConfigDict would turn False into 0.0 on assignment
    set_key(tree, key, value)
    assert error_message(ConfigDict(tree)).endswith(f'{key}: {words}')


def test_typed_placeholder_checks_its_type():
    config = defaults()
    with config.ignore_type():
        config.revision = 3
    assert 'revision: expected str or None, got int 3' in error_message(config)


def test_required_placeholder_must_be_given():
    base = defaults()
    base.path = config_dict.required_placeholder(str)
    assert 'path: a value must be given' in error_message(base, base)
    config = defaults()
    config.path = 'here'
    config_lib.validate_keys(config, base)


@pytest.mark.parametrize('key, nearest', [
    ('learner.learning_rat', 'learner.learning_rate'),
    ('rollout.learning_rate', 'learner.learning_rate'),  # the right key, but in the wrong group
    ('temprature', 'rollout.temperature'),
    ('learner.warmup.step', 'learner.warmup.steps'),
])
def test_unknown_key_names_the_nearest(key, nearest):
    tree = defaults().to_dict()
    set_key(tree, key, 1)
    assert error_message(ConfigDict(tree)).endswith(f'{key}: unknown key; the nearest known key is {nearest}')


def test_unknown_group_names_the_nearest_group():
    config = defaults()
    config.lerner = ConfigDict({'steps': 1})
    assert 'lerner: unknown key; the nearest known key is learner' in error_message(config).splitlines()[-1]


def test_all_problems_come_in_one_message():
    config = defaults()
    config.learner.lr = 3.0
    config.sed = 1
    del config.rollout.max_tokens
    with config.ignore_type():
        config.seed = 'zero'
    lines = error_message(config).splitlines()[1:]
    assert [line.split(':')[0].strip() for line in lines] == ['learner.lr', 'rollout.max_tokens', 'sed', 'seed']
    assert 'missing' in lines[1]


def test_json_is_stable_and_comes_back():
    text = config_lib.to_json(defaults())
    reordered = ConfigDict(dict(reversed(list(defaults().to_dict().items()))))
    assert text == config_lib.to_json(reordered)
    tree = config_lib.from_json(text)
    assert tree['learner'] == {'learning_rate': 1e-6, 'steps': 10, 'warmup': {'steps': 0}}
    assert tree['mesh'] == [1, -1] and tree['revision'] is None
    assert text.endswith('}\n') and list(tree) == sorted(tree)


@pytest.mark.parametrize('value', [float('nan'), float('inf'), print, {1, 2}, b'x'])
def test_json_refuses_what_it_cannot_hold(value):
    with pytest.raises(ConfigError, match=r'learner\.odd: '):
        config_lib.to_json(ConfigDict({'learner': {'odd': value}}))


def test_from_json_refuses_other_text():
    for text in ('{"a": ', '[1]', ''):
        with pytest.raises(ConfigError):
            config_lib.from_json(text)


def test_a_workdir_of_another_configuration_names_every_difference(tmp_path):
    saved = {'learner': {'learning_rate': 1e-6, 'old': 1}, 'mesh': (1, 2), 'on': True, 'same': 1.0, 'empty': {}}
    given = {'learner': {'learning_rate': 1e-5, 'new': 'x'}, 'mesh': [1, 2], 'on': 1, 'same': 1, 'empty': {}}
    config_lib.open_workdir(tmp_path, ConfigDict(saved))
    with pytest.raises(ConfigError) as error:
        config_lib.open_workdir(tmp_path, ConfigDict(given))
    assert [line.strip() for line in str(error.value).splitlines()[1:5]] == [
        'learner.learning_rate: 1e-06 (saved) != 1e-05 (given)',
        "learner.new: absent (saved) != 'x' (given)",
        'learner.old: 1 (saved) != absent (given)',
        'on: True (saved) != 1 (given)',
    ]
    assert config_lib.open_workdir(tmp_path, ConfigDict(saved)) is True


def test_open_workdir_starts_then_resumes(tmp_path):
    workdir = tmp_path / 'runs' / 'a b'
    assert config_lib.open_workdir(workdir, defaults()) is False
    assert json.loads((workdir / 'config.json').read_text())['seed'] == 0
    before = (workdir / 'config.json').stat().st_mtime_ns
    assert config_lib.open_workdir(workdir, defaults()) is True
    assert (workdir / 'config.json').stat().st_mtime_ns == before
    assert [path.name for path in workdir.iterdir()] == ['config.json']


def test_open_workdir_rewrites_what_may_differ(tmp_path):
    config_lib.open_workdir(tmp_path, defaults())
    config = defaults()
    config.rollout.temperature = 0.5
    config.learner.steps = 20
    assert config_lib.open_workdir(tmp_path, config, ('rollout', 'learner.steps')) is True
    saved = config_lib.from_json((tmp_path / 'config.json').read_text())
    assert saved['rollout']['temperature'] == 0.5 and saved['learner']['steps'] == 20


def test_open_workdir_refuses_another_configuration(tmp_path):
    config_lib.open_workdir(tmp_path, defaults())
    before = (tmp_path / 'config.json').read_bytes()
    config = defaults()
    config.seed = 1
    config.learner.steps = 20
    config.learner.learning_rate = 1e-5
    with pytest.raises(ConfigError) as error:  # 'learner.step' does not include 'learner.steps'
        config_lib.open_workdir(tmp_path, config, ('seed', 'learner.step'))
    assert 'learner.learning_rate: 1e-06 (saved) != 1e-05 (given)' in str(error.value)
    assert 'learner.steps: 10 (saved) != 20 (given)' in str(error.value)
    assert 'seed' not in str(error.value) and '--workdir' in str(error.value)
    assert (tmp_path / 'config.json').read_bytes() == before


@pytest.mark.parametrize('damage', [b'', b'{"seed": 0', b'[]', b'\xff\xfe', pytest.param(b'[' * 100_000, id='nested')])
def test_open_workdir_never_overwrites_a_damaged_file(tmp_path, damage):
    (tmp_path / 'config.json').write_bytes(damage)
    with pytest.raises(ConfigError, match='config.json is damaged'):
        config_lib.open_workdir(tmp_path, defaults(), ('seed',))
    assert (tmp_path / 'config.json').read_bytes() == damage
