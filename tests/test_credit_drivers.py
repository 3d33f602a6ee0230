"""Credit and losses that need more than rewards: both drivers compute the same, and a resumed run remembers."""

import jax.numpy as jnp
import numpy as np
import pytest

from epo_jax import experiment
from epo_jax.presets import load_config
from epo_jax.runtime.files import read_jsonl


def everything(reward, valid, seat, observation, entropy, memory, gamma):
    """A method that needs whatever there is; it remembers how many turns it has seen."""
    repeated = (observation[:, :1] == observation[:1, :1]) * 1.0
    value = gamma * reward + entropy + 0.1 * repeated + memory[seat][:, None]
    return jnp.where(valid, value, 0), memory + valid.sum()


def config(compiled, iterations):
    config = load_config('bargain:tiny')
    config.iterations = iterations
    config.rollout.update(episodes=4, batch=4, group=2, compiled=compiled)
    config.learner.update(batch=4, micro_batch=2, epochs=2, learning_rate=0.02)
    config.credit.update(name=f'{__name__}:everything', baseline='none')
    config.loss.update(name='gspo', kl='k3', kl_weight=0.1)
    config.reward.kl_weight = 0.05
    config.evaluation.episodes = 0
    return config


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Return the workdirs of two iterations: in a host loop that was resumed, and as programs."""
    host, device = (tmp_path_factory.mktemp(name) for name in ('host', 'device'))
    for iterations in (1, 2):
        experiment.run(config(False, iterations), host)
    experiment.run(config(True, 2), device)
    return host, device


def test_both_drivers_assign_the_same_credit_and_take_the_same_steps(runs):
    for number in (1, 2):
        host, device = (read_jsonl(run / f'episodes/iteration_0000{number}.jsonl') for run in runs)
        for a, b in zip(host, device, strict=True):
            for x, y in zip(a['seats'], b['seats'], strict=True):
                assert x['ids'] == y['ids']
                np.testing.assert_allclose(x['advantage'], y['advantage'], atol=2e-5)
                np.testing.assert_allclose(x['reward'], y['reward'], atol=2e-5)
    host, device = (read_jsonl(run / 'metrics.jsonl') for run in runs)
    for a, b in zip(host, device, strict=True):
        for name in ('learner/loss', 'learner/gradient_norm', 'reward/per_turn'):
            np.testing.assert_allclose(a[name], b[name], rtol=1e-3, atol=1e-6, err_msg=name)


def test_the_divergence_lowers_rewards_only_after_the_first_update(runs):
    first, second = ([turn for record in read_jsonl(runs[0] / f'episodes/iteration_0000{number}.jsonl')
                      for seat in record['seats'] for turn in seat['reward'][:-1]] for number in (1, 2))
    assert np.abs(first).max() < 1e-5 < np.abs(second).max()


def test_a_resumed_run_remembers(runs):
    """The memory of the first iteration, its number of turns, is a part of the advantages of the second."""
    first, second = (read_jsonl(runs[0] / f'episodes/iteration_0000{number}.jsonl') for number in (1, 2))
    turns = sum(len(seat['advantage']) for record in first for seat in record['seats'])
    assert min(a for record in second for seat in record['seats'] for a in seat['advantage']) > turns - 1
