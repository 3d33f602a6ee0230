"""Conversations to label with their critical turns, and judges that read them."""

import collections
from concurrent import futures
import dataclasses
from typing import Any, Callable, Iterator, Optional, Protocol

from epo_jax.agents.remote import Address, Answer, Failure, Refused, Remote, Request
from epo_jax.data import sharegpt
from epo_jax.data.rows import BadRows, RowError, Span, read_rows
from epo_jax.rewards import critical

POLL = 0.2   # seconds between two looks at the signals while an answer is awaited
WINDOW = 16  # rows that are held in memory, times the number of simultaneous requests


@dataclasses.dataclass(frozen=True)
class Item:
    """A row and the question about it.

    Attributes:
      span: Position of the row in its file.
      row: The row as parsed.
      messages: Its messages, checked.
      score: Its score.
      strategies: Indexes of the messages to choose from.
      question: Prompt for a remote judge.
    """

    span: Span
    row: dict[str, Any]
    messages: list[dict[str, Any]]
    score: float
    strategies: tuple[int, ...]
    question: str


@dataclasses.dataclass(frozen=True)
class Label:
    """The critical turns of a row.

    Attributes:
      location: Indexes of the selected messages; None if the label is missing.
      how: How the answer numbered them (see `critical.resolve`), or the reason why the label is missing.
      answered: Whether the judge gave a whole answer or declined to; if not, it should be asked again.
    """

    location: Optional[tuple[int, ...]]
    how: str
    answered: bool = True


class LabelJudge(Protocol):
    """Labels rows; a record of its answers makes it continue where it was stopped."""

    def labels(self, source: sharegpt.Source, items: Iterator[Item],
               stop: Callable[[], None]) -> Iterator[tuple[Item, Label]]:
        """Yield the rows in their order with their labels.

        Args:
          source: The file and its layout.
          items: Its rows.
          stop: Function that is called again and again, and may raise an error to stop.
        """

    def describe(self) -> str:
        """Return what to show beside the progress."""

    @property
    def spent(self) -> float:
        """Return the cost of all answers in dollars, those of earlier runs included."""


def read_items(source: sharegpt.Source, domain: str, bad: BadRows) -> Iterator[Item]:
    """Yield the rows of a file with their questions.

    Args:
      source: The file and its layout.
      domain: One of `sharegpt.DOMAINS`.
      bad: Policy for bad rows.

    Raises:
      RowError: For the first bad row, unless bad rows are skipped.
    """
    for span, row in read_rows(source.path, bad):
        try:
            messages, score = sharegpt.messages(row, source.layout), sharegpt.trajectory_score(row)
        except ValueError as error:
            bad.add(RowError(source.path, span.number, str(error)))
            continue
        strategies = sharegpt.strategy_indexes(messages, source.layout, domain)
        texts = [message[source.layout.content] for message in messages]
        yield Item(span, row, messages, score, strategies,
                   critical.question(texts, score, critical.wording(domain), strategies))


class RemoteJudge:
    """A chat model behind an endpoint."""

    def __init__(self, remote: Remote, address: Address, temperature: float, max_tokens: int, attempts: int):
        """Create the judge.

        Args:
          remote: Client with a record of answers.
          address: The model.
          temperature: Sampling temperature.
          max_tokens: Length of the longest answer; 0 for the endpoint's limit.
          attempts: Answers to ask for until one can be understood.
        """
        self._remote, self._address = remote, address
        self._temperature, self._max_tokens, self._attempts = temperature, max_tokens, attempts

    def labels(self, source: sharegpt.Source, items: Iterator[Item],
               stop: Callable[[], None]) -> Iterator[tuple[Item, Label]]:
        """See LabelJudge.labels. Answers in flight at an error are awaited and saved, since they are paid for.

        Raises:
          NoAccess: If the endpoint refuses all requests.
          BudgetSpent: If the next request could exceed the budget.
          Unavailable: If the endpoint failed again and again.
        """
        concurrency = self._remote.options.concurrency
        pool, pending = futures.ThreadPoolExecutor(concurrency), collections.deque()

        def first() -> tuple[Item, Label]:
            item, future = pending.popleft()
            while not futures.wait([future], POLL).done:
                stop()
            return item, future.result()

        try:
            for item in items:
                stop()
                pending.append((item, pool.submit(self.label, item)))
                while pending and (len(pending) > WINDOW * concurrency or pending[0][1].done()):
                    yield first()
            while pending:
                yield first()
        except BaseException:
            self._remote.stop()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def label(self, item: Item) -> Label:
        """Ask about a row until an answer can be understood."""
        reason, answered, left, attempt = 'no answer', True, self._attempts, 0
        while left > 0:
            request = Request(self._address, 'label', (('user', item.question),), self._temperature, self._max_tokens,
                              attempt, attempt)
            result, = self._remote.complete([request])
            if isinstance(result, Failure):
                return Label(None, result.reason, isinstance(result, Refused))
            label = _read(result, item)
            if label.location is not None:
                return label
            reason, answered, attempt = label.how, label.answered, attempt + 1
            # Where an earlier run got no whole answer, this one asks for others.
            left -= answered or not result.cached
        return Label(None, reason, answered)

    def describe(self) -> str:
        """See LabelJudge.describe."""
        retries = sum(usage.retried for usage in self._remote.usage().values())
        return f', {retries} retries' + (f', ${self.spent:.4f}' if self._remote.options.prices else '')

    @property
    def spent(self) -> float:
        """See LabelJudge.spent."""
        return self._remote.spent


def _read(answer: Answer, item: Item) -> Label:
    if answer.text is None:
        return Label(None, answer.problem, answer.refused)
    if answer.cut:
        return Label(None, 'the answer is cut off at its longest length', False)
    try:
        return Label(*critical.read_answer(answer.text, item.strategies))
    except critical.AnswerError as error:
        return Label(None, str(error))
