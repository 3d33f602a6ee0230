"""An iteration as one program gives the results of the host loop, without any transfer to the host inside."""

import jax
import numpy as np
import pytest

from epo_jax import compiled, experiment
from epo_jax.presets import load_config
from epo_jax.rl.batching import batches, orders
from epo_jax.rl.learner import Batch
from epo_jax.runtime.files import read_jsonl


def config(**rollout):
    config = load_config('bargain:tiny')
    config.rollout.update(episodes=8, batch=4, group=2, **rollout)
    config.learner.update(batch=4, micro_batch=2)
    config.credit.baseline = 'group'
    config.evaluation.episodes = 0
    return config


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Return the workdirs of two iterations by driver: the host loop, and the program without transfers inside."""
    workdirs = {}
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
        workdirs[driver] = workdir
    return workdirs


def test_both_drivers_play_the_same_episodes_and_assign_the_same_credit(runs):
    for number in (1, 2):
        host, device = (
            read_jsonl(runs[driver] / f'episodes/iteration_0000{number}.jsonl') for driver in (False, True))
        assert [record['scenario'] for record in host] == [record['scenario'] for record in device]
        for a, b in zip(host, device, strict=True):
            assert a['turns'] == b['turns']
            for x, y in zip(a['seats'], b['seats'], strict=True):
                assert x['ids'] == y['ids'] and x['turn'] == y['turn']
                np.testing.assert_allclose(x['advantage'], y['advantage'], atol=1e-6)
                np.testing.assert_allclose(x['logprob'], y['logprob'], atol=1e-5)


def test_both_drivers_take_the_same_gradient_steps(runs):
    host, device = (read_jsonl(runs[driver] / 'metrics.jsonl') for driver in (False, True))
    for a, b in zip(host, device, strict=True):
        names = {name for name in a if not name.startswith('time/')}
        assert names == {name for name in b if not name.startswith('time/')}
        for name in names - {'learner/logprob_gap', 'learner/drift'}:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_nothing_is_compiled_after_the_first_iteration(runs):
    first, second = read_jsonl(runs[True] / 'metrics.jsonl')
    assert first['time/compilations'] == second['time/compilations'] <= 12


def test_orders_are_the_rows_of_the_batches_of_the_host_loop():
    count, size, epochs = 7, 3, 2
    rows = Batch(np.arange(count)[:, None] + 1, np.zeros((count, 1), int), np.zeros((count, 1)), np.zeros((count, 1)),
                 np.ones((count, 1), bool))
    expected = [batch.ids[:, 0] - 1 for batch in batches(rows, size, epochs, (5, 2), 1)]
    order = orders(count, size, epochs, (5, 2))
    np.testing.assert_array_equal(np.where(order == count, -1, order), expected)  # the id of a padding row is 0
