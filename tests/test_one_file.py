"""The example examples/epo_in_one_file.py computes what it says, and learns as the package does."""

import importlib.util
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epo_jax import experiment
from epo_jax.envs.bargain import scenarios
from epo_jax.presets import load_config
from epo_jax.runtime.files import read_jsonl

FILE = pathlib.Path(__file__).parents[1] / 'examples' / 'epo_in_one_file.py'


@pytest.fixture(scope='module')
def example():
    spec = importlib.util.spec_from_file_location('epo_in_one_file', FILE)
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_example_fits_in_three_hundred_lines():
    assert len(FILE.read_text().splitlines()) <= 300


def test_the_process_reward_adds_up_and_the_gradient_is_that_of_the_sampled_tokens(example):
    config = example.Config(episodes=32, group=4)
    model = example.Strategist(8, 1)
    params = model.init(
        jax.random.key(1), jnp.zeros((1, example.LENGTH), jnp.int32), jnp.ones((1, example.LENGTH), bool))
    queue = jax.tree.map(jnp.asarray, scenarios.encode(scenarios.every_scenario('family')[:8]))
    play = jax.jit(lambda key: example.rollout(model, params, key, queue, jnp.repeat(jnp.arange(8), 4), True))
    episodes = play(jax.random.key(0))
    assert len(np.unique(episodes.strategy)) > 5 and 0 < episodes.acted.sum(axis=1).min() < example.TURNS
    np.testing.assert_allclose(episodes.reward.sum(axis=1), episodes.outcome, atol=1e-6)

    advantage = example.advantages(config, episodes)
    reward, acted = np.asarray(episodes.reward, np.float64), np.asarray(episodes.acted)
    expected = np.zeros_like(reward)
    for e in range(32):
        for t in range(example.TURNS):
            others = [o for o in range(e // 4 * 4, e // 4 * 4 + 4) if o != e and acted[o, t]]
            if acted[e, t] and others:
                expected[e, t] = reward[e, t:].sum() - np.mean([reward[o, t:].sum() for o in others])
    np.testing.assert_allclose(advantage, expected / np.abs(expected).max(), atol=1e-5)

    value, gap = jax.jit(example.loss, static_argnums=1)(params, model, 0.0, episodes, advantage)
    terms = np.where(acted, advantage * np.asarray(episodes.logprob), 0).sum(axis=1) / acted.sum(axis=1)
    np.testing.assert_allclose(value, -terms.mean(), atol=1e-6)
    assert gap < 1e-5


@pytest.mark.slow
def test_the_example_learns_as_the_package_does(example, tmp_path):
    iterations, episodes = 60, 512
    _, outcomes, _ = example.train(example.Config(iterations=iterations, episodes=episodes, process=False))
    config = load_config('bargain:family')
    config.iterations = iterations
    config.rollout.update(episodes=episodes, batch=episodes)
    config.learner.batch = episodes
    config.evaluation.episodes = 0
    experiment.run(config, tmp_path)
    package = [row['outcome/mean'] for row in read_jsonl(tmp_path / 'metrics.jsonl')]
    assert len(package) == len(outcomes) and np.mean(outcomes[:3]) < 0.2
    for first in (20, 40):  # the means of twenty iterations
        mean = np.mean(outcomes[first:first + 20])
        assert abs(mean - np.mean(package[first:first + 20])) < 0.05
        assert mean > 0.3
