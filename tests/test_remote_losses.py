"""Whole runs at an endpoint that misbehaves in every known way: no role crashes, and every loss is counted and named."""

import collections

from fake_endpoint import BAD_ANSWERS, FAILURES, FORMS, LOSSES, pick, serve
import pytest
from test_remote_runs import SCORES, answer, remote_config

from epo_jax import evaluate, experiment
from epo_jax.runtime.files import read_jsonl

PLAYERS = ('actor', 'partner', 'strategist')


def misbehave(prompt, seed):
    """Answer well, or as a bad judge does."""
    bad = pick(f'bad {prompt}', (None, None, *BAD_ANSWERS))
    good = answer(prompt, seed)
    if not good.startswith('{') or not bad:
        return good
    return {'refusal': None, 'no text': ' ', 'prose': 'They did well.', 'half': good[:len(good) // 2],
            'out of range': good.replace('6}', '60}').replace('"indexes": [', '"indexes": [77, ')}[bad]


def failures(prompt):
    """Return what comes before the answer: usually nothing, sometimes temporary failures, rarely nothing else."""
    dead = pick(f'dead {prompt}', range(60)) == 0
    return ['500'] * 99 if dead else pick(f'failures {prompt}', ((), (), (pick(prompt, FAILURES),)))


def misbehaving():
    """Return an endpoint that also refuses parameters: without seeds, all requests are treated as those of seed 0."""
    return serve(misbehave, failures, refuses=('seed', 'temperature', 'max_tokens'),
                 form=lambda prompt: pick(f'form {prompt}', FORMS * 10 + tuple(LOSSES)))


def losses_config(server):
    config = remote_config(server)
    config.environment.max_turns = 6
    config.actor.model = config.partner.model
    config.remote.update(backoff=0.01, retries=4, longest_wait=0.05)
    return config


def check_records(records, usage, process):
    """Check that records name every loss that the metrics count, and that every score is the one that was given."""
    lost = collections.Counter()
    for record in records:
        assert bool(record['failure']) == record['truncated']
        if record['failure']:
            who, _, reason = record['failure'].partition(' of seat ')
            lost['players'] += 1
            assert who in ('actor', 'strategist') and any(
                known in reason for known in ('no answer after 5 attempt', *LOSSES.values())), record['failure']
        unrated = {seat['judge'].get('missing') for seat in record['seats']} - {None}
        lost['judge'] += bool(unrated)
        for seat in record['seats']:
            notes = seat['judge']
            rated = notes['scores'] == SCORES
            assert rated or set(notes['scores'].values()) == {None}
            assert rated == (not record['truncated'] and not unrated and not notes['by_rule'])
            assert notes['by_rule'] or seat['outcome'] == (0.6 if rated else None)
            if process and seat['strategist'] == 'policy':
                lost['process'] += 'critical_missing' in notes
                asked = seat['outcome'] is not None and not record['truncated']
                assert (None in notes['critical']) == (not asked or 'critical_missing' in notes) or not notes['critical']
    assert lost['players'] == sum(usage[role]['failed'] + usage[role]['without_text'] for role in PLAYERS) > 0
    return lost


def by_role(rows, roles):
    """Return the metrics of requests, summed over rows."""
    return {role: {name: sum(row.get(f'requests/{role}/{name}', 0) for row in rows)
                   for name in ('requests', 'failed', 'without_text', 'retried')} for role in roles}


def test_an_evaluation_loses_nothing_silently(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('OPENAI_API_KEY', 'key')
    with misbehaving() as server:
        config = losses_config(server)
        config.process.model, config.reward.process = '', 'none'
        config.environment.max_turns = 4
        config.evaluation.update(episodes=12, conditions=(f'adviser@{server.url}',))
        config.rollout.batch = 32
        usage = {}
        finish = experiment.Experiment.print_requests
        monkeypatch.setattr(experiment.Experiment, 'print_requests', lambda exp: (
            usage.update(exp.request_metrics()), finish(exp)))
        row, = evaluate.run(config, tmp_path)
        assert len(server.times) > 150
    records = read_jsonl(tmp_path / 'episodes/evaluation.jsonl')
    lost = check_records(records, by_role([usage], PLAYERS), False)
    assert usage['judge/missing'] == lost['judge'] > 0
    assert row.missing == sum(record['seats'][seat]['outcome'] is None for record in records for seat in record['tested'])
    assert 'strategist: 1 without an answer: ' in capsys.readouterr().out


@pytest.mark.slow
def test_a_thousand_answers_to_all_roles_of_a_run_lose_nothing_silently(tmp_path, monkeypatch):
    monkeypatch.setenv('OPENAI_API_KEY', 'key')
    with misbehaving() as server:
        config = losses_config(server)
        config.seats = ('policy', f'adviser@{server.url}')
        config.evaluation.episodes = 0
        config.rollout.update(episodes=64, batch=64)
        experiment.run(config, tmp_path)
        assert len(server.times) > 1000
        roles = collections.Counter(body['model'] for body in server.bodies)
        assert roles['adviser'] > 100
    rows = read_jsonl(tmp_path / 'metrics.jsonl')
    records = [record for path in sorted((tmp_path / 'episodes').glob('iteration_*.jsonl')) for record in read_jsonl(path)]
    usage = by_role(rows, (*PLAYERS, 'judge', 'process'))
    lost = check_records(records, usage, True)
    for role in ('judge', 'process'):
        assert sum(row[f'{role}/missing'] for row in rows) == lost[role] > 0, role
        assert sum(row[f'{role}/bad_answers'] for row in rows) == sum(
            value for row in rows for name, value in row.items() if name.startswith(f'{role}/bad/')) > lost[role]
    assert all(usage[role]['requests'] and usage[role]['retried'] for role in usage)
    assert sum(row['episodes/truncated'] for row in rows) == lost['players']
