"""How far a pass over a file is, on stderr, without the libraries that take seconds to import."""

import datetime
import sys
import time
from typing import Callable, Optional, TextIO


class FileProgress:
    """One line that is rewritten on a terminal; elsewhere plain lines, one every `interval` seconds."""

    def __init__(self, name: str, size: int, stream: Optional[TextIO] = None, interval: float = 5.0,
                 clock: Callable[[], float] = time.monotonic):
        """`size`: bytes of the file."""
        self._name, self._size, self._stream, self._clock = name, max(size, 1), stream or sys.stderr, clock
        self._live = self._stream.isatty()
        self._interval = 0.1 if self._live else interval
        self._start = self._last = clock()

    def show(self, position: int, text: str, last: bool = False) -> None:
        """Says that the file is done up to byte `position`; `last`: whether it is due or not."""
        now = self._clock()
        if not last and now - self._last < self._interval:
            return
        self._last = now
        share, seconds = min(position / self._size, 1.0), now - self._start
        left = f'  ETA {datetime.timedelta(seconds=round(seconds * (1 - share) / share))}' if 0 < share < 1 else ''
        bar = '#' * round(20 * share)
        line = f'{self._name} [{bar:<20}] {100 * share:3.0f} %  {text}{left}'
        self._stream.write(f'\r\x1b[K{line}' + '\n' * last if self._live else line + '\n')
        self._stream.flush()
