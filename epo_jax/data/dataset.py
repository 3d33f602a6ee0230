"""Prepared conversations as batches for the gradient step, in an order that depends on the step alone.

One pass over the file finds where every row stands, and checks it; afterwards rows are read where they stand. What
is held in memory is a few numbers a row, however long the conversations are.

Axis letters: N conversations of one step, L token positions, T turns.
"""

import array
import dataclasses
from typing import Any, Optional, Sequence
import unicodedata

import numpy as np
from transformers import PreTrainedTokenizerFast

from epo_jax.data import sharegpt
from epo_jax.data.rows import BadRows, RowError, parse_row, read_rows
from epo_jax.rl.learner import Batch
from epo_jax.text.chat import ChatSegments
from epo_jax.text.tokenizer import TokenizerError, encode


@dataclasses.dataclass(frozen=True)
class Example:
    """A conversation in tokens.

    Attributes:
      ids, turn: of every position; turn is -1 for context, t for the ids of the t-th strategy and its end.
      weights: of the turns that fit.
      dropped: turns that did not fit.
    """

    ids: list[int]
    turn: list[int]
    weights: tuple[float, ...]
    dropped: int


def tokenize(texts: Sequence[str], weights: Sequence[float], tokenizer: PreTrainedTokenizerFast, chat: ChatSegments,
             capacity: int) -> Example:
    """A conversation as the model meets it in a session; turns that do not fit are left out whole, the last first.

    Args:
      texts: messages, in turn the user's and the assistant's, ending with the latter.
      weights: of the assistant's messages.
      capacity: longest conversation, in tokens.
    """
    ids, turn = [], []
    for t in range(len(weights)):
        context = [*(chat.between if t else chat.open), *encode(tokenizer, texts[2 * t]), *chat.close]
        reply = [*encode(tokenizer, texts[2 * t + 1]), chat.end]
        if len(ids) + len(context) + len(reply) > capacity:
            return Example(ids, turn, tuple(weights[:t]), len(weights) - t)
        ids += context + reply
        turn += [-1] * len(context) + [t] * len(reply)
    return Example(ids, turn, tuple(weights), 0)


class Dataset:
    """A file of prepared conversations, random access by number.

    Attributes:
      turns: most turns that a conversation has.
      size: int64[rows] bytes of every row, which go with its tokens.
      bad: rows that were skipped.
    """

    def __init__(self, source: sharegpt.Source, tokenizer: PreTrainedTokenizerFast, chat: ChatSegments,
                 capacity: int, skip_bad: bool = False):
        """Reads the file once.

        Raises:
          RowError: the first row that cannot be trained on, unless such rows are skipped.
          DataError: there are no rows.
        """
        self._source, self._tokenizer, self._chat, self._capacity = source, tokenizer, chat, capacity
        self.bad = BadRows(skip_bad)
        number, start, size = array.array('q'), array.array('q'), array.array('q')
        self.turns = 0
        for span, row in read_rows(source.path, self.bad):
            try:
                texts, weights = self._check(row)
                self._require_a_turn(texts, weights)
            except ValueError as error:
                self.bad.add(RowError(source.path, span.number, str(error)))
                continue
            number.append(span.number)
            start.append(span.start)
            size.append(span.size)
            self.turns = max(self.turns, len(weights))
        if not number:
            raise sharegpt.DataError(f'{source.path}: no rows to train on ({self.bad.count} bad ones)')
        self._number, self._start, self.size = (np.frombuffer(a, np.int64) for a in (number, start, size))
        self._file = open(source.path, 'rb', buffering=0)

    def __len__(self) -> int:
        return len(self.size)

    def __getitem__(self, i: int) -> Example:
        """Conversation i in tokens.

        Raises:
          RowError: the file has changed since it was opened, or its text cannot be told from control tokens.
        """
        self._file.seek(self._start[i])
        number = int(self._number[i])
        try:
            texts, weights = self._check(parse_row(self._file.read(self.size[i])))
        except ValueError as error:
            raise RowError(self._source.path, number, f'changed while it is used: {error}') from error
        try:
            return tokenize(texts, weights, self._tokenizer, self._chat, self._capacity)
        except TokenizerError as error:
            raise RowError(self._source.path, number, str(error)) from error

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _check(self, row: dict[str, Any]) -> tuple[list[str], list[float]]:
        found = sharegpt.messages(row, self._source.layout)
        return [message[self._source.layout.content] for message in found], sharegpt.turn_weights(found)

    def _require_a_turn(self, texts: Sequence[str], weights: Sequence[float]) -> None:
        """Raises ValueError: not even the first turn fits. Only where it may not is it tokenized: in normal form,
        text has no more tokens than bytes, but for a space that some tokenizers begin with."""
        most = len(self._chat.open) + len(self._chat.close) + 3 + sum(len(text.encode()) for text in texts[:2])
        if most <= self._capacity and all(unicodedata.is_normalized('NFC', text) for text in texts[:2]):
            return
        first = tokenize(texts[:2], weights[:1], self._tokenizer, self._chat, 1 << 62)
        if len(first.ids) > self._capacity:
            raise ValueError(f'the first turn ends at token {len(first.ids)}, behind the {self._capacity} that fit')


@dataclasses.dataclass(frozen=True)
class Order:
    """Which rows make up the batch of a step: shuffled anew in every epoch, a function of seed and step alone.

    Rows of similar size come together: each `window` batches of the shuffled rows are sorted by size, cut, and the
    batches shuffled again. With window 1 or less the order is that of the shuffle.

    Attributes:
      size: [rows]; batch: rows a step; seed: of the run; window: as above.
    """

    size: np.ndarray
    batch: int
    seed: int
    window: int = 0

    @property
    def steps(self) -> int:
        """Steps of an epoch; the last batch that is cut may not be full."""
        return -(-len(self.size) // self.batch)

    def epoch(self, epoch: int) -> np.ndarray:
        """int64[steps, batch] the rows of every step of an epoch, each row once; -1 fills up the one not full."""
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(len(self.size))
        full = len(order) // self.batch * self.batch
        if self.window > 1:
            width = self.window * self.batch
            for begin in range(0, full, width):
                part = order[begin:min(begin + width, full)]
                order[begin:begin + len(part)] = part[np.argsort(self.size[part], kind='stable')]
        padded = np.full(self.steps * self.batch, -1, np.int64)
        padded[:len(order)] = order
        return padded.reshape(self.steps, self.batch)[rng.permutation(self.steps)]


def collate(examples: Sequence[Optional[Example]], turns: int, bucket: int, capacity: int,
            scale: float = 1.0) -> Batch:
    """Rows for one gradient step, padded to a multiple of `bucket`, at most `capacity` tokens.

    Args:
      examples: N of them; None is a row that trains nothing.
      turns: T.
      scale: the weights are multiplied by it (see `epo_jax.rl.losses.official_scale`).
    """
    rows = len(examples)
    longest = max(len(example.ids) for example in examples if example is not None)
    length = min(-(-longest // bucket) * bucket, max(capacity, longest))
    ids, turn = np.zeros((rows, length), np.int32), np.full((rows, length), -1, np.int32)
    weight, valid = np.zeros((rows, turns), np.float32), np.zeros((rows, turns), bool)
    for n, example in enumerate(examples):
        if example is None:
            continue
        ids[n, :len(example.ids)], turn[n, :len(example.turn)] = example.ids, example.turn
        weight[n, :len(example.weights)], valid[n, :len(example.weights)] = example.weights, True
    return Batch(ids, turn, np.zeros((rows, length), np.float32), weight * np.float32(scale), valid)
