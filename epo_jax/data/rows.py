"""Rows of JSON files, one at a time: an array or an object a line, however large the file.

An array is cut into its elements by brackets and strings alone, which leaves the offset of every row for random
access, keeps memory flat, and lets the rows after a damaged one be read.
"""

import collections
import contextlib
import dataclasses
import json
import math
import os
from pathlib import Path
import re
import sys
from typing import Any, Iterator, Optional, TextIO, Union

from epo_jax.runtime.errors import InputError

CHUNK = 1 << 20
LONGEST_ROW = 1 << 28
SPACE = b' \t\r\n'

# A string, whose group is empty where it does not end within the data, or a bracket.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*("?)|[\[\]{}]', re.DOTALL)


class RowError(InputError):
    """A row that cannot be used; the message says file, row and reason."""

    def __init__(self, path: Union[str, Path], number: int, reason: str):
        super().__init__(f'{path}, row {number}: {reason}')
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Span:
    """Where a row stands.

    Attributes:
      number: of the element of an array, or of the line, from 1.
      start, size: in bytes.
    """

    number: int
    start: int
    size: int


class BadRows:
    """What to do with bad rows: the first one ends everything, or all are skipped, counted and named.

    Attributes:
      reasons: how often each reason occurred; numbers in it are left out.
    """

    def __init__(self, skip: bool, shown: int = 10, stream: Optional[TextIO] = None):
        """`skip`: go on without them; the first `shown` are printed to `stream` (None: stderr)."""
        self.reasons: collections.Counter = collections.Counter()
        self._skip, self._shown, self._stream = skip, shown, stream

    def add(self, error: RowError) -> None:
        """Raises the error, or counts it where bad rows are skipped."""
        if not self._skip:
            raise error
        self.reasons[re.sub(r'\d+', '#', error.reason)] += 1
        if self.count <= self._shown:
            print(f'skipped {error}', file=self._stream or sys.stderr)

    @property
    def count(self) -> int:
        """How many were skipped."""
        return sum(self.reasons.values())


def read_rows(path: Union[str, Path], bad: BadRows) -> Iterator[tuple[Span, dict[str, Any]]]:
    """The rows of a file, in order.

    Args:
      path: a JSON array of objects, or a file of one object a line, in UTF-8.
      bad: told of every row that is not a JSON object or not UTF-8.

    Raises:
      RowError: the first bad row, unless they are skipped.
      OSError: the file cannot be read.
    """
    for span, data, problem in _scan(Path(path)):
        try:
            if problem:
                raise ValueError(problem)
            row = parse_row(data)
        except ValueError as error:
            bad.add(RowError(path, span.number, str(error)))
        else:
            yield span, row


def parse_row(data: bytes) -> dict[str, Any]:
    """The JSON object in some bytes.

    Raises:
      ValueError: saying what it is instead.
    """
    try:
        row = json.loads(data.decode('utf-8'), parse_constant=_refuse, parse_float=_finite)
        if b'\\ud' in data.lower():  # only so can it be there, and only together do two halves make a character
            json.dumps(row, ensure_ascii=False).encode('utf-8')
    except UnicodeDecodeError as error:
        raise ValueError(f'invalid UTF-8 ({error.reason}, byte {error.start} of the row)') from error
    except UnicodeEncodeError as error:
        before = error.object[max(error.start - 20, 0):error.start]
        raise ValueError(f'half of a surrogate pair, which is no character, after {before!r}') from error
    except json.JSONDecodeError as error:
        raise ValueError(f'not JSON ({error})') from error
    except RecursionError as error:
        raise ValueError('not JSON that can be read (nested too deeply)') from error
    if not isinstance(row, dict):
        raise ValueError(f'expected an object, found {type(row).__name__}')
    return row


def _refuse(constant: str):
    raise ValueError(f'not JSON: the number {constant} is not finite')


def _finite(number: str) -> float:
    if math.isinf(value := float(number)):
        raise ValueError(f'the number {number:.20} is not finite')
    return value


def _scan(path: Path) -> Iterator[tuple[Span, bytes, Optional[str]]]:
    """(where, bytes, what is wrong) of every row."""
    with open(path, 'rb') as file:
        head = file.read(1 << 16)
        begin = 3 if head.startswith(b'\xef\xbb\xbf') else 0  # a byte order mark
        while head[begin:begin + 1].isspace():
            begin += 1
        if head[begin:begin + 1] == b'[':
            yield from _scan_array(file, begin + 1)
        else:
            yield from _scan_lines(file, begin)


def _scan_lines(file, begin: int) -> Iterator[tuple[Span, bytes, Optional[str]]]:
    file.seek(0)
    start = 0
    for number, line in enumerate(file, 1):
        end = start + len(line)
        if line.strip(SPACE) and end > begin:
            start = max(start, begin)
            yield Span(number, start, end - start), line[len(line) - (end - start):], None
        start = end


def _scan_array(file, first: int) -> Iterator[tuple[Span, bytes, Optional[str]]]:
    file.seek(first)
    buffer, base = b'', first  # base: offset in the file of the buffer's first byte
    at = start = depth = number = 0  # at: looked at so far; start: of what was not given out yet
    ended = False
    while more := file.read(CHUNK):
        buffer, base, at, start = buffer[start:] + more, base + start, at - start, 0
        if ended:
            if buffer.strip(SPACE):
                yield Span(number + 1, base, len(buffer)), b'', 'text behind the end of the array'
                return
            start = at = len(buffer)
            continue
        if len(buffer) > LONGEST_ROW:
            yield Span(number + 1, base, len(buffer)), b'', f'longer than {LONGEST_ROW >> 20} MiB, or never ended'
            return
        for match in _TOKEN.finditer(buffer, at):
            token = match[0]
            if token[:1] == b'"':
                if not match[1]:  # it goes on in the next chunk
                    at = match.start()
                    break
                continue
            if depth == 0:
                between = buffer[start:match.start()].strip(SPACE)
                if between != (b',' if number and token in b'[{' else b''):
                    number += 1
                    yield (Span(number, base + start, match.start() - start), b'',
                           f'expected an object after a comma, found {between[:60].decode(errors="replace")!r}')
                start = match.start()
            depth += 1 if token in b'[{' else -1
            if depth < 0:
                ended, start = True, match.end()
                break
            if depth == 0:
                number += 1
                yield Span(number, base + start, match.end() - start), buffer[start:match.end()], None
                start = match.end()
        else:
            at = len(buffer)
        if ended:
            at = len(buffer)
            if buffer[start:].strip(SPACE):
                yield Span(number + 1, base + start, at - start), b'', 'text behind the end of the array'
                return
            start = at
    if not ended:
        yield Span(number + 1, base + start, len(buffer) - start), b'', 'the file ends before the array does'


@contextlib.contextmanager
def row_writer(path: Union[str, Path]) -> Iterator[Any]:
    """Gives a function that writes one row; the file appears under its name when all of them are written.

    A name that ends in .jsonl gets one object a line; any other an array, formatted as by
    `json.dump(rows, file, ensure_ascii=False, indent=4)`.

    Raises:
      ValueError: a row holds NaN or an infinity. Whatever is raised inside, the old file stays.
    """
    path = Path(path)
    lines = path.suffix == '.jsonl'
    temporary = path.with_name(f'.{path.name}.unfinished')  # one name, so that a kill leaves one at most
    try:
        with open(temporary, 'w', encoding='utf-8') as file:
            count = 0

            def write(row: dict[str, Any]) -> None:
                nonlocal count
                text = json.dumps(row, ensure_ascii=False, allow_nan=False, indent=None if lines else 4)
                if lines:
                    file.write(text + '\n')
                else:  # strings hold no line feeds in JSON, so all of them are indentation
                    file.write(('[\n    ' if count == 0 else ',\n    ') + text.replace('\n', '\n    '))
                count += 1

            yield write
            if not lines:
                file.write('[]' if count == 0 else '\n]')
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
