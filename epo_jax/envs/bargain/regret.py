"""How far an evaluation against the family is from the best there is.

    python -m epo_jax.envs.bargain.regret --workdir=runs/bargain

The best is taken twice: of a policy that sees what seat 0 sees, and of one that knows the opponent and its values.
Both are exact; some five minutes on a CPU.
"""

import argparse
import dataclasses
import json
from pathlib import Path
import sys
from typing import Any, Mapping, Sequence

import numpy as np

from epo_jax.envs.bargain import optimum
from epo_jax.envs.bargain.game import Bargain
from epo_jax.envs.bargain.scenarios import Scenario, every_scenario


@dataclasses.dataclass(frozen=True)
class Row:
    """A condition of an evaluation.

    Attributes:
      condition: its name.
      games: how many have a reward.
      reward: mean of seat 0's, in [0, 1]; adaptive, known: of `optimum.adaptive_rewards` and `best_rewards` there.
    """

    condition: str
    games: int
    reward: float
    adaptive: float
    known: float


def compare(records: Sequence[Mapping[str, Any]], env: Bargain, world: Sequence[Scenario]) -> list[Row]:
    """The conditions of an evaluation.

    Args:
      records: its episodes, as in evaluation.jsonl.
      world: all the scenarios there are, which the best policies know.
    """
    place = {scenario.id: e for e, scenario in enumerate(world)}
    found = [(record['condition'], place[record['scenario']], record['seats'][0]['outcome']) for record in records]
    found = [row for row in found if row[2] is not None]
    played = sorted({e for _, e, _ in found})
    known = np.zeros(len(world))
    known[played] = optimum.best_rewards(env, env.encode([world[e] for e in played]))
    adaptive = optimum.adaptive_rewards(env, world)
    rows = []
    for condition in dict.fromkeys(name for name, _, _ in found):
        at, reward = (np.array(column) for column in zip(*(row[1:] for row in found if row[0] == condition)))
        rows.append(Row(condition, len(at), reward.mean(), adaptive[at].mean(), known[at].mean()))
    return rows


def main():
    parser = argparse.ArgumentParser(
        prog='python -m epo_jax.envs.bargain.regret', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--workdir', required=True, help='of a run against the family, with its evaluation')
    workdir = Path(parser.parse_args().workdir)
    try:
        environment = json.loads((workdir / 'config.json').read_text())['environment']
        records = [json.loads(line) for line in (workdir / 'episodes' / 'evaluation.jsonl').read_text().splitlines()]
    except (OSError, ValueError) as error:
        sys.exit(f'error: {workdir}: no evaluation of a run is here ({error})')
    if environment['name'] != 'bargain':
        sys.exit(f'error: {workdir}: {environment["name"]} was played, not bargain')
    for row in compare(records, Bargain('family', environment['rounds']), every_scenario('family')):
        print(f'{row.condition}: {row.reward:.3f} on {row.games} games. That is {row.reward / row.adaptive:.1%} of '
              f'{row.adaptive:.3f}, the best for who sees what seat 0 sees, and {row.reward / row.known:.1%} of '
              f'{row.known:.3f}, the best for who knows the opponent and its values.')


if __name__ == '__main__':
    main()
