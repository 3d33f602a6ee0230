"""Evaluations: scenarios, cases, and the record of finished episodes."""

import json

import numpy as np
import pytest

from epo_jax.defaults import default_config
from epo_jax.envs.base import load_domain
from epo_jax.envs.sotopia.profiles import load_scenarios
from epo_jax.evaluation import Case, EpisodeLog, cases, choose, describe_protocol, pairings, scores_of, select
from epo_jax.runtime.errors import InputError


@pytest.mark.parametrize('count', [1, 7, 16, 17, 40, 80, 200])
def test_every_situation_is_evaluated_once_before_any_is_evaluated_again(count):
    casts = [(situation, cast) for situation in range(16) for cast in range(2 + situation % 5)]
    for seed in range(5):
        chosen = choose(casts, lambda cast: cast[0], count, seed)
        assert len(set(chosen)) == len(chosen) == min(count, len(casts))
        times = [sum(situation == n for situation, _ in chosen) for n in range(16)]
        for n in range(16):
            assert max(times) - times[n] <= 1 or times[n] == 2 + n % 5  # all its casts
    assert choose(casts, lambda cast: cast[0], count, 0) != choose(casts, lambda cast: cast[0], count, 1)
    assert choose(casts, lambda cast: cast[0], count, 0)[:5] == choose(casts, lambda cast: cast[0], 5, 0)[:count]


def test_the_default_evaluation_of_sotopia_covers_all_held_out_situations():
    domain = load_domain('sotopia')
    held_out = [scenario for scenario in load_scenarios() if scenario.split == 'held_out']
    chosen = choose(held_out, domain.situation, 16, 0)
    assert len({scenario.environment for scenario in chosen}) == len({s.environment for s in held_out}) == 16



def held_out():
    return [scenario for scenario in load_scenarios() if scenario.split == 'held_out']


def test_a_file_names_the_scenarios_and_their_order(tmp_path):
    config, domain, known = default_config('sotopia'), load_domain('sotopia'), held_out()
    path = tmp_path / 'panel.txt'
    path.write_text(f'\ufeff{known[3].id}\n\n{known[0].id}\n', encoding='utf-8')
    config.evaluation.set = str(path)
    assert select(known, config, domain) == [known[3], known[0]]
    for text, message in ((f'{known[0].id}\nnone such', "there is no 'none such'"), ('', 'is empty'),
                          (f'{known[0].id}\n' * 2, 'twice')):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            select(known, config, domain)
    config.evaluation.set = 'herd'
    with pytest.raises(InputError, match="'all', 'hard' or a file.*'herd'"):
        select(known, config, domain)


def test_hard_scenarios_are_those_that_are_marked():
    config, domain, known = default_config('sotopia'), load_domain('sotopia'), held_out()
    config.evaluation.update(set='hard', episodes=1000)
    marked = {scenario.id for scenario in known if scenario.hard}
    if not marked:
        with pytest.raises(InputError, match='no held-out scenario is marked as hard'):
            select(known, config, domain)
    else:
        assert {scenario.id for scenario in select(known, config, domain)} == marked


def test_the_tested_strategist_takes_every_seat_against_a_partner():
    assert pairings('policy', 2, 'self', True) == [(('policy', 'policy'), (0, 1))]
    assert pairings('policy', 2, 'none', False) == [(('policy', 'none'), (0,)), (('none', 'policy'), (1,))]
    assert pairings('none', 2, 'none', False) == [(('none', 'none'), (0, 1))]
    # With another actor in the other seats, even equal strategists are not the same player.
    assert pairings('none', 2, 'none', True) == [(('none', 'none'), (0,)), (('none', 'none'), (1,))]
    assert pairings('policy', 1, 'self', False) == [(('policy',), (0,))]


def test_cases_cover_conditions_snapshots_seats_and_repetitions_once():
    config = default_config('sotopia')
    config.evaluation.update(repetitions=3, partner='pool')
    found = list(cases(config, 2, ('prompted', 'policy'), 4))
    assert len(found) == len(set(found)) == 2 * 4 * 2 * 3
    assert {case.partner for case in found} == {0, 1, 2, 3} and {case.repetition for case in found} == {0, 1, 2}
    config.evaluation.partner, config.partner.model = '', 'dummy'
    assert {case.kinds for case in cases(config, 2, ('policy',), 0)} == {('policy', 'none'), ('none', 'policy')}


def record(case, episode, outcome, scores=()):
    seats = [{'outcome': outcome, 'judge': {'scores': dict(scores)} if scores else {}} for _ in case.kinds]
    return case.label() | {'episode': episode, 'seats': seats}


def test_the_log_continues_after_a_kill_in_the_middle_of_a_line(tmp_path):
    case = Case('policy', ('policy', 'none'), (0,), None, 0)
    path = tmp_path / 'episodes' / 'log.jsonl'
    log = EpisodeLog(path, 'key')
    assert log.missing(case, 4) == [0, 1, 2, 3]
    log.add([record(case, 2, 0.5), record(case, 0, 0.25)])
    path.write_bytes(path.read_bytes() + b'{"condition": "poli')
    again = EpisodeLog(path, 'key')
    assert again.records == log.records and again.missing(case, 4) == [1, 3]
    assert again.missing(Case('policy', ('none', 'policy'), (1,), None, 0), 2) == [0, 1]
    assert EpisodeLog(path, 'other key').records == []
    assert json.loads(path.read_text()) == {'key': 'other key'}


def test_scores_are_those_of_the_tested_seats():
    rows = []
    for partner in (0, 1):
        for repetition in (0, 1):
            for seat in (0, 1):
                kinds = ('policy', 'pool')[::1 - 2 * seat]
                case = Case('policy', kinds, (seat,), partner, repetition)
                rows += [record(case, e, None if e == 1 and seat else (partner + 2 * repetition + 4 * seat + 8 * e) / 100,
                                [('goal', e), ('secret', -e)]) for e in (0, 1)]
    scores = scores_of(rows, ['policy'], 4, 2)['policy']
    assert scores.shape == (4, 4)  # scenarios times repetitions; partners times seats
    for e in (0, 1):
        for repetition in (0, 1):
            for partner in (0, 1):
                for seat in (0, 1):
                    expected = np.nan if e == 1 and seat else (partner + 2 * repetition + 4 * seat + 8 * e) / 10
                    np.testing.assert_allclose(scores[e + 2 * repetition, 2 * partner + seat], expected)
    np.testing.assert_array_equal(
        scores_of(rows, ['policy'], 4, 2, 'secret')['policy'], [[0] * 4, [-1] * 4, [0] * 4, [-1] * 4])


def test_the_protocol_differs_where_scores_must_not_be_compared():
    config, domain, known = default_config('sotopia'), load_domain('sotopia'), held_out()
    base = describe_protocol(config, domain, known[:4])
    assert base == describe_protocol(config, domain, known[:4])
    assert base['panel'] != describe_protocol(config, domain, known[1:4])['panel']
    config.environment.short = True
    assert base['prompts'] != describe_protocol(config, domain, known[:4])['prompts']
    config.judge.model = 'm@http://user:secret@host/v1?api_key=hidden'
    assert 'secret' not in str(describe_protocol(config, domain, known)) and 'hidden' not in str(
        describe_protocol(config, domain, known))
