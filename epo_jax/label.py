r"""Label conversations with their critical turns: the process reward model of EPO, applied to files.

    python -m epo_jax.label --data=raw.json --out=labeled.json --domain=sotopia --judge=local
    python -m epo_jax.label --data=raw.json --out=labeled.json --domain=sotopia --judge=https://api.openai.com/v1 \
        --prices=2.5,10 --budget=20 --requests_per_minute=500

A judge reads every finished conversation with its score and names the strategies that were critical. The indexes of
these messages (from 0) go into the row as "location". If an answer cannot be understood, the judge is asked again.
If all attempts fail, the reason goes into the row as "location_missing"; such a row does not count as one without
critical turns.

Every answer is saved at once in a database next to the output. If the command is killed or runs out of budget, start
it again: it continues where it stopped and asks for no saved answer again. The input file is never changed.
"""

import argparse
import collections
from concurrent import futures
import contextlib
import dataclasses
import functools
import hashlib
import os
from pathlib import Path
import sqlite3
import sys
import threading
from typing import Any, Callable, Iterator, Optional, Sequence

from epo_jax.agents.remote import BudgetSpent, Client, Endpoint, NoAccess, RequestRefused, Unavailable
from epo_jax.data import sharegpt
from epo_jax.data.progress import FileProgress
from epo_jax.data.rows import BadRows, RowError, Span, read_rows, row_writer
from epo_jax.rewards import critical
from epo_jax.runtime import command
from epo_jax.runtime.errors import Stopped
from epo_jax.runtime.locks import claim
from epo_jax.runtime.stopping import StopSignals

POLL = 0.2    # seconds between two looks at the signals while answers are awaited
GIVE_UP = 10  # unanswered rows in succession after which the endpoint counts as down


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
      key: Hash of the judge and the question. Items with the same key are asked only once.
    """

    span: Span
    row: dict[str, Any]
    messages: list[dict[str, Any]]
    score: float
    strategies: tuple[int, ...]
    question: str
    key: str


class Answers(contextlib.AbstractContextManager):
    """Database of the answers so far, safe to use from many threads. An answer is on disk once `put` returns."""

    def __init__(self, path: Path):
        """Open or create the database; raise DataError if the file is damaged or not a database."""
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, timeout=60)
            with self._db:
                self._db.execute('CREATE TABLE IF NOT EXISTS answers (key TEXT, attempt INTEGER, text TEXT, '
                                 'problem TEXT, cost REAL, PRIMARY KEY (key, attempt))')
        except sqlite3.Error as error:
            raise sharegpt.DataError(f'cannot keep the answers in {path} ({error})') from error

    def get(self, key: str, attempt: int) -> Optional[tuple[Optional[str], Optional[str]]]:
        """Return (text, problem) of an answer, one of which is None, or None if there is no answer yet."""
        with self._lock:
            return self._db.execute('SELECT text, problem FROM answers WHERE key = ? AND attempt = ?',
                                    (key, attempt)).fetchone()

    def put(self, key: str, attempt: int, text: Optional[str], problem: Optional[str], cost: float) -> None:
        """Save an answer: its text, or the problem if there is none, and its cost in dollars."""
        with self._lock, self._db:
            self._db.execute('INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?)',
                             (key, attempt, text, problem, cost))

    def spent(self) -> float:
        """Return the cost of all answers in dollars."""
        with self._lock:
            return self._db.execute('SELECT COALESCE(SUM(cost), 0) FROM answers').fetchone()[0]

    def __exit__(self, *exception: Any) -> None:
        self._db.close()


def read_items(source: sharegpt.Source, domain: str, judge: str, bad: BadRows) -> Iterator[Item]:
    """Yield the rows of a file with their questions.

    Args:
      source: The file and its layout.
      domain: One of `sharegpt.DOMAINS`.
      judge: Name of the judge and its settings, a part of the key.
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
        text = critical.question(texts, score, critical.wording(domain), strategies)
        key = hashlib.sha256(f'{judge}\n{text}'.encode()).hexdigest()
        yield Item(span, row, messages, score, strategies, text, key)


def read_label(item: Item, attempts: int,
               answer: Callable[[int], Optional[tuple[Optional[str], Optional[str]]]]) -> tuple[Any, str]:
    """Read the label of a row from the first answer that can be understood.

    Args:
      item: The row.
      attempts: Largest number of answers to read.
      answer: Function from an attempt to its (text, problem), or to None if there is no such answer.

    Returns:
      The indexes of the selected messages and how the answer numbered them (see `critical.resolve`), or None and the
      reason why the label is missing.
    """
    reason = 'no answer'
    for attempt in range(attempts):
        result = answer(attempt)
        if result is None:
            break
        text, problem = result
        if text is None:
            reason = problem or 'the model declined to answer'
            continue
        try:
            return critical.read_answer(text, item.strategies)
        except critical.AnswerError as error:
            reason = str(error)
    return None, reason


def needs_no_answer(item: Item, attempts: int, answers: Answers) -> bool:
    """Return whether the saved answers already decide the label of a row, or whether all attempts are used up."""
    saved = [answers.get(item.key, attempt) for attempt in range(attempts)]
    return None not in saved or read_label(item, attempts, lambda attempt: saved[attempt])[0] is not None


def ask_remote(items: Iterator[Item], client: Client, answers: Answers, attempts: int,
               report: Callable[[Span, str], None], stop: Callable[[], None] = lambda: None) -> dict[str, str]:
    """Ask an endpoint about every row that has no label yet, several rows at a time.

    At most twice as many rows as the endpoint's concurrency are held in memory.

    Args:
      items: The rows.
      client: Client of the endpoint.
      answers: Database that supplies and receives the answers.
      attempts: Answers to ask for until one can be understood.
      report: Function that shows the progress, from a position in the file and a text.
      stop: Function that is called again and again, and may raise an error to stop.

    Returns:
      Key -> reason, for every row that the endpoint did not answer. The next run asks for these rows again.

    Raises:
      NoAccess: If the endpoint refuses all requests.
      BudgetSpent: If the next request could exceed the budget.
      Unavailable: If the endpoint did not answer `GIVE_UP` rows in succession.
    """
    unanswered: dict[str, str] = {}
    failures = rows = 0

    def answer(item: Item, attempt: int) -> tuple[Optional[str], Optional[str]]:
        if (saved := answers.get(item.key, attempt)) is not None:
            return saved
        try:
            completion = client.complete([{'role': 'user', 'content': item.question}], seed=attempt)
        except RequestRefused as error:
            text, problem, cost = None, str(error), 0.0
        else:
            text, problem = completion.text, None
            cost = client.endpoint.cost(completion.prompt_tokens, completion.completion_tokens)
        answers.put(item.key, attempt, text, problem, cost)
        return text, problem

    def ask(item: Item) -> None:
        read_label(item, attempts, lambda attempt: answer(item, attempt))

    pending: dict[futures.Future, Item] = {}

    def collect(when: str) -> None:
        nonlocal failures
        while not (done := futures.wait(pending, POLL, return_when=when).done):
            stop()
        for future in done:
            item = pending.pop(future)
            try:
                future.result()
                failures = 0
            except Unavailable as error:
                unanswered[item.key] = str(error)
                failures += 1
                if failures >= GIVE_UP:
                    raise Unavailable(f'the endpoint did not answer {failures} rows in succession: {error}') from error

    pool = futures.ThreadPoolExecutor(client.endpoint.concurrency)
    try:
        for item in items:
            stop()
            is_pending = item.key in {other.key for other in pending.values()}
            if not (is_pending or needs_no_answer(item, attempts, answers)):
                while len(pending) >= 2 * client.endpoint.concurrency:
                    collect(futures.FIRST_COMPLETED)
                pending[pool.submit(ask, item)] = item
            rows += 1
            report(item.span, f'{rows} rows, {client.retried} retries'
                   + (f', ${client.spent:.4f}' if any(client.endpoint.prices) else ''))
        while pending:
            collect(futures.FIRST_COMPLETED)
    except BaseException:
        client.stop()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)  # requests in flight are paid for, so their answers are saved
    return unanswered


def label_file(data: str, out: str, domain: str, ask: Callable, judge: str, cache: Optional[str] = None,
               attempts: int = 3, skip_bad: bool = False) -> dict[str, Any]:
    """Label a file in two passes: get the answers to all questions, then write the rows in their order.

    Args:
      data: Raw conversations, see `sharegpt.find_source`.
      out: File to write.
      domain: One of `sharegpt.DOMAINS`.
      ask: Function (source, items, answers, report, stop) that saves the answers and returns the reason for every
        unanswered row by its key.
      judge: Name of the judge and its settings. Answers of other judges in the database are not used.
      cache: Database of the answers; None for a file next to the output.
      attempts: Answers to read until one can be understood.
      skip_bad: Whether to skip bad rows instead of raising.

    Returns:
      The summary: numbers of rows, labels, critical strategies, missing labels by reason, and more.

    Raises:
      DataError: If the data cannot be found, if it has no rows, or if the output cannot be written.
      RowError: For the first bad row, unless bad rows are skipped.
      RemoteError: If the endpoint cannot be used any further. No output is written, but the answers are saved.
      InUseError: If another process labels with the same database of answers.
      Stopped: If SIGTERM or SIGINT arrived. No output is written, but the answers are saved.
    """
    source, path = sharegpt.find_source(data), Path(out)
    sharegpt.refuse_overwriting(source.path, path)
    size = os.path.getsize(source.path)
    progress = FileProgress('label', size)
    database = Path(cache or f'{out}.answers.sqlite')
    with claim(path), Answers(database) as answers, claim(database):
        bad = BadRows(skip_bad)
        report = lambda span, text: progress.show(span.start + span.size, text)
        with StopSignals(lambda line: print(line, file=sys.stderr), 'the answers in flight') as signals:
            unanswered = ask(source, read_items(source, domain, judge, bad), answers, report,
                             functools.partial(stop_if_requested, signals))
        counts, missing, numbered = collections.Counter(), collections.Counter(), collections.Counter()
        with row_writer(path) as write:
            quiet = BadRows(skip_bad, shown=0)  # the first pass has already printed the bad rows
            for item in read_items(source, domain, judge, quiet):
                location, how = read_label(item, attempts, lambda attempt: answers.get(item.key, attempt))
                row = {key: value for key, value in item.row.items() if key not in ('location', 'location_missing')}
                row[source.layout.messages] = [
                    message | {'index': i} for i, message in enumerate(item.messages)]
                counts['rows'] += 1
                if location is None:
                    reason = unanswered.get(item.key, how)
                    row['location_missing'] = reason
                    missing[reason] += 1
                else:
                    row['location'] = list(location)
                    numbered[how] += 1
                    counts['nothing_selected'] += not location
                    counts['selected'] += len(location)
                    counts['strategies'] += len(item.strategies)
                write(row)
            if not counts['rows']:
                raise sharegpt.DataError(f'{source.path} has no rows ({bad.count} bad rows skipped)')
        progress.show(size, f'{counts["rows"]} rows', last=True)
        return {'rows': counts['rows'], 'labelled': sum(numbered.values()), 'missing': dict(missing.most_common(20)),
                'unanswered': len(unanswered), 'nothing_selected': counts['nothing_selected'],
                'selected': counts['selected'], 'strategies': counts['strategies'], 'numbered': dict(numbered),
                'bad': bad.count, 'spent': answers.spent()}


def stop_if_requested(signals: StopSignals) -> None:
    """Raise Stopped if a signal has arrived."""
    if signals.requested:
        raise Stopped('all answers so far are saved; run the command again to continue')


def describe(summary: dict[str, Any]) -> str:
    """Format the summary as lines of text."""
    lines = [f'labeled {summary["labelled"]} of {summary["rows"]} conversations: {summary["selected"]} of '
             f'{summary["strategies"]} strategies are critical, {summary["nothing_selected"]} conversations have no '
             f'critical strategy, {summary["bad"]} bad rows skipped']
    lines += [f'  {count:6d}  label missing: {reason}' for reason, count in summary['missing'].items()]
    lines += [f'  {count:6d}  answers that number the strategies differently ({how})'
              for how, count in summary['numbered'].items() if how != 'message']
    if summary['unanswered']:
        lines.append(f'the judge did not answer {summary["unanswered"]} questions; run the command again to ask them')
    if summary['spent']:
        lines.append(f'total cost: ${summary["spent"]:.4f}')
    return '\n'.join(lines)


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Run the command, see the module docstring."""
    parser = argparse.ArgumentParser(prog='python -m epo_jax.label', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--data', required=True, help='raw conversations: file, folder or dataset_info.json')
    add('--out', required=True, help='.json or .jsonl file to write')
    add('--domain', required=True, choices=sharegpt.DOMAINS, help='environment of the conversations')
    add('--judge', required=True, help="'local', or the URL of an OpenAI-compatible endpoint")
    add('--model', help='model of the judge (default: smollm2 if local, where any model of docs/models.md is possible, '
        'else gpt-4o-2024-08-06)')
    add('--cache', help='database of the answers (default: OUT.answers.sqlite)')
    add('--skip_bad', action='store_true', help='skip and count bad rows instead of stopping')
    add('--batch', type=int, default=8, help='local: conversations to judge at a time')
    add('--capacity', type=int, default=4096, help='local: length of the longest conversation in tokens')
    add('--attempts', type=int, default=3, help='answers to ask for until one can be understood')
    add('--temperature', type=float, default=Endpoint.temperature, help='sampling temperature')
    add('--max_tokens', type=int, default=Endpoint.max_tokens,
        help="length of the longest answer; 0 for the endpoint's limit")
    add('--timeout', type=float, default=Endpoint.timeout, help='seconds per request')
    add('--retries', type=int, default=Endpoint.retries, help='retries after a request fails')
    add('--backoff', type=float, default=Endpoint.backoff, help='seconds before the first retry; doubles every time')
    add('--concurrency', type=int, default=Endpoint.concurrency, help='simultaneous requests')
    add('--requests_per_minute', type=float, default=0.0, help='rate limit; 0 for none')
    add('--tokens_per_minute', type=float, default=0.0, help='rate limit; 0 for none')
    add('--prices', default='0,0', help='dollars per million prompt tokens and per million completion tokens')
    add('--budget', type=float, default=0.0, help='dollars, including earlier runs with the same cache; 0 for no limit')
    add('--key_variable', default=Endpoint.key_variable, help='environment variable with the API key')
    args = parser.parse_args(argv)
    if min(args.attempts, args.batch, args.capacity) < 1:
        parser.error('--attempts, --batch and --capacity must be positive')
    with command.one_line_errors(ValueError, sqlite3.Error):
        try:
            summary = _run(args)
        except (NoAccess, BudgetSpent, Unavailable) as error:
            command.fail(f'stopped: {error}\nall answers so far are saved; run the command again to continue')
    print(describe(summary))
    print(f'wrote {args.out}')


def _run(args: argparse.Namespace) -> dict[str, Any]:
    if args.judge == 'local':
        from epo_jax.data.local_judge import LocalJudge  # imported here because JAX takes seconds to import
        from epo_jax.language import pinned
        model = pinned(args.model or 'smollm2')
        judge = f'local {model} {args.capacity}'
        local = LocalJudge(model, args.domain, args.capacity, args.batch)
        return label_file(args.data, args.out, args.domain, local.ask, judge, args.cache, 1, args.skip_bad)
    try:
        prompt_price, completion_price = (float(price) for price in args.prices.split(','))
    except ValueError:
        raise ValueError(f'--prices must be two numbers, dollars per million prompt tokens and per million completion '
                         f'tokens, not {args.prices!r}') from None
    endpoint = Endpoint(
        args.judge, args.model or 'gpt-4o-2024-08-06', args.key_variable, args.temperature, args.max_tokens,
        args.timeout, args.retries, args.backoff, Endpoint.longest_wait, args.concurrency, args.requests_per_minute,
        args.tokens_per_minute, (prompt_price, completion_price), args.budget)

    def ask(source, items, answers, report, stop):
        return ask_remote(items, Client(endpoint, answers.spent()), answers, args.attempts, report, stop)

    judge = f'{endpoint.model} {endpoint.temperature} {endpoint.max_tokens}'
    return label_file(args.data, args.out, args.domain, ask, judge, args.cache, args.attempts, args.skip_bad)


if __name__ == '__main__':
    command.run(main)
