"""The record of answers: every request with what came back, in SQLite files, so that nothing is paid for twice."""

import contextlib
import dataclasses
import glob
import hashlib
import json
from pathlib import Path
import re
import sqlite3
import threading
from typing import Any, Mapping, Optional, Union
import urllib.parse

from epo_jax.runtime.errors import InputError

_TABLE = ('CREATE TABLE IF NOT EXISTS completions (key TEXT PRIMARY KEY, role TEXT, request TEXT, response TEXT, '
          'refusal TEXT, prompt_tokens INTEGER, completion_tokens INTEGER, dollars REAL)')
_BUSY = 60  # seconds to wait for another process that writes the same file


class AnswersError(InputError):
    """A record of answers cannot be read or written; the message names the file."""


class ReplayMiss(InputError):
    """A request that is not in the record that a run replays."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """What came back for a request, without secrets.

    Attributes:
      response: JSON text of the answer, or None.
      refusal: why the request was refused for its content, or None.
      prompt_tokens: tokens of the request.
      completion_tokens: tokens of the answer.
      dollars: what it cost.
    """

    response: Optional[str]
    refusal: Optional[str] = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    dollars: float = 0.0


class Answers(contextlib.AbstractContextManager):
    """Entries by request, safe to use from many threads. An entry is on disk once `put` returns, also after a kill.

    A record is a folder, or a path that ends in .sqlite. Each process of a run writes a file of its own
    (answers.sqlite, answers.1.sqlite, ...) and reads those of all, so a run with another number of processes finds
    every answer.
    """

    def __init__(self, path: Union[str, Path], process: int = 0, replay: bool = False):
        """Open or create the record.

        Args:
          path: the folder or file.
          process: number of this process.
          replay: whether to read only.

        Raises:
          AnswersError: it cannot be read or written, or there is nothing to replay.
        """
        self._file = Path(path) if str(path).endswith('.sqlite') else Path(path) / 'answers.sqlite'
        self._own = self._file.with_suffix(f'.{process}.sqlite') if process else self._file
        self._lock, self._open = threading.Lock(), {}
        try:
            if not replay:
                self._own.parent.mkdir(parents=True, exist_ok=True)
                self._connect(self._own, 'rwc')
            with self._lock:
                found = self._connections()
        except OSError as error:
            raise AnswersError(f'cannot keep the answers in {path} ({error.strerror})') from error
        if not found:
            raise AnswersError(f'there are no answers to replay in {path}')

    def get(self, request: Mapping[str, Any]) -> Optional[Entry]:
        """Return the entry of a request, or None."""
        query = ('SELECT response, refusal, prompt_tokens, completion_tokens, dollars FROM completions WHERE key = ?',
                 (_key(_text(request)),))
        with self._lock:
            for path, database in self._connections():
                with _named(path):
                    row = database.execute(*query).fetchone()
                if row is not None:
                    return Entry(*row)
        return None

    def put(self, role: str, request: Mapping[str, Any], entry: Entry) -> None:
        """Save the entry of a request.

        Raises:
          AnswersError: it cannot be written.
        """
        text = _text(request)
        with self._lock, _named(self._own), self._open[self._own] as database:
            database.execute('INSERT OR REPLACE INTO completions VALUES (?, ?, ?, ?, ?, ?, ?, ?)',
                             (_key(text), role, text, *dataclasses.astuple(entry)))

    def spent(self) -> dict[str, float]:
        """Return the dollars that the answers cost, by role."""
        total: dict[str, float] = {}
        with self._lock:
            for path, database in self._connections():
                with _named(path):
                    rows = database.execute('SELECT role, SUM(dollars) FROM completions GROUP BY role').fetchall()
                for role, dollars in rows:
                    total[role] = total.get(role, 0.0) + dollars
        return total

    def close(self) -> None:
        """Close the files."""
        with self._lock:
            for database in self._open.values():
                database.close()
            self._open.clear()

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def _connections(self) -> list[tuple[Path, sqlite3.Connection]]:
        """Return the files of all processes, this one's first; others may appear at any time."""
        pattern = f'{glob.escape(str(self._file.with_suffix("")))}.*.sqlite'
        others = [Path(name) for name in glob.glob(pattern) if re.search(r'\.\d+\.sqlite$', name)]
        for path in sorted([*others, self._file]):
            if path not in self._open and path.exists():
                self._connect(path, 'rw')
        return list(self._open.items())

    def _connect(self, path: Path, mode: str) -> None:
        with _named(path):
            # A file that cannot be written is opened for reading.
            database = sqlite3.connect(f'file:{urllib.parse.quote(str(path.absolute()))}?mode={mode}', uri=True,
                                       timeout=_BUSY, check_same_thread=False)
            try:
                if mode == 'rwc':
                    with database:
                        database.execute(_TABLE)
                        database.execute('PRAGMA user_version = 1')  # fails where nothing can be written
                elif not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'completions'").fetchone():
                    database.close()  # another process is about to create its table
                    return
            except BaseException:
                database.close()
                raise
        self._open[path] = database


@contextlib.contextmanager
def _named(path: Path):
    """Name the file in errors of SQLite."""
    try:
        yield
    except sqlite3.Error as error:
        damaged = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
        advice = '; it is damaged or no record of answers: move it away, or name another one' if damaged else ''
        raise AnswersError(f'cannot keep the answers in {path} ({error}){advice}') from error


def _text(request: Mapping[str, Any]) -> str:
    return json.dumps(request, sort_keys=True)


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
