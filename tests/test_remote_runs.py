"""Whole runs with models behind an endpoint: training, evaluation, a second start, and replay without a network."""

import collections
import contextlib
import json
import pathlib
import re
import sqlite3

from fake_endpoint import serve, strategies_in
import pytest
from test_experiment import small_config

from epo_jax import evaluate, evaluation, experiment, requests
from epo_jax.agents.remote import BudgetSpent, NoAccess, ReplayMiss
from epo_jax.envs.sotopia.profiles import load_scenarios
from epo_jax.runtime.errors import InputError, Stopped
from epo_jax.runtime.files import read_jsonl

SCORES = {'believability': 8, 'relationship': 2, 'knowledge': 3, 'secret': -1, 'social_rules': -2,
          'financial_and_material_benefits': 1, 'goal': 6}


def answer(prompt, seed):
    """Answer as a judge, as a judge of critical turns, or as a partner."""
    if strategies_in(prompt):
        return json.dumps({'reasoning': 'why not', 'indexes': strategies_in(prompt)[:1]})
    if 'You are an impartial judge' in prompt:
        rating = {name: {'reasoning': 'because', 'score': score} for name, score in SCORES.items()}
        return json.dumps({'agent_1': rating, 'agent_2': rating})
    return f'remote {seed % 7}'


def remote_config(server, name='m'):
    config = small_config()
    address = f'{name}@{server.url}'
    config.environment.max_turns = 4
    config.actor.max_tokens = 8
    config.seats = ('policy', 'none')
    config.partner.model = config.judge.model = config.process.model = address
    config.reward.update(outcome='judge', process='critical')
    config.evaluation.update(episodes=3, conditions=('none', 'policy'), bootstrap=20)
    config.remote.update(backoff=0.01, retries=1)
    return config


def test_a_run_trains_against_a_partner_and_judges_behind_an_endpoint(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('OPENAI_API_KEY', 'sk-a-secret-key')
    with serve(answer) as server:
        config = remote_config(server)
        config.partner.model = f'm@{server.url.replace("//", "//me:a-secret-word@")}?api_key=a-secret-value'
        panel = [scenario.id for scenario in load_scenarios()
                 if scenario.split == 'held_out' and scenario.category == 'favor'][:1]
        (tmp_path / 'panel').write_text('\n'.join(panel))
        config.evaluation.update(set=str(tmp_path / 'panel'), repetitions=2, every=1)
        none, policy = experiment.run(config, tmp_path)
        assert server.headers and all(prompt for prompt, _ in server.requests)
        questions = len(server.requests)
        experiment.run(config, tmp_path)  # everything is finished, so nothing is asked
        assert len(server.requests) == questions
    assert (none.scored, policy.scored) == (4, 4)  # a scenario, both orders, twice

    saved = json.loads((tmp_path / 'evaluation.json').read_text())
    assert list(saved['dimensions']) == [*SCORES, 'overall'] and saved['protocol']["partner's strategist"] == 'none'
    for name, score in SCORES.items():
        assert [row['mean'] for row in saved['dimensions'][name]] == [score, score]
    assert saved['dimensions']['overall'][0]['mean'] == pytest.approx(sum(SCORES.values()) / 7)

    first, last = metrics = read_jsonl(tmp_path / 'metrics.jsonl')
    assert first['evaluation/outcome'] == 0.6 and first['evaluation/secret'] == -1 and first['evaluation/missing'] == 0
    assert 'evaluation/outcome' not in last  # the evaluation at the end follows
    for name in ('evaluation_00001', 'evaluation'):
        episodes = read_jsonl(tmp_path / f'episodes/{name}.jsonl')
        assert collections.Counter((record['scenario'], record['repetition'], record['condition']) for record in episodes) == {
            (scenario, repetition, condition): 2 for scenario in panel for repetition in (0, 1)
            for condition in (('policy',) if '_' in name else ('none', 'policy'))}
    for row in metrics:
        tested = 4 * 2 * (row is first)  # in the evaluation after the first iteration
        assert row['requests/partner/requests'] == 4 * 2 + tested and row['requests/process/requests'] == 4
        assert row['reward/process'] == pytest.approx(0.5) and row['judge/missing'] == 0
    played = [record for file in sorted((tmp_path / 'episodes').glob('iteration_*.jsonl')) for record in read_jsonl(file)]
    assert {tuple(seat['strategist'] for seat in record['seats']) for record in played} == {
        ('policy', 'none'), ('none', 'policy')}  # both orders of speaking
    for record in played:
        other = [seat['strategist'] for seat in record['seats']].index('none')
        lines = [turn['line'] for turn in record['turns'] if turn['seat'] == other]
        assert len(lines) == 2 and all('remote' in line for line in lines)
        assert record['seats'][0]['judge']['scores'] == SCORES

    output = capsys.readouterr()
    found = [str(path) for path in tmp_path.rglob('*') if path.is_file() and b'a-secret' in path.read_bytes()]
    assert not found and 'a-secret' not in output.out + output.err


def promised(config):
    """Return how many requests each role makes in an evaluation, as a dry run says."""
    config, domain = experiment.prepare(evaluate.without_process_reward(config))
    held_out = [scenario for scenario in load_scenarios() if scenario.split == 'held_out']
    found = requests.estimate(config, domain, evaluation.select(held_out, config, domain))
    counts = collections.Counter()
    for (role, _), each in found.items():
        counts[role] += each.requests
    return counts


def test_an_evaluation_is_continued_and_replayed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('OPENAI_API_KEY', 'key')
    with serve(answer) as server:
        config = remote_config(server)
        config.process.model, config.reward.process = '', 'potential'  # is not asked, so the judge may be an endpoint
        config.rollout.batch = 2
        config.evaluation.conditions = ('none', 'react', f'adviser@{server.url}')
        expected = promised(config)
        capsys.readouterr()
        whole = evaluate.run(config, tmp_path / 'whole')
        asked, printed = collections.Counter(server.requests), capsys.readouterr().out
        assert expected and all(re.search(rf'(?m)^{role} +{count} ', printed) for role, count in expected.items())
        stops = iter([False] * 5 + [True])
        monkeypatch.setattr('epo_jax.runtime.hosts.any_process', lambda flag: next(stops, False))
        with pytest.raises(Stopped):
            evaluate.run(config, tmp_path / 'parts')
        begun = read_jsonl(tmp_path / 'parts/episodes/evaluation.partial.jsonl')
        assert 0 < len(begun) - 1 < 3 * 2 * 3
        assert evaluate.run(config, tmp_path / 'parts') == whole
        assert collections.Counter(server.requests) == asked + asked  # every question once in each directory
    first, second = (tmp_path / name / 'evaluation.json' for name in ('whole', 'parts'))
    assert first.read_bytes() == second.read_bytes()
    assert 'react' in first.read_text()

    config.remote.update(cache=str(tmp_path / 'whole/answers'), replay=True)  # the endpoint is gone
    assert evaluate.run(config, tmp_path / 'again') == whole
    assert (tmp_path / 'again/evaluation.json').read_bytes() == first.read_bytes()
    config.seed = 1
    with pytest.raises(ReplayMiss, match='holds no answer'):
        evaluate.run(config, tmp_path / 'other')


@pytest.mark.parametrize('change, message', [
    (lambda c: c.update(partner={'model': 'm@ftp://host'}), 'partner.model: .*ftp'),
    (lambda c: c.model.update(path='m@http://host'), 'model.path: the strategist that is trained must be a local model'),
    (lambda c: c.reward.update(process='potential'), "reward.process='potential' reads probabilities"),
    (lambda c: c.update(seats=('policy', 'promted')), "seats must be .* or a model, not 'promted'"),
    (lambda c: c.update(seats=('policy', 'react')), 'seats must be'),
    (lambda c: c.rollout.update(compiled=True), 'rollout.compiled needs all models on the device'),
    (lambda c: c.actor.update(choose_action=True, model='m@http://host'), 'actor.choose_action samples'),
], ids=['url', 'trained', 'potential', 'typo', 'react', 'compiled', 'choice'])
def test_impossible_roles_are_refused_by_name(tmp_path, change, message):
    with serve(answer) as server:
        config = remote_config(server)
    change(config)
    with pytest.raises(InputError, match=message):
        experiment.run(config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_a_dry_run_names_the_requests_and_asks_none(tmp_path, capsys):
    with serve(answer) as server:
        config = remote_config(server)
        config.evaluation.conditions = ('none',)
        config.remote.prices = ('m=1,2',)
        assert evaluate.run(config, tmp_path / 'out', dry_run=True) == [] and not server.requests
    printed = capsys.readouterr().out
    assert re.search(r'partner +m@http\S+ +12 ', printed) and re.search(r'judge +m@http\S+ +6 ', printed)
    assert not pathlib.Path(tmp_path / 'out').exists()


def recorded(out):
    """Return the number of answers in the record of an evaluation."""
    with contextlib.closing(sqlite3.connect(out / 'answers' / 'answers.sqlite')) as database:
        return database.execute('SELECT COUNT(*) FROM completions').fetchone()[0]


@pytest.mark.slow
@pytest.mark.parametrize('status', [401, 402, 403, 404])
@pytest.mark.parametrize('role', ['actor', 'partner', 'judge', 'strategist'])
def test_a_role_without_access_stops_the_run_with_one_line_and_the_same_command_continues(
        tmp_path, monkeypatch, role, status):
    monkeypatch.setenv('OPENAI_API_KEY', 'sk-a-secret-key')
    with serve(answer) as good, serve(answer) as bad:
        bad.always = (status, {'error': {'message': 'not for sk-a-secret-key'}}, {})
        config = remote_config(good)
        config.actor.model = config.partner.model
        adviser = f'adviser@{(bad if role == "strategist" else good).url}'
        config.evaluation.conditions = ('none', adviser)
        if role != 'strategist':
            config[role].model = f'm@{bad.url}'
        with pytest.raises(NoAccess) as error:
            evaluate.run(config, tmp_path)
        message = str(error.value)
        assert re.match(rf'\w+@{bad.url}: HTTP {status}: not for', message) and '\n' not in message
        assert 'a-secret' not in message and len(bad.times) <= 12  # those that were in flight
        asked, bad.always = len(good.requests), None
        assert [row.scored for row in evaluate.run(config, tmp_path)] == [6, 6]
        assert recorded(tmp_path) == len(good.requests) + len(bad.requests) > asked  # nothing was asked twice


@pytest.mark.slow
def test_a_budget_is_kept_by_all_roles_together_and_a_larger_one_continues(tmp_path, monkeypatch):
    monkeypatch.setenv('OPENAI_API_KEY', 'key')
    with serve(answer, usage=(100, 20)) as server:
        config = remote_config(server)
        config.actor.model = config.partner.model
        config.evaluation.conditions = ('none',)
        config.remote.update(prices=('m=10,10',), budget=0.06)  # an answer costs $0.0012
        with pytest.raises(BudgetSpent, match='increase the budget'):
            evaluate.run(config, tmp_path)
        assert 0 < len(server.requests) <= 50
        config.remote.budget = 1.0
        assert [row.scored for row in evaluate.run(config, tmp_path)] == [6]
        assert recorded(tmp_path) == len(server.requests)
