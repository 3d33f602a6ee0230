"""Stream the rows of JSON files: an array of objects, or one object per line.

The scanner splits an array into its elements by brackets and strings alone. This keeps memory flat for files of any
size, gives the byte offset of every row for random access, and still reads the rows after a damaged one.
"""

import dataclasses
import json
import math
from pathlib import Path
import re
from typing import Any, BinaryIO, Iterator, Optional, Union

from epo_jax.runtime.errors import InputError

CHUNK = 1 << 20  # bytes per read
LONGEST_ROW = 1 << 28  # bytes
SPACE = b' \t\r\n'  # whitespace in JSON

# A bracket, or a string. The group is empty if the string does not end within the data.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*("?)|[\[\]{}]', re.DOTALL)


class RowError(InputError):
    """A row that cannot be used. The message names the file, the row and the reason."""

    def __init__(self, path: Union[str, Path], number: int, reason: str):
        super().__init__(f'{path}, row {number}: {reason}')
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Span:
    """The position of a row in its file.

    Attributes:
      number: Number of the array element or of the line, counted from 1.
      start: Offset of the row in bytes.
      size: Length of the row in bytes.
    """

    number: int
    start: int
    size: int


def scan_rows(path: Union[str, Path]) -> Iterator[tuple[Span, Union[dict[str, Any], RowError]]]:
    """Yield the rows of a file in order with their positions, and a RowError for every row that cannot be read.

    Args:
      path: A JSON array of objects, or a file with one object per line, in UTF-8.

    Raises:
      OSError: If the file cannot be read.
    """
    for span, data, problem in _scan(Path(path)):
        try:
            if problem:
                raise ValueError(problem)
            yield span, parse_row(data)
        except ValueError as error:
            yield span, RowError(path, span.number, str(error))


def parse_row(data: bytes) -> dict[str, Any]:
    """Parse one row.

    Raises:
      ValueError: If the data is not a JSON object in UTF-8 with finite numbers; the message says what is wrong.
    """
    try:
        row = json.loads(data.decode('utf-8'), parse_constant=_refuse_constant, parse_float=_finite)
        # JSON escapes can spell half of a surrogate pair, which no file in UTF-8 can hold.
        if b'\\ud' in data.lower():
            json.dumps(row, ensure_ascii=False).encode('utf-8')
    except UnicodeDecodeError as error:
        raise ValueError(f'invalid UTF-8 ({error.reason} at byte {error.start} of the row)') from error
    except UnicodeEncodeError as error:
        before = error.object[max(error.start - 20, 0):error.start]
        raise ValueError(f'half of a surrogate pair after {before!r}, which is not a character') from error
    except json.JSONDecodeError as error:
        raise ValueError(f'not JSON ({error})') from error
    except RecursionError as error:
        raise ValueError('not JSON that can be read (nested too deeply)') from error
    if not isinstance(row, dict):
        raise ValueError(f'expected an object, found {type(row).__name__}')
    return row


def whole_number(value: Any) -> Optional[int]:
    """Return a number that may be written as 3, 3.0 or "3", or None if the value is not a whole number."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is int else None


def _refuse_constant(constant: str):
    raise ValueError(f'not JSON: the number {constant} is not finite')


def _finite(number: str) -> float:
    if math.isinf(value := float(number)):
        raise ValueError(f'the number {number:.20} is not finite')
    return value


def _scan(path: Path) -> Iterator[tuple[Span, bytes, Optional[str]]]:
    """Yield the position, the bytes and the problem (None if there is none) of every row."""
    with open(path, 'rb') as file:
        head = file.read(1 << 16)
        begin = 3 if head.startswith(b'\xef\xbb\xbf') else 0  # skip a byte order mark
        while head[begin:begin + 1].isspace():
            begin += 1
        if head[begin:begin + 1] == b'[':
            yield from _scan_array(file, begin + 1)
        else:
            yield from _scan_lines(file, begin)


def _scan_lines(file: BinaryIO, begin: int) -> Iterator[tuple[Span, bytes, Optional[str]]]:
    file.seek(0)
    start = 0
    for number, line in enumerate(file, 1):
        end = start + len(line)
        if line.strip(SPACE) and end > begin:
            start = max(start, begin)
            yield Span(number, start, end - start), line[len(line) - (end - start):], None
        start = end


def _scan_array(file: BinaryIO, first: int) -> Iterator[tuple[Span, bytes, Optional[str]]]:
    file.seek(first)
    buffer, base = b'', first  # base is the offset of the buffer's first byte in the file
    # `position` is where scanning continues; everything before `start` has been yielded.
    position = start = depth = number = 0
    ended = False
    while data := file.read(CHUNK):
        buffer, base, position, start = buffer[start:] + data, base + start, position - start, 0
        if ended:
            if buffer.strip(SPACE):
                yield Span(number + 1, base, len(buffer)), b'', 'text after the end of the array'
                return
            start = position = len(buffer)
            continue
        if len(buffer) > LONGEST_ROW:
            yield (Span(number + 1, base, len(buffer)), b'',
                   f'longer than {LONGEST_ROW >> 20} MiB, or it never ends')
            return
        for match in _TOKEN.finditer(buffer, position):
            token = match[0]
            if token[:1] == b'"':
                if not match[1]:  # the string continues in the next chunk
                    position = match.start()
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
            position = len(buffer)
        if ended:
            position = len(buffer)
            if buffer[start:].strip(SPACE):
                yield Span(number + 1, base + start, position - start), b'', 'text after the end of the array'
                return
            start = position
    if not ended:
        yield Span(number + 1, base + start, len(buffer) - start), b'', 'the file ends before the array does'
