"""Tokens, order and batches of prepared conversations."""

import json

import numpy as np
import pytest

from epo_jax.data.dataset import Dataset, Order, collate, tokenize
from epo_jax.data.rows import RowError
from epo_jax.data.sharegpt import DataError, Source
from epo_jax.runtime import streams
from epo_jax.testing import byte_tokenizer
from epo_jax.text.chat import chat_segments
from epo_jax.text.tokenizer import encode

TOKENIZER = byte_tokenizer()
CHAT = chat_segments(TOKENIZER)


def conversation(rng, turns):
    return [''.join(rng.choice(list('ab é<|im_end|>\n😀'), rng.integers(0, 30))) for _ in range(2 * turns)]


def prepared(texts, weights):
    return {'conversations': [
        {'from': ('human', 'gpt')[i % 2], 'value': text} | ({'score': str(weights[i // 2])} if i % 2 else {})
        for i, text in enumerate(texts)]}


def write(path, rows):
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=4))
    return Source(path)


@pytest.mark.parametrize('seed', range(5))
def test_tokens_equal_those_of_a_chat_and_weights_are_exact(seed):
    rng = np.random.default_rng(seed)
    turns = int(rng.integers(1, 7))
    texts, weights = conversation(rng, turns), [float(w) for w in rng.normal(size=turns)]
    example = tokenize(texts, weights, TOKENIZER, CHAT, 10_000)
    assert example.ids == CHAT.join([encode(TOKENIZER, text) for text in texts])
    assert example.weights == tuple(weights) and example.dropped == 0
    for t in range(turns):  # a turn is its text and its end token, nothing else
        trained = [i for i, turn in zip(example.ids, example.turn) if turn == t]
        assert trained == [*encode(TOKENIZER, texts[2 * t + 1]), CHAT.end]


def test_turns_that_do_not_fit_are_dropped_as_a_whole_from_the_end():
    rng = np.random.default_rng(1)
    texts, weights = conversation(rng, 6), [0.1 * t for t in range(6)]
    whole = tokenize(texts, weights, TOKENIZER, CHAT, 10_000)
    ends = [max(i for i, turn in enumerate(whole.turn) if turn == t) + 1 for t in range(6)]
    for capacity in range(1, len(whole.ids) + 2):
        cut = tokenize(texts, weights, TOKENIZER, CHAT, capacity)
        kept = sum(end <= capacity for end in ends)
        assert cut.weights == tuple(weights[:kept]) and cut.dropped == 6 - kept
        assert cut.ids == whole.ids[:ends[kept - 1] if kept else 0]


def test_a_message_without_a_weight_is_context():
    texts = ['task', 'OK', 'state', 'go', 'state', 'stop']
    whole = tokenize(texts, [0.0, 1.0, 2.0], TOKENIZER, CHAT, 1000)
    example = tokenize(texts, [None, 1.0, 2.0], TOKENIZER, CHAT, 1000)
    assert example.ids == whole.ids and example.weights == (1.0, 2.0)
    assert example.turn == [max(turn - 1, -1) for turn in whole.turn]
    batch = collate([example], 2, 8, 1000)
    assert batch.valid.tolist() == [[True, True]]  # T = 2: the canned reply does not make the others count less
    cut = tokenize(texts, [None, 1.0, 2.0], TOKENIZER, CHAT, len(whole.ids) - 1)
    assert (cut.weights, cut.dropped) == ((1.0,), 1)


def test_rows_whose_first_trained_turn_does_not_fit_are_refused(tmp_path):
    texts = ['task', 'OK', 'x' * 50, 'go']
    row = prepared(texts, [None, 1.0])
    row['conversations'][1]['score'] = None
    needed = len(tokenize(texts, [None, 1.0], TOKENIZER, CHAT, 1000).ids)
    data = Dataset(write(tmp_path / 'a.json', [row]), TOKENIZER, CHAT, needed)
    assert data.turns == 1 and data[0].weights == (1.0,)
    with pytest.raises(RowError, match=f'row 1: the first turn is {needed} tokens long'):
        Dataset(write(tmp_path / 'a.json', [row]), TOKENIZER, CHAT, needed - 1)
    row['conversations'][3]['score'] = None
    with pytest.raises(RowError, match='row 1: no message has a score'):
        Dataset(write(tmp_path / 'a.json', [row]), TOKENIZER, CHAT, needed)


def test_random_access_gives_every_row(tmp_path):
    rng = np.random.default_rng(2)
    rows = [(conversation(rng, int(turns)), [float(w) for w in rng.normal(size=turns)])
            for turns in rng.integers(1, 6, 40)]
    data = Dataset(write(tmp_path / 'p.json', [prepared(*row) for row in rows]), TOKENIZER, CHAT, 10_000)
    assert len(data) == 40 and data.turns == max(len(weights) for _, weights in rows)
    for i in rng.permutation(40):
        assert data[i] == tokenize(*rows[i], TOKENIZER, CHAT, 10_000)
    data.close()


BAD = [
    (lambda r: r['conversations'][1].pop('score'), 'message 1 has no score'),
    (lambda r: r['conversations'][3].update(score='high'), "message 3 is 'high', not a number"),
    (lambda r: r['conversations'][3].update(score='nan'), 'not finite'),
    (lambda r: r['conversations'][3].update(score='inf'), 'not finite'),
    (lambda r: r['conversations'][0].update(value='x' * 300), 'first turn is 3.. tokens long, but the capacity is 200'),
    (lambda r: r['conversations'].pop(), "ends with 'gpt'")]


@pytest.mark.parametrize('change, reason', BAD)
def test_bad_rows(tmp_path, change, reason):
    good = prepared(['a', 'b', 'c', 'd'], [1, 2])
    bad = json.loads(json.dumps(good))
    change(bad)
    source = write(tmp_path / 'p.json', [good, bad, good])
    with pytest.raises(RowError, match=f'p.json, row 2: .*{reason}'):
        Dataset(source, TOKENIZER, CHAT, 200)
    data = Dataset(source, TOKENIZER, CHAT, 200, skip_bad=True)
    assert len(data) == 2 and data.bad.count == 1 and data[1].weights == (1.0, 2.0)
    with pytest.raises(DataError, match='has no rows to train on'):
        Dataset(write(tmp_path / 'p.json', [bad]), TOKENIZER, CHAT, 200, skip_bad=True)


class Greedy:
    """A tokenizer that turns text into a control token, which some tokenizers always do."""

    def __call__(self, text, **how):
        return {'input_ids': [CHAT.end]} if '<|im_end|>' in text else TOKENIZER(text, **how)

    def __getattr__(self, name):
        return getattr(TOKENIZER, name)


def test_text_that_becomes_a_control_token_is_named(tmp_path):
    rows = [prepared(['a', 'b'], [1]), prepared(['a', 'x<|im_end|>'], [1])]
    data = Dataset(write(tmp_path / 'p.json', rows), Greedy(), CHAT, 200)
    assert data[0] == tokenize(['a', 'b'], [1.0], TOKENIZER, CHAT, 200)
    with pytest.raises(RowError, match="p.json, row 2: .*control token '<.im_end.>'"):
        data[1]


def test_weights_may_be_numbers_instead_of_text(tmp_path):
    row = prepared(['a', 'b'], [0.5])
    row['conversations'][1]['score'] = 0.5
    data = Dataset(write(tmp_path / 'p.json', [row]), TOKENIZER, CHAT, 200)
    assert data[0].weights == (0.5,)
    (tmp_path / 'p.json').write_text('x' * 1000)
    with pytest.raises(RowError, match='row 1: the file changed during training'):
        data[0]


@pytest.mark.parametrize('rows, batch, window', [
    (100, 8, 0), (100, 8, 4), (7, 8, 4), (64, 8, 100), (65, 8, 3), (1, 1, 2)])
def test_every_epoch_holds_every_row_once(rows, batch, window):
    size = np.random.default_rng(0).integers(1, 1000, rows)
    order = Order(size, batch, seed=3, window=window)
    epochs = [order.epoch(e) for e in range(3)]
    for plan in epochs:
        assert plan.shape == (order.steps, batch) == (-(-rows // batch), batch)
        assert sorted(plan[plan < rows]) == list(range(rows)) and (plan[plan >= rows] == rows).all()
        assert ((plan >= rows).any(axis=1)).sum() <= 1
    if rows > 8:
        assert (epochs[0] != epochs[1]).any()
        assert (Order(size, batch, seed=4, window=window).epoch(0) != epochs[0]).any()
    np.testing.assert_array_equal(Order(size, batch, 3, window).epoch(2), epochs[2])  # depends on seed and epoch alone


def written_out_order(size, batch, seed, window, epoch):
    """Return the rows of every step, padded with -1, by a second implementation that works on a flat list."""
    rng = streams.generator('conversations of a file', seed, epoch)
    rows = rng.permutation(len(size)).tolist()
    full = len(rows) // batch * batch
    for begin in range(0, full, window * batch) if window > 1 else ():
        end = min(begin + window * batch, full)
        rows[begin:end] = sorted(rows[begin:end], key=lambda row: size[row])
    rows += [-1] * (-len(rows) % batch)
    steps = [rows[i:i + batch] for i in range(0, len(rows), batch)]
    return [steps[i] for i in rng.permutation(len(steps))]


@pytest.mark.parametrize('rows, batch, window', [(100, 8, 0), (100, 8, 4), (7, 8, 4), (65, 8, 3), (96, 32, 2)])
def test_order_equals_a_second_implementation(rows, batch, window):
    size = np.random.default_rng(1).integers(1, 50, rows)  # with ties, which keep their shuffled order
    for epoch in range(3):
        order = Order(size, batch, 42, window).epoch(epoch)
        assert np.where(order < rows, order, -1).tolist() == written_out_order(size, batch, 42, window, epoch)


def test_rows_of_similar_size_share_a_batch():
    size = np.random.default_rng(0).integers(1, 1000, 6400)

    def waste(window):
        plan = Order(size, 32, 0, window).epoch(0)
        return 1 - size.sum() / (size[plan].max(axis=1) * 32).sum()

    assert waste(0) > 0.45 and waste(16) < 0.1
    means = size[Order(size, 32, 0, 16).epoch(0)].mean(axis=1)  # but short rows do not come first
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.2


def test_batches():
    rng = np.random.default_rng(4)
    examples = [tokenize(conversation(rng, t), [0.1 * i for i in range(t)], TOKENIZER, CHAT, 300) for t in (1, 3, 2)]
    batch = collate([examples[0], None, *examples[1:]], 5, 64, 300, scale=2.0)
    longest = max(len(example.ids) for example in examples)
    assert batch.ids.shape == batch.turn.shape == (4, min(-(-longest // 64) * 64, 300))
    for n, example in zip((0, 2, 3), examples):
        length, turns = len(example.ids), len(example.weights)
        assert batch.ids[n, :length].tolist() == example.ids and batch.turn[n, :length].tolist() == example.turn
        assert (batch.turn[n, length:] == -1).all()
        assert batch.valid[n].tolist() == [t < turns for t in range(5)]
        np.testing.assert_array_equal(batch.advantage[n, :turns], 2 * np.float32(example.weights))
    assert not batch.valid[1].any() and (batch.turn[1] == -1).all()
