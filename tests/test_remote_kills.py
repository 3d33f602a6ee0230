"""Evaluations that are killed: the table is that of an undisturbed one, and no recorded answer is asked for again."""

import collections
import contextlib
import json
import os
import pathlib
import random
import signal
import sqlite3
import subprocess
import sys
import time

from fake_endpoint import serve
import pytest
from test_remote_runs import answer

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parent.parent
EPISODES, BATCH, KILLS = 40, 8, 10
FLAGS = ['--config=sotopia:tiny', f'--config.evaluation.episodes={EPISODES // 2}', "--config.evaluation.conditions=('none',)",
         f'--config.rollout.batch={BATCH}', '--config.environment.max_turns=8', '--config.evaluation.bootstrap=50']


def start(out, cache, url):
    """Start the evaluation in a process; both orders of speaking are played against the partner."""
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu', 'OPENAI_API_KEY': 'key',
                   'JAX_COMPILATION_CACHE_DIR': str(cache), 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
    with open(out.with_suffix('.log'), 'a') as file:
        return subprocess.Popen(
            [sys.executable, '-m', 'epo_jax.evaluate', *FLAGS, f'--out={out}', f'--config.partner.model=m@{url}',
             f'--config.judge.model=m@{url}'], stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=ROOT)


def recorded(out):
    """Return the requests in the record of an evaluation, as the endpoint logs them."""
    path = out / 'answers' / 'answers.sqlite'
    if not path.exists():
        return set()
    with contextlib.closing(sqlite3.connect(path)) as database:
        with contextlib.suppress(sqlite3.OperationalError):  # killed before it made its table
            rows = database.execute('SELECT request FROM completions').fetchall()
            requests = [json.loads(text) for text, in rows]
            return {(request['messages'][-1][1], request['seed']) for request in requests}
    return set()


def test_an_evaluation_that_is_killed_ten_times_ends_with_the_same_table(tmp_path):
    rng = random.Random(0)
    with serve(answer, delay=0.2) as server:
        whole, killed, cache = tmp_path / 'whole', tmp_path / 'killed', tmp_path / 'cache'
        assert start(whole, cache, server.url).wait(600) == 0, whole.with_suffix('.log').read_text()
        once = collections.Counter(server.requests)
        assert set(once.values()) == {1} and len(once) > 4 * EPISODES
        server.requests.clear()
        for kill in range(KILLS):
            before, known = len(server.requests), recorded(killed)
            process = start(killed, cache, server.url)
            # At any moment: before the first request of this life, or after some of them.
            wanted, deadline = rng.choice((0, *range(1, 2 * EPISODES // KILLS))), time.monotonic() + rng.uniform(0, 8)
            while process.poll() is None and (
                    len(server.requests) < before + wanted if wanted else time.monotonic() < deadline):
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.3))
            assert process.poll() is None, killed.with_suffix('.log').read_text()
            process.send_signal(signal.SIGKILL)
            process.wait()
            after = recorded(killed)
            while server.now:  # answers to nobody
                time.sleep(0.01)
            asked = server.requests[before:]
            assert not known & set(asked) and known <= after
            assert len(set(asked) - after) <= BATCH  # were in flight
        known, before = recorded(killed), len(server.requests)
        assert start(killed, cache, server.url).wait(600) == 0, killed.with_suffix('.log').read_text()
        assert not known & set(server.requests[before:])
        assert set(server.requests) == set(once)
        assert len(server.requests) - len(once) <= KILLS * BATCH
        print(f'{len(server.requests) - len(once)} of {len(once)} answers were lost by {KILLS} kills')
        for name in ('evaluation.json', 'episodes/evaluation.jsonl'):
            assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
        asked = len(server.requests)
        assert start(killed, cache, server.url).wait(600) == 0 and len(server.requests) == asked
    assert 'Traceback' not in killed.with_suffix('.log').read_text()
