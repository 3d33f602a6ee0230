"""Exclusive use of a workdir or an output, so that two commands do not write the same files."""

import contextlib
import datetime
import errno
import fcntl
import os
from pathlib import Path
import socket
import sys
from typing import Iterator, TextIO, Union

from epo_jax.runtime.errors import InputError

BUSY = (errno.EWOULDBLOCK, errno.EACCES)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class InUseError(InputError):
    """Another process uses a workdir or an output; the message says which."""


class UnwritableError(InputError):
    """A workdir or an output cannot be written."""


@contextlib.contextmanager
def directory(path: Union[str, Path]) -> Iterator[None]:
    """Create a directory with its parents, and remove those that were created and are still empty afterwards.

    Raises:
      UnwritableError: it cannot be created.
    """
    path = Path(path).absolute()
    created = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnwritableError(f'cannot create the directory {path}: {error.strerror}') from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # it is not empty
            for folder in created:
                folder.rmdir()


@contextlib.contextmanager
def claim(path: Union[str, Path]) -> Iterator[None]:
    """Claim a file or a directory, which need not exist, for this process.

    The claim is an operating system's lock on a file beside a file, or in a directory, which says who holds it. The
    lock ends with the process, however that ends. The file is removed afterwards.

    Raises:
      InUseError: another process holds the claim.
      UnwritableError: the file of the lock cannot be written.
    """
    path = Path(path).absolute()
    lock = path / '.lock' if path.is_dir() else path.with_name(f'.{path.name}.lock')
    try:
        file = _lock(lock, str(path))
    except OSError as error:
        raise UnwritableError(f'cannot write to {path}: {error.strerror}') from error
    with file:
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                lock.unlink()


def _lock(path: Path, name: str) -> TextIO:
    """Return the lock file, opened and locked."""
    while True:
        file = open(path, 'a+', encoding='utf-8')
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NO_LOCKS:
                print(f'warning: the file system of {name} has no locks ({error.strerror}); make sure that no other '
                      'process writes there', file=sys.stderr)
                return file
            with file:
                if error.errno not in BUSY:
                    raise
                file.seek(0)
                holder = file.read() or 'another process'
            raise InUseError(f'{name} is in use by {holder}; wait until it has ended, or choose another one') from None
        # The last holder may have removed the file between opening and locking.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                break
        file.close()
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}, since '
               f'{datetime.datetime.now().astimezone():%Y-%m-%d %H:%M:%S %z}')
    file.flush()
    return file
