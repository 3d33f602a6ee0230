"""How far an evaluation against the family is from the best there is.

    python -m epo_jax.tools.bargain_regret --workdir=runs/bargain

The best is taken twice: of a policy that sees what seat 0 sees, and of one that knows the opponent and its values.
Both are exact; three to five minutes on a CPU.
"""

import argparse
import dataclasses
from pathlib import Path
import sys
from typing import Any, Mapping, Sequence

import numpy as np

from epo_jax.envs.bargain import optimum
from epo_jax.envs.bargain.game import Bargain
from epo_jax.envs.bargain.scenarios import Scenario, every_scenario
from epo_jax.runs import read_config
from epo_jax.runtime.files import read_jsonl


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
    records = [record for record in records if record['seats'][0]['outcome'] is not None]
    played = {record['scenario'] for record in records}
    openings = {scenario.opening for scenario in world if scenario.id in played}
    world = [scenario for scenario in world if scenario.opening in openings]  # the others are never thought of
    place = {scenario.id: e for e, scenario in enumerate(world)}
    found = [(record['condition'], place[record['scenario']], record['seats'][0]['outcome']) for record in records]
    at = sorted(map(place.get, played))
    known = np.zeros(len(world))
    known[at] = optimum.best_rewards(env, env.encode([world[e] for e in at]))
    adaptive = optimum.adaptive_rewards(env, world)
    rows = []
    for condition in dict.fromkeys(name for name, _, _ in found):
        at, reward = (np.array(column) for column in zip(*(row[1:] for row in found if row[0] == condition)))
        rows.append(Row(condition, len(at), reward.mean(), adaptive[at].mean(), known[at].mean()))
    return rows


def main():
    parser = argparse.ArgumentParser(
        prog='python -m epo_jax.tools.bargain_regret', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--workdir', required=True, help='of a run against the family, with its evaluation')
    workdir = Path(parser.parse_args().workdir)
    try:
        records = read_jsonl(workdir / 'episodes' / 'evaluation.jsonl')
        environment = read_config(workdir).environment
    except (OSError, ValueError) as error:
        sys.exit(f'error: {workdir}: no evaluation of a run is here ({error})')
    if environment.name != 'bargain':
        sys.exit(f'error: {workdir}: {environment.name} was played, not bargain')
    for row in compare(records, Bargain('family', environment.rounds), every_scenario('family')):
        print(f'{row.condition}: {row.reward:.3f} on {row.games} games. That is {row.reward / row.adaptive:.1%} of '
              f'{row.adaptive:.3f}, the best for who sees what seat 0 sees, and {row.reward / row.known:.1%} of '
              f'{row.known:.3f}, the best for who knows the opponent and its values.')


if __name__ == '__main__':
    main()
