"""A whole iteration as one program: it does what the host loop does, and nothing returns to the host before its end."""

import importlib.util
import json
import pathlib

import jax
import numpy as np
import pytest

from epo_jax import compiled, experiment
from epo_jax.rl.batching import batches, orders
from epo_jax.rl.learner import Batch

ROOT = pathlib.Path(__file__).parents[1]


def config(**rollout):
    spec = importlib.util.spec_from_file_location('bargain_config', ROOT / 'configs' / 'bargain.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config('tiny')
    config.rollout.update(episodes=8, batch=4, group=2, **rollout)
    config.learner.update(batch=4, micro_batch=2)
    config.credit.baseline = 'group'
    config.evaluation.episodes = 0
    return config


def lines(workdir, name):
    return [json.loads(line) for line in (workdir / name).read_text().splitlines()]


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """The same two iterations from a host loop and as one program, the latter without any transfer inside."""
    found = {}
    for driver in (False, True):
        workdir = tmp_path_factory.mktemp(f'compiled_{driver}')
        program = compiled.iteration_program

        def guarded(*args):
            with jax.transfer_guard('disallow'):
                return program(*args)

        compiled.iteration_program = guarded
        try:
            experiment.run(config(compiled=driver), workdir)
        finally:
            compiled.iteration_program = program
        found[driver] = workdir
    return found


def test_both_play_the_same_episodes_and_assign_the_same_credit(runs):
    for number in (1, 2):
        host, device = (lines(runs[driver], f'episodes/iteration_0000{number}.jsonl') for driver in (False, True))
        assert [record['scenario'] for record in host] == [record['scenario'] for record in device]
        for a, b in zip(host, device):
            assert a['turns'] == b['turns']
            for mine, other in zip(a['seats'], b['seats']):
                assert mine['ids'] == other['ids'] and mine['turn'] == other['turn']
                np.testing.assert_allclose(mine['advantage'], other['advantage'], atol=1e-6)
                np.testing.assert_allclose(mine['logprob'], other['logprob'], atol=1e-5)


def test_both_take_the_same_steps(runs):
    host, device = (lines(runs[driver], 'metrics.jsonl') for driver in (False, True))
    for a, b in zip(host, device, strict=True):
        same = {name for name in a if not name.startswith('time/')}
        assert same == {name for name in b if not name.startswith('time/')}
        for name in same - {'learner/logprob_gap', 'learner/drift'}:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_nothing_is_compiled_after_the_first_iteration(runs):
    first, second = lines(runs[True], 'metrics.jsonl')
    assert first['time/compilations'] == second['time/compilations'] <= 12


def test_the_rows_of_the_steps_are_those_of_the_host_loop():
    count, size, epochs = 7, 3, 2
    rows = Batch(np.arange(count)[:, None] + 1, np.zeros((count, 1), int), np.zeros((count, 1)), np.zeros((count, 1)),
                 np.ones((count, 1), bool))
    want = [batch.ids[:, 0] - 1 for batch in batches(rows, size, epochs, (5, 2), 1)]
    got = orders(count, size, epochs, (5, 2))
    np.testing.assert_array_equal(np.where(got == count, -1, got), want)  # an empty place has id 0
