"""Atomic files and JSON lines."""

import codecs
import contextlib
import json
import os
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Union
import uuid

from epo_jax.runtime.errors import InputError


class LineError(InputError):
    """A line of a file that is not what it should be; the message names the file and the line."""


@contextlib.contextmanager
def naming(path: Union[str, Path]) -> Iterator[None]:
    """Add the name of a file to the errors of writing it, such as a full disk, which do not name it."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = error.filename or str(path)
        raise


def write_atomically(path: Union[str, Path], content: Union[str, bytes]) -> None:
    """Write a file so that readers see either the old content or the new content.

    Args:
      path: the file; its directory must exist.
      content: text (written as UTF-8) or bytes.

    Raises:
      OSError: the file cannot be written; the old file stays, and no temporary file is left.
    """
    path = Path(path)
    data = content.encode('utf-8') if isinstance(content, str) else content
    temporary = path.with_name(f'.{path.name}.{uuid.uuid4().hex}.tmp')
    try:
        with naming(path), open(temporary, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    # The directory entry must be on disk too, so that the file survives a power failure.
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_jsonl(path: Union[str, Path], rows: Iterable[dict[str, Any]]) -> None:
    """Write rows atomically, as one JSON object per line.

    Raises:
      ValueError: a row contains NaN or an infinity, which JSON cannot represent.
      TypeError: a row contains another value that is not JSON.
    """
    write_atomically(path, ''.join(json.dumps(row, ensure_ascii=False, allow_nan=False) + '\n' for row in rows))


def append_jsonl(path: Union[str, Path], rows: Iterable[dict[str, Any]]) -> None:
    """Append rows to a file with one JSON object per line; they are on disk when this returns.

    If the process is killed meanwhile, the file may end with an incomplete line, which `cut_jsonl` removes.

    Raises:
      ValueError, TypeError: as in `write_jsonl`.
    """
    data = ''.join(json.dumps(row, ensure_ascii=False, allow_nan=False) + '\n' for row in rows)
    with naming(path), open(path, 'ab') as file:
        file.write(data.encode('utf-8'))
        file.flush()
        os.fsync(file.fileno())


def read_jsonl(path: Union[str, Path]) -> list[dict[str, Any]]:
    """Read a file with one JSON object per line.

    Raises:
      LineError: a line is not a JSON object.
    """
    lines = Path(path).read_bytes().removeprefix(codecs.BOM_UTF8).split(b'\n')
    return [_parse_line(line, path, number) for number, line in enumerate(lines, 1) if line.strip()]


def stream_jsonl(path: Union[str, Path]) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file with one JSON object per line, without a last line that is still being written.

    Raises:
      LineError: a line is not a JSON object.
    """
    with open(path, 'rb') as file:
        for number, line in enumerate(file, 1):
            if line.endswith(b'\n') and line.strip():
                yield _parse_line(line, path, number)


def cut_jsonl(path: Union[str, Path], keep: Callable[[dict[str, Any]], bool]) -> None:
    """Remove an incomplete last line and the rows for which `keep` is false, atomically.

    The other lines stay as they are. Nothing happens if the file does not exist.

    Raises:
      LineError: a complete line is not a JSON object.
    """
    path = Path(path)
    if not path.exists():
        return
    data = path.read_bytes()
    lines = data.split(b'\n')[:-1]  # text after the last line feed is incomplete
    kept = b''.join(line + b'\n' for number, line in enumerate(lines, 1) if keep(_parse_line(line, path, number)))
    if kept != data:
        write_atomically(path, kept)


def _parse_line(line: bytes, path: Union[str, Path], number: int) -> dict[str, Any]:
    """Return the JSON object on line `number` of `path`.

    Raises:
      LineError: it is not a JSON object.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise LineError(f'{path}, line {number}: not JSON ({error})') from error
    if not isinstance(row, dict):
        raise LineError(f'{path}, line {number}: expected an object, found {type(row).__name__}')
    return row
