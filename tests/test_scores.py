"""The comparison of conditions: means, paired differences, intervals, tables and JSON."""

import json

import numpy as np
import pytest

from epo_jax.runtime import streams
from epo_jax.scores import Row, by_category, by_dimension, compare, table_of, to_json

NAN = np.nan
SCORES = {
    'none': np.array([[1.0, 2.0], [3.0, 4.0], [5.0, NAN], [7.0, 8.0]]),
    'policy': np.array([[2.0, 4.0], [3.0, NAN], [6.0, 9.0], [9.0, 8.0]])}
CATEGORIES = ['talk', 'buy', 'buy', 'talk']


def reject(text):
    raise ValueError(f'{text} is not JSON')


def test_means_and_paired_differences():
    none, policy = compare(SCORES, range(4), 100, 0)
    assert (none.condition, policy.condition) == ('none', 'policy')
    assert none.mean == pytest.approx((1 + 2 + 3 + 4 + 5 + 7 + 8) / 7)
    assert policy.mean == pytest.approx((2 + 4 + 3 + 6 + 9 + 9 + 8) / 7)
    assert none.difference is None
    assert policy.difference[0] == pytest.approx((1 + 2 + 0 + 1 + 2 + 0) / 6)  # seats with a score in both


def test_missing_scores_are_counted():
    none, policy = compare(SCORES, range(4), 100, 0)
    assert (none.scored, none.missing, policy.scored, policy.missing) == (7, 1, 7, 1)


def test_intervals_are_those_of_a_bootstrap_over_episodes_in_plain_numpy():
    samples, seed = 500, 3
    draws = streams.generator('bootstrap', seed).integers(0, 4, (samples, 4))
    rows = compare(SCORES, range(4), samples, seed)

    def interval(values):
        means = []
        for draw in draws:
            drawn = [v for episode in draw for v in values[episode] if not np.isnan(v)]
            means.append(sum(drawn) / len(drawn))
        return np.percentile(means, 2.5), np.percentile(means, 97.5)

    for row, scores in zip(rows, SCORES.values()):
        np.testing.assert_allclose((row.low, row.high), interval(scores))
    np.testing.assert_allclose(rows[1].difference[1:], interval(SCORES['policy'] - SCORES['none']))
    assert compare(SCORES, range(4), samples, seed) == rows


def test_intervals_contain_a_known_effect_about_as_often_as_they_should():
    random, effect, hits, trials = np.random.default_rng(0), 0.8, 0, 200
    for trial in range(trials):
        # Scenarios differ by far more than conditions; the paired difference removes that.
        difficulty = random.normal(0, 3, (60, 1))
        none = difficulty + random.normal(0, 1, (60, 2))
        policy = difficulty + effect + random.normal(0, 1, (60, 2))
        mean, low, high = compare({'none': none, 'policy': policy}, range(60), 200, trial)[1].difference
        assert low <= mean <= high and high - low < 1.2
        hits += low <= effect <= high
    assert 0.88 <= hits / trials <= 0.99


def test_the_bootstrap_draws_the_seats_of_an_episode_together():
    random = np.random.default_rng(0)
    episodes = random.normal(5, 2, (200, 1))
    twice, once = np.repeat(episodes, 2, axis=1), np.concatenate([episodes, np.full((200, 1), NAN)], axis=1)
    same = [compare({'x': scores}, range(200), 400, 0)[0] for scores in (twice, once)]
    assert same[0].mean == pytest.approx(same[1].mean)
    np.testing.assert_allclose((same[0].low, same[0].high), (same[1].low, same[1].high))  # a copy adds no information


def test_casts_of_one_situation_are_drawn_together():
    """Copies of an episode under the same situation add no information; as situations of their own they seem to."""
    scores = np.random.default_rng(0).normal(5, 2, (40, 1))
    once, = compare({'x': scores}, range(40), 2000, 0)
    casts, = compare({'x': np.repeat(scores, 4, axis=0)}, np.repeat(np.arange(40), 4).tolist(), 2000, 0)
    apart, = compare({'x': np.repeat(scores, 4, axis=0)}, range(160), 2000, 0)
    np.testing.assert_allclose((casts.mean, casts.low, casts.high), (once.mean, once.low, once.high))
    assert apart.high - apart.low < 0.6 * (casts.high - casts.low)


def test_scores_of_a_single_situation_have_no_interval():
    for scores, situations in ((np.array([[3.0, NAN]]), ['a']), (np.array([[2.0, 4.0], [3.0, 3.0]]), ['a', 'a']),
                               (np.array([[3.0, NAN], [NAN, NAN]]), ['a', 'b'])):
        row, = rows = compare({'x': scores}, situations, 50, 0)
        assert row.mean == 3 and np.isnan([row.low, row.high]).all()
        assert table_of(rows)[1][0][1] == '3.00'


def test_without_variance_an_interval_is_a_single_point():
    rows = compare({'a': np.full((5, 2), 4.0), 'b': np.full((5, 2), 6.5)}, range(5), 50, 0)
    assert (rows[0].mean, rows[0].low, rows[0].high) == (4, 4, 4)
    assert rows[1].difference == (2.5, 2.5, 2.5)


def test_conditions_without_scores_or_common_seats_have_no_mean():
    rows = compare({'a': np.array([[1.0, NAN]]), 'b': np.full((1, 2), NAN), 'c': np.array([[NAN, 1.0]])}, [0], 20, 0)
    assert np.isnan([rows[1].mean, rows[1].low, rows[1].high, *rows[1].difference]).all()
    assert (rows[1].scored, rows[1].missing) == (0, 2)
    assert rows[2].mean == 1 and np.isnan(rows[2].difference).all()


def test_json_contains_table_and_scores():
    rows = compare(SCORES, range(4), 100, 0)
    dimensions = {'goal': rows, 'overall': compare({'none': np.full((4, 2), NAN)}, range(4), 10, 0)}
    data = json.loads(to_json({'environment': 'home'}, rows, SCORES, CATEGORIES, dimensions), parse_constant=reject)
    assert data['dimensions']['goal'] == data['table'] and data['dimensions']['overall'][0]['mean'] is None
    assert [row['condition'] for row in data['table']] == ['none', 'policy']
    assert data['table'][0]['difference'] is None
    assert data['table'][1]['difference'] == pytest.approx(rows[1].difference)
    assert data['table'][0]['missing'] == 1 and data['table'][1]['mean'] == pytest.approx(rows[1].mean)
    assert (data['environment'], data['categories']) == ('home', CATEGORIES)
    assert data['scores']['none'] == [[1, 2], [3, 4], [5, None], [7, 8]]


def test_json_has_null_for_missing_scores():
    scores = {'none': np.array([[1.0, 2.0]]), 'policy': np.full((1, 2), NAN)}
    data = json.loads(to_json({}, compare(scores, [0], 20, 0), scores, ['talk'], {}), parse_constant=reject)
    row = data['table'][1]
    assert (row['mean'], row['low'], row['high']) == (None, None, None) and row['missing'] == 2
    assert row['difference'] in (None, [None, None, None])


def test_table_cells():
    rows = [Row('none', 4.0, 3.456, 5.001, None, 8, 0), Row('policy', 5.25, 4.0, 6.0, (1.25, -0.5, 2.0), 7, 1)]
    columns, cells = table_of(rows)
    assert columns == ['condition', 'goal 0-10 [95 %]', 'difference to none', 'scored', 'missing']
    assert cells == [['none', '4.00 [3.46, 5.00]', '', '8', '0'],
                     ['policy', '5.25 [4.00, 6.00]', '+1.25 [-0.50, +2.00]', '7', '1']]


def test_a_table_of_dimensions():
    columns, cells = by_dimension({'goal': compare(SCORES, range(4), 100, 0),
                                   'secret': compare({name: -values for name, values in SCORES.items()}, range(4), 9, 0)})
    assert columns == ['dimension', 'none', 'policy', 'difference']
    assert [row[0] for row in cells] == ['goal', 'secret']
    assert cells[0][1].startswith('4.29 [') and cells[1][1].startswith('-4.29 [')
    assert cells[0][3].startswith('+1.00 [') and cells[1][3].startswith('-1.00 [')


def test_means_by_category():
    columns, cells = by_category(
        SCORES | {'all': np.full((4, 2), NAN)}, [(name, *(('hard',) * (name == 'buy'))) for name in CATEGORIES])
    assert columns == ['category', 'episodes', 'none', 'policy', 'all']
    none, policy = (np.nanmean(SCORES[name][[1, 2]]) for name in ('none', 'policy'))
    assert cells[0] == ['buy', '2', f'{none:.2f}', f'{policy:.2f}', ''] and cells[2][:2] == ['talk', '2']
    assert cells[1] == ['hard', *cells[0][1:]]
