"""Read the rows of JSON files with a policy for bad rows, and write rows."""

import collections
import contextlib
import json
import os
from pathlib import Path
import re
import sys
from typing import Any, Callable, Iterator, Union

from epo_jax.runtime.rows import RowError, Span, scan_rows


class BadRows:
    """The policy for bad rows: stop at the first one, or skip, count and print them.

    Attributes:
      reasons: How often each reason occurred. Digits in a reason are replaced by '#'.
    """

    def __init__(self, skip: bool, shown: int = 10):
        """Create the policy.

        Args:
          skip: Whether to skip bad rows instead of raising the first error.
          shown: How many skipped rows to print to stderr.
        """
        self.reasons: collections.Counter = collections.Counter()
        self._skip, self._shown = skip, shown

    def add(self, error: RowError) -> None:
        """Raise the error, or count it if bad rows are skipped."""
        if not self._skip:
            raise error
        self.reasons[re.sub(r'\d+', '#', error.reason)] += 1
        if self.count <= self._shown:
            print(f'skipped {error}', file=sys.stderr)

    @property
    def count(self) -> int:
        """Return the number of skipped rows."""
        return sum(self.reasons.values())


def read_rows(path: Union[str, Path], bad: BadRows) -> Iterator[tuple[Span, dict[str, Any]]]:
    """Yield the rows of a file in order, with their positions.

    Args:
      path: A JSON array of objects, or a file with one object per line, in UTF-8.
      bad: Policy for rows that are not JSON objects or not UTF-8.

    Raises:
      RowError: For the first bad row, unless bad rows are skipped.
      OSError: If the file cannot be read.
    """
    for span, row in scan_rows(path):
        if isinstance(row, RowError):
            bad.add(row)
        else:
            yield span, row


@contextlib.contextmanager
def row_writer(path: Union[str, Path]) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Open a file for rows and yield a function that writes one row.

    The file appears under its name once all rows are written. If anything raises, an old file of that name stays.

    Args:
      path: A name that ends in .jsonl gets one object per line. Any other name gets an array, formatted as by
        `json.dump(rows, file, ensure_ascii=False, indent=4)`.

    Raises:
      ValueError: If a row holds NaN or an infinity.
    """
    path = Path(path)
    lines = path.suffix == '.jsonl'
    temporary = path.with_name(f'.{path.name}.unfinished')  # a fixed name, so that kills leave at most one file
    try:
        with open(temporary, 'w', encoding='utf-8') as file:
            count = 0

            def write(row: dict[str, Any]) -> None:
                nonlocal count
                text = json.dumps(row, ensure_ascii=False, allow_nan=False, indent=None if lines else 4)
                if lines:
                    file.write(text + '\n')
                else:  # JSON strings hold no raw line feeds, so every line feed precedes indentation
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
