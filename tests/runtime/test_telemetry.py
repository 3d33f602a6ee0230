import io
import json
import os
import struct
import subprocess
import sys
import unicodedata

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from epo_jax.runtime import files, telemetry


def fill(workdir, first, last, resume_step=None):
    with telemetry.MetricsWriter(workdir, resume_step) as metrics:
        for iteration in range(first, last + 1):
            metrics.write(iteration, {'loss': 1 / (iteration + 1), 'episodes': 4 * iteration})


def events(workdir):
    """Every event, file after file, read by the format's definition: length, its crc, data, its crc."""
    for path in sorted((workdir / 'tensorboard').iterdir()):
        data = path.read_bytes()
        while data:
            length, = struct.unpack('<Q', data[:8])
            yield event_pb2.Event.FromString(data[12:12 + length])
            data = data[16 + length:]


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    """Seconds that pass only when told."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def controls(text):
    return {c for c in text if unicodedata.category(c) == 'Cc'} - {'\n'}


# Files.

def test_write_atomically_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / 'a file'
    files.write_atomically(path, 'one')
    files.write_atomically(str(path), 'zwei ü\n')
    assert path.read_text(encoding='utf-8') == 'zwei ü\n'
    files.write_atomically(path, b'\x00\xff')
    assert path.read_bytes() == b'\x00\xff'
    assert list(tmp_path.iterdir()) == [path]


def test_write_atomically_keeps_the_old_file_on_failure(tmp_path, monkeypatch):
    path = tmp_path / 'file'
    files.write_atomically(path, 'old')

    def full(descriptor):
        raise OSError('disk full')

    monkeypatch.setattr(files.os, 'fsync', full)
    with pytest.raises(OSError, match='disk full'):
        files.write_atomically(path, 'new')
    assert path.read_text() == 'old' and list(tmp_path.iterdir()) == [path]


def test_jsonl_comes_back(tmp_path):
    rows = [{'text': 'ü\u2028\n"', 'x': 0.1}, {'none': None, 'list': [1, 2]}]
    files.write_jsonl(tmp_path / 'rows.jsonl', rows)
    assert files.read_jsonl(tmp_path / 'rows.jsonl') == rows
    with pytest.raises(ValueError):
        files.write_jsonl(tmp_path / 'rows.jsonl', [{'x': float('nan')}])
    assert files.read_jsonl(tmp_path / 'rows.jsonl') == rows


def test_jsonl_names_the_bad_line(tmp_path):
    path = tmp_path / 'rows.jsonl'
    for bad in ('{"b": ', '[2]'):
        path.write_text('{"a": 1}\n' + bad)
        with pytest.raises(ValueError, match='rows.jsonl, line 2'):
            files.read_jsonl(path)


# Metrics.

def test_metrics_are_exact_sorted_and_valid_json(tmp_path):
    scalars = {'z': 0.1 + 0.2, 'f32': jnp.float32(0.1), 'bf16': jnp.bfloat16(1.0078125), 'i': np.int64(2**60),
               'a': True, 'nan': jnp.nan, 'up': float('inf'), 'down': -jnp.inf, 'tiny': 5e-324}
    with telemetry.MetricsWriter(tmp_path) as metrics:
        metrics.write(jnp.int32(3), scalars)
    text = (tmp_path / 'metrics.jsonl').read_text()

    def refuse(name):
        raise AssertionError(f'{name} is not JSON')

    row = json.loads(text, parse_constant=refuse)
    assert list(row) == sorted(row) and text.count('\n') == 1
    assert row == {'z': 0.1 + 0.2, 'f32': float(np.float32(0.1)), 'bf16': 1.0078125, 'i': 2**60, 'a': True,
                   'nan': 'nan', 'up': 'inf', 'down': '-inf', 'tiny': 5e-324, 'iteration': 3}


@pytest.mark.parametrize('scalars', [{'x': np.zeros(1)}, {'x': 'high'}, {'x': None}, {'iteration': 1}])
def test_metrics_refuse_what_is_no_scalar(tmp_path, scalars):
    with telemetry.MetricsWriter(tmp_path) as metrics:
        with pytest.raises(ValueError, match="'(x|iteration)'"):
            metrics.write(1, scalars)
    assert (tmp_path / 'metrics.jsonl').read_text() == ''


def test_closed_metrics_cannot_be_written(tmp_path):
    metrics = telemetry.MetricsWriter(tmp_path)
    metrics.close()
    metrics.close()
    with pytest.raises(ValueError):
        metrics.write(1, {'x': 1})


@pytest.mark.parametrize('torn', ['', '{"iteration": 6, "lo', '{"iteration": 2}'])
def test_resumed_metrics_equal_uninterrupted_ones(tmp_path, torn):
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    for workdir in (whole, killed):
        workdir.mkdir()
    fill(whole, 0, 7)
    fill(killed, 0, 5)
    with open(killed / 'metrics.jsonl', 'a') as file:
        file.write(torn)
    fill(killed, 4, 7, resume_step=3)
    assert (killed / 'metrics.jsonl').read_bytes() == (whole / 'metrics.jsonl').read_bytes()


def test_metrics_survive_sigkill(tmp_path):
    code = ('import os, signal, sys\nfrom epo_jax.runtime.telemetry import MetricsWriter\n'
            'metrics = MetricsWriter(sys.argv[1])\nmetrics.write(1, {"x": 1.5})\n'
            'os.kill(os.getpid(), signal.SIGKILL)\n')
    subprocess.run([sys.executable, '-c', code, str(tmp_path)], env={**os.environ, 'JAX_PLATFORMS': 'cpu'})
    assert files.read_jsonl(tmp_path / 'metrics.jsonl') == [{'iteration': 1, 'x': 1.5}]
    assert [value.simple_value for event in events(tmp_path) for value in event.summary.value] == [1.5]


def test_a_run_without_checkpoint_starts_metrics_again(tmp_path):
    fill(tmp_path, 0, 2)
    fill(tmp_path, 0, 0)
    assert [row['iteration'] for row in files.read_jsonl(tmp_path / 'metrics.jsonl')] == [0]


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    path.write_text('{"iteration": 1}\n{"itera\n{"iteration": 3}\n')
    with pytest.raises(ValueError, match='line 2'):
        telemetry.MetricsWriter(tmp_path, resume_step=3)
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
    with telemetry.Progress(1, stream) as progress:
        progress.line('hello')
        progress.table('title', ['a'], [[1]])
    assert list(tmp_path.iterdir()) == [] and stream.getvalue() == ''


# Compilations.

def test_compile_counter_counts_new_programs_only():
    inputs = [np.ones(n, np.float32) for n in (5, 6)]
    with telemetry.CompileCounter() as compiles:
        f = jax.jit(lambda x: jnp.sin(x) * 3)
        f(inputs[0])
        assert (compiles.count, compiles.cache_hits) == (1, 0) and compiles.seconds > 0
        f(inputs[0])
        assert compiles.count == 1
        f(inputs[1])
        assert compiles.count == 2
    f(np.ones(7, np.float32))
    assert compiles.count == 2
    with compiles:
        f(np.ones(8, np.float32))
    assert compiles.count == 3


def test_persistent_cache_hits_are_not_compilations(tmp_path):
    names = ('jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs',
             'jax_persistent_cache_min_entry_size_bytes')
    before = {name: getattr(jax.config, name) for name in names}
    x = np.ones(5, np.float32)

    def g(x):
        return jnp.cos(x) * 7

    try:
        telemetry.enable_compilation_cache(tmp_path / 'cache')
        with telemetry.CompileCounter() as compiles:
            jax.jit(g)(x)
            assert (compiles.count, compiles.cache_hits) == (1, 0)
            jax.clear_caches()
            jax.jit(g)(x)
        assert (compiles.count, compiles.cache_hits) == (1, 1)
        assert any((tmp_path / 'cache').iterdir())
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        telemetry.compilation_cache.reset_cache()


# The terminal.

def test_plain_progress_lines():
    stream, clock = io.StringIO(), Clock()
    with telemetry.Progress(2, stream, interval=5, clock=clock) as progress:
        progress.start_iteration(1)
        with progress.phase('rollout', total=6, unit='turns') as phase:
            for _ in range(3):
                clock.now += 2
                phase.advance(1, tokens=100)
        with progress.phase('judge', unit='calls') as phase:
            clock.now += 10
            phase.advance(5)
        progress.line('done [bold]now[/bold]')
    assert stream.getvalue().splitlines() == [
        '[iteration 1/2] rollout 0/6 turns',
        '[iteration 1/2] rollout 3/6 turns  50.0 tok/s  ETA 0:00:06',
        '[iteration 1/2] judge 5 calls  0.50 calls/s',
        'done [bold]now[/bold]',
    ]


def test_plain_progress_has_no_control_characters():
    stream, clock = io.StringIO(), Clock()
    with telemetry.Progress(1, stream, interval=0, clock=clock) as progress:
        progress.start_iteration(1)
        with progress.phase('roll\x1b[2Jout', total=2) as phase:
            phase.advance()
        progress.line('a\tb\r\x1b[31mred\x07\nsecond \x9b line' + ' long' * 100)
        progress.table('Ti\x1btle', ['na\x08me', 'score'], [['x\ny\x1b', 1.23456789], ['日本', float('nan')]])
    text = stream.getvalue()
    assert controls(text) == set()
    assert '\nsecond ' in text and ' long' * 100 in text and '[31mred' in text


def test_plain_progress_ignores_forced_colours(monkeypatch):
    monkeypatch.setenv('FORCE_COLOR', '1')
    stream = io.StringIO()
    with telemetry.Progress(1, stream) as progress:
        progress.table('title', ['name'], [['x']])
        with progress.phase('phase'):
            pass
    assert controls(stream.getvalue()) == set()


def test_table_is_aligned_in_both_modes():
    for stream in (io.StringIO(), Terminal()):
        with telemetry.Progress(1, stream) as progress:
            progress.table('Ratings', ['player', 'elo'], [['policy', 1012.3456], ['a' * 30, 9]])
            with pytest.raises(ValueError, match='Ratings'):
                progress.table('Ratings', ['player', 'elo'], [['policy']])
        lines = stream.getvalue().splitlines()
        row, other = (next(line for line in lines if key in line).rstrip() for key in ('policy', 'aaa'))
        assert row.endswith('1012') and other.endswith('9') and len(row) == len(other)
        assert any('Ratings' in line for line in lines)


def test_terminal_progress_draws_bars_and_keeps_lines(monkeypatch):
    monkeypatch.setenv('TERM', 'xterm')
    stream = Terminal()
    with telemetry.Progress(1, stream) as progress:
        progress.start_iteration(1)
        with progress.phase('rollout', total=2, unit='turns') as phase:
            phase.advance()
            progress.line('in [between]\x1b')
            phase.advance()
    text = stream.getvalue()
    assert '\x1b[' in text and '[iteration 1/1] rollout' in text and 'in [between]\ufffd' in text
    assert text.rstrip().endswith(('\x1b[?25h', '\x1b[2K'))  # the cursor is back, the bar is gone


def test_progress_gives_the_terminal_back_after_an_error(monkeypatch):
    monkeypatch.setenv('TERM', 'xterm')
    stream = Terminal()
    with pytest.raises(RuntimeError):
        with telemetry.Progress(1, stream) as progress, progress.phase('rollout'):
            raise RuntimeError
    assert '\x1b[?25h' in stream.getvalue()


# Times and profiles.

def test_stopwatch_adds_up_and_resets():
    watch = telemetry.Stopwatch()
    for _ in range(2):
        with watch('rollout'):
            pass
    with pytest.raises(RuntimeError), watch('update'):
        raise RuntimeError
    metrics = watch.metrics()
    assert list(metrics) == ['time/rollout', 'time/update'] and all(0 < value < 1 for value in metrics.values())
    assert watch.metrics() == {}


def test_profile_trace(tmp_path):
    with telemetry.profile_trace(None):
        pass
    with telemetry.profile_trace(tmp_path / 'profile'):
        jnp.ones(3).block_until_ready()
    assert any(path.is_file() for path in (tmp_path / 'profile').rglob('*'))
