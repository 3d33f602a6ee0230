"""Compare an evaluation of bargaining against the family of opponents with the best possible policies.

    python -m epo_jax.tools.bargain_regret --workdir=runs/bargain

There are two bounds: the best policy that sees what seat 0 sees, and the best policy that also knows the opponent and
its values. Both are exact. Computing them takes three to five minutes on a CPU.
"""

import argparse
import dataclasses
from pathlib import Path
import sys
from typing import Any, Mapping, Sequence

from ml_collections import ConfigDict
import numpy as np

from epo_jax.envs.bargain import optimum
from epo_jax.envs.bargain.game import Bargain
from epo_jax.envs.bargain.scenarios import Scenario
from epo_jax.envs.base import load_domain
from epo_jax.runs import read_config
from epo_jax.runtime.files import read_jsonl


@dataclasses.dataclass(frozen=True)
class Row:
    """The result of one condition of an evaluation.

    Attributes:
      condition: name of the condition.
      games: number of games with a reward.
      reward: mean reward of seat 0 in these games, in [0, 1].
      adaptive: mean of optimum.adaptive_rewards in these games.
      known: mean of optimum.best_rewards in these games.
    """

    condition: str
    games: int
    reward: float
    adaptive: float
    known: float


def compare(records: Sequence[Mapping[str, Any]], env: Bargain, scenarios: Sequence[Scenario]) -> list[Row]:
    """Return one row for each condition of an evaluation.

    Args:
      records: the episodes, as in evaluation.jsonl.
      env: the game.
      scenarios: all scenarios, which the best policies know.
    """
    records = [record for record in records if record['seats'][0]['outcome'] is not None]
    played = {record['scenario'] for record in records}
    openings = {scenario.opening for scenario in scenarios if scenario.id in played}
    # The adaptive policy considers only scenarios with the same first observation.
    scenarios = [scenario for scenario in scenarios if scenario.opening in openings]
    index = {scenario.id: e for e, scenario in enumerate(scenarios)}
    games = [(record['condition'], index[record['scenario']], record['seats'][0]['outcome']) for record in records]
    at = sorted(map(index.get, played))
    known = np.zeros(len(scenarios))
    known[at] = optimum.best_rewards(env, env.encode([scenarios[e] for e in at]))
    adaptive = optimum.adaptive_rewards(env, scenarios)
    rows = []
    for condition in dict.fromkeys(name for name, _, _ in games):
        at, reward = (np.array(column) for column in zip(*(game[1:] for game in games if game[0] == condition)))
        rows.append(Row(condition, len(at), reward.mean(), adaptive[at].mean(), known[at].mean()))
    return rows


def known_scenarios(environment: ConfigDict) -> Sequence[Scenario]:
    """Return the scenarios that a best policy knows: all that a configuration plays, held-out ones included."""
    return load_domain(environment.name).scenarios('', environment)


def main():
    """Print the comparison for the workdir on the command line."""
    parser = argparse.ArgumentParser(
        prog='python -m epo_jax.tools.bargain_regret', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--workdir', required=True, help='workdir of a run against the family with an evaluation')
    workdir = Path(parser.parse_args().workdir)
    try:
        records = read_jsonl(workdir / 'episodes' / 'evaluation.jsonl')
        environment = read_config(workdir).environment
    except (OSError, ValueError) as error:
        sys.exit(f'error: {workdir} contains no evaluation of a run ({error})')
    if environment.name not in ('bargain', 'bargain_words'):
        sys.exit(f'error: {workdir} is a run of {environment.name}; the bounds are known for bargain and bargain_words '
                 'only')
    for row in compare(records, Bargain('family', environment.rounds), known_scenarios(environment)):
        print(f'{row.condition}: reward {row.reward:.3f} on {row.games} games. The best policy that sees what seat 0 '
              f'sees gets {row.adaptive:.3f} (this is {row.reward / row.adaptive:.1%} of it); one that also knows the '
              f'opponent and its values gets {row.known:.3f} ({row.reward / row.known:.1%}).')


if __name__ == '__main__':
    main()
