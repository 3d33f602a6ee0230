"""Matches with mirrored seats, and the pool of snapshots."""

import itertools

import pytest

from epo_jax.rl.selfplay import KINDS, add_snapshot, draw_snapshot, matches


@pytest.mark.parametrize('episodes', [1, 2, 3, 7, 16])
@pytest.mark.parametrize('kinds', list(itertools.product(KINDS, KINDS)))
def test_every_episode_is_played_once_and_half_of_them_with_reversed_seats(kinds, episodes):
    played = matches(kinds, episodes)
    assert sorted(n for match in played for n in match.episodes) == list(range(episodes))
    assert all(match.episodes for match in played)
    if kinds[0] == kinds[1]:
        assert [match.kinds for match in played] == [kinds]
    else:
        assert [match.kinds for match in played] == [kinds, kinds[::-1]][:episodes]
        sizes = [len(match.episodes) for match in played]
        assert max(sizes) - min([*sizes, 0][:2]) <= 1


def test_an_odd_episode_is_played_in_the_original_order():
    first, second = matches(['policy', 'pool'], 5)
    assert (first.kinds, first.episodes) == (('policy', 'pool'), (0, 1, 2))
    assert (second.kinds, second.episodes) == (('pool', 'policy'), (3, 4))


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
