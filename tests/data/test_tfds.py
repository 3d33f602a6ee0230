"""The TFDS dataset holds the content of the file and needs no TensorFlow."""

import json
import sys

import pytest

pytest.importorskip('tensorflow_datasets', reason='the extra `data` is not installed')
from epo_jax.data import tfds as epo  # noqa: E402
from epo_jax.data.rows import RowError  # noqa: E402


def test_every_stage_reads_back(tmp_path):
    talk = [{'from': 'human', 'value': 'é "x"'}, {'from': 'gpt', 'value': 'b\n'}, {'from': 'human', 'value': ''},
            {'from': 'gpt', 'value': 'd'}]
    weighted = [m | ({'score': str(0.1 + i)} if i % 2 else {}) for i, m in enumerate(talk)]
    rows = [{'conversations': talk, 'score': 7}, {'conversations': talk, 'score': 1.5, 'location': [3]},
            {'conversations': talk[:2], 'score': 0, 'location': []}, {'conversations': weighted}]
    data = tmp_path / 'rows.json'
    data.write_text(json.dumps(rows))
    source = epo.open_source(str(data), str(tmp_path / 'tfds'))
    examples = sorted((source[i] for i in range(len(source))), key=lambda example: example['row'])
    assert [list(map(lambda text: text.decode(), e['messages'])) for e in examples] == [
        [m['value'] for m in row['conversations']] for row in rows]
    assert [e['score'].decode() for e in examples] == ['7', '1.5', '0', '']
    assert [bool(e['labelled']) for e in examples] == [False, True, True, False]
    assert [list(e['location']) for e in examples] == [[], [3], [], []]
    assert [[float(w) for w in e['weights']] for e in examples] == [[], [], [], [1.1, 3.1]]  # bit for bit
    assert 'tensorflow' not in sys.modules
    assert len(epo.open_source(str(data), str(tmp_path / 'tfds'))) == 4  # already built


def test_bad_rows_are_named(tmp_path):
    data = tmp_path / 'rows.json'
    data.write_text('[{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, {}]')
    with pytest.raises(RowError, match='rows.json, row 2'):
        epo.open_source(str(data), str(tmp_path / 'tfds'))
    assert len(epo.open_source(str(data), str(tmp_path / 'tfds'), skip_bad=True)) == 1
