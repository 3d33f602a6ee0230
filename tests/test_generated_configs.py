"""Generated configurations: every one is valid, or a ConfigError names the keys that are not."""

import json
import math
import operator
import random
from typing import Any, Iterator

from ml_collections import ConfigDict
import pytest

from epo_jax import defaults, experiment, offline
from epo_jax.config import ConfigError, Key, Range
from epo_jax.envs.base import DOMAINS, load_domain
from epo_jax.presets import load_config
from epo_jax.runtime.errors import InputError, TrainingError

ODD = (None, True, False, -1, 0, 1, 3, 10**30, -0.5, 0.5, 5.0, 1e300, math.nan, math.inf, -math.inf, '', 'nope', 'a\0b',
       '\udcff', 'x:y', 'epo_jax.testing:nothing', (), (1,), ('nope',), ('policy', 1), [None], {}, {'x': 1}, b'x')


def flatten(keys, prefix='') -> Iterator[tuple[str, Key]]:
    for name, key in keys.items():
        if isinstance(key, dict):
            yield from flatten(key, f'{prefix}{name}.')
        else:
            yield prefix + name, key


# Every kind of configuration: its keys, its defaults as a dict, and its validation.
KINDS = {name: (dict(flatten(defaults.keys(load_domain(name), name))), defaults.default_config(name).to_dict(),
                defaults.validate) for name in DOMAINS}
KINDS['offline'] = (dict(flatten(offline.keys())), offline.default_config().to_dict() | {'data': 'x.json'},
                    offline.validate)


def with_values(tree: dict, values: dict[str, Any]) -> ConfigDict:
    """Return a configuration in which some keys have other values."""
    def build(tree, prefix):
        return {name: values[prefix + name] if prefix + name in values
                else build(value, f'{prefix}{name}.') if isinstance(value, dict) else value
                for name, value in tree.items()}
    return ConfigDict(build(tree, ''))


def complaint(kind: str, values: dict[str, Any]) -> str:
    """Return the message about a configuration, '' if it is valid."""
    _, tree, validate = KINDS[kind]
    try:
        validate(with_values(tree, values))
    except ConfigError as error:
        return str(error)
    return ''


@pytest.mark.parametrize('kind', KINDS)
def test_the_defaults_are_valid_and_every_number_has_a_range(kind):
    keys, _, _ = KINDS[kind]
    assert complaint(kind, {}) == ''
    for name, key in keys.items():
        first = key.default[0] if isinstance(key.default, tuple) and key.default else key.default
        if isinstance(first, (int, float)) and not isinstance(first, bool):
            assert isinstance(key.allowed, Range), f'{name} has no range'
        assert key.allows(key.default), name


@pytest.mark.parametrize('kind', KINDS)
def test_a_number_outside_of_its_range_is_named(kind):
    keys, _, _ = KINDS[kind]
    for name, key in keys.items():
        if not isinstance(key.allowed, Range):
            continue
        number = key.default[0] if isinstance(key.default, tuple) else key.default
        step = 1 if isinstance(number, int) else 0.5
        bad = [key.allowed.low - step, math.nan, -math.inf]
        bad += [key.allowed.low] * key.allowed.above + [key.allowed.high] * key.allowed.below
        bad += [math.inf if key.allowed.high == math.inf else key.allowed.high + step]
        for value in bad:
            if isinstance(number, int) and isinstance(value, float):
                continue  # of the wrong type
            message = complaint(kind, {name: (value, *key.default[1:]) if isinstance(key.default, tuple) else value})
            assert f'{name} must be {key.describe()}; it is' in message, (name, value, message)


@pytest.mark.parametrize('kind', KINDS)
def test_an_unknown_option_is_named_with_those_that_exist(kind):
    keys, _, _ = KINDS[kind]
    for name, key in keys.items():
        if key.allowed is None or isinstance(key.allowed, Range):
            continue
        value = ('nope', *key.default[1:]) if isinstance(key.default, tuple) else 'nope'
        message = complaint(kind, {name: value})
        assert f'{name} must be one of' in message and all(str(option) in message for option in key.allowed), name


@pytest.mark.parametrize('kind', KINDS)
def test_every_odd_value_of_every_key_is_valid_or_named(kind):
    keys, _, _ = KINDS[kind]
    for name in keys:
        if kind not in ('sotopia', 'offline') and not name.startswith('environment.'):
            continue  # the same keys as those of sotopia
        for value in ODD:
            message = complaint(kind, {name: value})
            assert not message or name in message, (name, value, message)


def likely(rng: random.Random, key: Key, present: Any, most: int = 100) -> Any:
    """Return the present value of a key, or an allowed one that is at most `most` larger than the smallest."""
    choices = [present]
    if isinstance(key.allowed, Range):
        low, high = key.allowed.low, min(key.allowed.high, key.allowed.low + most)
        one = rng.randint(low, int(high)) if isinstance(key.default, int) else rng.uniform(low, high)
        choices.append(tuple(one for _ in key.default) if isinstance(key.default, tuple) else one)
    elif key.allowed is not None:
        options = sorted(key.allowed)
        choices.append(tuple(rng.choices(options, k=len(key.default)))
                       if isinstance(key.default, tuple) else rng.choice(options))
    elif isinstance(key.default, bool):
        choices.append(not present)
    return rng.choice(choices)


@pytest.mark.parametrize('count', [150, pytest.param(2500, marks=pytest.mark.slow)])
@pytest.mark.parametrize('kind', KINDS)
def test_random_configurations_are_valid_or_their_keys_are_named(kind, count):
    keys, _, _ = KINDS[kind]
    rng = random.Random(f'{kind} {count}')
    valid = 0
    for _ in range(count):
        values = {}
        for name in rng.sample(sorted(keys), rng.randint(1, 6)):
            values[name] = rng.choice(ODD) if rng.random() < 0.1 else likely(rng, keys[name], keys[name].default)
        message = complaint(kind, values)
        valid += not message
        assert not message or any(name in message for name in values), (values, message)
    assert valid > count // 10  # both kinds of configurations are tried


@pytest.mark.parametrize('kind', KINDS)
def test_groups_and_keys_that_are_not_in_their_place_are_named(kind):
    _, tree, validate = KINDS[kind]
    groups = [name for name, value in tree.items() if isinstance(value, dict)]
    for name in [*tree]:
        config = ConfigDict({key: value for key, value in tree.items() if key != name})
        with pytest.raises(ConfigError, match=name):  # missing
            validate(config)
    for name in groups:
        for value in (5, None, 'x', {}, (1,)):
            with pytest.raises(ConfigError, match=name):
                validate(ConfigDict(tree | {name: value}))
    with pytest.raises(ConfigError, match='learner.learning_rat: unknown key; .*learner.learning_rate'):
        validate(ConfigDict(tree | {'learner': tree['learner'] | {'learning_rat': 1.0}}))


def test_a_user_module_that_raises_is_an_error_of_its_key(tmp_path, monkeypatch):
    (tmp_path / 'broken_outcome.py').write_text('1 / 0\n')
    monkeypatch.syspath_prepend(tmp_path)
    message = complaint('sotopia', {'reward.outcome': 'broken_outcome:f'})
    assert 'reward.outcome' in message and 'division by zero' in message
    assert complaint('sotopia', {'reward.outcome': 'epo_jax.testing:share_of_e'}) == ''


@pytest.mark.slow
@pytest.mark.parametrize('preset', ('sotopia:tiny', 'bargain:tiny', 'webshop:tiny', 'alfworld:tiny', 'offline:tiny'))
def test_a_sample_of_the_valid_configurations_runs(tmp_path, preset):
    """Each plays and trains one iteration, or is refused in one sentence."""
    config = load_config(preset)
    if preset == 'offline:tiny':
        row = {'conversations': [{'from': 'human', 'value': 'a'}, {'from': 'gpt', 'value': 'b', 'score': '1.0'}]}
        (tmp_path / 'x.json').write_text(json.dumps([row] * 6))
        config.data = str(tmp_path / 'x.json')
    else:
        config.iterations = 1
        config.evaluation.episodes = 1
    kind = preset.partition(':')[0]
    keys, _, validate = KINDS[kind]
    flat = {name: operator.attrgetter(name)(config) for name in keys}
    rng, ran, tried = random.Random(preset), 0, 0
    while tried < 16:
        names = rng.sample(sorted(keys), rng.randint(2, 8))
        values = {name: likely(rng, keys[name], flat[name], 6) for name in names if name not in ('iterations', 'epochs')}
        changed = with_values(config.to_dict(), values)
        try:
            validate(changed)
        except ConfigError:
            continue
        tried += 1
        try:
            (offline if kind == 'offline' else experiment).run(changed, str(tmp_path / str(tried)))
            ran += 1
        except (InputError, TrainingError) as error:
            print(f'{values}: {error}')
            assert '\n' not in str(error).strip(), values
        except Exception as error:
            raise AssertionError(f'{values} ends in {error!r}') from error
    assert ran > 4
