"""Compare the conversations with and without advice that a side-car has recorded, and collect the rows to train on.

    python -m epo_jax.serve.results --record=traffic
    python -m epo_jax.serve.results --record=traffic --out=raw.jsonl

Prints the mean outcome of each arm and their difference, with 95 % bootstrap intervals. --out writes all conversations
with strategies to one file, which `epo_jax.label` and `epo_jax.prepare` read.
"""

import argparse
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence

import numpy as np

from epo_jax.data.rows import row_writer
from epo_jax.data.sharegpt import DataError
from epo_jax.runtime import command, streams
from epo_jax.runtime.files import read_jsonl
from epo_jax.runtime.locks import claim
from epo_jax.serve.conversations import ADVISE, OBSERVE
from epo_jax.serve.recording import ADVISED, OBSERVED


def read_rows(record: str, stem: str) -> list[dict[str, Any]]:
    """Return the rows of all files of a stem."""
    return [row for path in sorted(Path(record).glob(f'{stem}_*.jsonl')) for row in read_jsonl(path)]


def read_outcomes(record: str) -> dict[str, list[float]]:
    """Return the outcomes of closed conversations by arm.

    Raises:
      DataError: there are none.
    """
    rows = read_rows(record, OBSERVED) + read_rows(record, ADVISED)
    if not rows:
        raise DataError(f'{record} holds no closed conversations; report outcomes to /v1/outcomes first')
    arms = {arm: [row['outcome'] for row in rows if row['arm'] == arm] for arm in (OBSERVE, ADVISE)}
    return {arm: outcomes for arm, outcomes in arms.items() if outcomes}


def compare_arms(outcomes: Mapping[str, Sequence[float]], samples: int = 2000, seed: int = 0) -> list[Any]:
    """Return an `scores.Row` for each arm; the difference to the first arm is of independent conversations.

    An arm with a single conversation has no interval.

    Args:
      outcomes: in [0, 1], by arm.
      samples: number of bootstrap samples, which draw conversations of each arm.
      seed: of the samples.
    """
    from epo_jax.scores import Row
    rng = streams.generator('arms', seed)
    means = {arm: 10 * np.asarray(x)[rng.integers(0, len(x), (samples, len(x)))].mean(axis=1)
             for arm, x in outcomes.items()}

    def interval(mean: float, drawn: np.ndarray, counts: Sequence[int]) -> tuple[float, float, float]:
        low, high = np.percentile(drawn, (2.5, 97.5)) if min(counts) > 1 else (np.nan, np.nan)
        return mean, float(low), float(high)

    first, rows = next(iter(outcomes)), []
    for arm, x in outcomes.items():
        mean = float(10 * np.mean(x))
        difference = None if arm == first else interval(
            mean - float(10 * np.mean(outcomes[first])), means[arm] - means[first], (len(x), len(outcomes[first])))
        rows.append(Row(arm, *interval(mean, means[arm], (len(x),)), difference, len(x), 0))
    return rows


def collect(record: str, out: str) -> int:
    """Write the conversations with strategies of all files to one file; return their number.

    Raises:
      DataError: there are none.
    """
    rows = read_rows(record, ADVISED)
    if not rows:
        raise DataError(f'{record} holds no closed conversations with strategies')
    with claim(out), row_writer(out) as write:
        for row in rows:
            write(row)
    return len(rows)


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Run the command, see the module docstring."""
    parser = argparse.ArgumentParser(prog='python -m epo_jax.serve.results', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--record', required=True, help='folder of a side-car')
    parser.add_argument('--out', help='.json or .jsonl file to write')
    args = parser.parse_args(argv)
    with command.one_line_errors():
        from epo_jax.scores import table_of
        columns, cells = table_of(compare_arms(read_outcomes(args.record)))
        widths = [max(map(len, column)) for column in zip(columns, *cells)]
        for line in (columns, *cells):
            print('  '.join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
        if args.out:
            print(f'wrote {args.out}: {collect(args.record, args.out)} conversations')


if __name__ == '__main__':
    command.run(main)
