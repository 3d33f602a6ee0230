"""Progress on a terminal and elsewhere."""

import io
import unicodedata

import pytest

from epo_jax.runtime.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    """A clock that tests advance."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def controls(text):
    return {c for c in text if unicodedata.category(c) == 'Cc'} - {'\n'}


def test_plain_progress_lines():
    stream, clock = io.StringIO(), Clock()
    with Progress(2, stream, interval=5, clock=clock) as progress:
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
    with Progress(1, stream, interval=0, clock=clock) as progress:
        progress.start_iteration(1)
        with progress.phase('roll\x1b[2Jout', total=2) as phase:
            phase.advance()
        progress.line('a\tb\r\x1b[31mred\x07\nsecond \x9b line' + ' long' * 100)
        progress.table('Ti\x1btle', ['na\x08me', 'score'], [['x\ny\x1b', 1.23456789], ['日本', float('nan')]])
    text = stream.getvalue()
    assert controls(text) == set()
    assert '\nsecond ' in text and ' long' * 100 in text and '[31mred' in text


def test_plain_progress_ignores_forced_colors(monkeypatch):
    monkeypatch.setenv('FORCE_COLOR', '1')
    stream = io.StringIO()
    with Progress(1, stream) as progress:
        progress.table('title', ['name'], [['x']])
        with progress.phase('phase'):
            pass
    assert controls(stream.getvalue()) == set()


def test_table_is_aligned_in_both_modes():
    for stream in (io.StringIO(), Terminal()):
        with Progress(1, stream) as progress:
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
    with Progress(1, stream) as progress:
        progress.start_iteration(1)
        with progress.phase('rollout', total=2, unit='turns') as phase:
            phase.advance()
            progress.line('in [between]\x1b')
            phase.advance()
    text = stream.getvalue()
    assert '\x1b[' in text and '[iteration 1/1] rollout' in text and 'in [between]\ufffd' in text
    assert text.rstrip().endswith(('\x1b[?25h', '\x1b[2K'))  # the cursor is visible again, and the bar is gone


def test_progress_restores_the_terminal_after_an_error(monkeypatch):
    monkeypatch.setenv('TERM', 'xterm')
    stream = Terminal()
    with pytest.raises(RuntimeError):
        with Progress(1, stream) as progress, progress.phase('rollout'):
            raise RuntimeError
    assert '\x1b[?25h' in stream.getvalue()
