"""The bounds against independent searches, and evidence that the game rewards adapting to the opponent."""

import collections

from bargain_reference import Table
import numpy as np
import pytest

from epo_jax.envs.bargain import language, opponents, optimum
from epo_jax.envs.bargain.game import Bargain
from epo_jax.envs.bargain.scenarios import every_scenario
from epo_jax.tools import bargain_regret as regret

ENV = Bargain('family', 3)


def best(table):
    """Return the best reward by depth-first search over all intents in the reference implementation."""
    if table.over:
        return table.rewards()[0]
    return max(best(after(table, word)) for word in language.INTENTS)


def after(table, word):
    """Return the table after an intent of seat 0."""
    table = table.copy()
    table.say(0, word)
    return table


def test_the_best_reward_is_that_of_a_search_in_the_reference():
    scenarios = every_scenario('family')[600:600 + len(opponents.NAMES)]
    rewards = optimum.best_rewards(ENV, ENV.encode(scenarios))
    np.testing.assert_allclose(rewards, [best(Table(s, ENV.rounds, True)) for s in scenarios], rtol=1e-6)


def test_every_column_is_the_reward_of_its_sequence_of_intents():
    scenarios = every_scenario('family')[:12]
    rewards = np.asarray(optimum.try_sequences(ENV, ENV.encode(scenarios))[0])
    np.testing.assert_allclose(rewards.max(axis=1), optimum.best_rewards(ENV, ENV.encode(scenarios)))
    for column in np.random.default_rng(0).choice(rewards.shape[1], 20):
        for scenario, reward in zip(scenarios, rewards[:, column]):
            table = Table(scenario, ENV.rounds, True)
            for word in optimum.intents_of_column(ENV, column):
                if not table.over:
                    table.say(0, word)
            np.testing.assert_allclose(reward, table.rewards()[0], rtol=1e-6)


def expected(tables):
    """Return the largest sum of rewards over tables that a player cannot tell apart, by depth-first search."""
    def value(word):
        total, by_answer = 0, collections.defaultdict(list)
        for table in tables:
            later = after(table, word)
            made = later.offers[1][len(table.offers[1]):]
            if later.over:
                total += later.rewards()[0]
            else:
                by_answer[made[0] if made else None].append(later)
        return total + sum(map(expected, by_answer.values()))

    return max(map(value, language.INTENTS))


def test_the_best_adaptive_policy_is_that_of_a_search_over_observations():
    env = Bargain('family', 2)
    openings = collections.defaultdict(list)
    for scenario in every_scenario('family'):
        openings[scenario.counts, scenario.values[0]].append(scenario)
    groups = [group[:14] for group in list(openings.values())[:2]]
    mixed = [scenario for pair in zip(*groups) for scenario in pair]
    adaptive = optimum.adaptive_rewards(env, mixed)
    for number, group in enumerate(groups):
        np.testing.assert_allclose(
            adaptive[number::2].sum(), expected([Table(scenario, env.rounds, True) for scenario in group]), rtol=1e-6)
    known = np.asarray(optimum.best_rewards(env, env.encode(mixed)))
    records = [dict(condition=name, scenario=mixed[e].id, seats=[dict(outcome=outcome)]) for name, e, outcome in (
        ('policy', 3, 0.5), ('policy', 4, 0.25), ('none', 3, 0.125), ('none', 4, None))]
    assert regret.compare(records, env, mixed) == [
        regret.Row('policy', 2, 0.375, adaptive[3:5].mean(), known[3:5].mean()),
        regret.Row('none', 1, 0.125, adaptive[3], known[3])]
    fixed = np.asarray(optimum.try_sequences(env, env.encode(mixed))[0])
    assert (adaptive <= known).all() and adaptive.sum() < known.sum()
    assert adaptive.sum() > sum(fixed[number::2].sum(axis=0).max() for number in (0, 1))


def test_nash_and_pareto_solutions_are_those_of_a_search_over_all_splits():
    for scenario in every_scenario('seat')[:40]:
        solutions = optimum.solutions(scenario)
        table = Table(scenario, 1, False)
        pairs = {tuple(table.points(side, offer) for side in (0, 1)) for offer in table.splits()}
        undominated = {p for p in pairs if not any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in pairs)}
        assert set(solutions.pareto) == undominated
        assert solutions.nash in undominated
        assert solutions.nash[0] * solutions.nash[1] == max(a * b for a, b in pairs)
        assert solutions.max_joint_points == max(map(sum, pairs))


def adapt(past):
    """Return the intent of a simple adaptive rule.

    Args:
      past: for each answer of the partner, the points of its offer, or None if it made no offer.
    """
    if not past:
        return 'ask:9'
    now, turn = past[-1], len(past)
    rose = now is not None and turn > 1 and now > max(worth or 0 for worth in past[:-1])
    if now is not None and now >= (6, 9, 4)[turn - 1] + (rose and turn == 3):
        return 'accept'
    if now is None:
        return ('wait', 'ask:9', 'ask:3')[turn - 1]
    return (None, 'wait', 'ask:5')[turn - 1] if rose else ('ask:10', 'ask:7', 'ask:3')[turn - 1]


@pytest.mark.slow
def test_a_fixed_sequence_gets_less_than_an_adaptive_rule():
    """Even the best of all 10,000 sequences in hindsight gets less than a simple rule that adapts."""
    env, scenarios = Bargain(), [s for s in every_scenario('family') if s.split == 'held_out']
    scenarios = scenarios[:200 * len(opponents.NAMES)]
    rewards = np.asarray(optimum.try_sequences(env, env.encode(scenarios))[0])
    best = rewards.max(axis=1).mean()
    adapted = []
    for scenario in scenarios:
        table, past = Table(scenario, env.rounds, True), []
        while not table.over:
            made = len(table.offers[1])
            table.say(0, adapt(past))
            past.append(table.points(0, table.offers[1][-1]) if len(table.offers[1]) > made else None)
        adapted.append(table.rewards()[0])
    assert rewards.mean(axis=0).max() <= 0.85 * best
    assert np.mean(adapted) >= 0.90 * best
