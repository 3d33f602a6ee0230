"""What the side-car keeps: every conversation in a database, and closed ones in files of raw rows.

After every answer, the state of its conversation is in the database (SQLite), so that a killed side-car continues it.
Closing a conversation computes its row and the number of its file in one transaction. A file is then written atomically
from the rows of its number. Whatever was interrupted is repeated at the next start with the same result, so that no row
is lost or written twice. After `rotate` rows, a new file begins.

    conversations_00001.jsonl   rows with strategies: raw conversations, see data/sharegpt.py
    observed_00001.jsonl        rows without strategies: messages and score
"""

import contextlib
import json
from pathlib import Path
import sqlite3
import threading
from typing import Any, Callable, Iterator, Optional

from epo_jax.data.episodes import message_texts, to_row
from epo_jax.data.sharegpt import BEST
from epo_jax.runtime.errors import InputError
from epo_jax.runtime.files import write_atomically
from epo_jax.runtime.locks import claim, directory
from epo_jax.serve.conversations import Conversation
from epo_jax.serve.loading import Loaded

DATABASE = 'conversations.sqlite'
ADVISED, OBSERVED = 'conversations', 'observed'  # stems of files


class RecordError(InputError):
    """A folder of recordings that cannot be used."""


class Recorder(contextlib.AbstractContextManager):
    """Keeps conversations in a folder, which it owns while it is open. Its methods may be called from any thread."""

    def __init__(self, folder: str, loaded: Loaded, domain: str, rotate: int = 100, text: bool = True,
                 redact: Optional[Callable[[str], str]] = None):
        """Open or create the folder, and finish what was interrupted.

        Args:
          folder: the folder.
          loaded: the strategist's model, whose ids are recorded.
          domain: of the conversations; its scale is that of the scores in the rows.
          rotate: number of rows of a file.
          text: whether texts and ids are kept; otherwise, only scores are.
          redact: applied to every text before it is written; ids are then left out.

        Raises:
          InUseError, UnwritableError: the folder is in use, or cannot be written.
          RecordError: its database is damaged.
        """
        self._folder, self._loaded, self._domain = Path(folder), loaded, domain
        self._rotate, self._text, self._redact = rotate, text, redact
        self._lock, self._stack = threading.Lock(), contextlib.ExitStack()
        self._stack.enter_context(directory(self._folder))
        self._stack.enter_context(claim(self._folder))
        try:
            self._db = sqlite3.connect(self._folder / DATABASE, check_same_thread=False, isolation_level=None)
            self._db.execute('PRAGMA journal_mode=WAL')
            self._db.execute(
                'CREATE TABLE IF NOT EXISTS conversations (client TEXT, id TEXT, state TEXT, score REAL, stem TEXT, '
                'file INTEGER, row TEXT, written INTEGER DEFAULT 0, PRIMARY KEY (client, id))')
            self._db.execute('CREATE INDEX IF NOT EXISTS files ON conversations (stem, file)')
        except sqlite3.Error as error:
            self._stack.close()
            raise RecordError(f'{self._folder / DATABASE} cannot be used ({error})') from error
        self.write_files()

    @property
    def resumable(self) -> bool:
        """Return whether open conversations are kept completely."""
        return self._text and self._redact is None

    def save(self, conversation: Conversation) -> None:
        """Keep the state of an open conversation."""
        with self._lock:
            self._db.execute(
                'INSERT INTO conversations (client, id, state) VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET '
                'state = excluded.state WHERE row IS NULL',
                (conversation.client, conversation.id, json.dumps(self._state(conversation))))

    def knows(self, client: str, name: str) -> bool:
        """Return whether there is a conversation of this name, open or closed."""
        with self._lock:
            return self._db.execute('SELECT 1 FROM conversations WHERE client = ? AND id = ?',
                                    (client, name)).fetchone() is not None

    def close_conversation(self, client: str, name: str, score: float) -> Optional[bool]:
        """Close a conversation with its outcome; `write_files` then writes its row.

        Args:
          client, name: which one.
          score: its outcome in [0, 1].

        Returns:
          True; False if it is closed already; None if there is none of this name.
        """
        with self._lock:
            found = self._db.execute('SELECT state, row FROM conversations WHERE client = ? AND id = ?',
                                     (client, name)).fetchone()
            if found is None or found[1] is not None:
                return None if found is None else False
            stem, row = self._row(json.loads(found[0]), name, score)
            with self._transaction():
                rows = self._db.execute('SELECT COUNT(*) FROM conversations WHERE stem = ?', (stem,)).fetchone()[0]
                self._db.execute(
                    "UPDATE conversations SET score = ?, stem = ?, file = ?, row = ?, state = '' "
                    'WHERE client = ? AND id = ?',
                    (score, stem, rows // self._rotate + 1, json.dumps(row, ensure_ascii=False), client, name))
        return True

    def write_files(self) -> None:
        """Write every file with a new row."""
        with self._lock:
            files = self._db.execute('SELECT DISTINCT stem, file FROM conversations WHERE row IS NOT NULL AND NOT '
                                     'written ORDER BY file').fetchall()
            for stem, number in files:
                rows = self._db.execute('SELECT row FROM conversations WHERE stem = ? AND file = ? ORDER BY rowid',
                                        (stem, number)).fetchall()
                write_atomically(self._folder / f'{stem}_{number:05d}.jsonl', ''.join(f'{row}\n' for row, in rows))
                self._db.execute('UPDATE conversations SET written = 1 WHERE stem = ? AND file = ?', (stem, number))

    def open_states(self) -> Iterator[dict[str, Any]]:
        """Yield the states of open conversations, the oldest first; none if they are not kept completely."""
        with self._lock:
            rows = self._db.execute('SELECT state FROM conversations WHERE row IS NULL ORDER BY rowid').fetchall()
        states = (json.loads(state) for state, in rows)
        return (state for state in states if state['resumable'])

    def _state(self, c: Conversation) -> dict[str, Any]:
        """Return what is kept of an open conversation, as JSON."""
        state = {'client': c.client, 'id': c.id, 'arm': c.arm, 'resumable': self.resumable,
                 'turns': c.session.turns if c.session else 0}
        if not self._text:
            return state
        clean = self._redact or (lambda text: text)
        state |= {'goal': clean(c.goal), 'messages': [(role, clean(text)) for role, text in c.messages]}
        if c.session and c.session.turns:
            language = self._loaded.language
            texts, _ = message_texts(c.session.ids, c.session.turn, language.tokenizer, language.chat)
            state['texts'] = [clean(text) for text in texts]
        if self.resumable:
            state |= {'count': c.count, 'digest': c.digest, 'inserted': list(c.inserted.items()),
                      'answered': c.answered}
            if c.session:
                s = c.session
                state['session'] = {
                    'ids': s.ids, 'turn': s.turn, 'logprob': s.logprob, 'seen': [list(m) for m in s.seen]}
        return state

    def _row(self, state: dict[str, Any], name: str, score: float) -> tuple[str, dict[str, Any]]:
        """Return the row of a closed conversation and the stem of its file."""
        row = {'id': name, 'arm': state['arm'], 'outcome': score, 'score': BEST[self._domain] * score,
               'domain': self._domain, 'strategist': self._loaded.version, 'turns': state['turns']}
        if 'goal' in state:
            row['goal'] = state['goal']
        if 'texts' not in state:
            return OBSERVED, row | ({'messages': state['messages']} if 'messages' in state else {})
        session = state.get('session', {})
        exact = {key: session[key] for key in ('ids', 'turn', 'logprob') if key in session}
        return ADVISED, row | {'conversations': to_row(state['texts'])} | exact

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute('BEGIN IMMEDIATE')
        try:
            yield
        except BaseException:
            self._db.execute('ROLLBACK')
            raise
        self._db.execute('COMMIT')

    def __exit__(self, *exception: Any) -> None:
        with self._lock:
            self._db.close()
        self._stack.close()
