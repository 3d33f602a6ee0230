"""Convert the episodes of an online run to raw conversations, which can then be labeled and trained on offline.

    python -m epo_jax.data.episodes --workdir=runs/quickstart --out=raw.json

A row holds what a trained strategist read and wrote, decoded from the token ids in the episode file, and the outcome
of its seat as a score on the scale of the environment. Episodes without an outcome are left out and counted.
"""

import argparse
import collections
from pathlib import Path
from typing import Any, Iterator, Optional, Sequence

from epo_jax.data.rows import BadRows, RowError, read_rows, row_writer
from epo_jax.data.sharegpt import BEST, DOMAINS, DataError
from epo_jax.runtime import command
from epo_jax.runtime.locks import claim


def message_texts(ids: Sequence[int], turn: Sequence[int], tokenizer, chat) -> tuple[list[str], bool]:
    """Decode the messages of a session.

    Args:
      ids: Token ids of the session.
      turn: Per position, t for tokens sampled in turn t, -1 for context.
      tokenizer: Tokenizer of the model.
      chat: Chat segments of the model.

    Returns:
      The messages, alternately of the user and the assistant, and whether their texts tokenize to other ids.

    Raises:
      ValueError: If the ids do not match the chat template.
    """
    from epo_jax.text.messages import decode_messages, split_messages

    messages = split_messages(ids, turn, chat)
    texts = decode_messages(messages, tokenizer, chat)
    return texts, any(ids != list(message) for ids, message in zip(chat.encode(tokenizer, texts), messages))


def to_row(texts: Sequence[str]) -> list[dict[str, str]]:
    """Return the messages of a raw row."""
    return [{'from': ('human', 'gpt')[i % 2], 'value': text} for i, text in enumerate(texts)]


def convert(records: Iterator[dict[str, Any]], tokenizer, chat, best: float,
            counts: collections.Counter) -> Iterator[dict[str, Any]]:
    """Yield the raw rows of episode records, one per trained seat.

    Args:
      records: Episode records of a run.
      tokenizer: Tokenizer of its model.
      chat: Chat segments of its model.
      best: Largest score, which an outcome of 1 becomes.
      counts: Counter to which the number of rows and of omitted seats by reason is added.

    Raises:
      ValueError: If a record does not match the model's chat template.
    """
    for record in records:
        for s, seat in enumerate(record['seats']):
            if 'ids' not in seat:
                counts['seats without a trained strategist'] += 1
                continue
            if seat['outcome'] is None or record['truncated']:
                counts['left out: truncated or without an outcome'] += 1
                continue
            texts, differ = message_texts(seat['ids'], seat['turn'], tokenizer, chat)
            if not texts:
                counts['left out: without a strategy'] += 1
                continue
            counts['rows'] += 1
            # Sampled ids are not always the ids that the tokenizer gives for their text.
            counts['rows whose text tokenizes to other ids'] += differ
            yield {'id': f'{record["scenario"]}/{record["episode"]}/{s}', 'conversations': to_row(texts),
                   'score': best * seat['outcome']}


def convert_run(workdir: str, out: str, domain: Optional[str] = None) -> dict[str, int]:
    """Convert all episodes that a run trained on, in order.

    Args:
      workdir: Directory of the run.
      out: File to write.
      domain: One of `DOMAINS`, whose score scale is used; None for the run's environment.

    Returns:
      The number of rows and of omitted seats by reason.

    Raises:
      RunError: If the workdir holds no run.
      DataError: If there are no episodes with an outcome, or if the score scale is unknown.
      RowError: If a record cannot be converted; names the file and the row.
    """
    from epo_jax.runs import load_run_language, read_config

    files = sorted(Path(workdir).glob('episodes/iteration_*.jsonl'))
    if not files:
        raise DataError(f'{workdir} holds no episodes')
    config, counts = read_config(workdir), collections.Counter()
    domain = domain or config.environment.name
    if domain not in DOMAINS:
        raise DataError(f'{workdir} is a run of {domain!r}, whose score scale is unknown; '
                        f'choose one with --domain: {", ".join(DOMAINS)}')
    language = load_run_language(config)
    with claim(out), row_writer(out) as write:
        for file in files:
            for span, record in read_rows(file, BadRows(False)):
                try:
                    for row in convert(iter([record]), language.tokenizer, language.chat, BEST[domain], counts):
                        write(row | {'id': f'{file.stem}/{row["id"]}'})
                except (KeyError, TypeError, ValueError) as error:
                    raise RowError(file, span.number, f'not an episode of this run ({error})') from error
        if not counts['rows']:
            raise DataError(f'{workdir} holds no episodes with an outcome: {dict(counts)}')
    return dict(counts)


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Run the command, see the module docstring."""
    parser = argparse.ArgumentParser(prog='python -m epo_jax.data.episodes', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--workdir', required=True, help='directory of the run')
    parser.add_argument('--out', required=True, help='.json or .jsonl file to write')
    parser.add_argument('--domain', choices=DOMAINS, help="score scale (default: that of the run's environment)")
    args = parser.parse_args(argv)
    with command.one_line_errors(ValueError):
        counts = convert_run(args.workdir, args.out, args.domain)
    print('\n'.join(f'{count:6d}  {what}' for what, count in counts.items()))
    print(f'wrote {args.out}')


if __name__ == '__main__':
    command.run(main)
