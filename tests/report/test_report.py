"""The report: its numbers are those of the files, model text stays text, and damaged inputs are one clear error."""

import json
import math
import os
import re
import subprocess
import sys

import jax.numpy as jnp
import lxml.html
from made_runs import CONDITIONS, column, embedded, make_run, record, write_lines
import numpy as np
import pytest

from epo_jax.config import from_json, to_json
from epo_jax.report import __main__ as command, curves, page, selfplay, strategies
from epo_jax.report.automatic import write_at_end
from epo_jax.report.episodes import returns
from epo_jax.report.sample import sample
from epo_jax.report.settings import reproduction, settings
from epo_jax.report.sources import ReportError, read_source
from epo_jax.rl.credit import turns
from epo_jax.runtime import machine
from epo_jax.runtime.files import LineError

HOSTILE = ('</script><script>alert(1)</script>', '<img src=x onerror=alert(1)>', '<!-- <script>', ']]>&lt;&amp;"\'',
           'a\u2028b\u2029c', '\u202egnp.exe\u2066\u200f', 'half \ud83d of a pair \udc00', '\x00\x01\x7f\ufffe', '{{ 7*7 }}',
           'שלום <b>עולם</b>')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('report') / 'run'
    written = make_run(folder)
    return folder, written, page.build([str(folder)])


def test_the_embedded_numbers_are_those_of_the_files(run):
    folder, (metrics, records, evaluation), html = run
    data, episodes = embedded(html)
    curve, = data['curves']['runs']
    assert curve['x'] == [row['iteration'] for row in metrics]
    for name in metrics[0].keys() - {'iteration'}:
        assert curve['y'][name] == [None if row[name] == 'nan' else row[name] for row in metrics]
    drawn = {name: chart['more'] for chart in data['curves']['charts'] for name in chart['metrics']}
    assert drawn['own/metric'] and not drawn['outcome/mean'] and 'learner/entropy' not in drawn
    expected = [(name, r) for name in (*sorted(set(records) - {'evaluation'}), 'evaluation') for r in records[name]]
    assert len(episodes) == len(expected) == len(column(data, 'id'))
    for n, (shown, (file, r)) in enumerate(zip(episodes, expected)):
        assert shown['situation'] == r['situation'] and column(data, 'scenario')[n] == r['scenario']
        assert column(data, 'score')[n] == pytest.approx(np.mean([seat['outcome'] for seat in r['seats']]))
        assert column(data, 'iteration')[n] == (3 if file == 'evaluation' else int(file[-1]))
        assert column(data, 'condition')[n] == r.get('condition', 'policy')
        assert [(t['strategy'], t['line']) for t in shown['turns']] == [(t['strategy'], t['line']) for t in r['turns']]
        for s, seat in enumerate(r['seats']):
            own = [t for t in shown['turns'] if t['seat'] == s]
            if 'reward' in seat:
                assert [t['reward'] for t in own] == seat['reward'] and [t['advantage'] for t in own] == seat['advantage']
                assert [t['potential'] for t in own] == [
                    list(pair) for pair in zip(seat['judge']['potential'], seat['judge']['potential'][1:])]
                for t, turn in enumerate(own):
                    sampled = [i for i, at in enumerate(seat['turn']) if at == t]
                    assert turn['tokens'] == [[seat[key][i] for i in sampled] for key in ('ids', 'logprob')]
    keys = [column(data, 'keys')[n] for n, (file, _) in enumerate(expected) if file == 'evaluation']
    assert keys[:4] == keys[4:] and len({json.dumps(key) for key in keys}) == 4
    text = lxml.html.document_fromstring(html).text_content()
    for row in evaluation['table']:
        assert f'{row["mean"]:.2f} [{row["low"]:.2f}, {row["high"]:.2f}]' in text
    assert f'{evaluation["table"][1]["difference"][0]:+.2f}' in text and 'panel' in text
    assert data['tokens'] == [{str(i): data['tokens'][0][str(i)] for i in range(65, 69)}]


def test_hostile_text_stays_text(tmp_path):
    def hostile(number, scenario, strategies, lines, outcomes, **more):
        made = record(number, scenario, HOSTILE, HOSTILE, outcomes, **more)
        made |= {'situation': HOSTILE[number], 'category': HOSTILE[number], 'own fact': HOSTILE[number]}
        made['seats'][0] |= {'name': HOSTILE[number], 'goal': HOSTILE[-number], 'profile': {HOSTILE[number]: HOSTILE}}
        return made

    folder = tmp_path / '<b>run'
    make_run(folder, episodes=len(HOSTILE), make=hostile)
    (folder / 'evaluation.json').write_text((folder / 'evaluation.json').read_text().replace('"none"', json.dumps(HOSTILE[0])))
    make_run(tmp_path / 'plain')
    html = page.build([str(folder)])
    data, episodes = embedded(html)
    for n, shown in enumerate(episodes[:len(HOSTILE)]):
        assert shown['situation'] == shown['seats'][0]['name'] == column(data, 'category')[n] == HOSTILE[n]
        assert tuple(turn['strategy'] for turn in shown['turns']) == tuple(turn['line'] for turn in shown['turns']) == HOSTILE
    elements = lambda html: [(e.tag, sorted(e.attrib)) for e in lxml.html.document_fromstring(html).iter() if e.tag != 'td']
    plain = {json.dumps(e) for e in elements(page.build([str(tmp_path / 'plain')]))}
    assert {json.dumps(e) for e in elements(html)} <= plain  # no new kinds of elements or attributes
    tree = lxml.html.document_fromstring(html)
    assert tree.findtext('.//h1/bdi') == '<b>run' and '49' not in tree.findtext('.//title')
    assert any(HOSTILE[0] in (cell.text or '') for cell in tree.iter('bdi'))
    html.encode('utf-8')
    for script in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', html, re.DOTALL):
        assert not re.search('[<>&\u2028\u2029\ud800-\udfff]', script)


def test_the_scripts_insert_text_only_and_the_page_needs_no_network(run):
    own = ''.join((page.HERE / 'assets' / f'{name}.js').read_text() for name in page.SCRIPTS)
    assert not re.search(r'innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(|fetch\(|XMLHttp', own)
    tree = lxml.html.document_fromstring(run[2])
    assert not tree.xpath('//link | //img | //iframe | //script[@src] | //*[starts-with(name(@*), "on")]')
    assert "default-src 'none'" in tree.xpath('//meta[@http-equiv]/@content')[0]
    assert 'Leon Sorokin' in run[2]  # the license of the plotting library


def test_seeds_get_a_mean_and_an_interval(tmp_path):
    written = [make_run(tmp_path / f'seed{seed}', seed=seed, evaluation=False)[0] for seed in (0, 1, 2)]
    make_run(tmp_path / 'other', seed=0, evaluation=False, **{'learner.learning_rate': 1.0})
    data, _ = embedded(page.build([str(tmp_path / name) for name in ('seed0', 'seed1', 'seed2', 'other')]))
    band, = data['curves']['bands']
    assert band['runs'] == [0, 1, 2] and band['x'] == [1, 2, 3]
    values = np.array([[row['outcome/mean'] for row in rows] for rows in written])
    mean, low, high = np.array(band['y']['outcome/mean'])
    np.testing.assert_allclose(mean, values.mean(0))
    np.testing.assert_allclose(high - mean, 4.302652729911275 * values.std(0, ddof=1) / math.sqrt(3))  # t of 2 degrees
    np.testing.assert_allclose(mean - low, high - mean)
    assert band['y']['reward/process'][0][1] is None  # a seed has no number there


def test_long_curves_are_thinned():
    from epo_jax.report.sources import Source
    source = Source('r', None, 'run', metrics=tuple({'iteration': i, 'a': float(i)} for i in range(12345)))
    series = curves._series(source)
    assert len(series['x']) <= curves.POINTS + 1 and series['x'][-1] == 12344 and series['y']['a'] == series['x']


@pytest.mark.parametrize('size', [0, 3000, 20_000, 60_000, 10**9])
def test_a_sample_fits_and_keeps_scenarios_together(size):
    rng = np.random.default_rng(size)
    episodes = [{'run': 0, 'file': 'f', 'condition': condition, 'scenario': f's{n}', 'episode': n,
                 'turns': [{'line': 'x' * int(rng.integers(50, 500)), 'tokens': [[1] * 20, [0.5] * 20]}]}
                for condition in CONDITIONS for n in range(60)]
    chosen = sample(episodes, size)
    assert len(json.dumps(chosen)) <= size + 3 * len(chosen) + 2
    strip = lambda e: e | {'turns': [{k: v for k, v in turn.items() if k != 'tokens'} for turn in e['turns']]}
    places = [[strip(e) for e in episodes].index(strip(e)) for e in chosen]
    assert places == sorted(set(places))
    have = [{e['scenario'] for e in chosen if e['condition'] == condition} for condition in CONDITIONS]
    assert len(have[0] ^ have[1]) <= 1
    assert chosen == sample(episodes, size)
    if size == 10**9:
        assert chosen == episodes
    if size == 20_000:
        assert 0 < sum('tokens' in e['turns'][0] for e in chosen) < len(chosen) < len(episodes)


def test_the_page_tells_that_it_holds_a_sample(run):
    html = page.build([str(run[0])], 4000)
    _, episodes = embedded(html)
    assert 0 < len(episodes) < 20 and f'a sample of {len(episodes)} of 20 episodes' in html


def test_long_runs_are_read_at_evenly_spaced_iterations(tmp_path):
    make_run(tmp_path, iterations=20)
    source = read_source(str(tmp_path), largest=20_000)
    labels = [file.label for file in source.files]
    assert labels[0] == 'iteration 1' and labels[-2:] == ['iteration 20', 'evaluation']
    assert source.skipped == 21 - len(labels) > 0
    assert len(read_source(str(tmp_path)).files) == 21


def test_returns_are_those_of_training():
    rng = np.random.default_rng(0)
    reward, valid = rng.normal(size=(20, 5)), rng.random((20, 5)) < 0.7
    expected = np.asarray(turns.returns(jnp.array(reward), jnp.array(valid), 0.9))
    for n in range(20):
        got = returns([float(r) if v else None for r, v in zip(reward[n], valid[n])], 0.9)
        assert [g is None for g in got] == [not v for v in valid[n]]
        np.testing.assert_allclose([g or 0 for g in got], expected[n], atol=1e-5)


def test_ratings_maximize_the_posterior():
    from scipy import optimize
    wins = np.array([[0, 7, 3.5], [1, 0, 9], [2.5, 0, 0]])

    def loss(r):
        difference = r[:, None] - r[None]
        return (wins * np.log1p(np.exp(-difference))).sum() + selfplay.PRIOR / 2 * (r ** 2).sum()

    best = optimize.minimize(loss, np.zeros(3), tol=1e-12).x
    np.testing.assert_allclose(selfplay.ratings(wins), 1000 + 400 / math.log(10) * (best - best.mean()), atol=0.01)
    assert np.isfinite(selfplay.ratings(np.array([[0, 5], [0, 0]]))).all()


def test_the_payoff_matrix_of_a_pool(tmp_path):
    def against(n, condition, partner, outcomes, tested=0):
        made = record(n, f's{n}', ['x'], ['y'], outcomes, trained=False, condition=condition, tested=[tested],
                      repetition=0, partner=partner)
        made['seats'][tested]['strategist'], made['seats'][1 - tested]['strategist'] = condition, 'pool'
        return made

    make_run(tmp_path, evaluation=True)
    rows = [against(0, 'policy', 0, (0.9, 0.1)), against(1, 'policy', 0, (0.7, 0.7)), against(0, 'policy', 10, (0.2, 0.6)),
            against(0, 'none', 10, (0.3, 0.1), tested=1), against(0, 'none', 0, (None, 0.4))]
    write_lines(tmp_path / 'episodes' / 'evaluation.jsonl', rows)
    found, _ = page._episodes([read_source(str(tmp_path))])
    payoff = selfplay.payoff([e for e in found if e['keys'] is not None])
    assert list(payoff.players) == ['policy', 'none', 'pool 0', 'pool 10']
    at = lambda a, b: payoff.mean[payoff.players.index(a), payoff.players.index(b)]
    assert at('policy', 'pool 0') == pytest.approx(0.8) and at('pool 0', 'policy') == pytest.approx(0.4)
    assert at('none', 'pool 10') == pytest.approx(0.1) and np.isnan(at('none', 'pool 0')) and at('pool 0', 'none') == 0.4
    html = page.build([str(tmp_path)])
    assert 'id="selfplay"' in html and '0.800' in html
    assert selfplay.payoff([e for e in found if e['keys'] is None]) is None


def test_strategies_are_grouped_by_their_words(tmp_path, monkeypatch):
    kinds = ('offer a lower price and wait {}', 'ask about the weather {} holiday')

    def changing(number, scenario, texts, lines, outcomes, **more):
        i = int(texts[0].split()[1]) if texts[0].startswith('strategy') else 0
        texts = [kinds[number >= i].format(f'{"abcdefgh"[number]}{"uvwxyz"[i]}{"klmn"[t]}') for t in range(4)]
        return record(number, scenario, texts, lines, outcomes, **more)

    monkeypatch.setattr(strategies, 'KINDS', 2)
    make_run(tmp_path, episodes=4, make=changing, evaluation=False)
    found, _ = page._episodes([read_source(str(tmp_path))])
    grouped, why = strategies.cluster(found, ['run'])
    assert why is None and sum(kind.count for kind in grouped.kinds) == 48
    shares, = grouped.shares
    cheap = next(k for k, kind in enumerate(grouped.kinds) if any('price' in term for term in kind.terms))
    np.testing.assert_allclose(shares['y'][cheap], [0.25, 0.5, 0.75])
    np.testing.assert_allclose(np.sum(shares['y'], axis=0), 1)
    for kind in grouped.kinds:
        for text, n in kind.examples:
            assert text in [turn['strategy'] for turn in found[n]['turns']]
    monkeypatch.setitem(sys.modules, 'sklearn.cluster', None)
    assert 'pip install' in strategies.cluster(found, ['run'])[1]
    assert 'too few' in strategies.cluster(found[:1], ['run'])[1]
    assert strategies.cluster([], []) == (None, None)


def test_missing_pieces_are_absent_sections(tmp_path):
    make_run(tmp_path / 'whole')
    text = (tmp_path / 'whole' / 'config.json').read_text()
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'empty' / 'config.json').write_text(text)
    html = page.build([str(tmp_path / 'empty')])
    data, episodes = embedded(html)
    assert not episodes and data['curves'] is None
    sections = lxml.html.document_fromstring(html).xpath('//section/@id')
    assert sections == ['machine']
    (tmp_path / 'empty' / 'metrics.jsonl').write_text('{"iteration": 1, "a": 1.5}\n{"iteration": 2, "a"')  # being written
    data, _ = embedded(page.build([str(tmp_path / 'empty')]))
    assert data['curves']['runs'][0]['y'] == {'a': [1.5]}
    write_lines(tmp_path / 'empty' / 'episodes' / 'evaluation.partial.jsonl', [
        {'key': 'k'}, record(0, 's', ['x'], ['y'], trained=False, condition='none', tested=[0], repetition=0)])
    data, episodes = embedded(page.build([str(tmp_path / 'empty')]))
    assert len(episodes) == 1 and column(data, 'file') == ['evaluation (unfinished)']


@pytest.mark.parametrize('file, text, message', [
    ('metrics.jsonl', '{"iteration": 1}\nnonsense\n', r'metrics.jsonl, line 2: not JSON'),
    ('metrics.jsonl', '{"a": 1}\n', 'not a line of metrics'),
    ('metrics.jsonl', '{"iteration": 1, "a": "much"}\n', 'not a line of metrics'),
    ('evaluation.json', '{', 'evaluation.json is damaged'),
    ('evaluation.json', '{"table": []}', 'evaluation.json is damaged'),
    ('episodes/iteration_00001.jsonl', '[]\n', 'iteration_00001.jsonl, line 1: expected an object'),
    ('config.json', '{', 'config.json'),
], ids=str)
def test_a_damaged_file_is_one_clear_error(tmp_path, capsys, file, text, message):
    make_run(tmp_path / 'run')
    (tmp_path / 'run' / file).write_text(text)
    with pytest.raises(SystemExit, match=message) as stopped:
        command.main([f'--workdir={tmp_path / "run"}', f'--out={tmp_path / "r.html"}'])
    assert len(str(stopped.value).splitlines()) == 1 and not (tmp_path / 'r.html').exists()
    write_at_end(tmp_path / 'run')  # must not fail a run that is finished
    assert 'its report cannot be written' in capsys.readouterr().err
    assert not (tmp_path / 'run' / 'report.html').exists()


def test_a_path_without_anything_is_an_error(tmp_path):
    for path in (tmp_path, tmp_path / 'none'):
        with pytest.raises(ReportError, match='nothing to report on'):
            read_source(str(path))


def test_the_command_and_the_end_of_a_run_write_the_file(run, tmp_path, capsys):
    command.main([f'--workdir={run[0]}', str(run[0]), f'--out={tmp_path / "r.html"}'])
    assert embedded((tmp_path / 'r.html').read_text())[0]['runs'] == [run[0].name] * 2
    write_at_end(run[0])
    assert f'report: {run[0] / "report.html"}' in capsys.readouterr().out
    assert (run[0] / 'report.html').read_text() == run[2]
    (run[0] / 'report.html').unlink()


def test_files_of_conversations_and_traffic(tmp_path):
    said = [{'from': ('human', 'gpt')[i % 2], 'value': f'text {i}'} for i in range(4)]
    labeled = [{'id': 'a', 'conversations': said, 'score': 7, 'location': [3]},
               {'id': 'b', 'conversations': said, 'score': 2, 'location_missing': 'no answer'}]
    prepared = [{'id': 'a', 'conversations': [m | ({'score': '0.5'} if m['from'] == 'gpt' else {}) for m in said]}]
    (tmp_path / 'labeled.json').write_text(json.dumps(labeled))
    write_lines(tmp_path / 'prepared.jsonl', prepared)
    traffic = tmp_path / 'traffic'
    write_lines(traffic / 'conversations_00001.jsonl', [
        {'id': 'c', 'arm': 'advise', 'outcome': 0.75, 'score': 7.5, 'domain': 'sotopia', 'strategist': 'v1', 'goal': 'g',
         'turns': 2, 'conversations': said, 'ids': [1, 2, 3], 'turn': [-1, 0, 1], 'logprob': [0, -0.5, -0.25]}])
    write_lines(traffic / 'observed_00001.jsonl', [
        {'id': 'd', 'arm': 'observe', 'outcome': 0.25, 'score': 2.5, 'domain': 'sotopia', 'messages': [['user', 'hello']]},
        {'id': 'e', 'arm': 'observe', 'outcome': 0.5, 'score': 5, 'domain': 'sotopia'}])
    html = page.build([str(tmp_path / name) for name in ('labeled.json', 'prepared.jsonl', 'traffic')])
    data, episodes = embedded(html)
    assert [turn.get('critical') for turn in episodes[0]['turns']] == [0, 1]
    assert [turn.get('critical') for turn in episodes[1]['turns']] == [None, None]
    assert episodes[1]['facts'] == {'label missing': 'no answer', 'score': 2}
    assert [turn['weight'] for turn in episodes[2]['turns']] == [0.5, 0.5]
    assert [(turn['strategy'], turn['line']) for turn in episodes[2]['turns']] == [('text 1', 'text 2'), ('text 3', None)]
    assert [turn['tokens'] for turn in episodes[3]['turns']] == [[[2], [-0.5]], [[3], [-0.25]]]
    assert episodes[4]['turns'][0]['line'] == 'hello' and episodes[5]['turns'] == []
    assert column(data, 'score') == [None, None, None, 0.75, 0.25, 0.5]
    assert 'Outcomes by arm' in html and '3.75' in html and '7.50' in html
    write_lines(tmp_path / 'prepared.jsonl', [{'conversations': said[:1]}])
    with pytest.raises(ReportError, match='prepared.jsonl, row 1'):
        page.build([str(tmp_path / 'prepared.jsonl')])


def test_the_code_of_the_page_gives_the_same_configuration(tmp_path):
    make_run(tmp_path, **{'learner.learning_rate': 3e-5, 'seats': ('policy', 'none'), 'model.path': "it's"})
    source = read_source(str(tmp_path))
    changed = {setting.name: (setting.value, setting.default) for setting in settings(source.config) if setting.differs}
    assert changed['learner.learning_rate'][0] == '3e-05' and changed['seats'][0] == '["policy", "none"]'
    scope = {}
    exec(reproduction(source).rsplit('\n', 1)[0], scope)
    assert from_json(to_json(scope['config'])) == from_json((tmp_path / 'config.json').read_text())


def test_the_machine_is_noted(tmp_path):
    machine.write_machine(tmp_path)
    noted = json.loads((tmp_path / machine.MACHINE_FILE).read_text())
    assert noted['devices'] >= 1 and noted['versions']['jax'] and noted['command'] is None  # pytest is no command of ours
    assert machine.command([str(machine.ROOT / 'main.py'), '--config=sotopia:tiny', '--workdir=a b']) == (
        "python -m epo_jax.main --config=sotopia:tiny '--workdir=a b'")
    assert machine.command([str(machine.ROOT / 'report' / '__main__.py')]) == 'python -m epo_jax.report'
    assert 'hunter2' not in machine.command([str(machine.ROOT / 'main.py'), '--config.judge.model=m@http://u:hunter2@h/v1'])


def test_an_unreadable_line_in_the_middle_is_no_unfinished_one(tmp_path):
    make_run(tmp_path)
    (tmp_path / 'episodes' / 'iteration_00001.jsonl').write_bytes(b'{"turns": []}\n\xff\n')
    with pytest.raises(LineError, match='line 2'):
        page.build([str(tmp_path)])


@pytest.mark.slow
def test_commands_write_the_report_unless_told_otherwise(tmp_path):
    def train(*flags):
        environment = {**os.environ, 'PYTHONPATH': str(machine.ROOT.parent), 'JAX_PLATFORMS': 'cpu'}
        return subprocess.run([sys.executable, '-m', 'epo_jax.main', '--config=bargain:tiny', *flags], env=environment,
                              capture_output=True, text=True, timeout=600)

    done = train(f'--workdir={tmp_path}/a')
    assert done.returncode == 0 and f'report: {tmp_path}/a/report.html' in done.stdout + done.stderr, done.stderr
    html = (tmp_path / 'a' / 'report.html').read_text()
    data, episodes = embedded(html)
    assert len(episodes) == 2 * 8 + 8 and len(data['curves']['runs'][0]['x']) == 2
    assert 'python -m epo_jax.main --config=bargain:tiny' in html
    done = train(f'--workdir={tmp_path}/b', '--noreport')
    assert done.returncode == 0 and not (tmp_path / 'b' / 'report.html').exists()
    (tmp_path / 'a' / 'evaluation_00001.json').write_text('{')
    (tmp_path / 'a' / 'report.html').unlink()
    done = train(f'--workdir={tmp_path}/a')  # a damaged file does not fail a run that is finished
    assert done.returncode == 0 and 'its report cannot be written' in done.stderr
