"""Evaluations: scenarios, cases, and the record of finished episodes."""

import json

import numpy as np
import pytest

from epo_jax.agents.remote_options import REMOTE_KEYS
from epo_jax.cases import Case, EpisodeLog, batches, cases, pairings
from epo_jax.defaults import default_config
from epo_jax.envs.base import load_domain
from epo_jax.envs.sotopia.profiles import load_scenarios
from epo_jax.evaluation import WITHOUT_EFFECT, choose, describe_protocol, relevant, scores_of, select
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


@pytest.mark.parametrize('together', [False, True])
@pytest.mark.parametrize('size', [1, 3, 4, 7, 100])
def test_batches_hold_every_missing_episode_once(tmp_path, together, size):
    planned = [Case(condition, (condition, 'pool'), (0,), snapshot, repetition)
               for condition in ('none', 'policy') for snapshot in (0, 1) for repetition in (0, 1, 2)]
    log = EpisodeLog(tmp_path / 'log.jsonl', 'key')
    log.add([record(planned[4], e, 0.5) for e in range(4)] + [record(planned[1], e, 0.5) for e in (3, 1)])
    found = list(batches(planned, log, 4, size, together))
    played = [(case, e) for batch in found for case, episodes in batch for e in episodes]
    assert len(played) == len(set(played)) == len(planned) * 4 - 6
    log.add([record(case, e, 0.5) for case, e in reversed(played)])
    assert not list(batches(planned, log, 4, size, together))
    assert [(r['condition'], r['partner'], r['repetition'], r['episode']) for r in log.sorted(planned)] == [
        (case.condition, case.partner, case.repetition, e) for case in planned for e in range(4)]
    for batch in found:
        assert 0 < sum(len(episodes) for _, episodes in batch) <= size
        assert len({case.partner for case, _ in batch}) == 1 and (together or len(batch) == 1)
    if together:  # a batch is not full only before another snapshot, or at the end
        short = [batch for batch in found if sum(len(episodes) for _, episodes in batch) < size]
        assert len(short) <= 4


def test_what_changes_answers_makes_another_evaluation_and_nothing_else_does():
    """Every key of the group remote is changed; the list says which keys change what an endpoint is asked."""
    asked = {'body', 'reasoning_tokens', 'structured'}
    other = {'body': '{"top_p": 0.5}', 'structured': 'json_object', 'prices': ('m=1,2',), 'headers': ('X-Title: epo',),
             'cache': 'folder', 'replay': True, 'key_variable': 'OTHER'}
    base = relevant(default_config('sotopia'))
    for name, key in REMOTE_KEYS.items():
        config = default_config('sotopia')
        config.remote[name] = other[name] if name in other else key.default + 1
        assert (relevant(config) != base) == (name in asked), name
    for name, value in (('iterations', 9), ('checkpoint.keep', 9), ('mesh', (1, 1, 1)), ('evaluation.every', 3),
                        ('evaluation.bootstrap', 7), ('evaluation.repetitions', 2), ('evaluation.partner', 'none'),
                        ('partner.model', 'm@http://host'), ('actor.temperature', 0.1), ('judge.model', 'dummy')):
        config = default_config('sotopia')
        group, _, key = name.rpartition('.')
        (config[group] if group else config)[key] = value
        free = any(name == start or name.startswith(f'{start}.') for start in WITHOUT_EFFECT)
        assert (relevant(config) == base) == free, name


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
