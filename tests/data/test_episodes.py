"""Episodes convert to the conversations that were played."""

import importlib
import json
import pathlib
import sys

from fake_endpoint import serve, strategies_in
import numpy as np
import pytest
from test_experiment import small_config

from epo_jax import experiment, label, offline, prepare
from epo_jax.config import to_json
from epo_jax.data import episodes
from epo_jax.data.rows import RowError
from epo_jax.data.sharegpt import DataError, messages, trajectory_score
from epo_jax.defaults import default_config
from epo_jax.testing import byte_tokenizer
from epo_jax.text.chat import chat_segments
from epo_jax.text.messages import conversation, split_messages
from epo_jax.text.tokenizer import encode

ROOT = pathlib.Path(__file__).parents[2]
TOKENIZER = byte_tokenizer()
CHAT = chat_segments(TOKENIZER)


def session(texts, cue='', unended=()):
    """Return (ids, turn) of a session: a cue is context, and so is the end token of a reply in `unended`."""
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
def test_messages_are_recovered_from_token_ids(cue, unended):
    texts = ['Hello\nthere', f'{cue} be kind', 'A said: x\nB said: y', f'{cue} ask', '', f'{cue} é']
    ids, turn = session(texts, cue, unended)
    after = [*CHAT.between, *encode(TOKENIZER, 'nobody answers this')]
    found = split_messages(ids + after, turn + [-1] * len(after), CHAT)
    assert found == [encode(TOKENIZER, text) for text in texts]
    assert split_messages([], [], CHAT) == []
    assert conversation(ids, turn, TOKENIZER, CHAT) == texts
    with pytest.raises(ValueError, match="turn 0 does not match the run's chat template"):
        split_messages(ids[3:], turn[3:], CHAT)


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
    (tmp_path / 'config.json').write_text((tmp_path / 'config.json').read_text().replace('"sotopia"', '"counting"'))
    with pytest.raises(SystemExit, match="a run of 'counting', whose score scale is unknown"):
        episodes.main([f'--workdir={tmp_path}', f'--out={tmp_path}/raw.json'])
    out = capsys.readouterr().out
    assert '2  left out' in out and '1  seats without a trained strategist' in out
    assert episodes.convert_run(str(tmp_path), str(tmp_path / 'raw.json'), 'webshop')['rows'] == 2
    assert trajectory_score(json.loads((tmp_path / 'raw.json').read_text())[0]) == 0.75


def test_a_directory_without_episodes_and_a_bad_record_are_named(tmp_path):
    with pytest.raises(DataError, match='holds no episodes'):
        episodes.convert_run(str(tmp_path), str(tmp_path / 'raw.json'))
    run_with(tmp_path, [record(0, ['a', 'b'], 0.5), {'episode': 1, 'seats': [{'ids': [1, 2], 'turn': [-1, 0],
                                                                             'outcome': 1}], 'truncated': False}])
    with pytest.raises(RowError, match='iteration_00001.jsonl, row 2'):
        episodes.convert_run(str(tmp_path), str(tmp_path / 'raw.json'))
    assert not (tmp_path / 'raw.json').exists()


def small_run(name):
    """Return the configuration of one iteration with the dummy model."""
    if name == 'sotopia':
        config = small_config()
    else:
        sys.path.insert(0, str(ROOT))
        config = importlib.import_module(f'configs.{name}').get_config('tiny')
        config.evaluation.episodes, config.reward.process = 0, 'none'
        config.rollout.update(episodes=2, batch=2)
        config.learner.batch = 2
    config.iterations = 1
    return config


@pytest.mark.parametrize('name, best', [
    ('sotopia', 10), pytest.param('alfworld', 1, marks=pytest.mark.slow),
    pytest.param('webshop', 1, marks=pytest.mark.slow)])
def test_episodes_are_labeled_prepared_and_trained_on(tmp_path, name, best):
    experiment.run(small_run(name), tmp_path / 'online')
    episodes.main([f'--workdir={tmp_path}/online', f'--out={tmp_path}/raw.json'])
    raw = json.loads((tmp_path / 'raw.json').read_text())
    played = [seat for line in (tmp_path / 'online/episodes/iteration_00001.jsonl').read_text().splitlines()
              for seat in json.loads(line)['seats']]
    assert [row['score'] for row in raw] == [best * seat['outcome'] for seat in played] and raw

    with serve(lambda prompt, seed: json.dumps({'indexes': strategies_in(prompt)[:1]})) as judge:
        label.main([f'--data={tmp_path}/raw.json', f'--out={tmp_path}/labeled.json', f'--domain={name}',
                    f'--judge={judge.url}'])
    prepare.main([f'--data={tmp_path}/labeled.json', f'--out={tmp_path}/prepared.json', f'--domain={name}'])
    rows = json.loads((tmp_path / 'prepared.json').read_text())
    for row, seat in zip(rows, played, strict=True):
        turns = len(row['conversations']) // 2
        assert turns == max(seat['turn']) + 1
        expected = 0.99 ** (turns - 1) * seat['outcome'] + 1  # the first strategy was critical
        assert float(row['conversations'][1]['score']) == pytest.approx(expected)

    config = offline.default_config()
    config.data, config.model.path, config.capacity = f'{tmp_path}/prepared.json', 'dummy', 8192
    config.model.remat = 'none'
    config.learner.update(batch=2, micro_batch=2, epochs=1)
    assert int(offline.run(config, tmp_path / 'offline').step) == -(-len(rows) // 2)
    metrics, *_ = (json.loads(line) for line in (tmp_path / 'offline/metrics.jsonl').read_text().splitlines())
    assert metrics['data/dropped_turns'] == 0 and metrics['learner/gradient_norm'] > 0
