"""Progress of a pass over a file on stderr, without the libraries that take seconds to import."""

import datetime
import sys
import time
from typing import Callable, Optional, TextIO


class FileProgress:
    """Progress bar that rewrites its line on a terminal and prints a line every `interval` seconds elsewhere."""

    def __init__(self, name: str, size: int, stream: Optional[TextIO] = None, interval: float = 5.0,
                 clock: Callable[[], float] = time.monotonic):
        """Start the clock.

        Args:
          name: Label at the start of the line.
          size: Size of the file in bytes.
          stream: Where to print; None for stderr.
          interval: Seconds between two lines if `stream` is not a terminal.
          clock: Function that returns seconds.
        """
        self._name, self._size, self._stream, self._clock = name, max(size, 1), stream or sys.stderr, clock
        self._live = self._stream.isatty()
        self._interval = 0.1 if self._live else interval
        self._start = self._last = clock()

    def show(self, position: int, text: str, last: bool = False) -> None:
        """Show that the file is done up to byte `position`, if a new line is due or this is the last one."""
        now = self._clock()
        if not last and now - self._last < self._interval:
            return
        self._last = now
        fraction, seconds = min(position / self._size, 1.0), now - self._start
        remaining = ''
        if 0 < fraction < 1:
            remaining = f'  ETA {datetime.timedelta(seconds=round(seconds * (1 - fraction) / fraction))}'
        bar = '#' * round(20 * fraction)
        line = f'{self._name} [{bar:<20}] {100 * fraction:3.0f}%  {text}{remaining}'
        self._stream.write(f'\r\x1b[K{line}' + '\n' * last if self._live else line + '\n')
        self._stream.flush()
