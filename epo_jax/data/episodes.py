"""Episodes of a run as raw conversations, so that what was played online can be labelled and trained on offline.

    python -m epo_jax.data.episodes --workdir=runs/quickstart --out=raw.json

A row is what a trained strategist read and wrote, from the exact ids that the episode file keeps, with the outcome of
its seat as score, on the scale of the run's environment. Episodes without an outcome are left out and counted.
"""

import argparse
import collections
from pathlib import Path
import sys
from typing import Any, Iterator, Optional, Sequence

from epo_jax.data.rows import BadRows, RowError, read_rows, row_writer
from epo_jax.data.sharegpt import BEST, DOMAINS, DataError


def split_messages(ids: Sequence[int], turn: Sequence[int], chat, limit: Optional[int] = None) -> list[list[int]]:
    """The messages of a session as ids, in turn the user's and the assistant's; nothing behind the last reply.

    A reply that was begun for the model includes its beginning; no message includes the template around it.

    Args:
      ids: of the whole conversation; turn: -1 for context, t for what was sampled in turn t.
      chat: the ChatSegments of the session.
      limit: at most so many turns.

    Raises:
      ValueError: the ids do not belong to this template.
    """
    messages, at = [], 0
    count = max(turn, default=-1) + 1
    for t in range(count if limit is None else min(count, limit)):
        begin = list(turn).index(t)
        end = begin + sum(number == t for number in turn)
        context = list(ids[at:begin])
        if t and context[:1] == [chat.end] and ids[at - 1] != chat.end:
            context = context[1:]  # the reply before was cut off, and ended by hand
        around = list(chat.between if t else chat.open)
        close = list(chat.close)
        places = [i for i in range(len(around), len(context) - len(close) + 1) if context[i:i + len(close)] == close]
        if context[:len(around)] != around or not places:
            raise ValueError(f'turn {t} is not framed by the chat template of the run')
        place = places[-1]
        reply = context[place + len(close):] + list(ids[begin:end])
        messages += [context[len(around):place], reply[:-1] if reply[-1] == chat.end else reply]
        at = end
    return messages


def convert(records: Iterator[dict[str, Any]], tokenizer, chat, best: float,
            counts: collections.Counter) -> Iterator[dict[str, Any]]:
    """Raw rows of episode records; `counts` gets what was converted and what was left out, and why.

    Args:
      best: the largest score; outcomes lie in [0, 1].

    Raises:
      ValueError: a record is not of this run's model.
    """
    from epo_jax.text.tokenizer import decode, encode

    for record in records:
        for s, seat in enumerate(record['seats']):
            if 'ids' not in seat:
                counts['seats that were not trained'] += 1
                continue
            if seat['outcome'] is None or record['truncated']:
                counts['left out: cut off, or without an outcome'] += 1
                continue
            messages = split_messages(seat['ids'], seat['turn'], chat)
            if not messages:
                counts['left out: without a strategy'] += 1
                continue
            texts = [decode(tokenizer, message) for message in messages]
            counts['rows'] += 1
            # Sampled ids are not always those that a tokenizer makes of their text.
            counts['rows whose tokens change on the way through text'] += any(
                encode(tokenizer, text) != list(message) for text, message in zip(texts, messages))
            yield {'id': f'{record["scenario"]}/{record["episode"]}/{s}', 'conversations': [
                {'from': ('human', 'gpt')[i % 2], 'value': text} for i, text in enumerate(texts)],
                'score': best * seat['outcome']}


def convert_run(workdir: str, out: str, domain: Optional[str] = None) -> dict[str, int]:
    """Converts all the episodes that a run trained on, in order.

    Args:
      domain: one of DOMAINS, whose scale the scores get; None: the run's environment.

    Returns:
      how many rows were made, and what was left out.

    Raises:
      DataError: there are no episodes, or none with an outcome, or their scale is not known.
      RowError: naming the file and row of a record that cannot be converted.
    """
    from epo_jax.runs import load_run_language, read_config

    files = sorted(Path(workdir).glob('episodes/iteration_*.jsonl'))
    if not files:
        raise DataError(f'{workdir} holds no episodes')
    config, counts = read_config(workdir), collections.Counter()
    domain = domain or config.environment.name
    if domain not in DOMAINS:
        raise DataError(f'{workdir} is a run of {domain!r}; say whose scale its scores get: {", ".join(DOMAINS)}')
    language = load_run_language(config)
    with row_writer(out) as write:
        for file in files:
            for span, record in read_rows(file, BadRows(False)):
                try:
                    for row in convert(iter([record]), language.tokenizer, language.chat, BEST[domain], counts):
                        write(row | {'id': f'{file.stem}/{row["id"]}'})
                except (KeyError, TypeError, ValueError) as error:
                    raise RowError(file, span.number, f'no episode of this run ({error})') from error
        if not counts['rows']:
            raise DataError(f'{workdir} holds no episode with an outcome: {dict(counts)}')
    return dict(counts)


def main(argv: Optional[Sequence[str]] = None) -> None:
    """The command; see the module."""
    parser = argparse.ArgumentParser(prog='python -m epo_jax.data.episodes', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--workdir', required=True, help='of the run')
    parser.add_argument('--out', required=True, help='file to write: .json, or .jsonl')
    parser.add_argument('--domain', choices=DOMAINS, help="whose scale the scores get; default: the run's own")
    args = parser.parse_args(argv)
    try:
        counts = convert_run(args.workdir, args.out, args.domain)
    except (ValueError, OSError) as error:
        sys.exit(f'error: {error}')
    print('\n'.join(f'{count:6d}  {what}' for what, count in counts.items()))
    print(f'wrote {args.out}')


if __name__ == '__main__':
    main()
