"""Progress of a pass over a file on stderr, without the libraries that take seconds to import."""

import datetime
import sys
import time


class FileProgress:
    """Progress bar that rewrites its line on a terminal and prints a line every five seconds elsewhere."""

    def __init__(self, name: str, size: int):
        """Start the clock.

        Args:
          name: Label at the start of the line.
          size: Size of the file in bytes.
        """
        self._name, self._size = name, max(size, 1)
        self._live = sys.stderr.isatty()
        self._interval = 0.1 if self._live else 5.0
        self._start = self._last = time.monotonic()

    def show(self, position: int, text: str, last: bool = False) -> None:
        """Show that the file is done up to byte `position`, if a new line is due or this is the last one."""
        now = time.monotonic()
        if not last and now - self._last < self._interval:
            return
        self._last = now
        fraction, seconds = min(position / self._size, 1.0), now - self._start
        remaining = ''
        if 0 < fraction < 1:
            remaining = f'  ETA {datetime.timedelta(seconds=round(seconds * (1 - fraction) / fraction))}'
        bar = '#' * round(20 * fraction)
        line = f'{self._name} [{bar:<20}] {100 * fraction:3.0f}%  {text}{remaining}'
        sys.stderr.write(f'\r\x1b[K{line}' + '\n' * last if self._live else line + '\n')
        sys.stderr.flush()
