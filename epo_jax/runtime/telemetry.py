"""What a run says while it runs: metrics, progress, times, compilations, profiles."""

import collections
import contextlib
import dataclasses
import datetime
import json
import math
import os
from pathlib import Path
import sys
import threading
import time
from typing import Any, Callable, Iterator, Mapping, Optional, Sequence, TextIO, Union
import unicodedata

import jax
from jax.experimental.compilation_cache import compilation_cache
import numpy as np
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress as Bars, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from epo_jax.runtime.files import cut_jsonl

Scalar = Union[bool, int, float, np.generic, np.ndarray, jax.Array]


class MetricsWriter(contextlib.AbstractContextManager):
    """Appends to `metrics.jsonl`, one JSON object a line, and to TensorBoard events under `tensorboard/`.

    A number that is not finite is written as the string 'nan', 'inf' or '-inf': `float(value)` reads all of them.
    A line is on disk when `write` returns. Write an iteration's metrics before saving its checkpoint: then a run
    killed anywhere and resumed leaves the same file as one that was not. Only process 0 writes.
    """

    def __init__(self, workdir: Union[str, Path], resume_step: Optional[int] = None):
        """Opens the files of a run that continues from the checkpoint of iteration `resume_step` (None: none).

        Lines of later iterations, and a line torn by a kill, are cut off; TensorBoard drops its later points.

        Raises:
          ValueError, KeyError: a complete line of metrics.jsonl is not a JSON object, or has no iteration.
        """
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        # Imported here because it imports torch where that is installed, which takes seconds.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        path = Path(workdir) / 'metrics.jsonl'
        last = -math.inf if resume_step is None else resume_step
        cut_jsonl(path, lambda row: row['iteration'] <= last)
        self._file = open(path, 'a', encoding='utf-8')
        directory = Path(workdir) / 'tensorboard'
        directory.mkdir(exist_ok=True)
        # The suffix keeps apart two files begun in the same second, which otherwise have the same name.
        self._events = EventsWriter(str(directory / 'events'), filename_suffix=f'.{time.time_ns()}')
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)  # later points of older files are void
        purge_step = 0 if resume_step is None else resume_step + 1
        self._events.write_event(self._event(wall_time=time.time(), step=purge_step, session_log=start))
        self._events.flush()

    def write(self, iteration: int, scalars: Mapping[str, Scalar]) -> None:
        """Appends one line of Python, NumPy or JAX scalars by name; lines may share an iteration.

        Raises:
          ValueError: naming a key that is not a scalar number, or is 'iteration'; or the writer is closed.
        """
        if not self._writes:
            return
        if 'iteration' in scalars:
            raise ValueError("'iteration' is the line's own key and cannot be a metric")
        values = {name: _number(name, value) for name, value in jax.device_get(dict(scalars)).items()}
        row = {name: value if math.isfinite(value) else str(value) for name, value in values.items()}
        self._file.write(json.dumps({**row, 'iteration': int(iteration)}, sort_keys=True) + '\n')
        self._file.flush()
        os.fsync(self._file.fileno())
        points = [self._summary.Value(tag=name, simple_value=value) for name, value in sorted(values.items())]
        self._events.write_event(self._event(wall_time=time.time(), step=int(iteration),
                                             summary=self._summary(value=points)))
        self._events.flush()

    def close(self) -> None:
        """Closes the files; closing twice is fine."""
        if self._writes and not self._file.closed:
            self._file.close()
            self._events.close()

    def __exit__(self, *exception: Any) -> None:
        self.close()


class CompileCounter:
    """Counts XLA compilations inside `with CompileCounter() as compiles: ...`; entered again, it counts on.

    `count` programs were compiled by XLA, `cache_hits` more came ready from the persistent compilation cache, and
    both together took `seconds`.
    """

    def __init__(self):
        self.count = 0
        self.cache_hits = 0
        self.seconds = 0.0
        self._lock = threading.Lock()  # programs may compile in several threads at once

    def __enter__(self) -> 'CompileCounter':
        jax.monitoring.register_event_listener(self._on_event)
        jax.monitoring.register_event_duration_secs_listener(self._on_duration)
        return self

    def __exit__(self, *exception: Any) -> None:
        jax.monitoring.unregister_event_listener(self._on_event)
        jax.monitoring.unregister_event_duration_listener(self._on_duration)

    def _on_event(self, event: str, **_: Any) -> None:  # JAX passes whatever metadata the event has
        if event == '/jax/compilation_cache/cache_hits':
            with self._lock:
                self.cache_hits += 1
                self.count -= 1  # JAX times reading the cache as a compilation too; that event follows

    def _on_duration(self, event: str, seconds: float, **_: Any) -> None:
        if event == '/jax/core/compile/backend_compile_duration':
            with self._lock:
                self.count += 1
                self.seconds += seconds


def enable_compilation_cache(path: Union[str, Path]) -> None:
    """Keeps every compiled program, however small or quick to compile, in a directory for later processes."""
    jax.config.update('jax_compilation_cache_dir', str(path))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
    jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
    # JAX decides at its first compilation whether there is a cache; this makes it look again.
    compilation_cache.reset_cache()


class Progress:
    """The terminal of a run: which phase of which iteration, how far, how fast, how long still.

        with Progress(total_iterations) as progress:
            progress.start_iteration(1)
            with progress.phase('rollout', total=6, unit='turns') as phase:
                phase.advance(1, tokens=123)

    On a terminal these are live bars; elsewhere (a pipe, a CI log) plain lines without control characters, at most
    one every `interval` seconds. Control characters in given text, which a model may have written, are replaced.
    Only process 0 prints.
    """

    def __init__(self, total_iterations: int, stream: Optional[TextIO] = None, interval: float = 5.0,
                 clock: Callable[[], float] = time.monotonic):
        """Prints to `stream` (None: stdout); `clock` gives seconds."""
        stream = sys.stdout if stream is None else stream
        self._interval, self._clock, self._last_line = interval, clock, -math.inf
        self._total_iterations, self._prefix = total_iterations, ''
        self._live = stream.isatty() and os.environ.get('TERM') != 'dumb'
        # Elsewhere the console has no colours, and is wide enough that nothing wraps.
        options = {} if self._live else {'force_terminal': False, 'color_system': None, 'width': 10_000}
        self._console = Console(file=stream, quiet=jax.process_index() != 0, **options)
        self._bars = Bars(SpinnerColumn(), TextColumn('{task.description}', markup=False), BarColumn(30),
                          TimeElapsedColumn(), console=self._console, transient=True, disable=not self._live)

    def start_iteration(self, iteration: int) -> None:
        """Names the iteration, counted from 1, that the following phases belong to."""
        self.stage(f'iteration {iteration}/{self._total_iterations}')

    def stage(self, name: str) -> None:
        """Names the part of the run that the following phases belong to."""
        self._prefix = f'[{name}] '

    @contextlib.contextmanager
    def phase(self, name: str, total: Optional[int] = None, unit: str = 'steps') -> Iterator['Phase']:
        """One stretch of work of `total` units (None: not known), reported through the `Phase` it gives."""
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
        """Prints text on lines of its own, above the bars where there are any."""
        self._console.print(Text(printable(text)), soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Prints an aligned table; floats get four significant digits, and columns of numbers align right.

        Raises:
          ValueError: a row has not as many cells as there are columns.
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
    """How far a phase is; made by `Progress.phase`. `show` is called with it whenever it has advanced."""

    name: str
    total: Optional[int]
    unit: str
    clock: Callable[[], float]
    show: Callable[['Phase'], None]
    start: float
    done: int = 0
    tokens: int = 0

    def advance(self, steps: int = 1, tokens: int = 0) -> None:
        """Counts finished units, and tokens sampled or trained on meanwhile."""
        self.done += steps
        self.tokens += tokens
        self.show(self)

    def describe(self) -> str:
        """For example '[iteration 1/2] rollout 3/6 turns  41.2 tok/s  ETA 0:01:20'."""
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


class Stopwatch:
    """Seconds by name: `with watch('rollout'): ...`, then `watch.metrics()`."""

    def __init__(self):
        self._seconds = collections.defaultdict(float)

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] += time.perf_counter() - start

    def metrics(self) -> dict[str, float]:
        """{'time/rollout': seconds, …} since the last call; starts again from nothing."""
        metrics = {f'time/{name}': seconds for name, seconds in self._seconds.items()}
        self._seconds.clear()
        return metrics


@contextlib.contextmanager
def profile_trace(path: Optional[Union[str, Path]]) -> Iterator[None]:
    """Records a JAX profiler trace of what runs inside into a directory; None: does nothing."""
    with contextlib.nullcontext() if path is None else jax.profiler.trace(str(path)):
        yield


def printable(text: str) -> str:
    """The text with tabs expanded and every control character but the line feed replaced by U+FFFD."""
    return ''.join(c if c == '\n' or unicodedata.category(c) != 'Cc' else '\ufffd' for c in text.expandtabs(4))


def _cell(value: Any) -> str:
    """A value as the text of one table cell, on one line."""
    text = f'{value:.4g}' if isinstance(value, (float, np.floating)) else str(value)
    return printable(text.replace('\n', ' '))


def _number(name: str, value: Any) -> Union[bool, int, float]:
    """A host scalar as a Python number; float32 and bfloat16 become the float that is exactly equal."""
    if isinstance(value, (np.ndarray, np.generic)) and value.ndim == 0:
        value = value.item()
    if not isinstance(value, (bool, int, float)):
        raise ValueError(f'metric {name!r} is not a scalar number: {value!r}')
    return value
