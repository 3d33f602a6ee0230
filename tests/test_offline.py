"""Offline training: the released loss, exact resumption, and refused inputs."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epo_jax import offline
from epo_jax.config import ConfigError
from epo_jax.data.dataset import Dataset, Order, collate, tokenize
from epo_jax.data.rows import RowError
from epo_jax.data.sharegpt import DataError, find_source
from epo_jax.defaults import default_config
from epo_jax.models.transformer import Transformer
from epo_jax.rl.aggregation import official_scale
from epo_jax.rl.learner import Learner
from epo_jax.testing import byte_tokenizer, dummy_config, dummy_params
from epo_jax.text.chat import chat_segments

ROOT = pathlib.Path(__file__).parent.parent


def prepared(path, count, seed=0, turns=3, words=6):
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        messages = []
        for _ in range(rng.integers(1, turns + 1)):
            messages += [{'from': 'human', 'value': 'say ' * int(rng.integers(1, words))},
                         {'from': 'gpt', 'value': 'do it ' * int(rng.integers(1, 3)), 'score': str(rng.normal())}]
        rows.append({'conversations': messages})
    path.write_text(json.dumps(rows))
    return path


def small(data):
    config = offline.default_config()
    config.data, config.model.path, config.capacity = str(data), 'dummy', 256
    config.learner.update(batch=4, micro_batch=2, epochs=2, learning_rate=1e-3, length_bucket=128, window=2)
    config.checkpoint.every = 2
    return config


def metrics(workdir):
    rows = [json.loads(line) for line in (pathlib.Path(workdir) / 'metrics.jsonl').read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith('time/')} for row in rows]


def released_loss(logits, labels, scores):
    """Return the loss of a micro-batch as the released trainer (sft/trainer.py) sums it, token by token in float64.

    Labels are -100 for tokens that are not trained, and the list of scores is padded with -100.
    """
    total = 0.0
    for row, target, weight in zip(np.asarray(logits, np.float64), labels, scores):
        weight = [w for w in weight if w != -100]
        logprob = row - np.log(np.exp(row - row.max(-1, keepdims=True)).sum(-1, keepdims=True)) - row.max(
            -1, keepdims=True)
        segments, inside = [], False
        for i in range(1, len(target)):
            if target[i] != -100:
                if not inside:
                    segments.append([])
                segments[-1].append(logprob[i - 1, target[i]])
            inside = target[i] != -100
        assert len(segments) == len(weight)
        total -= sum(w * sum(s) / len(s) for w, s in zip(weight, segments)) / len(segments)
    return total


@pytest.mark.parametrize('micro_batch, used', [(1, 4), (2, 3)])
def test_official_summation_equals_the_released_loss(micro_batch, used):
    rng, tokenizer = np.random.default_rng(0), byte_tokenizer()
    chat, examples = chat_segments(tokenizer), []
    for _ in range(used):
        turns = int(rng.integers(1, 4))
        texts = ['a' * int(n) for n in rng.integers(1, 9, 2 * turns)]
        examples.append(tokenize(texts, [float(str(w)) for w in rng.normal(size=turns)], tokenizer, chat, 256))
    examples += [None] * (4 - used)
    config = offline.default_config().learner
    config.update(batch=4, micro_batch=micro_batch, summation='official')
    batch = collate(examples, 4, 64, 256, offline.scale_of(config, examples))

    model = Transformer(dummy_config(), stacked=True)
    params = jax.tree.map(lambda x: 3 * x, dummy_params(dummy_config(), stacked=True))
    learner = Learner(model, 10, 0.0, micro_batch=micro_batch)
    positions = np.broadcast_to(np.arange(batch.ids.shape[1]), batch.ids.shape)
    hidden, _ = jax.jit(model.apply)({'params': params}, batch.ids, positions)
    logits = model.apply({'params': params}, hidden, method='logits')
    labels = np.where(batch.turn >= 0, batch.ids, -100)
    scores = [[*example.weights, *[-100] * 41][:41] for example in examples if example is not None]
    want = sum(released_loss(logits[i:i + micro_batch], labels[i:i + micro_batch], scores[i:i + micro_batch])
               for i in range(0, 4, micro_batch)) / (4 // micro_batch)  # gradient accumulation divides
    _, got = learner.step(learner.init(params), batch)
    np.testing.assert_allclose(float(got['loss']), want, rtol=2e-5)
    assert official_scale(used, 4, micro_batch) == used * micro_batch / 4 and abs(want) > 0.1


def test_interrupted_run_equals_an_uninterrupted_one(tmp_path):
    data = prepared(tmp_path / 'p.json', 13)
    whole = offline.run(small(data), tmp_path / 'whole')
    command = [sys.executable, '-m', 'epo_jax.main', '--config=configs/offline.py:tiny', f'--config.data={data}',
               f'--workdir={tmp_path}/killed', '--config.capacity=256', '--config.learner.batch=4',
               '--config.learner.epochs=2', '--config.learner.length_bucket=128', '--config.learner.window=2',
               '--config.checkpoint.every=2', '--noreport']
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               env=os.environ | {'XDG_CACHE_HOME': str(tmp_path / 'cache')})
    lines = tmp_path / 'killed' / 'metrics.jsonl'
    while not (lines.exists() and lines.read_text().count('\n') >= 3):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    config = small(data)
    config.mesh = (1, -1, 1)
    resumed = offline.run(config, tmp_path / 'killed')
    assert metrics(tmp_path / 'killed') == metrics(tmp_path / 'whole')
    assert [row['iteration'] for row in metrics(tmp_path / 'whole')] == list(range(1, 9))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_turns_with_weight_become_likelier(tmp_path):
    """Only "yes" has a positive weight, so its likelihood must grow."""
    rows = [{'conversations': [{'from': 'human', 'value': 'well?'},
                               {'from': 'gpt', 'value': reply, 'score': weight}]}
            for reply, weight in (('yes', '1.0'), ('no.', '0.0')) for _ in range(8)]
    data = tmp_path / 'p.json'
    data.write_text(json.dumps(rows))
    config = small(data)
    config.learner.update(epochs=6, learning_rate=1e-2, batch=8)
    state = offline.run(config, tmp_path / 'run')
    model = Transformer(dummy_config(), stacked=True)
    tokenizer = byte_tokenizer()
    examples = [tokenize(['well?', reply], [1.0], tokenizer, chat_segments(tokenizer), 256) for reply in ('yes', 'no.')]
    batch = collate(examples, 1, 64, 256)

    def log_likelihood(params):
        from epo_jax.models.scoring import score
        return np.where(batch.turn == 0, np.asarray(score(model, params, jnp.asarray(batch.ids))), 0).sum(axis=1)

    before, after = log_likelihood(dummy_params(dummy_config(), stacked=True)), log_likelihood(state.params)
    assert after[0] > before[0] + 1 and after[0] - before[0] > after[1] - before[1] + 1


def test_truncation_is_counted(tmp_path):
    data = prepared(tmp_path / 'p.json', 6, turns=4, words=20)
    config = small(data)
    config.capacity, config.learner.epochs, config.skip_bad = 120, 1, True
    offline.run(config, tmp_path / 'run')
    text = byte_tokenizer(), chat_segments(byte_tokenizer())
    whole, cut = (Dataset(find_source(str(data)), *text, capacity, skip_bad=True) for capacity in (10_000, 120))
    seen = metrics(tmp_path / 'run')
    dropped = sum(cut[i].dropped for i in range(len(cut)))
    assert sum(row['data/dropped_turns'] for row in seen) == dropped > 0
    assert sum(row['data/conversations'] for row in seen) == len(cut) == len(whole)
    assert sum(row['data/turns'] for row in seen) == sum(len(cut[i].weights) for i in range(len(cut)))
    assert len(seen) == Order(cut.size, 4, 0).steps


@pytest.mark.parametrize('change, message', [
    (lambda c: c.update(data=''), 'data must name'), (lambda c: c.learner.update(batch=3), 'multiple of'),
    (lambda c: c.learner.update(summation='sum'), 'learner.summation'), (lambda c: c.update(capacity=0), 'capacity'),
    (lambda c: c.model.update(dtype='int8'), 'model.dtype'),
    (lambda c: c.learner.update(epochs=0), 'learner.epochs')])
def test_impossible_configurations(tmp_path, change, message):
    config = small('p.json')
    change(config)
    with pytest.raises(ConfigError, match=message):
        offline.run(config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_bad_data_stops_before_training(tmp_path, capfd):
    with pytest.raises(DataError, match='there is no data'):
        offline.run(small(tmp_path / 'none.json'), tmp_path / 'a')
    rows = json.loads(prepared(tmp_path / 'p.json', 5).read_text())
    del rows[3]['conversations'][1]['score']
    (tmp_path / 'p.json').write_text(json.dumps(rows))
    with pytest.raises(RowError, match='p.json, row 4: message 1 has no score; prepare the file'):
        offline.run(small(tmp_path / 'p.json'), tmp_path / 'b')
    config = small(tmp_path / 'p.json')
    config.skip_bad = True
    config.capacity = 9000
    config.learner.epochs = 1
    assert int(offline.run(config, tmp_path / 'c').step) == 1
    output = ' '.join(''.join(capfd.readouterr()).split())
    assert '1 bad rows skipped' in output
    assert 'capacity is 9000 tokens, but the model supports at most 8192' in output


def test_learner_defaults_are_the_same_values_in_every_configuration():
    shared = dict(
        learning_rate=1e-6, schedule='cosine', warmup_ratio=0.03, clip=1.0, weight_decay=0.0, b1=0.9, b2=0.999,
        batch=32, micro_batch=1, length_bucket=256, optimizer='adamw')
    assert offline.default_config().learner.to_dict() == shared | dict(epochs=3, window=16, summation='mean')
    assert default_config().learner.to_dict() == shared | dict(epochs=1, entropy=0.0, chunk=256, offload=False)


def test_presets():
    sys.path.insert(0, str(ROOT))
    from configs import offline as presets
    for name in ('official', 'smollm2', 'tiny'):
        config = presets.get_config(name)
        config.data = 'x'
        offline.validate(config)
    c = presets.get_config().learner
    assert (c.epochs, c.batch, c.learning_rate, c.schedule, c.warmup_ratio) == (3, 32, 1e-6, 'official', 0.03)
    assert presets.get_config().capacity == 4096
    with pytest.raises(ValueError, match='unknown preset'):
        presets.get_config('huge')
