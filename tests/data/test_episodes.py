"""Episodes become the conversations that they were."""

import json

import numpy as np
import pytest

from epo_jax.config import to_json
from epo_jax.data import episodes
from epo_jax.data.rows import RowError
from epo_jax.data.sharegpt import DataError, messages, trajectory_score
from epo_jax.defaults import default_config
from epo_jax.testing import byte_tokenizer
from epo_jax.text.chat import chat_segments
from epo_jax.text.tokenizer import encode

TOKENIZER = byte_tokenizer()
CHAT = chat_segments(TOKENIZER)


def session(texts, cue='', unended=()):
    """(ids, turn) as sessions hold them: a begun reply's cue is context, a cut-off one is ended by context."""
    ids, turn = [], []
    for t in range(0, len(texts), 2):
        context = [CHAT.end] if t // 2 - 1 in unended else []
        context += [*(CHAT.between if t else CHAT.open), *encode(TOKENIZER, texts[t]), *CHAT.close,
                    *encode(TOKENIZER, cue)]
        reply = encode(TOKENIZER, texts[t + 1].removeprefix(cue)) + ([] if t // 2 in unended else [CHAT.end])
        ids += context + reply
        turn += [-1] * len(context) + [t // 2] * len(reply)
    return ids, turn


@pytest.mark.parametrize('cue', ['', 'Strategy:'])
@pytest.mark.parametrize('unended', [(), (0,), (0, 1, 2)])
def test_messages_are_found_again(cue, unended):
    texts = ['Hello\nthere', f'{cue} be kind', 'A said: x\nB said: y', f'{cue} ask', '', f'{cue} é']
    ids, turn = session(texts, cue, unended)
    after = [*CHAT.between, *encode(TOKENIZER, 'nobody answers this')]
    found = episodes.split_messages(ids + after, turn + [-1] * len(after), CHAT)
    assert found == [encode(TOKENIZER, text) for text in texts]
    assert episodes.split_messages([], [], CHAT) == []
    with pytest.raises(ValueError, match='turn 0 is not framed'):
        episodes.split_messages(ids[3:], turn[3:], CHAT)


def run_with(path, records):
    config = default_config('sotopia')
    config.model.path = 'dummy'
    (path / 'episodes').mkdir()
    (path / 'config.json').write_text(to_json(config))
    (path / 'episodes' / 'iteration_00001.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in records))


def record(number, texts, outcome, truncated=False, trained=True):
    ids, turn = session(texts)
    seat = {'name': 'A', 'outcome': outcome} | ({'ids': ids, 'turn': turn} if trained else {})
    return {'episode': number, 'scenario': 's', 'truncated': truncated, 'seats': [seat]}


def test_a_run_becomes_raw_rows(tmp_path, capsys):
    texts = ['start', 'be kind', 'x\ny', 'ask']
    run_with(tmp_path, [record(0, texts, 0.75), record(1, texts[:2], 0.1), record(2, texts, None),
                        record(3, texts, 0.5, truncated=True), record(4, texts, 1.0, trained=False)])
    episodes.main([f'--workdir={tmp_path}', f'--out={tmp_path}/raw.json'])
    rows = json.loads((tmp_path / 'raw.json').read_text())
    assert [[m['value'] for m in messages(row)] for row in rows] == [texts, texts[:2]]
    np.testing.assert_allclose([trajectory_score(row) for row in rows], [7.5, 1.0])
    assert len({row['id'] for row in rows}) == 2
    out = capsys.readouterr().out
    assert '2  left out' in out and '1  seats that were not trained' in out
    assert episodes.convert_run(str(tmp_path), str(tmp_path / 'raw.json'), 'webshop')['rows'] == 2
    assert trajectory_score(json.loads((tmp_path / 'raw.json').read_text())[0]) == 0.75


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(DataError, match='no episodes'):
        episodes.convert_run(str(tmp_path), str(tmp_path / 'raw.json'))
    run_with(tmp_path, [record(0, ['a', 'b'], 0.5), {'episode': 1, 'seats': [{'ids': [1, 2], 'turn': [-1, 0],
                                                                             'outcome': 1}], 'truncated': False}])
    with pytest.raises(RowError, match='iteration_00001.jsonl, row 2'):
        episodes.convert_run(str(tmp_path), str(tmp_path / 'raw.json'))
    assert not (tmp_path / 'raw.json').exists()
