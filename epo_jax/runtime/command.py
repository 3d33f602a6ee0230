"""The border of every command: errors in one line, and a status that says whether the work is finished."""

import contextlib
import errno
import os
import signal
import sys
from typing import Any, Callable, Iterator, NoReturn, Optional

from epo_jax.runtime.errors import (
    CANNOT_WRITE,
    FAILED,
    STOPPED,
    CheckpointError,
    InputError,
    SaveError,
    Stopped,
    TrainingError,
)
from epo_jax.runtime.secrets import redact


def interrupt(signum: int, frame: Any) -> NoReturn:
    """Stop a command that has nothing to save; the handler of SIGTERM and SIGINT outside of training."""
    if is_importing(frame):  # modules in C turn KeyboardInterrupt into ImportError, which others may catch
        stop()
    raise KeyboardInterrupt


def is_importing(frame: Any) -> bool:
    """Return whether an import is in progress in a frame or in one of those that called it."""
    while frame is not None and not frame.f_code.co_filename.startswith('<frozen importlib'):
        frame = frame.f_back
    return frame is not None


def run(main: Callable[[], None]) -> None:
    """Run a command; print its errors in one line, and exit with the status of `runtime.errors`."""
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, interrupt)
    sys.unraisablehook = report_unraisable
    try:
        with one_line_errors():
            main()
    except KeyboardInterrupt:
        stop()
    except Exception as error:
        if any(isinstance(cause, KeyboardInterrupt) for cause in causes(error)):
            stop()
        raise


def stop() -> NoReturn:
    """End the process after a signal."""
    print('stopped by a signal; run the command again', file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(STOPPED)  # threads that wait for others must not delay the end


def report_unraisable(unraisable: Any) -> None:
    """Print an error that nothing can catch, unless it only follows from an error that is raised and printed anyway."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):  # a signal during garbage collection, which would be lost
        stop()
    # After an error, Orbax closes the event loop to which TensorStore still reports its other reads and writes.
    error = unraisable.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == 'Event loop is closed'):
        sys.__unraisablehook__(unraisable)


@contextlib.contextmanager
def one_line_errors(*others: type[Exception]) -> Iterator[None]:
    """Replace errors of input, of files and of training by one line on stderr and a status.

    Args:
      *others: further types of errors that are reported like this.
    """
    try:
        yield
    except Stopped as error:
        fail(f'stopped: {error}', STOPPED)
    except (InputError, TrainingError, CheckpointError, OSError, *others) as error:
        status = CANNOT_WRITE if isinstance(error, SaveError) or any(map(is_full, causes(error))) else FAILED
        fail(f'error: {error}', status)


def is_full(error: BaseException) -> bool:
    """Return whether an error says that a disk is full or broken, or that a limit of the size of files is reached."""
    return (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)
            or any(text in str(error) for text in ('No space left on device', 'disk is full', 'File too large')))


def causes(error: Optional[BaseException]) -> Iterator[BaseException]:
    """Yield an error and the errors that it follows from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def fail(message: str, status: int = FAILED) -> NoReturn:
    """Exit with a message without secrets."""
    if status == FAILED:
        sys.exit(redact(message))
    print(redact(message), file=sys.stderr)
    sys.exit(status)
