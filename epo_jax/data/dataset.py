"""Prepared conversations as batches for the gradient step, in an order that depends on the step alone.

One pass over the file checks every row and records its position; afterwards rows are read at random. The memory use
is a few numbers per row, however long the conversations are.

Axis letters: N conversations of one step, L token positions, T turns.
"""

import array
import dataclasses
from typing import Any, Optional, Sequence
import unicodedata

import numpy as np
from transformers import PreTrainedTokenizerFast

from epo_jax.data import sharegpt
from epo_jax.data.rows import BadRows, RowError, read_rows
from epo_jax.rl.batching import epoch_order
from epo_jax.rl.learner import Batch
from epo_jax.runtime import streams
from epo_jax.runtime.rows import parse_row
from epo_jax.text.chat import ChatSegments
from epo_jax.text.tokenizer import TokenizerError


@dataclasses.dataclass(frozen=True)
class Example:
    """A tokenized conversation.

    Attributes:
      ids: Token ids of the conversation.
      turn: Per position, t for the tokens of the t-th trained turn and its end-of-turn token, -1 for context.
      weights: Weights of the trained turns that fit.
      dropped: Number of trained turns that did not fit.
    """

    ids: list[int]
    turn: list[int]
    weights: tuple[float, ...]
    dropped: int


def tokenize(texts: Sequence[str], weights: Sequence[Optional[float]], tokenizer: PreTrainedTokenizerFast,
             chat: ChatSegments, capacity: int) -> Example:
    """Tokenize a conversation exactly as a rollout would.

    Turns that do not fit into the capacity are dropped as a whole, the last one first.

    Args:
      texts: Messages that alternate between user and assistant and end with the assistant's.
      weights: Weights of the assistant's messages, None for one that is context and not trained.
      tokenizer: Tokenizer of the model.
      chat: Segments of the model's chat template.
      capacity: Length of the longest conversation in tokens.
    """
    ids, turn, trained = [], [], []
    for t, weight in enumerate(weights):
        message, strategy = chat.encode(tokenizer, texts[2 * t:2 * t + 2])
        context = [*(chat.between if t else chat.open), *message, *chat.close]
        reply = [*strategy, *chat.before_end, chat.end]
        if len(ids) + len(context) + len(reply) > capacity:
            return Example(ids, turn, tuple(trained), sum(weight is not None for weight in weights[t:]))
        ids += context + reply
        turn += [-1] * len(context) + [-1 if weight is None else len(trained)] * len(reply)
        trained += [] if weight is None else [weight]
    return Example(ids, turn, tuple(trained), 0)


class Dataset:
    """A file of prepared conversations with random access.

    Attributes:
      turns: Largest number of trained turns in a conversation.
      size: i64[rows], bytes of every row, a proxy for its number of tokens.
      bad: Rows that were skipped.
    """

    def __init__(self, source: sharegpt.Source, tokenizer: PreTrainedTokenizerFast, chat: ChatSegments,
                 capacity: int, skip_bad: bool = False):
        """Read the file once to check every row and to record its position.

        Args:
          source: The file and its layout.
          tokenizer: Tokenizer of the model.
          chat: Segments of the model's chat template.
          capacity: Length of the longest conversation in tokens; further turns are dropped.
          skip_bad: Whether to skip rows that cannot be trained on instead of raising.

        Raises:
          RowError: For the first row that cannot be trained on, unless such rows are skipped.
          DataError: If no rows are left.
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
            self.turns = max(self.turns, sum(weight is not None for weight in weights))
        if not number:
            raise sharegpt.DataError(f'{source.path} has no rows to train on ({self.bad.count} bad rows skipped)')
        self._number, self._start, self.size = (np.frombuffer(a, np.int64) for a in (number, start, size))
        self._file = open(source.path, 'rb', buffering=0)

    def __len__(self) -> int:
        return len(self.size)

    def __getitem__(self, i: int) -> Example:
        """Read and tokenize conversation i.

        Raises:
          RowError: If the file has changed since it was opened, or if text would become a control token.
        """
        self._file.seek(self._start[i])
        number = int(self._number[i])
        try:
            texts, weights = self._check(parse_row(self._file.read(self.size[i])))
        except ValueError as error:
            raise RowError(self._source.path, number, f'the file changed during training: {error}') from error
        try:
            return tokenize(texts, weights, self._tokenizer, self._chat, self._capacity)
        except TokenizerError as error:
            raise RowError(self._source.path, number, str(error)) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _check(self, row: dict[str, Any]) -> tuple[list[str], list[Optional[float]]]:
        """Return the texts and weights of a row; raise ValueError if it is not a prepared conversation."""
        conversation = sharegpt.messages(row, self._source.layout)
        return ([message[self._source.layout.content] for message in conversation],
                sharegpt.turn_weights(conversation))

    def _require_a_turn(self, texts: Sequence[str], weights: Sequence[Optional[float]]) -> None:
        """Raise ValueError if not even the first trained turn fits into the capacity."""
        turns = next(t for t, weight in enumerate(weights) if weight is not None) + 1
        texts = texts[:2 * turns]
        # Normalized text has at most one token per byte, plus the spaces of the template and the tokenizer. This bound
        # saves tokenizing almost every row.
        template = max(len(self._chat.open), len(self._chat.between)) + len(self._chat.close) + 8
        most = turns * template + sum(len(text.encode()) for text in texts)
        if most <= self._capacity and all(unicodedata.is_normalized('NFC', text) for text in texts):
            return
        first = tokenize(texts, weights[:turns], self._tokenizer, self._chat, 1 << 62)
        if len(first.ids) > self._capacity:
            raise ValueError(f'the first turn is {len(first.ids)} tokens long, but the capacity is {self._capacity}')


@dataclasses.dataclass(frozen=True)
class Order:
    """The rows of every gradient step: a new shuffle in every epoch, which depends on seed and epoch alone.

    To save padding, rows of similar size share a batch: each `window` batches of shuffled rows are sorted by size and
    cut into batches, and all batches are shuffled again. A window of 0 or 1 keeps the plain shuffle.

    Attributes:
      size: i64[rows], bytes of every row.
      batch: Rows per step.
      seed: Seed of the run.
      window: Number of batches to sort together.
    """

    size: np.ndarray
    batch: int
    seed: int
    window: int = 0

    @property
    def steps(self) -> int:
        """Return the number of steps per epoch, including one whose batch may not be full."""
        return -(-len(self.size) // self.batch)

    def epoch(self, epoch: int) -> np.ndarray:
        """Return the rows of every step of an epoch, i32[steps, batch], padded with the number of rows."""
        rng = streams.generator('conversations of a file', self.seed, epoch)
        order = epoch_order(len(self.size), self.batch, rng)
        if self.window > 1:
            full = len(self.size) // self.batch  # a batch with padding is not sorted
            for begin in range(0, full, self.window):
                part = order[begin:min(begin + self.window, full)].reshape(-1)
                part[:] = part[np.argsort(self.size[part], kind='stable')]
        return order[rng.permutation(self.steps)]


def collate(examples: Sequence[Optional[Example]], turns: int, bucket: int, capacity: int,
            scale: float = 1.0) -> Batch:
    """Pad conversations into the batch of one gradient step.

    Args:
      examples: N conversations; None is a row that trains nothing.
      turns: T.
      bucket: L is rounded up to a multiple of this many tokens.
      capacity: Largest L.
      scale: Factor for the weights (see `epo_jax.rl.aggregation.official_scale`).
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
