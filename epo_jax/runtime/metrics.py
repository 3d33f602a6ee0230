"""Metrics of a run as JSON lines and TensorBoard events."""

import contextlib
import json
import math
import os
from pathlib import Path
import time
from typing import Any, Mapping, Optional, Union

import jax
import numpy as np

from epo_jax.runtime.files import LineError, cut_jsonl, naming

Scalar = Union[bool, int, float, np.generic, np.ndarray, jax.Array]


class MetricsWriter(contextlib.AbstractContextManager):
    """Appends to `metrics.jsonl`, one JSON object per line, and to TensorBoard events under `tensorboard/`.

    Numbers that are not finite are written as the strings 'nan', 'inf' and '-inf', which `float` reads. A line is on
    disk when `write` returns. If the metrics of an iteration are written before its checkpoint, a killed and resumed
    run leaves the same file as an uninterrupted one. Only process 0 writes.
    """

    def __init__(self, workdir: Union[str, Path], resume_step: Optional[int] = None):
        """Open the files, and drop lines after `resume_step` and an incomplete last line.

        TensorBoard hides the dropped points.

        Args:
          workdir: the directory of the run, which must exist.
          resume_step: the iteration of the checkpoint from which the run resumes, or None without a checkpoint.

        Raises:
          LineError: a complete line of metrics.jsonl is not a JSON object, or has no iteration.
        """
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        # tensorboardX imports torch, if that is installed, which takes seconds.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        path = Path(workdir) / 'metrics.jsonl'
        last = -math.inf if resume_step is None else resume_step
        cut_metrics(path, last)
        self._file = open(path, 'a', encoding='utf-8')
        directory = Path(workdir) / 'tensorboard'
        directory.mkdir(exist_ok=True)
        # The suffix distinguishes files that are opened in the same second.
        self._events = EventsWriter(str(directory / 'events'), filename_suffix=f'.{time.time_ns()}')
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)  # hides later points of older files
        purge_step = 0 if resume_step is None else resume_step + 1
        self._events.write_event(self._event(wall_time=time.time(), step=purge_step, session_log=start))
        self._events.flush()

    def write(self, iteration: int, scalars: Mapping[str, Scalar]) -> None:
        """Append one line with Python, NumPy or JAX scalars by name; an iteration may have several lines.

        Raises:
          ValueError: a value is not a scalar number, a key is 'iteration', or the writer is closed.
        """
        if not self._writes:
            return
        if 'iteration' in scalars:
            raise ValueError("a metric cannot be named 'iteration', which is a key of every line")
        values = {name: _number(name, value) for name, value in jax.device_get(dict(scalars)).items()}
        row = {name: value if math.isfinite(value) else str(value) for name, value in values.items()}
        with naming(self._file.name):
            self._file.write(json.dumps({**row, 'iteration': int(iteration)}, sort_keys=True) + '\n')
            self._file.flush()
            os.fsync(self._file.fileno())
        points = [self._summary.Value(tag=name, simple_value=value) for name, value in sorted(values.items())]
        self._events.write_event(self._event(wall_time=time.time(), step=int(iteration),
                                             summary=self._summary(value=points)))
        self._events.flush()

    def close(self) -> None:
        """Close the files; closing twice does nothing."""
        if self._writes and not self._file.closed:
            self._file.close()
            self._events.close()

    def __exit__(self, *exception: Any) -> None:
        self.close()


def cut_metrics(path: Path, last: float = math.inf) -> None:
    """Remove the lines after an iteration, and an incomplete last line, from metrics.jsonl, if it exists.

    Raises:
      LineError: a complete line is not a JSON object, or has no iteration.
    """
    def keep(row: dict[str, Any]) -> bool:
        iteration = row.get('iteration')
        if not isinstance(iteration, int):
            raise LineError(f'{path}: a line has no iteration: {json.dumps(row)[:80]}')
        return iteration <= last

    try:
        cut_jsonl(path, keep)
    except LineError as error:
        raise LineError(f'{error}; remove the line, or start in a new --workdir') from error


def _number(name: str, value: Any) -> Union[bool, int, float]:
    """Return a scalar as a Python number of the same value."""
    if isinstance(value, (np.ndarray, np.generic)) and value.ndim == 0:
        value = value.item()
    if not isinstance(value, (bool, int, float)):
        raise ValueError(f'metric {name!r} is not a scalar number: {value!r}')
    return value
