"""What the side-car keeps: no closed conversation is lost or written twice, whatever is interrupted."""

import json
import os
import signal
import subprocess
import sys
import time

from live import Upstream, serving, sidecar, tiny_strategist
import numpy as np
import pytest
from test_sidecar import SYSTEM, USER, chat, fetch

from epo_jax import cli, label, offline, prepare
from epo_jax.data import sharegpt
from epo_jax.data.episodes import message_texts
from epo_jax.runtime.locks import InUseError
from epo_jax.serve import loading, recording, results
from epo_jax.serve.conversations import Conversation
from epo_jax.serve.engine import Options
from epo_jax.serve.recording import Recorder, RecordError
from epo_jax.serve.sidecar import Plan
from epo_jax.serve.strategist import Strategist, start_engine


@pytest.fixture(scope='module')
def loaded():
    return tiny_strategist()


def rows_of(folder, stem='conversations'):
    return results.read_rows(folder, stem)


def observed(name, client='c'):
    return Conversation(client, name, 'observe', 'goal', count=1, digest='d', messages=[('user', 'a'), ('assistant', 'b')])


class Killed(BaseException):
    """Stands for the end of the process."""


def run_and_die(folder, loaded, monkeypatch, at):
    """Close conversations until the `at`-th step that writes something; return the names that were reported closed."""
    closed, steps = [], 0

    def step():
        nonlocal steps
        steps += 1
        if steps > at:
            raise Killed

    real_write = recording.write_atomically

    def write(path, content):
        step()
        real_write(path, content)
        step()

    with monkeypatch.context() as patch:
        patch.setattr(recording, 'write_atomically', write)
        recorder = Recorder(folder, loaded, 'general', rotate=3)
        try:
            for i in range(8):
                step()
                recorder.save(observed(f'{at}-{i}'))
                step()
                recorder.close_conversation('c', f'{at}-{i}', i / 8)
                recorder.write_files()
                closed.append(f'{at}-{i}')
        except Killed:
            pass
        finally:
            recorder.__exit__()
    return closed


def test_nothing_is_lost_or_written_twice(tmp_path, loaded, monkeypatch):
    """Interrupted before and after every step that writes something, in one folder."""
    reported = []
    for at in range(20):
        reported += run_and_die(tmp_path, loaded, monkeypatch, at)
    with Recorder(tmp_path, loaded, 'general', rotate=3) as recorder:
        open_names = {state['id'] for state in recorder.open_states()}
    written = [row['id'] for row in rows_of(tmp_path, 'observed')]
    assert len(written) == len(set(written)) and set(reported) <= set(written) and not set(written) & open_names
    assert len(reported) > 30
    sizes = [len(path.read_text().splitlines()) for path in sorted(tmp_path.glob('observed_*.jsonl'))]
    assert set(sizes[:-1]) == {3} and not list(tmp_path.glob('.*tmp'))


@pytest.mark.slow
def test_killed_by_the_system(tmp_path):
    """A process that closes conversations as fast as it can is killed at random moments."""
    code = ('import sys; sys.path.insert(0, "tests/serve")\n'
            'from test_recording import Recorder, observed, tiny_strategist\n'
            'import os, itertools\n'
            f'recorder = Recorder({str(tmp_path / "r")!r}, tiny_strategist(), "general", rotate=5)\n'
            'for i in itertools.count():\n'
            '    name = f"{os.getpid()}-{i}"; recorder.save(observed(name))\n'
            '    recorder.close_conversation("c", name, 1.0); recorder.write_files(); print(name, flush=True)\n')
    reported, rng = [], np.random.default_rng(0)
    for _ in range(8):
        process = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
        reported.append(process.stdout.readline().strip())
        time.sleep(rng.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        reported += process.stdout.read().split('\n')[:-1]
        process.wait()
    with Recorder(tmp_path / 'r', tiny_strategist(), 'general', rotate=5):
        written = [row['id'] for row in rows_of(tmp_path / 'r', 'observed')]
    assert len(reported) > 20 and set(reported) <= set(written) and len(written) == len(set(written))


def test_a_restarted_side_car_continues(tmp_path, loaded):
    """The third turn, after a restart, reads only what is new; the row holds all three turns with their ids."""
    upstream = Upstream(lambda messages: f'answer {len(messages)}')
    messages = [SYSTEM, USER]
    with serving(upstream.app()) as upstream_url:
        for turn in range(3):
            with sidecar(loaded, upstream_url, Plan(), tmp_path) as (url, found):
                with pytest.raises(InUseError):
                    Recorder(tmp_path, loaded, 'general')
                _, answer, name = chat(url, messages)
                assert len(found.conversations) == 1
                if turn == 2:
                    assert fetch(f'{url}/v1/outcomes', {'conversation': name, 'score': 1})[0] == 200
            messages = [*messages, {'role': 'assistant', 'content': answer}, {'role': 'user', 'content': f'{turn}'}]
    row, = rows_of(tmp_path)
    texts, _ = message_texts(row['ids'], row['turn'], loaded.language.tokenizer, loaded.language.chat)
    assert [m['value'] for m in sharegpt.messages(row)] == texts and len(texts) == 6
    assert texts[2] == 'Agent: answer 2\nPartner: 0' and max(row['turn']) == 2
    last = json.loads(upstream.bodies[-1])['messages']
    assert [m['content'].partition('\nAdvice: ')[2].strip() for m in last if m['role'] == 'user'] == [
        text.strip() for text in texts[1::2]]


def test_what_is_kept_of_texts(tmp_path, loaded):
    upstream = Upstream(lambda messages: 'my secret answer')
    with serving(upstream.app()) as upstream_url:
        for name, options in (('redacted', {'redact': lambda text: text.replace('secret', 'XXX')}), ('none', {'text': False})):
            with sidecar(loaded, upstream_url, Plan(), tmp_path / name, **options) as (url, _):
                _, answer, conversation = chat(url, [SYSTEM, {'role': 'user', 'content': 'a secret'}])
                messages = [{'role': 'assistant', 'content': answer}, {'role': 'user', 'content': 'secret'}]
                chat(url, [SYSTEM, {'role': 'user', 'content': 'a secret'}, *messages])
                fetch(f'{url}/v1/outcomes', {'conversation': conversation, 'score': 0.5})
            kept = b''.join(path.read_bytes() for path in (tmp_path / name).iterdir())
            assert b'secret' not in kept
    row, = rows_of(tmp_path / 'redacted')
    assert 'a XXX' in row['conversations'][0]['value'] and not {'ids', 'turn', 'logprob'} & set(row)
    row, = rows_of(tmp_path / 'none', 'observed')
    assert (row['outcome'], row['turns'], row['arm']) == (0.5, 2, 'advise') and 'messages' not in row


def test_a_full_disk_does_not_stop_the_agent(tmp_path, loaded, monkeypatch, capsys):
    def full(path, content):
        raise OSError(28, 'No space left on device')

    upstream = Upstream(lambda messages: 'fine')
    with serving(upstream.app()) as upstream_url, sidecar(loaded, upstream_url, Plan(), tmp_path) as (url, found):
        with monkeypatch.context() as patch:
            patch.setattr(recording, 'write_atomically', full)
            assert chat(url, [USER], X_Epo_Outcome='1')[:2] == (200, 'fine')
        assert 'No space left' in capsys.readouterr().err and found.counts['record_errors'] == 1
        assert not rows_of(tmp_path)
        chat(url, [USER], X_Epo_Outcome='0.5')
        assert [row['outcome'] for row in rows_of(tmp_path)] == [1.0, 0.5]


def test_a_damaged_database_is_refused(tmp_path, loaded):
    (tmp_path / recording.DATABASE).write_bytes(b'not a database' * 100)
    with pytest.raises(RecordError, match='cannot be used'):
        Recorder(tmp_path, loaded, 'general')


# Results.

def test_arms_are_compared_with_intervals(tmp_path, capsys, loaded):
    rng = np.random.default_rng(0)
    with Recorder(tmp_path, loaded, 'general', rotate=50) as recorder:
        for i in range(120):
            conversation = observed(f'{i}')
            conversation.arm = ('observe', 'advise')[i % 2]
            recorder.save(conversation)
            recorder.close_conversation('c', f'{i}', float(np.clip(rng.normal(0.4 + 0.2 * (i % 2), 0.1), 0, 1)))
        recorder.write_files()
    outcomes = results.read_outcomes(tmp_path)
    first, second = results.compare_arms(outcomes)
    assert (first.condition, second.condition, first.scored, second.scored) == ('observe', 'advise', 60, 60)
    mean, low, high = second.difference
    a, b = (10 * np.array(outcomes[arm]) for arm in ('observe', 'advise'))
    error = 1.96 * np.sqrt(a.var() / 60 + b.var() / 60)
    assert mean == pytest.approx(b.mean() - a.mean()) and (low, high) == pytest.approx((mean - error, mean + error), abs=0.08)
    assert first.difference is None and np.isnan(results.compare_arms({'advise': [0.5]})[0].low)
    results.main([f'--record={tmp_path}'])
    assert 'observe' in capsys.readouterr().out
    with pytest.raises(sharegpt.DataError, match='outcomes'):
        results.read_outcomes(tmp_path / 'none')


# The loop.

@pytest.mark.slow
def test_traffic_becomes_a_better_strategist(tmp_path, loaded, capsys, monkeypatch):
    """Recorded traffic is collected, labeled, prepared and trained on, and the new checkpoint advises."""
    upstream = Upstream(lambda messages: 'Yes.' if len(messages) % 4 else 'No.')
    with serving(upstream.app()) as upstream_url, sidecar(loaded, upstream_url, Plan(mode='ab'), tmp_path / 'traffic',
                                                          rotate=4) as (url, _):
        for i in range(12):
            messages = [SYSTEM, {'role': 'user', 'content': f'Lamp {i}?'}]
            for _ in range(2):
                _, answer, name = chat(url, messages)
                messages += [{'role': 'assistant', 'content': answer}, USER]
            fetch(f'{url}/v1/outcomes', {'conversation': name, 'score': (i + 1) / 12})
    raw, labeled, prepared = (str(tmp_path / f'{name}.jsonl') for name in ('raw', 'labeled', 'prepared'))
    results.main([f'--record={tmp_path}/traffic', f'--out={raw}'])
    count = len(rows_of(tmp_path / 'traffic'))
    assert 2 <= count <= 10 and f'{count} conversations' in capsys.readouterr().out
    label.main([f'--data={raw}', f'--out={labeled}', '--domain=general', '--judge=local', '--model=dummy'])
    prepare.main([f'--data={labeled}', f'--out={prepared}', '--domain=general'])
    config = offline.default_config()
    config.data, config.model.path, config.capacity = prepared, 'dummy', 1024
    config.learner.update(batch=4, micro_batch=2, epochs=1, length_bucket=512, learning_rate=1e-3)
    offline.run(config, str(tmp_path / 'run'))
    trained = loading.load(str(tmp_path / 'run'))
    assert trained.version.startswith('dummy after step') and trained.name == 'run'
    before = loading.load('dummy').language.params['embed']
    assert not np.array_equal(trained.language.params['embed'], before)
    trained.config.strategist = loaded.config.strategist
    with Strategist(trained, start_engine(trained, Options(slots=2, step=4096))) as strategist:
        assert strategist.domain == 'general'
        assert strategist.advise('Sell the lamp.', [USER]).ids
    assert 'serve' in cli.COMMANDS and os.path.exists(tmp_path / 'run')
