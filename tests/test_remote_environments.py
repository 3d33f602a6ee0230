"""ALFWorld and WebShop with endpoints as actors and strategists: what may be done is put in words, and losses are counted."""

import collections
import json
import re

from fake_endpoint import LOSSES, pick, serve, strategies_in
import numpy as np
import pytest

from epo_jax import evaluate, experiment
from epo_jax.agents.address import Address
from epo_jax.agents.base import Seat
from epo_jax.agents.remote import Remote, RemoteOptions
from epo_jax.defaults import default_config
from epo_jax.envs.base import load_domain
from epo_jax.envs.host import HostEnvironment
from epo_jax.presets import load_config
from epo_jax.roles import remote_player
from epo_jax.rollout import Table, encode, episode_keys, rollout_on_host
from epo_jax.runtime.files import read_jsonl
from epo_jax.testing import byte_tokenizer

OPTIONS = {'alfworld': {'constrained': True, 'short': True, 'begun': True, 'max_turns': 4},
           'webshop': {'constrained': True, 'short': True, 'begun': True, 'variant': 'webshop-small-synth-6'}}
KINDS = ('named', 'named', 'quoted', 'other')  # how an actor answers


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setenv('OPENAI_API_KEY', 'key')


def choices_in(prompt):
    """Return the replies that a prompt allows; none if it allows all."""
    return prompt.partition('Your reply must be exactly one of these:\n')[2].splitlines()


def act(prompt, seed):
    """Answer as an actor that names one of the choices in some way, or none."""
    choices, kind = choices_in(prompt), pick(f'{seed}', KINDS)
    if not choices:
        return 'Action: search[red shoes]' if 'search[' in prompt else 'Action: look'
    chosen = choices[seed % len(choices)].strip()
    return {'named': chosen, 'quoted': f'Action: {chosen}\n', 'other': 'dance with me'}[kind]


def answer(prompt, seed):
    """Answer as a strategist, a judge of critical turns, or an actor."""
    if strategies_in(prompt):
        return json.dumps({'reasoning': 'why not', 'indexes': strategies_in(prompt)[:1]})
    return 'think again' if prompt.endswith('Thought:') else act(prompt, seed)


@pytest.mark.parametrize('name', OPTIONS)
def test_an_endpoint_plays_the_seats_of_an_environment(name):
    """Every action that the endpoint names is taken; one that names none is counted and changes nothing."""
    config = default_config(name)
    config.environment.update(OPTIONS[name])
    domain, tokens = load_domain(name), byte_tokenizer()
    scenarios = domain.scenarios('', config.environment)[:6]
    with serve(answer) as server, Remote(RemoteOptions()) as remote:
        address = Address('m', server.url)
        seats = (Seat(remote_player(remote, address, 'actor', config.actor, tokens, ']' if name == 'webshop' else ''),
                      remote_player(remote, address, 'strategist', config.strategist, tokens)),)
        env = HostEnvironment(domain.text_environment(config.environment), seats, 4000)
        table = Table(env, seats)
        episodes, reasons = rollout_on_host(table, encode(table, scenarios), episode_keys(0, 0, np.arange(6)), 6)
        assert not reasons
        texts = env.texts(scenarios, episodes.env)
        usage = remote.usage()
    asked = [(body['messages'][-1]['content'], body['seed']) for body in server.bodies]
    acted = [(prompt, seed) for prompt, seed in asked if not prompt.endswith('Thought:')]
    assert len(acted) == usage['actor'].requests == usage['strategist'].requests == int(episodes.actions.sum())
    assert all('You thought' in prompt or 'think again' in prompt for prompt, _ in acted)
    limited = [(prompt, seed) for prompt, seed in acted if choices_in(prompt)]
    assert limited and len(limited) == sum(name == 'alfworld' or not prompt.endswith('Action: search[') for prompt, _ in acted)
    events = collections.Counter(event for text in texts for event in text.events)
    lost = sum(pick(f'{seed}', KINDS) == 'other' for _, seed in limited)
    assert events['action/invalid'] + events['action/unparsable'] == lost > 0
    done = 'action/done' if name == 'alfworld' else 'action/click'
    assert events[done] == len(limited) - lost > 0


def environment_config(name, server):
    config = load_config(f'{name}:tiny')
    config.environment.update(OPTIONS[name])
    config.rollout.update(episodes=2, batch=2)
    config.actor.model = config.process.model = f'm@{server.url}'
    config.reward.process = 'critical'
    config.evaluation.update(episodes=2, bootstrap=20, conditions=('none', 'policy', 'react', f'adviser@{server.url}'))
    config.remote.update(backoff=0.01, retries=1)
    return config


@pytest.mark.slow
@pytest.mark.parametrize('name', OPTIONS)
def test_a_run_takes_endpoints_as_actor_strategist_and_judge(tmp_path, name):
    with serve(answer) as server:
        config = environment_config(name, server)
        config.iterations = 1
        rows = experiment.run(config, tmp_path)
    assert [row.condition for row in rows] == ['none', 'policy', 'react', f'adviser@{server.url}']
    assert all((row.scored, row.missing) == (2, 0) for row in rows)
    row, = read_jsonl(tmp_path / 'metrics.jsonl')
    assert row['requests/actor/requests'] == 2 * row['episodes/turns'] and row['requests/process/requests'] == 2
    assert row['reward/missing_turns'] == 0
    played = read_jsonl(tmp_path / 'episodes/iteration_00001.jsonl') + read_jsonl(tmp_path / 'episodes/evaluation.jsonl')
    assert len(played) == 2 + 4 * 2 and not any(record['failure'] for record in played)
    advised = [record for record in played if record.get('condition', '').startswith('adviser')]
    assert all(turn['strategy'] == 'think again' for record in advised for turn in record['turns'])
    models = {body['model'] for body in server.bodies}
    assert models == {'m', 'adviser'}


@pytest.mark.slow
@pytest.mark.parametrize('name', OPTIONS)
def test_lost_answers_of_actors_and_strategists_are_missing_and_named(tmp_path, name):
    with serve(answer, form=lambda prompt: pick(prompt, ('plain',) * 20 + tuple(LOSSES))) as server:
        config = environment_config(name, server)
        config.reward.process, config.process.model = 'none', ''
        config.evaluation.update(episodes=5, conditions=('none', f'adviser@{server.url}'))
        rows = evaluate.run(config, tmp_path)
    records = read_jsonl(tmp_path / 'episodes/evaluation.jsonl')
    lost = [record for record in records if record['seats'][0]['outcome'] is None]
    assert len(lost) == sum(row.missing for row in rows) > 0 and len(records) == 10
    for record in records:
        assert bool(record['failure']) == (record in lost) == bool(record['truncated'])
        assert record in lost or record['turns']
    for record in lost:
        assert re.match(r'(actor|strategist) of seat 0: ', record['failure']), record['failure']
