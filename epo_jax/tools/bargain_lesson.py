"""Print what a run of bargaining against the family learned: its curve, its share of the optimum, and two games.

    python -m epo_jax.tools.bargain_lesson --workdir=runs/words

The games are the first ones of the evaluation, under the untrained and the trained strategist. `bargain_curve` draws
the curve into a file.
"""

import argparse
import math
from pathlib import Path
import sys
from typing import Any, Iterator, Mapping, Sequence

from epo_jax.envs.bargain.game import Bargain
from epo_jax.runs import RunError, read_config
from epo_jax.runtime.files import read_jsonl
from epo_jax.tools.bargain_regret import Row, compare, known_scenarios

BARS = '▁▂▃▄▅▆▇█'
BEFORE_AND_AFTER = ('prompted', 'policy')


def sparkline(values: Sequence[float]) -> str:
    """Return numbers as bars between their smallest and largest; a blank where there is none."""
    known = [value for value in values if math.isfinite(value)]
    low, high = min(known, default=0), max(known, default=0)
    bar = lambda value: BARS[int((value - low) / (high - low or 1) * (len(BARS) - 1) + 0.5)]
    return ''.join(bar(value) if math.isfinite(value) else ' ' for value in values)


def curve(metrics: Sequence[Mapping[str, float]]) -> str:
    """Return the learning curve in one line."""
    values = [10 * row['outcome/mean'] for row in metrics]
    return (f'goal score of the {len(values)} iterations: {sparkline(values)} '
            f'({values[0]:.2f} at first, {values[-1]:.2f} at last)')


def shares(rows: Sequence[Row]) -> Iterator[str]:
    """Yield one line for every condition: how much of the optimum it reaches."""
    for row in rows:
        yield (f'{row.condition}: {10 * row.reward:.2f} of 10 on {row.games} held-out games, '
               f'{row.reward / row.adaptive:.0%} of the best policy that sees what the strategist sees, '
               f'{row.reward / row.known:.0%} of one that knows the opponent')


def games(records: Sequence[Mapping[str, Any]], count: int) -> Iterator[str]:
    """Yield the lines of the first games under the untrained and the trained strategist."""
    for episode in range(count):
        for condition in BEFORE_AND_AFTER:
            for record in records:
                if (record['condition'], record['episode'], record['repetition']) == (condition, episode, 0):
                    outcome = record['seats'][0]['outcome']
                    score = 'missing' if outcome is None else f'{10 * outcome:.2f}'
                    yield f'{record["situation"]} {condition}: {score}'
                    for turn in record['turns']:
                        yield f'  strategy: {turn["strategy"]}'
                        yield f'  {turn["line"]}'


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog='python -m epo_jax.tools.bargain_lesson', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--workdir', required=True, help='a run against the family, with its evaluation')
    parser.add_argument('--games', type=int, default=2, help='number of games to print')
    args = parser.parse_args()
    workdir = Path(args.workdir)
    try:
        environment = read_config(args.workdir).environment
        game = Bargain('family', environment.rounds)
        metrics = read_jsonl(workdir / 'metrics.jsonl')
        records = read_jsonl(workdir / 'episodes' / 'evaluation.jsonl')
    except (OSError, RunError, ValueError, AttributeError) as error:
        sys.exit(f'error: {workdir} holds no finished run of bargain ({error})')
    print(curve(metrics))
    print('\n'.join(games(records, args.games)))
    print('\n'.join(shares(compare(records, game, known_scenarios(environment)))))


if __name__ == '__main__':
    main()
