"""Metrics are exact, survive a kill, and resume after a checkpoint."""

import io
import json
import os
import struct
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from epo_jax.runtime import files
from epo_jax.runtime.metrics import MetricsWriter
from epo_jax.runtime.progress import Progress


def fill(workdir, first, last, resume_step=None):
    with MetricsWriter(workdir, resume_step) as metrics:
        for iteration in range(first, last + 1):
            metrics.write(iteration, {'loss': 1 / (iteration + 1), 'episodes': 4 * iteration})


def events(workdir):
    """Yield the events of all files, parsed by the format's definition: length, CRC of length, data, CRC of data."""
    for path in sorted((workdir / 'tensorboard').iterdir()):
        data = path.read_bytes()
        while data:
            length, = struct.unpack('<Q', data[:8])
            yield event_pb2.Event.FromString(data[12:12 + length])
            data = data[16 + length:]


def test_metrics_are_exact_sorted_and_valid_json(tmp_path):
    scalars = {'z': 0.1 + 0.2, 'f32': jnp.float32(0.1), 'bf16': jnp.bfloat16(1.0078125), 'i': np.int64(2**60),
               'a': True, 'nan': jnp.nan, 'up': float('inf'), 'down': -jnp.inf, 'tiny': 5e-324}
    with MetricsWriter(tmp_path) as metrics:
        metrics.write(jnp.int32(3), scalars)
    text = (tmp_path / 'metrics.jsonl').read_text()

    def refuse(name):
        raise AssertionError(f'{name} is not JSON')

    row = json.loads(text, parse_constant=refuse)
    assert list(row) == sorted(row) and text.count('\n') == 1
    assert row == {'z': 0.1 + 0.2, 'f32': float(np.float32(0.1)), 'bf16': 1.0078125, 'i': 2**60, 'a': True,
                   'nan': 'nan', 'up': 'inf', 'down': '-inf', 'tiny': 5e-324, 'iteration': 3}


@pytest.mark.parametrize('scalars', [{'x': np.zeros(1)}, {'x': 'high'}, {'x': None}, {'iteration': 1}])
def test_metrics_refuse_values_that_are_not_scalars(tmp_path, scalars):
    with MetricsWriter(tmp_path) as metrics:
        with pytest.raises(ValueError, match="'(x|iteration)'"):
            metrics.write(1, scalars)
    assert (tmp_path / 'metrics.jsonl').read_text() == ''


def test_closed_metrics_cannot_be_written(tmp_path):
    metrics = MetricsWriter(tmp_path)
    metrics.close()
    metrics.close()
    with pytest.raises(ValueError):
        metrics.write(1, {'x': 1})


@pytest.mark.parametrize('torn', ['', '{"iteration": 6, "lo', '{"iteration": 2}'])
def test_resumed_metrics_equal_uninterrupted_ones(tmp_path, torn):
    complete, killed = tmp_path / 'complete', tmp_path / 'killed'
    for workdir in (complete, killed):
        workdir.mkdir()
    fill(complete, 0, 7)
    fill(killed, 0, 5)
    with open(killed / 'metrics.jsonl', 'a') as file:
        file.write(torn)
    fill(killed, 4, 7, resume_step=3)
    assert (killed / 'metrics.jsonl').read_bytes() == (complete / 'metrics.jsonl').read_bytes()


def test_metrics_survive_sigkill(tmp_path):
    code = ('import os, signal, sys\nfrom epo_jax.runtime.metrics import MetricsWriter\n'
            'metrics = MetricsWriter(sys.argv[1])\nmetrics.write(1, {"x": 1.5})\n'
            'os.kill(os.getpid(), signal.SIGKILL)\n')
    subprocess.run([sys.executable, '-c', code, str(tmp_path)], env={**os.environ, 'JAX_PLATFORMS': 'cpu'})
    assert files.read_jsonl(tmp_path / 'metrics.jsonl') == [{'iteration': 1, 'x': 1.5}]
    assert [value.simple_value for event in events(tmp_path) for value in event.summary.value] == [1.5]


def test_a_run_without_a_checkpoint_restarts_its_metrics(tmp_path):
    fill(tmp_path, 0, 2)
    fill(tmp_path, 0, 0)
    assert [row['iteration'] for row in files.read_jsonl(tmp_path / 'metrics.jsonl')] == [0]


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    path.write_text('{"iteration": 1}\n{"itera\n{"iteration": 3}\n')
    with pytest.raises(ValueError, match='line 2'):
        MetricsWriter(tmp_path, resume_step=3)
    assert path.read_text().count('\n') == 3


def test_tensorboard_events_are_readable_and_purged(tmp_path):
    fill(tmp_path, 0, 2)
    fill(tmp_path, 2, 3, resume_step=1)
    log = list(events(tmp_path))
    assert log[0].file_version == 'brain.Event:2'
    starts = [event.step for event in log if event.session_log.status == event_pb2.SessionLog.START]
    assert starts == [0, 2]
    points = [(event.step, value.tag, value.simple_value) for event in log for value in event.summary.value]
    assert points[:2] == [(0, 'episodes', 0.0), (0, 'loss', 1.0)]
    assert [step for step, tag, _ in points if tag == 'loss'] == [0, 1, 2, 2, 3]


def test_only_process_zero_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, 'process_index', lambda: 1)
    fill(tmp_path, 0, 1)
    stream = io.StringIO()
    with Progress(1, stream) as progress:
        progress.line('hello')
        progress.table('title', ['a'], [[1]])
    assert list(tmp_path.iterdir()) == [] and stream.getvalue() == ''
