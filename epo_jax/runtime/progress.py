"""The printed output of a run: progress, lines and tables."""

import contextlib
import dataclasses
import datetime
import math
import os
import sys
import time
from typing import Any, Callable, Iterator, Optional, Sequence, TextIO
import unicodedata

import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress as Bars, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text


class Progress:
    """Prints which phase of which iteration a run is in, how fast it is, and how long it will take.

        with Progress(total_iterations) as progress:
            progress.start_iteration(1)
            with progress.phase('rollout', total=6, unit='turns') as phase:
                phase.advance(1, tokens=123)

    On a terminal it draws live bars; elsewhere (a pipe or log) it prints plain lines, at most one every `interval`
    seconds. It replaces control characters in text, which a model may have written. Only process 0 prints.
    """

    def __init__(self, total_iterations: int, stream: Optional[TextIO] = None, interval: float = 5.0,
                 clock: Callable[[], float] = time.monotonic):
        """Print to `stream`, by default stdout; `clock` returns the time in seconds."""
        stream = sys.stdout if stream is None else stream
        self._interval, self._clock, self._last_line = interval, clock, -math.inf
        self._total_iterations, self._prefix = total_iterations, ''
        self._live = stream.isatty() and os.environ.get('TERM') != 'dumb'
        # Off a terminal, the console has no colors and is so wide that lines do not wrap.
        options = {} if self._live else {'force_terminal': False, 'color_system': None, 'width': 10_000}
        self._console = Console(file=stream, quiet=jax.process_index() != 0, **options)
        self._bars = Bars(SpinnerColumn(), TextColumn('{task.description}', markup=False), BarColumn(30),
                          TimeElapsedColumn(), console=self._console, transient=True, disable=not self._live)

    def start_iteration(self, iteration: int) -> None:
        """Set the iteration, counted from 1, to which the following phases belong."""
        self.stage(f'iteration {iteration}/{self._total_iterations}')

    def stage(self, name: str) -> None:
        """Set the part of the run to which the following phases belong."""
        self._prefix = f'[{name}] '

    @contextlib.contextmanager
    def phase(self, name: str, total: Optional[int] = None, unit: str = 'steps') -> Iterator['Phase']:
        """Yield a `Phase` through which work of `total` units (None if unknown) reports its progress."""
        bar = self._bars.add_task(printable(self._prefix + name), total=total)

        def show(phase: Phase) -> None:
            self._bars.update(bar, completed=phase.done, description=printable(phase.describe()))
            if not self._live and self._clock() - self._last_line >= self._interval:
                self._last_line = self._clock()
                self.line(phase.describe())

        phase = Phase(self._prefix + name, total, unit, self._clock, show, self._clock())
        show(phase)
        try:
            yield phase
        finally:
            self._bars.remove_task(bar)

    def line(self, text: str) -> None:
        """Print text above the bars."""
        self._console.print(Text(printable(text)), soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Print an aligned table; floats get four significant digits, and columns of numbers align right.

        Raises:
          ValueError: a row does not have one cell for each column.
        """
        ragged = [row for row in rows if len(row) != len(columns)]
        if ragged:
            raise ValueError(f'table {title!r} has {len(columns)} columns, but a row is {ragged[0]!r}')
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for c, name in enumerate(columns):
            numeric = all(isinstance(row[c], (int, float, np.number)) for row in rows)
            table.add_column(Text(printable(name)), justify='right' if numeric else 'left', overflow='fold')
        for row in rows:
            table.add_row(*(Text(_cell(cell)) for cell in row))
        self.line(title)
        self._console.print(table)

    def __enter__(self) -> 'Progress':
        self._bars.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._bars.stop()


@dataclasses.dataclass
class Phase:
    """The state of a phase, made by `Progress.phase`; `show` is called whenever it advances."""

    name: str
    total: Optional[int]
    unit: str
    clock: Callable[[], float]
    show: Callable[['Phase'], None]
    start: float
    done: int = 0
    tokens: int = 0

    def advance(self, steps: int = 1, tokens: int = 0) -> None:
        """Add finished units, and the tokens that they sampled or trained on."""
        self.done += steps
        self.tokens += tokens
        self.show(self)

    def describe(self) -> str:
        """Return a line such as '[iteration 1/2] rollout 3/6 turns  41.2 tok/s  ETA 0:01:20'."""
        seconds = self.clock() - self.start
        of = '' if self.total is None else f'/{self.total}'
        parts = [f'{self.name} {self.done}{of} {self.unit}']
        if seconds > 0 and self.tokens:
            parts.append(f'{self.tokens / seconds:.1f} tok/s')
        elif seconds > 0 and self.done:
            parts.append(f'{self.done / seconds:.2f} {self.unit}/s')
        if self.total is not None and 0 < self.done < self.total:
            left = datetime.timedelta(seconds=round(seconds / self.done * (self.total - self.done)))
            parts.append(f'ETA {left}')
        return '  '.join(parts)


def printable(text: str) -> str:
    """Return text with tabs expanded and every control character except the line feed replaced by U+FFFD."""
    return ''.join(c if c == '\n' or unicodedata.category(c) != 'Cc' else '\ufffd' for c in text.expandtabs(4))


def _cell(value: Any) -> str:
    """Return a value as the text of a table cell, on one line."""
    text = f'{value:.4g}' if isinstance(value, (float, np.floating)) else str(value)
    return printable(text.replace('\n', ' '))
