"""A run of two processes on one machine equals a run of one process with two devices."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from epo_jax.runtime import hosts
from epo_jax.runtime.files import read_jsonl

REPO = pathlib.Path(__file__).parents[2]
SOTOPIA = (
    '--config=configs/sotopia.py:tiny', '--config.rollout.compiled=True', '--config.mesh=1,2,1',
    '--config.iterations=2', '--config.evaluation.episodes=0', '--config.environment.max_turns=2',
    '--config.rollout.view_tokens=1024', '--config.strategist.capacity=1152', '--config.actor.capacity=1152',
    '--config.judge.capacity=1152', '--config.strategist.max_tokens=4', '--config.actor.max_tokens=4',
    '--config.learner.length_bucket=128')
ALFWORLD = (
    '--config=configs/alfworld.py:tiny', '--config.mesh=1,2,1', '--config.environment.max_turns=2',
    '--config.reward.process=none', '--config.reward.outcome=test_hosts:number_of',
    '--config.strategist.capacity=1280', '--config.actor.capacity=1280', '--config.rollout.episodes=2',
    '--config.rollout.batch=2', '--config.learner.batch=2', '--config.learner.micro_batch=2',
    '--config.evaluation.episodes=2', "--config.evaluation.conditions=('policy',)")


def number_of(readings):
    """Return an arbitrary outcome for each episode that depends on its strategies."""
    return [sum(map(ord, ''.join(reading.strategies))) % 11 / 10 for reading in readings]


def start(workdir, devices, *flags):
    """Start a run in a new process with the given number of CPU devices."""
    environment = {
        **os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(REPO / 'tests' / 'runtime'),
        'XDG_CACHE_HOME': str(workdir.parent / 'cache'),
        'XLA_FLAGS': f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count={devices}'}
    return subprocess.Popen(
        [sys.executable, '-m', 'epo_jax.main', f'--workdir={workdir}', *flags], cwd=REPO, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(*processes):
    """Wait for the processes, check that they succeeded, and return their outputs."""
    try:
        outputs = [process.communicate(timeout=500)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, text in zip(processes, outputs):
        assert process.returncode == 0, text[-3000:]
    return outputs


def read_metrics(folder):
    rows = read_jsonl(folder / 'metrics.jsonl')
    return [{name: value for name, value in row.items() if not name.startswith('time/')} for row in rows]


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def compare(tmp_path, *flags):
    """Run as one process with two devices and as two processes with one each, compare, and return their outputs."""
    finish(start(tmp_path / 'one', 2, *flags))
    port = free_port()
    outputs = finish(*(
        start(tmp_path / 'two', 1, *flags, f'--hosts=127.0.0.1:{port},2,{number}') for number in range(2)))
    one, two = read_metrics(tmp_path / 'one'), read_metrics(tmp_path / 'two')
    assert [row['iteration'] for row in one] == [row['iteration'] for row in two] == [1, 2]
    assert any(abs(row['learner/loss']) > 1e-6 for row in one)  # something was learned
    for a, b in zip(one, two):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(b[name], a[name], rtol=2e-4, atol=2e-5, err_msg=name)
    files = lambda run: sorted(
        str(file.relative_to(tmp_path / run)) for file in (tmp_path / run).glob('**/*.json*')
        if 'checkpoints' not in file.parts)
    assert files('one') == files('two') and 'episodes/iteration_00002.jsonl' in files('two')
    for name in files('one'):
        if name.startswith('episodes'):
            assert_alike(*(read_jsonl(tmp_path / run / name) for run in ('one', 'two')))
    assert (tmp_path / 'two' / 'checkpoints' / '2').is_dir()
    return outputs


def assert_alike(a, b):
    """Check that every text and id is the same, and every float up to rounding."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        a, b = list(a.values()), list(b.values())
    if isinstance(a, list):
        assert len(a) == len(b)
        for pair in zip(a, b):
            assert_alike(*pair)
    elif isinstance(a, float):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-5)
    else:
        assert a == b


@pytest.mark.slow
def test_a_compiled_run_on_two_hosts_equals_one_on_one_host(tmp_path):
    first, second = compare(tmp_path, *SOTOPIA)
    assert 'iteration 2' in first and 'iteration 2' not in second


def test_each_of_two_hosts_plays_the_games_of_its_own_slots(tmp_path):
    first, second = compare(tmp_path, *ALFWORLD)
    assert 'Goal scores' in first and 'Goal scores' not in second
    rows = read_jsonl(tmp_path / 'two' / 'episodes' / 'evaluation.jsonl')
    assert len(rows) == 2 and all(row['turns'] and not row['truncated'] for row in rows)


@pytest.mark.parametrize('wrong', ('localhost', 'localhost:1', 'localhost:1,2,2', 'localhost:1,2,-1', 'x,2,1'))
def test_a_malformed_address_is_refused(wrong):
    with pytest.raises(hosts.HostsError, match='HOST:PORT,PROCESSES,NUMBER'):
        hosts.start(wrong)


def test_a_single_process_needs_no_communication():
    hosts.start('')
    assert hosts.is_primary() and hosts.local_slots(3).tolist() == [True] * 3
    assert hosts.any_process(True) is True and hosts.any_process(False) is False
    tree = {'a': jax.numpy.ones(2)}
    assert hosts.fetch(tree) is tree
    assert hosts.share([2, 0], str) == {2: '2', 0: '0'}


@pytest.mark.parametrize('slots, processes, owners', [
    (4, 2, [0, 0, 1, 1]), (5, 2, [0, 0, 0, 1, 1]), (2, 4, [0, 2]), (6, 3, [0, 0, 1, 1, 2, 2])])
def test_every_slot_has_one_owner(monkeypatch, slots, processes, owners):
    monkeypatch.setattr(jax, 'process_count', lambda: processes)
    for number in range(processes):
        monkeypatch.setattr(jax, 'process_index', lambda: number)
        assert hosts.local_slots(slots).tolist() == [owner == number for owner in owners]
