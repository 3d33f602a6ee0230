"""Two processes on one machine against one process with two devices: the same run."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from epo_jax import hosts
from epo_jax.files import read_jsonl

REPO = pathlib.Path(__file__).parents[1]
FLAGS = ('--config=configs/sotopia.py:tiny', '--config.rollout.compiled=True', '--config.mesh=1,2,1',
         '--config.iterations=2', '--config.evaluation.episodes=0', '--config.environment.max_turns=2',
         '--config.rollout.view_tokens=1024', '--config.strategist.capacity=1152', '--config.actor.capacity=1152',
         '--config.judge.capacity=1152', '--config.strategist.max_tokens=4', '--config.actor.max_tokens=4',
         '--config.learner.length_bucket=128')


def start(workdir, devices, *flags):
    """A run of the command line in a process of its own with so many CPU devices."""
    environment = {
        **os.environ, 'JAX_PLATFORMS': 'cpu', 'XDG_CACHE_HOME': str(workdir.parent / 'cache'),
        'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0'}
    return subprocess.Popen(
        [sys.executable, '-m', 'epo_jax.main', f'--workdir={workdir}', *FLAGS, *flags], cwd=REPO, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(*processes):
    """What the processes say, once all have ended well."""
    try:
        said = [process.communicate(timeout=500)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, text in zip(processes, said):
        assert process.returncode == 0, text[-3000:]
    return said


def read_metrics(folder):
    rows = read_jsonl(folder / 'metrics.jsonl')
    return [{name: value for name, value in row.items() if not name.startswith('time/')} for row in rows]


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


@pytest.mark.slow
def test_two_hosts_run_as_one(tmp_path):
    finish(start(tmp_path / 'one', 2))
    port = free_port()
    first, second = finish(*(
        start(tmp_path / 'two', 1, f'--hosts=127.0.0.1:{port},2,{number}') for number in range(2)))
    one, two = read_metrics(tmp_path / 'one'), read_metrics(tmp_path / 'two')
    assert len(one) == len(two) == 2
    for a, b in zip(one, two):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(b[name], a[name], rtol=2e-4, atol=2e-5, err_msg=name)
    names = lambda folder: sorted(file.name for file in (folder / 'episodes').glob('*.jsonl'))
    assert names(tmp_path / 'one') == names(tmp_path / 'two') != []
    said = lambda run, name: [
        ([seat['ids'] for seat in row['seats']], [(turn['strategy'], turn['line']) for turn in row['turns']])
        for row in read_jsonl(tmp_path / run / 'episodes' / name)]
    for name in names(tmp_path / 'one'):
        assert said('one', name) == said('two', name) == said('two/hosts/1', name) != []  # token by token
    assert 'iteration 2' in first and 'iteration 2' not in second
    assert (tmp_path / 'two' / 'checkpoints' / '2').is_dir()
    assert not (tmp_path / 'two' / 'hosts' / '1' / 'checkpoints').exists()


@pytest.mark.parametrize('wrong', ('localhost', 'localhost:1', 'localhost:1,2,2', 'localhost:1,2,-1', 'x,2,1'))
def test_what_is_no_address_is_refused(wrong):
    with pytest.raises(hosts.HostsError, match='HOST:PORT,PROCESSES,NUMBER'):
        hosts.start(wrong)


def test_one_process_needs_nothing():
    hosts.start('')
    assert hosts.own_folder(pathlib.Path('w')) == pathlib.Path('w')
    assert hosts.agree(True) is True and hosts.agree(False) is False
    tree = {'a': jax.numpy.ones(2)}
    assert hosts.everywhere(tree, None) is tree
