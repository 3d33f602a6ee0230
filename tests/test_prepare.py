"""Prepared files against the released formulas, restated here in plain float64."""

import copy
import json
import random
import xml.etree.ElementTree as xml

import numpy as np
import pytest

from epo_jax import prepare
from epo_jax.data.rows import RowError
from epo_jax.data.sharegpt import BEST, DOMAINS, DataError


def trajectory(rng, domain):
    turns = rng.randint(1, 12)
    messages = []
    for t in range(turns):
        reply = 'OK' if t == 0 and domain != 'sotopia' else f's {t}'
        messages += [{'from': 'human', 'value': f'h {t}', 'index': 2 * t},
                     {'from': 'gpt', 'value': reply, 'index': 2 * t + 1}]
    score = rng.choice([rng.randint(0, BEST[domain]), round(rng.uniform(0, BEST[domain]), rng.randint(1, 17)), 0])
    row = {'id': rng.randrange(10**6), 'conversations': messages, 'score': score}
    kind = rng.randrange(8)
    if kind == 0:
        pass  # never labelled
    elif kind == 1:
        row['location'] = []
    elif kind == 2:  # bad answers of a model: even numbers, numbers out of range, text, duplicates
        row['location'] = [rng.choice([rng.randrange(-2, 2 * turns + 5), str(rng.randrange(2 * turns)), 1.0])
                           for _ in range(4)]
    else:
        row['location'] = rng.sample(range(1, 2 * turns, 2), rng.randint(0, turns))
    return row


def released(row, domain, gamma):
    """Return the weights by LLaMA-Factory/data/utils/preprocessing.py, as text."""
    score = row['score'] / 10 if domain == 'sotopia' else row['score']
    chosen = set(row.get('location', []))
    indexes = [i for i, message in enumerate(row['conversations']) if message['from'] == 'gpt']
    rewards = []
    for i in indexes:
        if i in chosen:
            rewards.append(1.0)
        elif i == max(indexes):
            rewards.append(score)
        else:
            rewards.append(0.0)
    running, total = 0, []
    for reward in rewards[::-1]:
        running = gamma * running + reward
        total.insert(0, running)
    largest = max(map(abs, total))
    return [str(value / largest if largest != 0 else 0.0) for value in total]


@pytest.mark.parametrize('domain', DOMAINS)
@pytest.mark.parametrize('gamma', [0.99, 1.0, 0.5, 0.0])
def test_official_mode_equals_the_released_code_bit_for_bit(tmp_path, domain, gamma):
    rng = random.Random(domain)
    rows = [trajectory(rng, domain) for _ in range(1000)]
    data, out = tmp_path / 'labeled.json', tmp_path / 'prepared.json'
    data.write_text(json.dumps(rows))
    prepare.prepare_file(str(data), str(out), domain, 'official', gamma)
    expected = []
    for row in copy.deepcopy(rows):
        weights = iter(released(row, domain, gamma))
        expected.append({'id': row['id'], 'conversations': [
            {'from': m['from'], 'value': m['value']} | ({'score': next(weights)} if m['from'] == 'gpt' else {})
            for m in row['conversations']]})
    assert out.read_text() == json.dumps(expected, ensure_ascii=False, indent=4)  # including keys, order and format
    assert json.loads(data.read_text()) == rows


def test_corrected_mode_by_hand():
    row = {'conversations': [{'from': f, 'value': 'x'} for f in ('human', 'gpt') * 3], 'score': 5, 'location': [1, 5]}
    made = prepare.prepare_row(row, 'sotopia', 'corrected', 0.9, 2.0)
    assert made.weights == pytest.approx((2 + 0.81 * 2.5, 0.9 * 2.5, 2.5))
    assert made.findings == ('last_turn_selected',)
    assert [float(m['score']) for m in made.row['conversations'][1::2]] == list(made.weights)
    assert 'score' not in row['conversations'][1]


def test_corrected_mode_keeps_the_score_that_official_mode_loses():
    def weights(score, mode):
        row = {'conversations': [{'from': f, 'value': 'x'} for f in ('human', 'gpt') * 5], 'score': score,
               'location': []}
        return np.array(prepare.prepare_row(row, 'sotopia', mode, 0.99).weights)

    np.testing.assert_array_equal(weights(1, 'official') > 0.96, True)
    np.testing.assert_allclose(weights(1, 'official'), weights(10, 'official'))
    np.testing.assert_allclose(10 * weights(1, 'corrected'), weights(10, 'corrected'))


@pytest.mark.parametrize('location, kept, finding', [
    (None, False, 'not_labelled'), ([2], False, 'odd_location'), ([7], False, 'odd_location'),
    (['1'], True, 'number_as_text'), (1, True, None), ([1.0], True, None), ('1', True, 'number_as_text'),
    ([None], False, 'odd_location'), ([[1]], False, 'odd_location'), ([True], False, 'odd_location'), ([1.5], False, 'odd_location'),
    ([], True, 'nothing_selected'), ([1, 1], True, None)])
def test_an_invalid_label_does_not_count_as_nothing_selected(location, kept, finding):
    row = {'conversations': [{'from': f, 'value': 'x'} for f in ('human', 'gpt') * 2], 'score': 5}
    row |= {} if location is None else {'location': location}
    made = prepare.prepare_row(row, 'sotopia', 'corrected', 1.0)
    assert (made.row is not None) == kept and made.findings == ((finding,) if finding else ())
    if kept:
        assert made.weights[0] == 0.5 + (location != [])
    assert prepare.prepare_row(row, 'sotopia', 'corrected', 1.0, weight=0.0).weights == (0.5, 0.5)


def test_findings_of_official_mode_are_what_its_weights_do():
    def made(location, score=5):
        row = {'conversations': [{'from': f, 'value': v} for f, v in zip(('human', 'gpt') * 4, ['a', 'OK', *'bcdefg'])],
               'score': score} | ({} if location is None else {'location': location})
        return prepare.prepare_row(row, 'webshop', 'official', 0.9)

    rng = random.Random(0)
    unselected = made([]).weights
    seen = set()
    for _ in range(500):
        location = [rng.choice((1, 1.0, True, 3, 5, 7, 7.0, 2, 0, -1, 1.5, 9, '1', '3.0', 'x', None))
                    for _ in range(rng.randrange(5))]
        weights, findings = made(location).weights, set(made(location).findings)
        text = [entry for entry in location if entry in ('1', '3.0')]
        expected = {'acknowledgement', 'score_out_of_range'}
        if weights == unselected:
            expected.add('nothing_selected')
        elif weights == made(location, 3).weights:  # whatever the score is
            expected.add('last_turn_selected')
        if text:
            expected.add('number_as_text')
        if any(made([entry]).weights == unselected for entry in location if entry not in text):
            expected.add('odd_location')
        assert findings == expected, location
        seen |= findings
    assert len(seen) == 6
    assert 'not_labelled' in made(None).findings and made(None).weights == unselected
    with pytest.raises(ValueError, match="'location' is 1, not a list"):
        made(1)


@pytest.mark.parametrize('domain', ['webshop', 'alfworld'])
def test_the_canned_ok_gets_no_weight(domain):
    row = {'conversations': [{'from': f, 'value': v} for f, v in zip(('human', 'gpt') * 3, 'aOcdef')], 'score': 1,
           'location': [3]}
    row['conversations'][1]['value'] = 'OK'
    corrected = prepare.prepare_row(row, domain, 'corrected', 1.0)
    assert corrected.weights == (0, 2, 1)
    assert [message['score'] for message in corrected.row['conversations'][1::2]] == [None, '2.0', '1.0']
    assert prepare.prepare_row(row, domain, 'official', 1.0).weights == (1, 1, 0.5)
    row['location'] = [1, 3]
    assert prepare.prepare_row(row, domain, 'corrected', 1.0).row is None


GOOD = {'conversations': [{'from': 'human', 'value': 'a'}, {'from': 'gpt', 'value': 'b'}], 'score': 5,
        'location': [1]}


def broken(change):
    row = copy.deepcopy(GOOD)
    change(row)
    return row


@pytest.mark.parametrize('column', ['system', 'tools'])
def test_declared_columns_that_nothing_reads_must_be_empty(tmp_path, capsys, column):
    (tmp_path / 'x.json').write_text(json.dumps([GOOD | {column: ''}, GOOD | {column: 'You advise.'}]))
    info = {'a': {'file_name': 'x.json', 'formatting': 'sharegpt',
                  'columns': {'messages': 'conversations', 'system': 'system', 'tools': 'tools'}}}
    (tmp_path / 'dataset_info.json').write_bytes(b'\xef\xbb\xbf' + json.dumps(info).encode())
    with pytest.raises(RowError, match=f"x.json, row 2: the column '{column}', which dataset_info.json declares"):
        prepare.prepare_file(str(tmp_path), str(tmp_path / 'out.json'), 'sotopia')
    summary = prepare.prepare_file(str(tmp_path), str(tmp_path / 'out.json'), 'sotopia', skip_bad=True)
    assert (summary['written'], summary['bad']) == (1, 1)


BAD = [
    (lambda r: r.pop('score'), 'no score'), (lambda r: r.update(score=None), 'no score'),
    (lambda r: r.update(score='7'), 'not a number'), (lambda r: r.update(score=True), 'not a number'),
    (lambda r: r.update(score=1e999), 'not finite'), (lambda r: r.update(score=10**400), 'not finite'),
    (lambda r: r.update(score=11), 'between 0 and 10'), (lambda r: r.update(score=-1), 'between 0 and 10'),
    (lambda r: r.update(conversations=[]), 'empty'), (lambda r: r.pop('conversations'), "no list 'conversations'"),
    (lambda r: r['conversations'].reverse(), "message 0 is from 'gpt'"),
    (lambda r: r['conversations'].append({'from': 'human', 'value': 'c'}), "ends with 'gpt'"),
    (lambda r: r['conversations'].insert(1, {'from': 'human', 'value': 'c'}), "message 1 is from 'human'"),
    (lambda r: r['conversations'][0].update({'from': 'system'}), "message 0 is from 'system'"),
    (lambda r: r['conversations'][1].update(value=None), 'message 1 has no text'),
    (lambda r: r['conversations'][1].update(value='\ud800'), 'surrogate'),
    (lambda r: r['conversations'][1].update(index=5), "'index' 5"),
    (lambda r: r.update(conversations=['a', 'b']), 'message 0 is str')]


@pytest.mark.parametrize('change, reason', BAD)
def test_bad_rows_are_named_or_skipped(tmp_path, capsys, change, reason):
    data, out = tmp_path / 'labeled.json', tmp_path / 'prepared.json'
    data.write_text(json.dumps([GOOD, broken(change), GOOD]).replace('Infinity', '1e999'))
    with pytest.raises(RowError, match=f'labeled.json, row 2: .*{reason}'):
        prepare.prepare_file(str(data), str(out), 'sotopia')
    assert not out.exists()
    with pytest.raises(SystemExit, match=f'row 2: .*{reason}'):
        prepare.main([f'--data={data}', f'--out={out}', '--domain=sotopia'])
    prepare.main([f'--data={data}', f'--out={out}', '--domain=sotopia', '--skip_bad'])
    assert len(json.loads(out.read_text())) == 2
    captured = capsys.readouterr()
    assert '1 bad rows skipped' in captured.out and 'row 2' in captured.err


def test_summary_and_plot(tmp_path):
    rng = random.Random(1)
    rows = [trajectory(rng, 'sotopia') for _ in range(300)]
    data, out = tmp_path / 'labeled.jsonl', tmp_path / 'prepared.jsonl'
    data.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    summary = prepare.prepare_file(str(data), str(out), 'sotopia')
    assert json.loads((tmp_path / 'prepared.summary.json').read_text()) == summary
    unlabelled = sum('location' not in row for row in rows)
    assert summary['findings']['not_labelled']['rows'] == unlabelled > 0
    assert summary['written'] + summary['left_out'] == summary['rows'] == 300
    assert summary['left_out'] == unlabelled + summary['findings']['odd_location']['rows']
    text = prepare.describe(summary)
    assert all(finding['what'] in text for finding in summary['findings'].values())
    image = xml.parse(tmp_path / 'prepared.svg').getroot()
    assert image.tag == '{http://www.w3.org/2000/svg}svg'
    texts = [element.text for element in image.iter('{http://www.w3.org/2000/svg}text')]
    assert 'prepared.jsonl: sotopia, corrected' in texts
    assert f'score of a conversation (n = {summary["written"]})' in texts
    assert f'weight of a turn (n = {summary["turns"]:,})' in texts
    weights = [float(m['score']) for line in out.read_text().splitlines()
               for m in json.loads(line)['conversations'][1::2]]
    assert f'mean {np.mean(weights):.3f}, standard deviation {np.std(weights):.3f}' in texts


def test_histograms_are_deterministic_and_take_any_text():
    panels = (('one value', {0.5: 3}), ('a < b', {0.0: 1, 1.0: 2}))
    image = prepare.draw_histograms(panels, '$x$ & <y>')
    assert image == prepare.draw_histograms(panels, '$x$ & <y>') and b'<dc:date>' not in image
    texts = [element.text for element in xml.fromstring(image).iter('{http://www.w3.org/2000/svg}text')]
    assert {'$x$ & <y>', 'one value (n = 3)', 'a < b (n = 3)'} <= set(texts)
    assert {'mean 0.500, standard deviation 0.000', 'mean 0.667, standard deviation 0.471'} <= set(texts)


def test_nothing_to_train_on_is_an_error(tmp_path):
    data, out = tmp_path / 'labeled.json', tmp_path / 'prepared.json'
    for rows in ([], [{**GOOD, 'location': None}]):
        data.write_text(json.dumps(rows))
        why = '.*\n *1  the row was never labeled' if rows else ''
        with pytest.raises(DataError, match=f'has nothing to train on{why}'):
            prepare.prepare_file(str(data), str(out), 'sotopia')
        assert not out.exists()
    data.write_text(json.dumps([GOOD]))
    (tmp_path / 'x.summary.json').hardlink_to(data)
    for wrong, message in ((tmp_path / 'x.json', 'x.summary.json is the input file'), (tmp_path, 'is a directory'),
                           (tmp_path / 'no' / 'x', 'there is no directory')):
        with pytest.raises(DataError, match=message):
            prepare.prepare_file(str(data), str(wrong), 'sotopia')
    assert json.loads(data.read_text()) == [GOOD] and not (tmp_path / 'x.json').exists()
    with pytest.raises(DataError, match='input file'):
        prepare.prepare_file(str(data), str(data), 'sotopia')
    with pytest.raises(DataError, match='there is no data'):
        prepare.prepare_file(str(tmp_path / 'none.json'), str(out), 'sotopia')
