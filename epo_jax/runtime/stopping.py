"""Requests to stop by SIGTERM or SIGINT (Ctrl-C)."""

import contextlib
import os
import signal
import socket
import sys
import threading
from typing import Any, Callable

from epo_jax.runtime import command
from epo_jax.runtime.errors import STOPPED

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals(contextlib.AbstractContextManager):
    """Turns the first signal into a request to stop: `with StopSignals(print, 'this step') as signals: ...`.

    The work checks `requested` where it can stop without losing anything. A second signal does what it would have done
    without the context; in a command, it ends the process at once. A thread watches for signals, since Python calls
    the handlers of the main thread only between its own instructions, and one compiled program may run for minutes.
    A process sees only its own signals, so several hosts combine their requests with `hosts.any_process`.

    Outside the main thread, which alone receives signals, the context does nothing.

    Attributes:
      requested: whether a signal has arrived.
    """

    def __init__(self, say: Callable[[str], None], work: str):
        """Prepare the context.

        Args:
          say: prints a line; it is called when the first signal arrives.
          work: what will still be finished, such as 'this iteration'.
        """
        self.requested = False
        self._say, self._work, self._handled, self._previous = say, work, False, {}

    def __enter__(self) -> 'StopSignals':
        if threading.current_thread() is not threading.main_thread():
            return self
        self._previous = {signum: signal.signal(signum, self._handle) for signum in SIGNALS}
        reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, args=(reader,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        if not self._previous:
            return
        for signum, previous in self._previous.items():
            # None means that the previous handler was not installed from Python and cannot be restored.
            signal.signal(signum, signal.SIG_DFL if previous is None else previous)
        signal.set_wakeup_fd(self._wakeup)
        self._writer.close()
        self._thread.join()

    def _watch(self, reader: socket.socket) -> None:
        """Handle signals in a thread, from their numbers that Python writes to a socket."""
        first = True
        with reader:
            while number := reader.recv(1):
                if (signum := number[0]) not in SIGNALS:
                    continue
                if first:
                    first, self.requested = False, True
                    with contextlib.suppress(OSError):  # the reader of a pipe may be gone
                        self._say(f'{signal.Signals(signum).name}: stopping after {self._work}; a second signal stops '
                                  'at once')
                elif self._previous[signum] is command.interrupt:
                    sys.stdout.flush()
                    os._exit(STOPPED)

    def _handle(self, signum: int, frame: Any) -> None:
        """Handle signals in the main thread: the first one is a request, and a second one goes to its old handler."""
        first, self.requested, previous = not self._handled, True, self._previous[signum]
        self._handled = True
        if first or previous is command.interrupt:  # then `_watch` ends the process
            return
        if callable(previous):
            previous(signum, frame)
        elif previous is not signal.SIG_IGN:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)
