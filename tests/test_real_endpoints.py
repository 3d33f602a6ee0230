"""Evaluations with real servers as partner and judge: our own, and that of llama-cpp-python with SmolLM2."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from test_experiment import small_config

from epo_jax import evaluate
from epo_jax.language import find_model
from epo_jax.runtime.errors import InputError
from epo_jax.runtime.files import read_jsonl

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parent.parent


@contextlib.contextmanager
def server(log, *command):
    """Start a server on a free port of this machine, which writes to a log; yield its base URL when it answers."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}
    with open(log, 'w') as file:
        process = subprocess.Popen([sys.executable, '-m', *command, '--host', '127.0.0.1', '--port', str(port)], cwd=ROOT,
                                   env=environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        url = f'http://127.0.0.1:{port}/v1'
        while True:
            assert process.poll() is None, pathlib.Path(log).read_text()
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f'{url}/models', timeout=5).read()
                break
            time.sleep(0.2)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def played_with(url, model, out):
    """Evaluate a few episodes with a model as partner and judge; return the table and the records."""
    config = small_config()
    config.environment.max_turns = 4
    config.actor.update(max_tokens=16, model=f'{model}@{url}')
    config.partner.model = config.judge.model = config.actor.model
    config.reward.outcome = 'judge'
    config.evaluation.update(episodes=1, conditions=('none', f'{model}@{url}'), bootstrap=20)
    config.remote.update(key_variable='', timeout=600.0, concurrency=4, body='{"max_tokens": 100}')
    rows = evaluate.run(config, out)
    return rows, read_jsonl(out / 'episodes/evaluation.jsonl')


def check(rows, records):
    """Check that the model was the partner, and that it rated every episode or is named as the reason why not."""
    assert len(rows) == 2 and len(records) == 2 * 2 == sum(row.scored + row.missing for row in rows)
    for record in records:
        assert record['failure'] is None or 'of seat' in record['failure']
        for seat in record['seats']:
            missing = seat['judge'].get('missing')
            if not seat['judge']['by_rule']:
                assert bool(missing or record['failure']) == (seat['outcome'] is None)
    assert any(turn['line'] for record in records for turn in record['turns'])


def test_our_own_server_is_partner_and_judge(tmp_path):
    with server(tmp_path / 'log', 'epo_jax.serve', '--model=dummy', '--slots=4', '--capacity=8192') as url:
        rows, records = played_with(url, 'dummy', tmp_path / 'out')
    check(rows, records)
    reasons = {seat['judge'].get('missing', '') for record in records for seat in record['seats']}
    assert any('there is no JSON object' in reason or 'cut off' in reason for reason in reasons), reasons


def test_llama_cpp_is_partner_and_judge(tmp_path):
    pytest.importorskip('llama_cpp.server.app')
    try:
        model = find_model('smollm2')
    except InputError as error:
        pytest.skip(str(error))
    with server(tmp_path / 'log', 'llama_cpp.server', '--model', model, '--n_ctx', '4096', '--model_alias', 'smollm2') as url:
        rows, records = played_with(url, 'smollm2', tmp_path / 'out')
    check(rows, records)
