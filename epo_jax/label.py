r"""Label conversations with their critical turns: the process reward model of EPO, applied to files.

    python -m epo_jax.label --data=raw.json --out=labeled.json --domain=sotopia --judge=local
    python -m epo_jax.label --data=raw.json --out=labeled.json --domain=sotopia \
        --judge=gpt-4o-2024-08-06@https://api.openai.com/v1 --prices=2.5,10 --budget=20 --requests_per_minute=500

A judge reads every finished conversation with its score and names the strategies that were critical. The indexes of
these messages (from 0) go into the row as "location". If an answer cannot be understood, the judge is asked again.
If all attempts fail, the reason goes into the row as "location_missing"; such a row does not count as one without
critical turns.

Every answer is saved at once in a database next to the output. If the command is killed or runs out of budget, start
it again: it continues where it stopped and asks for no saved answer again. The input file is never changed.
"""

import argparse
import collections
import contextlib
import functools
import math
import os
from pathlib import Path
import re
import sys
from typing import Any, Iterator, Optional, Sequence

from epo_jax.agents.address import Address, parse_address
from epo_jax.agents.answers import Answers
from epo_jax.agents.remote import BudgetSpent, NoAccess, Remote, Unavailable
from epo_jax.agents.remote_options import RemoteOptions
from epo_jax.data import sharegpt
from epo_jax.data.labels import LabelJudge, RemoteJudge, read_items
from epo_jax.data.progress import FileProgress
from epo_jax.data.rows import BadRows, row_writer
from epo_jax.runtime import command
from epo_jax.runtime.errors import InputError, Stopped
from epo_jax.runtime.locks import claim
from epo_jax.runtime.secrets import redact
from epo_jax.runtime.stopping import StopSignals

MODEL = 'gpt-4o-2024-08-06'  # the judge of the paper


def label_file(source: sharegpt.Source, out: Path, domain: str, judge: LabelJudge, bad: BadRows) -> dict[str, Any]:
    """Label a file.

    Args:
      source: Raw conversations.
      out: File to write.
      domain: One of `sharegpt.DOMAINS`.
      judge: The judge.
      bad: Policy for bad rows.

    Returns:
      The summary: numbers of rows, labels, critical strategies, missing labels by reason, and more.

    Raises:
      DataError: If the data has no rows, or if the output cannot be written.
      RowError: For the first bad row, unless bad rows are skipped.
      InputError: If the judge cannot be used any further. No output is written, but the answers are saved.
      Stopped: If SIGTERM or SIGINT arrived. No output is written, but the answers are saved.
    """
    size = os.path.getsize(source.path)
    progress = FileProgress('label', size)
    counts, missing, numbered = collections.Counter(), collections.Counter(), collections.Counter()
    with row_writer(out) as write, StopSignals(functools.partial(print, file=sys.stderr), 'the answers in flight') as (
            signals):
        stop = functools.partial(stop_if_requested, signals)
        for item, label in judge.labels(source, read_items(source, domain, bad), stop):
            row = {key: value for key, value in item.row.items() if key not in ('location', 'location_missing')}
            row[source.layout.messages] = [message | {'index': i} for i, message in enumerate(item.messages)]
            counts['rows'] += 1
            if label.location is None:
                row['location_missing'] = label.how
                missing[label.how] += 1
                counts['unanswered'] += not label.answered
            else:
                row['location'] = list(label.location)
                numbered[label.how] += 1
                counts['nothing_selected'] += not label.location
                counts['selected'] += len(label.location)
                counts['strategies'] += len(item.strategies)
            write(row)
            progress.show(item.span.start + item.span.size, f'{counts["rows"]} rows{judge.describe()}')
        if not counts['rows']:
            raise sharegpt.DataError(f'{source.path} has no rows ({bad.count} bad rows skipped)')
    progress.show(size, f'{counts["rows"]} rows', last=True)
    return {'rows': counts['rows'], 'labelled': sum(numbered.values()), 'missing': dict(missing.most_common(20)),
            'unanswered': counts['unanswered'], 'nothing_selected': counts['nothing_selected'],
            'selected': counts['selected'], 'strategies': counts['strategies'], 'numbered': dict(numbered),
            'bad': bad.count, 'spent': judge.spent}


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
    add('--judge', required=True, help="'local', or NAME@URL, or the URL of an OpenAI-compatible endpoint")
    add('--model', help='model of the judge (default: smollm2 if local, where any model of docs/models.md is possible, '
        f'else {MODEL} at the URL)')
    add('--cache', help='database of the answers (default: OUT.answers.sqlite)')
    add('--skip_bad', action='store_true', help='skip and count bad rows instead of stopping')
    add('--batch', type=int, default=8, help='local: conversations to judge at a time')
    add('--capacity', type=int, default=4096, help='local: length of the longest conversation in tokens')
    add('--attempts', type=int, default=3, help='answers to ask for until one can be understood')
    add('--temperature', type=float, default=0.7, help='sampling temperature')
    add('--max_tokens', type=int, default=1024,
        help="length of the longest answer; 0 for the endpoint's limit")
    add('--timeout', type=float, default=RemoteOptions.timeout, help='seconds per request')
    add('--retries', type=int, default=RemoteOptions.retries, help='retries after a request fails')
    add('--backoff', type=float, default=RemoteOptions.backoff,
        help='seconds before the first retry; doubles every time')
    add('--concurrency', type=int, default=8, help='simultaneous requests')
    add('--requests_per_minute', type=float, default=0.0, help='rate limit; 0 for none')
    add('--tokens_per_minute', type=float, default=0.0, help='rate limit; 0 for none')
    add('--prices', default='0,0', help='dollars per million prompt tokens and per million completion tokens')
    add('--budget', type=float, default=0.0, help='dollars, including earlier runs with the same cache; 0 for no limit')
    add('--key_variable', default=RemoteOptions.key_variable, help='environment variable with the API key')
    add('--header', action='append', default=[], help="'Name: value' or 'Name: $VARIABLE', to add to every request")
    add('--body', default='', help='JSON object to add to the body of every request; null leaves a field out')
    args = parser.parse_args(argv)
    if min(args.attempts, args.batch, args.capacity) < 1:
        parser.error('--attempts, --batch and --capacity must be positive')
    with command.one_line_errors(ValueError):
        try:
            summary = _run(args)
        except (NoAccess, BudgetSpent, Unavailable) as error:
            command.fail(f'stopped: {error}\nall answers so far are saved; run the command again to continue')
    print(describe(summary))
    print(f'wrote {args.out}')
    if not summary['labelled']:
        command.fail('error: no row is labeled; the reasons are above')


def _run(args: argparse.Namespace) -> dict[str, Any]:
    source, out = sharegpt.find_source(args.data), Path(args.out)
    sharegpt.refuse_overwriting(source.path, out)
    record = Path(args.cache or f'{out}.answers.sqlite')
    with claim(out), claim(record), _open_judge(args, record) as judge:
        return label_file(source, out, args.domain, judge, BadRows(args.skip_bad))


@contextlib.contextmanager
def _open_judge(args: argparse.Namespace, record: Path) -> Iterator[LabelJudge]:
    if args.judge == 'local':
        from epo_jax.data.local_judge import LocalJudge  # imported here because JAX takes seconds to import
        from epo_jax.language import pinned
        with Answers(record) as answers:
            yield LocalJudge(pinned(args.model or 'smollm2'), args.domain, args.capacity, args.batch, answers)
        return
    address = _address(args)
    try:
        options = RemoteOptions(
            key_variable=args.key_variable, requests_per_minute=args.requests_per_minute,
            tokens_per_minute=args.tokens_per_minute, concurrency=args.concurrency, timeout=args.timeout,
            retries=args.retries, backoff=args.backoff, prices=_prices(args.prices, address.name), budget=args.budget,
            cache=str(record), headers=tuple(args.header), body=args.body)
    except InputError as error:
        raise InputError(re.sub(r'\bremote\.(header)?', r'--\1', str(error))) from error
    with Remote(options) as remote:
        remote.check(address)
        yield RemoteJudge(remote, address, args.temperature, args.max_tokens, args.attempts)


def _address(args: argparse.Namespace) -> Address:
    """Return the model to ask: NAME@URL, or a URL with --model."""
    if re.match(r'[a-zA-Z][\w+.-]*://', args.judge):
        return Address(args.model or MODEL, args.judge)
    address = parse_address(args.judge)
    if address is None:
        raise InputError(f"--judge must be 'local', NAME@URL or a URL, not {redact(args.judge)!r}")
    if args.model:
        raise InputError(f'--judge={address} names the model already; leave out --model')
    return address


def _prices(text: str, model: str) -> tuple[str, ...]:
    """Return the prices of the model, none where both are 0."""
    try:
        prices = [float(price) for price in text.split(',')]
    except ValueError:
        prices = []
    if len(prices) != 2 or not all(0 <= price < math.inf for price in prices):
        raise InputError('--prices must be two numbers, dollars per million prompt tokens and per million completion '
                         f'tokens, not {text!r}')
    return (f'{model}={text}',) if any(prices) else ()


if __name__ == '__main__':
    command.run(main)
