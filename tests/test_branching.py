"""Siblings of turns: the episodes stay the same, a state is restored exactly, and values are those of the policy."""

import functools

import jax
import numpy as np
import pytest

from epo_jax import experiment
from epo_jax.branching import rollout_branched, values
from epo_jax.envs.base import load_domain
from epo_jax.iteration import Experiment
from epo_jax.presets import load_config
from epo_jax.roles import build_roles
from epo_jax.rollout import encode, episode_keys, rollout_compiled
from epo_jax.runtime.files import read_jsonl
from epo_jax.runtime.parallel import make_mesh, param_shardings
from epo_jax.runtime.progress import Progress
from epo_jax.runtime.timing import Stopwatch


@functools.cache
def table_of(environment, temperature):
    """Return a table at which the untrained policy sits, and scenarios."""
    config = load_config('bargain:tiny')
    config.environment.name = environment
    config.seats = ('policy',) * (2 if environment == 'bargain_selfplay' else 1)
    config.strategist.update(capacity=40, temperature=temperature)
    domain, mesh = load_domain(environment), make_mesh((1, 1, 1))
    roles = build_roles(config, mesh, domain)
    learner = experiment.make_learner(config, roles)
    exp = Experiment(config, domain, roles, learner, Progress(1), Stopwatch(),
                     param_shardings(roles.strategist.sampler(), mesh))
    table = exp.table((exp.seat('policy', True, roles.strategist.params, (), 0),) * len(config.seats))
    return table, domain.scenarios('', config.environment)


@functools.partial(jax.jit, static_argnums=(3, 4))
def branched(table, queue, keys, batch, siblings):
    episodes, outcomes, tokens = rollout_branched(table, queue, keys, batch, siblings)
    assert outcomes.shape[-1] == siblings
    return episodes, values(outcomes), tokens


@pytest.mark.parametrize('environment', ('bargain', pytest.param('bargain_selfplay', marks=pytest.mark.slow)))
def test_branching_does_not_change_the_episodes(environment):
    table, scenarios = table_of(environment, 1.0)
    keys, queue = episode_keys(0, 0, np.arange(6)), encode(table, scenarios[:6])
    plain = jax.jit(rollout_compiled, static_argnums=3)(table, queue, keys, 4)
    episodes, value, tokens = branched(table, queue, keys, 4, 3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), episodes, plain)
    seats = len(table.seats)
    turns = (np.asarray(episodes.actions)[:, None] + seats - 1 - np.arange(seats)) // seats
    took_place = np.arange(value.shape[2]) < turns[:, :, None]
    np.testing.assert_array_equal(np.isfinite(value), took_place)
    assert tokens > 0


def test_siblings_without_chance_end_like_the_episode():
    """The sessions and the environment are restored as they were: at temperature 0, all siblings are the episode."""
    table, scenarios = table_of('bargain', 0.0)
    keys, queue = episode_keys(0, 0, np.arange(6)), encode(table, scenarios[:6])
    episodes, found, _ = branched(table, queue, keys, 4, 2)
    for value, reward, actions in zip(np.asarray(found)[:, 0], np.asarray(episodes.reward)[:, 0], episodes.actions):
        np.testing.assert_allclose(value[:int(actions)], reward, rtol=1e-6)


def test_the_value_of_an_opening_is_the_mean_outcome_of_its_episodes():
    table, scenarios = table_of('bargain', 1.0)
    count, siblings = 512, 256
    same = [scenarios[3]] * count
    outcomes = np.asarray(jax.jit(rollout_compiled, static_argnums=3)(
        table, encode(table, same), episode_keys(1, 0, np.arange(count)), count).reward)[:, 0]
    _, value, _ = branched(table, encode(table, same[:2]), episode_keys(2, 0, np.arange(2)), 2, siblings)
    error = np.std(outcomes) * (1 / count + 1 / siblings) ** 0.5
    first = np.asarray(value)[:, 0, 0]
    assert error > 0 and (np.abs(first - outcomes.mean()) < 4 * error).all() and first[0] != first[1]


def test_a_run_with_branched_credit(tmp_path):
    config = load_config('bargain:tiny')
    config.iterations, config.evaluation.episodes = 1, 0
    config.rollout.update(episodes=4, batch=4, group=2)
    config.learner.update(batch=4, micro_batch=4)
    config.credit.update(name='branched', siblings=3)
    experiment.run(config, tmp_path)
    metrics, = read_jsonl(tmp_path / 'metrics.jsonl')
    assert metrics['learner/sibling_tokens'] > 0
    advantages = [a for record in read_jsonl(tmp_path / 'episodes/iteration_00001.jsonl')
                  for seat in record['seats'] for a in seat['advantage']]
    assert all(-1 <= a <= 1 for a in advantages) and np.ptp(advantages) > 0
