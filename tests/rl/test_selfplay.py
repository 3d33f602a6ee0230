"""Matches with mirrored seats, and the pool of snapshots."""

from types import SimpleNamespace

import numpy as np
import pytest

from epo_jax.envs.base import Scenario
from epo_jax.experiment import draw_scenarios
from epo_jax.rl.selfplay import KINDS, add_snapshot, draw_snapshot, matches
from epo_jax.rollout import Table, encode


def all_rotations(kinds):
    """Return the different rotations of some strategists around the seats."""
    return {tuple(kinds[(s + shift) % len(kinds)] for s in range(len(kinds))) for shift in range(len(kinds))}


@pytest.mark.parametrize('seats', [1, 2, 3, 4])
def test_matches_share_whole_groups_among_all_rotations_of_the_seats(seats):
    rng = np.random.default_rng(seats)
    for kinds in rng.choice(KINDS, (40, seats)).tolist():
        group, groups = rng.integers(1, 5), rng.integers(1, 9)
        played = matches(kinds, group * groups, group)
        assert [n for match in played for n in match.episodes] == list(range(group * groups))
        assert played[0].kinds == tuple(kinds)
        rotations = all_rotations(kinds)
        assert len({match.kinds for match in played}) == len(played) == min(groups, len(rotations))
        assert {match.kinds for match in played} <= rotations
        for match in played:
            assert sorted(n % group for n in match.episodes) == sorted(list(range(group)) * (len(match.episodes) // group))
        sizes = [len(match.episodes) // group for match in played]
        assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)


def test_the_first_match_gets_the_odd_group():
    first, second = matches(['policy', 'pool'], 6, 2)
    assert (first.kinds, first.episodes) == (('policy', 'pool'), (0, 1, 2, 3))
    assert (second.kinds, second.episodes) == (('pool', 'policy'), (4, 5))


@pytest.mark.parametrize('seats', [1, 2, 3])
def test_a_group_is_one_scenario_in_every_match(seats):
    rng = np.random.default_rng(seats)
    scenarios = [Scenario(f's{n}') for n in range(7)]
    for kinds in [('policy',) * seats, *map(tuple, rng.choice(KINDS, (20, seats)).tolist())]:
        group, iteration = int(rng.integers(1, 5)), int(rng.integers(0, 4))
        count = group * int(rng.integers(1, 9))
        drawn = draw_scenarios(scenarios, count, group, iteration, seed=0)
        table = Table(SimpleNamespace(encode=lambda scenarios, advised: scenarios), (), group)
        for match in matches(kinds, count, group):
            queue = encode(table, [drawn[n] for n in match.episodes])
            assert all(queue[i] is queue[i - i % group] for i in range(len(queue)))


@pytest.mark.parametrize('names', ['aab', 'abab', 'aabc', 'a'])
def test_a_group_of_several_scenarios_is_refused(names):
    scenarios = {name: Scenario(name) for name in names}
    with pytest.raises(ValueError, match='are not groups of 2 episodes with the same scenario'):
        encode(Table(SimpleNamespace(encode=lambda scenarios, advised: scenarios), (), 2), [scenarios[name] for name in names])


def test_the_pool_keeps_the_last_snapshots_in_order():
    pool, pools = (), []
    for n in range(5):
        pool = add_snapshot(pool, n, 3)
        pools.append(pool)
    assert pools == [(0,), (0, 1), (0, 1, 2), (1, 2, 3), (2, 3, 4)]
    assert add_snapshot((0, 1), 2, 1) == (2,)
    assert add_snapshot((0, 1), 2, 0) == ()


def test_snapshots_are_drawn_uniformly_and_reproducibly():
    count, draws = 4, 200
    drawn = [draw_snapshot(0, i, count) for i in range(draws)]
    assert drawn[:20] == [draw_snapshot(0, i, count) for i in range(20)]
    assert all(type(n) is int for n in drawn)
    expected = draws / count
    chi2 = sum((drawn.count(n) - expected) ** 2 / expected for n in range(count))
    assert set(drawn) == set(range(count)) and chi2 < 16.27  # the 99.9 % quantile of chi-square with 3 degrees of freedom
    assert {draw_snapshot(0, i, 1) for i in range(5)} == {0}
    assert [draw_snapshot(1, i, count) for i in range(20)] != drawn[:20]
