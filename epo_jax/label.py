"""Labels conversations with their critical turns: the process reward model of EPO, on files.

    python -m epo_jax.label --data=raw.json --out=labelled.json --domain=sotopia --judge=local
    python -m epo_jax.label --data=raw.json --out=labelled.json --domain=sotopia --judge=https://api.openai.com/v1 \\
        --prices=2.5,10 --budget=20 --requests_per_minute=500

A judge reads every finished conversation with its score and names the strategies that were critical. They go into the
row as "location", the numbers of these messages counted from 0. An answer that names none understandably is asked for
again, and in the end recorded as "location_missing" with the reason: never as nothing selected.

Every answer is kept in a database beside the output as soon as it is there, so a run that was killed, or that ended
because its budget was spent, goes on when started again, and nothing is paid twice. The input is never changed.
"""

import argparse
import collections
from concurrent import futures
import contextlib
import dataclasses
import hashlib
import os
from pathlib import Path
import sqlite3
import sys
import threading
from typing import Any, Callable, Iterator, Optional, Sequence

from epo_jax.agents.remote import BudgetSpent, Client, Endpoint, NoAccess, RequestRefused, Unavailable
from epo_jax.data import critical, sharegpt
from epo_jax.data.progress import FileProgress
from epo_jax.data.rows import BadRows, RowError, Span, read_rows, row_writer
from epo_jax.prepare import refuse_overwriting

GIVE_UP = 10  # rows in a row without any answer


@dataclasses.dataclass(frozen=True)
class Item:
    """A row with the question about it.

    Attributes:
      span, row: where and what it is; messages: those of the row, checked; score: of the row.
      strategies: numbers of the messages to choose from.
      question: the text that a remote judge is asked.
      key: of the judge and the question; equal ones are asked once.
    """

    span: Span
    row: dict[str, Any]
    messages: list[dict[str, Any]]
    score: float
    strategies: tuple[int, ...]
    question: str
    key: str


class Answers(contextlib.AbstractContextManager):
    """The answers so far, on disk; an answer is safe as soon as `put` returns. For use from many threads."""

    def __init__(self, path: Path):
        """Opens or makes the database. Raises DataError: it is damaged, or no database."""
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, timeout=60)
            with self._db:
                self._db.execute('CREATE TABLE IF NOT EXISTS answers (key TEXT, attempt INTEGER, text TEXT, '
                                 'problem TEXT, cost REAL, PRIMARY KEY (key, attempt))')
        except sqlite3.Error as error:
            raise sharegpt.DataError(f'the answers cannot be kept in {path} ({error})') from error

    def get(self, key: str, attempt: int) -> Optional[tuple[Optional[str], Optional[str]]]:
        """(text, problem) of an answer, one of which is None; None where it was not asked for yet."""
        with self._lock:
            return self._db.execute('SELECT text, problem FROM answers WHERE key = ? AND attempt = ?',
                                    (key, attempt)).fetchone()

    def put(self, key: str, attempt: int, text: Optional[str], problem: Optional[str], cost: float) -> None:
        """Keeps an answer."""
        with self._lock, self._db:
            self._db.execute('INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?)',
                             (key, attempt, text, problem, cost))

    def spent(self) -> float:
        """Dollars that all the answers cost."""
        with self._lock:
            return self._db.execute('SELECT COALESCE(SUM(cost), 0) FROM answers').fetchone()[0]

    def __exit__(self, *exception: Any) -> None:
        self._db.close()


def read_items(source: sharegpt.Source, domain: str, judge: str, bad: BadRows) -> Iterator[Item]:
    """The rows of a file with their questions; `judge` says who is asked, and how.

    Raises:
      RowError: the first bad row, unless they are skipped.
    """
    for span, row in read_rows(source.path, bad):
        try:
            found, score = sharegpt.messages(row, source.layout), sharegpt.trajectory_score(row)
        except ValueError as error:
            bad.add(RowError(source.path, span.number, str(error)))
            continue
        text = critical.question(found, score, source.layout, domain)
        key = hashlib.sha256(f'{judge}\n{text}'.encode()).hexdigest()
        yield Item(span, row, found, score, critical.strategy_indexes(found, source.layout, domain), text, key)


def decide(item: Item, attempts: int,
           answer: Callable[[int], Optional[tuple[Optional[str], Optional[str]]]]) -> tuple[Any, str]:
    """What the answers about a row say.

    Args:
      answer: attempt -> (text, problem), or None where it is not to be had.

    Returns:
      (messages selected, how they were numbered) or (None, why the label is missing).
    """
    why = 'no answer'
    for attempt in range(attempts):
        given = answer(attempt)
        if given is None:
            break
        text, problem = given
        if text is None:
            why = problem or 'the model declined to answer'
            continue
        try:
            return critical.read_answer(text, item.strategies)
        except critical.AnswerError as error:
            why = str(error)
    return None, why


def ask_remote(items: Iterator[Item], client: Client, answers: Answers, attempts: int,
               report: Callable[[Span, str], None]) -> dict[str, str]:
    """Has every row answered that is not yet, several at a time; at most so many are held in memory.

    Returns:
      key -> reason of the rows for which the endpoint had no answer; the next run asks for them again.

    Raises:
      NoAccess, BudgetSpent, Unavailable: there is no point in going on; what was answered is kept.
    """
    unanswered: dict[str, str] = {}
    failures = rows = 0

    def answer(item: Item, attempt: int) -> tuple[Optional[str], Optional[str]]:
        if (known := answers.get(item.key, attempt)) is not None:
            return known
        try:
            got = client.complete([{'role': 'user', 'content': item.question}], seed=attempt)
        except RequestRefused as error:
            found = None, str(error), 0.0
        else:
            found = got.text, None, client.endpoint.cost(got.prompt_tokens, got.completion_tokens)
        answers.put(item.key, attempt, *found)
        return found[:2]

    def settle(item: Item) -> None:
        decide(item, attempts, lambda attempt: answer(item, attempt))

    pending: dict[futures.Future, Item] = {}

    def collect(when: str) -> None:
        nonlocal failures
        for future in futures.wait(pending, return_when=when).done:
            item = pending.pop(future)
            try:
                future.result()
                failures = 0
            except Unavailable as error:
                unanswered[item.key] = str(error)
                failures += 1
                if failures >= GIVE_UP:
                    raise Unavailable(f'{failures} rows one after the other were not answered: {error}') from error

    pool = futures.ThreadPoolExecutor(client.endpoint.concurrency)
    try:
        for item in items:
            if not (decided(item, attempts, answers) or item.key in {other.key for other in pending.values()}):
                while len(pending) >= 2 * client.endpoint.concurrency:
                    collect(futures.FIRST_COMPLETED)
                pending[pool.submit(settle, item)] = item
            rows += 1
            report(item.span, f'{rows} rows, {client.retried} retries'
                   + (f', ${client.spent:.4f}' if any(client.endpoint.prices) else ''))
        while pending:
            collect(futures.FIRST_COMPLETED)
    except BaseException:
        client.stop()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)  # what is under way is paid for, and kept
    return unanswered


def decided(item: Item, attempts: int, answers: Answers) -> bool:
    """Whether nothing more is to be asked about a row."""
    asked = [answers.get(item.key, attempt) for attempt in range(attempts)]
    return None not in asked or decide(item, attempts, lambda attempt: asked[attempt])[0] is not None


def label_file(data: str, out: str, domain: str, ask: Callable, judge: str, cache: Optional[str] = None,
               attempts: int = 3, skip_bad: bool = False) -> dict[str, Any]:
    """Labels a file in two passes: all questions are answered, then the rows are written in their order.

    Args:
      ask: (source, items, answers, report) -> reasons of unanswered rows by key; it keeps the answers.
      judge: who is asked, and how; answers of another are not used.
      cache: file of the answers; None: beside the output.

    Returns:
      the summary: rows, labelled, missing with reasons, how answers were numbered, and more.

    Raises:
      DataError, RowError, RemoteError: nothing was written, but what was answered is kept.
    """
    source, path = sharegpt.find_source(data), Path(out)
    refuse_overwriting(source.path, path)
    progress, size = FileProgress('label', os.path.getsize(source.path)), os.path.getsize(source.path)
    with Answers(Path(cache or f'{out}.answers.sqlite')) as answers:
        bad = BadRows(skip_bad)
        report = lambda span, text: progress.show(span.start + span.size, text)
        unanswered = ask(source, read_items(source, domain, judge, bad), answers, report)
        counts, missing, numbered = collections.Counter(), collections.Counter(), collections.Counter()
        with row_writer(path) as write:
            # Bad rows have been reported; they are the same ones again.
            quiet = BadRows(skip_bad, shown=0)
            for item in read_items(source, domain, judge, quiet):
                location, how = decide(item, attempts, lambda attempt: answers.get(item.key, attempt))
                row = {key: value for key, value in item.row.items() if key not in ('location', 'location_missing')}
                row[source.layout.messages] = [
                    message | {'index': i} for i, message in enumerate(item.messages)]
                counts['rows'] += 1
                if location is None:
                    how = unanswered.get(item.key, how)
                    row['location_missing'] = how
                    missing[how] += 1
                else:
                    row['location'] = list(location)
                    numbered[how] += 1
                    counts['nothing_selected'] += not location
                    counts['selected'] += len(location)
                    counts['strategies'] += len(item.strategies)
                write(row)
            if not counts['rows']:
                raise sharegpt.DataError(f'{source.path}: no rows in it ({bad.count} bad ones)')
        progress.show(size, f'{counts["rows"]} rows', last=True)
        return {'rows': counts['rows'], 'labelled': sum(numbered.values()), 'missing': dict(missing.most_common(20)),
                'unanswered': len(unanswered), 'nothing_selected': counts['nothing_selected'],
                'selected': counts['selected'], 'strategies': counts['strategies'], 'numbered': dict(numbered),
                'bad': bad.count, 'spent': answers.spent()}


def describe(summary: dict[str, Any]) -> str:
    """The summary as lines of text."""
    lines = [f'{summary["labelled"]} of {summary["rows"]} conversations labelled: {summary["selected"]} of '
             f'{summary["strategies"]} strategies are critical, {summary["nothing_selected"]} conversations have '
             f'none; {summary["bad"]} bad rows skipped']
    lines += [f'  {count:6d}  missing: {reason}' for reason, count in summary['missing'].items()]
    lines += [f'  {count:6d}  answers numbered otherwise than asked ({how})'
              for how, count in summary['numbered'].items() if how != 'message']
    if summary['unanswered']:
        lines.append(f'start again to ask for the {summary["unanswered"]} unanswered ones')
    if summary['spent']:
        lines.append(f'${summary["spent"]:.4f} spent in all')
    return '\n'.join(lines)


def main(argv: Optional[Sequence[str]] = None) -> None:
    """The command; see the module."""
    parser = argparse.ArgumentParser(prog='python -m epo_jax.label', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--data', required=True, help='raw conversations: a file, or see epo_jax/data/sharegpt.py')
    add('--out', required=True, help='file to write: .json, or .jsonl')
    add('--domain', required=True, choices=sharegpt.DOMAINS, help='where the conversations come from')
    add('--judge', required=True, help="'local', or the address of an OpenAI-compatible endpoint")
    add('--model', help='of the judge (local: a folder or GGUF file; default smollm2; else gpt-4o-2024-08-06)')
    add('--cache', help='database of the answers; default: the output with .answers.sqlite')
    add('--skip_bad', action='store_true', help='leave bad rows out, and count them, instead of stopping')
    add('--batch', type=int, default=8, help='local: conversations at a time')
    add('--capacity', type=int, default=4096, help='local: longest conversation, in tokens')
    add('--attempts', type=int, default=3, help='answers asked for until one is understood')
    add('--temperature', type=float, default=Endpoint.temperature)
    add('--max_tokens', type=int, default=Endpoint.max_tokens, help='longest answer; 0: the limit of the endpoint')
    add('--timeout', type=float, default=Endpoint.timeout, help='seconds for one request')
    add('--retries', type=int, default=Endpoint.retries, help='further tries after a request that failed')
    add('--backoff', type=float, default=Endpoint.backoff, help='seconds before the first retry; doubled each time')
    add('--concurrency', type=int, default=Endpoint.concurrency, help='requests at a time')
    add('--requests_per_minute', type=float, default=0.0, help='0: unlimited')
    add('--tokens_per_minute', type=float, default=0.0, help='0: unlimited')
    add('--prices', default='0,0', help='dollars for a million tokens read, and written')
    add('--budget', type=float, default=0.0, help='dollars, earlier runs with this cache included; 0: unlimited')
    add('--key_variable', default=Endpoint.key_variable, help='environment variable with the API key')
    args = parser.parse_args(argv)
    if min(args.attempts, args.batch, args.capacity) < 1:
        parser.error('--attempts, --batch and --capacity are positive')
    try:
        summary = _run(args)
    except (sharegpt.DataError, RowError, OSError, ValueError, sqlite3.Error) as error:
        sys.exit(f'error: {error}')
    except (NoAccess, BudgetSpent, Unavailable) as error:
        sys.exit(f'stopped: {error}\nwhat was answered is kept; start again to go on')
    print(describe(summary))
    print(f'wrote {args.out}')


def _run(args: argparse.Namespace) -> dict[str, Any]:
    if args.judge == 'local':
        from epo_jax.data.local_judge import LocalJudge  # only here, because JAX takes seconds to import
        model = args.model or 'smollm2'
        judge = f'local {model} {args.capacity}'
        local = LocalJudge(model, args.domain, args.capacity, args.batch)
        return label_file(args.data, args.out, args.domain, local.ask, judge, args.cache, 1, args.skip_bad)
    prices = tuple(float(price) for price in args.prices.split(','))
    if len(prices) != 2:
        raise ValueError('--prices are two numbers: dollars for a million tokens read, and written')
    endpoint = Endpoint(
        args.judge, args.model or 'gpt-4o-2024-08-06', args.key_variable, args.temperature, args.max_tokens,
        args.timeout, args.retries, args.backoff, Endpoint.longest_wait, args.concurrency, args.requests_per_minute,
        args.tokens_per_minute, prices, args.budget)

    def ask(source, items, answers, report):
        return ask_remote(items, Client(endpoint, answers.spent()), answers, args.attempts, report)

    judge = f'{endpoint.model} {endpoint.temperature} {endpoint.max_tokens}'
    return label_file(args.data, args.out, args.domain, ask, judge, args.cache, args.attempts, args.skip_bad)


if __name__ == '__main__':
    main()
