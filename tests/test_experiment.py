"""Complete runs: an interrupted run equals an uninterrupted one, and a run leaves the files that it should."""

import dataclasses
import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from epo_jax import defaults, experiment
from epo_jax.config import ConfigError
from epo_jax.envs.base import Scenario
from epo_jax.results import MatchResult
from epo_jax.runtime.errors import InputError, TrainingError
from epo_jax.runtime.files import read_jsonl

ROOT = pathlib.Path(__file__).parent.parent
SMALL = [
    '--config.evaluation.episodes=0', '--config.reward.process=none',
    '--config.reward.outcome=epo_jax.testing:share_of_e', '--config.environment.max_turns=2']


def small_config():
    """Return a configuration with the dummy model, two turns, and an outcome that needs no judge."""
    config = defaults.default_config()
    config.iterations = 2
    config.model.path = 'dummy'
    config.environment.update(max_turns=2, allowed=('speak',), short=True)
    config.strategist.update(capacity=1024, max_tokens=8)
    config.actor.update(capacity=1024, max_tokens=4)
    config.rollout.update(episodes=4, batch=4, view_tokens=960, chunk=256)
    config.reward.update(process='none', outcome='epo_jax.testing:share_of_e')
    config.learner.update(learning_rate=1e-3, batch=8, micro_batch=8, length_bucket=256)
    config.evaluation.episodes = 0
    return config


def count_of_letters(prompts):
    """Return an outcome that differs between almost all strategies."""
    return [sum(map(ord, ''.join(prompt.strategies))) % 97 / 97 for prompt in prompts]


def numbers(workdir):
    """Return the rows of metrics.jsonl without times."""
    return [{name: value for name, value in row.items() if not name.startswith('time/')}
            for row in read_jsonl(pathlib.Path(workdir) / 'metrics.jsonl')]


def start(workdir):
    """Start a run of a few seconds in a process."""
    command = [sys.executable, '-m', 'epo_jax.main', '--config=configs/sotopia.py:tiny', f'--workdir={workdir}',
               '--noreport', *SMALL]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            env=os.environ | {'XDG_CACHE_HOME': str(pathlib.Path(workdir).parent / 'cache')})


def finish(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def test_a_killed_run_continues_to_the_same_numbers(tmp_path):
    finish(start(tmp_path / 'uninterrupted'))
    process = start(tmp_path / 'killed')
    metrics = tmp_path / 'killed' / 'metrics.jsonl'
    while not (metrics.exists() and metrics.read_text().count('\n')):  # the first iteration is over
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert metrics.read_text().count('\n') < 4
    finish(start(tmp_path / 'killed'))
    assert numbers(tmp_path / 'killed') == numbers(tmp_path / 'uninterrupted')
    assert [row['iteration'] for row in numbers(tmp_path / 'uninterrupted')] == [1, 2, 3, 4]
    for name in ('iteration_00001.jsonl', 'iteration_00004.jsonl'):
        assert (tmp_path / 'killed/episodes' / name).read_text() == (tmp_path / 'uninterrupted/episodes' / name).read_text()


def test_a_run_leaves_its_files_and_records_the_trained_tokens(tmp_path):
    config = small_config()
    config.reward.process = 'potential'
    config.judge.capacity = 1024
    config.evaluation.update(episodes=3, bootstrap=50)
    rows = experiment.run(config, tmp_path)
    assert [row.condition for row in rows] == ['none', 'prompted', 'policy']
    assert json.loads((tmp_path / 'evaluation.json').read_text())['table'][2]['condition'] == 'policy'
    assert json.loads((tmp_path / 'config.json').read_text())['learner']['batch'] == 8
    assert list((tmp_path / 'tensorboard').iterdir()) and (tmp_path / 'checkpoints').is_dir()
    assert len(read_jsonl(tmp_path / 'episodes/evaluation.jsonl')) == 9
    metrics = numbers(tmp_path)
    assert all(row['learner/logprob_gap'] < 1e-3 for row in metrics)
    for record in read_jsonl(tmp_path / 'episodes/iteration_00002.jsonl'):
        assert [turn['seat'] for turn in record['turns']] == [0, 1]
        for seat in record['seats']:
            sampled = [i for i, turn in zip(seat['ids'], seat['turn']) if turn == 0]
            assert 1 <= len(sampled) <= 8 and len(seat['advantage']) == len(seat['reward']) == 1
            assert len(seat['ids']) == len(seat['turn']) == len(seat['logprob'])


def test_snapshots_are_played_and_survive_a_restart(tmp_path):
    config = small_config()
    config.seats = ('policy', 'pool')
    config.pool_size = 2
    config.learner.schedule = 'constant'  # does not depend on the number of iterations
    config.iterations = 3
    experiment.run(config, tmp_path / 'uninterrupted')
    config.iterations = 2
    experiment.run(config, tmp_path / 'resumed')
    config.iterations = 3
    experiment.run(config, tmp_path / 'resumed')
    uninterrupted, resumed = (
        read_jsonl(tmp_path / name / 'episodes/iteration_00003.jsonl') for name in ('uninterrupted', 'resumed'))
    kinds = [[seat['strategist'] for seat in record['seats']] for record in uninterrupted]
    assert kinds == [['policy', 'pool']] * 2 + [['pool', 'policy']] * 2
    assert uninterrupted == resumed


def test_the_evaluation_plays_against_every_snapshot(tmp_path):
    config = small_config()
    config.seats, config.pool_size, config.pool_every, config.iterations = ('policy', 'pool'), 4, 2, 3
    config.evaluation.update(episodes=2, partner='pool', conditions=('pool', 'policy'))
    rows = experiment.run(config, tmp_path)  # snapshots from before the first and the third iteration
    records = read_jsonl(tmp_path / 'episodes' / 'evaluation.jsonl')
    tables = [(r['condition'], r['partner'], *(seat['strategist'] for seat in r['seats'])) for r in records[::2]]
    assert tables == [
        ('pool', 0, 'pool', 'pool'), ('pool', 1, 'pool', 'pool'),
        ('policy', 0, 'policy', 'pool'), ('policy', 0, 'pool', 'policy'),
        ('policy', 1, 'policy', 'pool'), ('policy', 1, 'pool', 'policy')]
    scores = json.loads((tmp_path / 'evaluation.json').read_text())['scores']
    rated = [seat['outcome'] for r in records for seat in r['seats'] if seat['strategist'] == r['condition']]
    assert sorted(10 * value for value in rated) == pytest.approx(sorted(v for rows in scores.values() for row in rows
                                                                        for v in row), abs=1e-4)
    assert [row.scored for row in rows] == [8, 8]


def test_the_workdir_of_a_run_refuses_another_configuration(tmp_path):
    config = small_config()
    config.iterations = 1
    experiment.run(config, tmp_path)
    config.learner.learning_rate = 0.5
    with pytest.raises(ConfigError, match='learner.learning_rate'):
        experiment.run(config, tmp_path)


def test_a_run_without_results_does_not_reserve_its_workdir(tmp_path):
    config = small_config()
    config.iterations = 1
    config.model.path = 'no/such/model'
    with pytest.raises(FileNotFoundError, match='no/such/model'):
        experiment.run(config, tmp_path)
    config.model.path = 'dummy'
    experiment.run(config, tmp_path)
    assert len(numbers(tmp_path)) == 1


def test_a_nonfinite_loss_stops_the_run_and_keeps_the_checkpoint(tmp_path):
    config = small_config()
    config.learner.update(learning_rate=1e30, schedule='constant')
    config.reward.outcome = f'{__name__}:count_of_letters'  # differs between episodes, or nothing would be learned
    with pytest.raises(TrainingError, match='iteration 2'):
        experiment.run(config, tmp_path)
    assert (tmp_path / 'checkpoints' / '1').is_dir() and len(numbers(tmp_path)) == 1


@pytest.mark.parametrize('broken, message', [
    ('judge', r'of 8 conversations, 0 were cut off, \d have no outcome, and 8 lack process rewards; check judge.model'),
    ('actor', 'of 8 conversations, 8 were cut off.* the first failure: actor of seat 0: the logits of the model')])
def test_a_run_stops_at_an_iteration_that_trains_nothing(tmp_path, monkeypatch, broken, message):
    config = small_config()
    config.reward.update(process='potential', outcome='judge')
    if broken == 'judge':
        config.judge.capacity = 256  # its questions fit, but no conversation does
    else:
        def build(*args):
            roles = build_roles(*args)
            bad = jax.tree.map(lambda x: x.at[0].set(float('nan')), roles.actor.params['final_norm'])
            actor = roles.actor.replace(params=dict(roles.actor.params, final_norm=bad))
            return dataclasses.replace(roles, actor=actor, partner=actor)
        build_roles = experiment.build_roles
        monkeypatch.setattr(experiment, 'build_roles', build)
    with pytest.raises(TrainingError, match=f'iteration 1 trains nothing: {message}'):
        experiment.run(config, tmp_path)
    assert len(read_jsonl(tmp_path / 'episodes/iteration_00001.jsonl')) == 4  # to see what went wrong
    assert not numbers(tmp_path) and not (tmp_path / 'checkpoints' / '1').exists()


@pytest.mark.parametrize('found, evaluated, message', [
    (['train', 'train'], True, r"no scenario has split 'held_out' \(found: train\): .* evaluation.episodes=0"),
    (['held_out', 'test'], False, r"no scenario has split 'train' \(found: held_out, test\)"),
    ([], False, r"no scenario has split 'train' \(found: none\)")])
def test_a_missing_split_is_an_error_before_training(found, evaluated, message):
    scenarios = [Scenario(str(n), split=split) for n, split in enumerate(found)]
    with pytest.raises(InputError, match=message):
        experiment.splits(scenarios, evaluated)


def test_scenarios_need_the_attributes_of_a_scenario():
    with pytest.raises(InputError, match="attributes of epo_jax.envs.base.Scenario, unlike 'train'"):
        experiment.splits(['train'], False)


@pytest.mark.parametrize('reward, refused', [(1.2, True), (-0.1, True), (1.0, False), (0.0, False), (np.nan, False)])
def test_rewards_that_do_not_add_up_to_an_outcome_are_refused(reward, refused):
    result = functools.partial(
        MatchResult, None, None, [], SimpleNamespace(reward=np.array([[0.5, reward]], np.float32)))
    if not refused:
        result()
        return
    with pytest.raises(InputError, match=rf'must add up to a number in \[0, 1\] .* add up to {reward}'):
        result()


def test_an_unknown_key_is_refused_before_anything_is_loaded(tmp_path):
    config = small_config()
    with config.unlocked():
        config.learner.learning_rat = 1e-3
    with pytest.raises(ConfigError, match='learner.learning_rate'):
        experiment.run(config, tmp_path / 'never')
    assert not (tmp_path / 'never').exists()


def test_training_on_a_users_environment_in_array_code(tmp_path):
    config = defaults.default_config('counting')  # the module tests/counting.py
    config.iterations = 1
    config.model.path = 'dummy'
    config.actor.update(model='echo', max_tokens=8)
    config.strategist.update(capacity=256, max_tokens=8)
    config.rollout.update(episodes=6, batch=4, view_tokens=48, chunk=64)
    config.reward.process = 'none'
    config.learner.update(learning_rate=1e-3, batch=12, micro_batch=12, length_bucket=256)
    config.evaluation.update(episodes=3, conditions=('policy',), bootstrap=50)
    row, = experiment.run(config, tmp_path)
    assert row.condition == 'policy'
    saved = read_jsonl(tmp_path / 'episodes/iteration_00001.jsonl')
    assert [record['episode'] for record in saved] == list(range(6))
    for record in saved:
        assert len(record['turns']) == 1 + int(record['scenario']) % 5 and not record['truncated']
        assert all(seat['judge']['by_rule'] for seat in record['seats'])
    assert {record['scenario'] for record in read_jsonl(tmp_path / 'episodes/evaluation.jsonl')} <= set('37') | {
        '11', '15'}
    metrics, = numbers(tmp_path)
    assert metrics['outcome/missing'] == 0 and metrics['learner/logprob_gap'] < 1e-3


def test_episodes_do_not_depend_on_the_batch(tmp_path):
    turns = []
    for batch in (2, 4):
        config = small_config()
        config.iterations = 1
        config.rollout.batch = batch
        experiment.run(config, tmp_path / str(batch))
        turns.append([r['turns'] for r in read_jsonl(tmp_path / str(batch) / 'episodes/iteration_00001.jsonl')])
    assert turns[0] == turns[1]
