"""The optimum against searches of another kind, and what makes the game a problem of adapting to the opponent."""

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
    """Depth-first search in the plain rules, over everything that can be said."""
    if table.over:
        return table.rewards()[0]
    return max(best(said(table, word)) for word in language.INTENTS)


def said(table, word):
    table = table.copy()
    table.say(0, word)
    return table


def test_the_best_reward_is_that_of_a_search_in_the_plain_rules():
    scenarios = every_scenario('family')[600:600 + len(opponents.NAMES)]
    found = optimum.best_rewards(ENV, ENV.encode(scenarios))
    np.testing.assert_allclose(found, [best(Table(s, ENV.rounds, True)) for s in scenarios], rtol=1e-6)


def test_columns_are_the_sequences_they_are_named_after():
    scenarios = every_scenario('family')[:12]
    rewards = np.asarray(optimum.sequences(ENV, ENV.encode(scenarios))[0])
    np.testing.assert_allclose(rewards.max(axis=1), optimum.best_rewards(ENV, ENV.encode(scenarios)))
    for column in np.random.default_rng(0).choice(rewards.shape[1], 20):
        for scenario, reward in zip(scenarios, rewards[:, column]):
            table = Table(scenario, ENV.rounds, True)
            for word in optimum.words(ENV, column):
                if not table.over:
                    table.say(0, word)
            np.testing.assert_allclose(reward, table.rewards()[0], rtol=1e-6)


def expected(tables):
    """The most in sum that a player gets who knows only that it sits at one of these, by depth-first search."""
    def after(word):
        total, seen = 0, collections.defaultdict(list)
        for table in tables:
            then = said(table, word)
            made = then.offers[1][len(table.offers[1]):]
            if then.over:
                total += then.rewards()[0]
            else:
                seen[made[0] if made else None].append(then)
        return total + sum(map(expected, seen.values()))

    return max(map(after, language.INTENTS))


def test_the_best_policy_is_that_of_a_search_over_what_can_be_seen():
    env = Bargain('family', 2)
    openings = collections.defaultdict(list)
    for scenario in every_scenario('family'):
        openings[scenario.counts, scenario.values[0]].append(scenario)
    groups = [group[:14] for group in list(openings.values())[:2]]
    mixed = [scenario for pair in zip(*groups) for scenario in pair]
    found = optimum.adaptive_rewards(env, mixed)
    for number, group in enumerate(groups):
        np.testing.assert_allclose(
            found[number::2].sum(), expected([Table(scenario, env.rounds, True) for scenario in group]), rtol=1e-6)
    known = np.asarray(optimum.best_rewards(env, env.encode(mixed)))
    records = [dict(condition=name, scenario=mixed[e].id, seats=[dict(outcome=outcome)]) for name, e, outcome in (
        ('policy', 3, 0.5), ('policy', 4, 0.25), ('none', 3, 0.125), ('none', 4, None))]
    assert regret.compare(records, env, mixed) == [
        regret.Row('policy', 2, 0.375, found[3:5].mean(), known[3:5].mean()),
        regret.Row('none', 1, 0.125, found[3], known[3])]
    fixed = np.asarray(optimum.sequences(env, env.encode(mixed))[0])
    assert (found <= known).all() and found.sum() < known.sum()
    assert found.sum() > sum(fixed[number::2].sum(axis=0).max() for number in (0, 1))


def test_nash_and_pareto_are_found_among_all_splits():
    for scenario in every_scenario('seat')[:40]:
        found = optimum.solutions(scenario)
        table = Table(scenario, 1, False)
        pairs = {tuple(table.points(side, offer) for side in (0, 1)) for offer in table.splits()}
        undominated = {p for p in pairs if not any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in pairs)}
        assert set(found.pareto) == undominated
        assert found.nash in undominated and found.nash[0] * found.nash[1] == max(a * b for a, b in pairs)
        assert found.most == max(map(sum, pairs))


def adapt(past):
    """An intent by what the partner offered so far: values of its offers, None for silence."""
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
def test_who_does_not_adapt_gets_less():
    """A schedule fixed in advance, the best of all 10,000 in hindsight, falls short of a simple rule."""
    env, scenarios = Bargain(), [s for s in every_scenario('family') if s.split == 'held_out']
    scenarios = scenarios[:200 * len(opponents.NAMES)]
    rewards = np.asarray(optimum.sequences(env, env.encode(scenarios))[0])
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
