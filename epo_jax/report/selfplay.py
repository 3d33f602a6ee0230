"""The pay-off matrix and ratings of the strategists that played each other in an evaluation, such as a pool."""

import collections
import math
from typing import Any, Mapping, NamedTuple, Optional, Sequence

import numpy as np

ELO = 400 / math.log(10)  # rating points for each unit of the logit of winning
PRIOR = 0.1               # precision of the ratings' normal prior, which keeps those of undefeated players finite


class Payoff(NamedTuple):
    """Who played whom, and how well it went.

    Attributes:
      players: names.
      mean: f[players, players], mean outcome, 0 to 1, of the player of the row against that of the column; NaN where
        they have not met.
      count: i[players, players], outcomes in every mean.
      ratings: f[players], on Elo's scale with mean 1000: who reached the higher outcome in an episode won it.
    """

    players: Sequence[str]
    mean: np.ndarray
    count: np.ndarray
    ratings: np.ndarray


def payoff(episodes: Sequence[Mapping[str, Any]]) -> Optional[Payoff]:
    """Return the matrix of the episodes of an evaluation; None if no two players met.

    Args:
      episodes: in display form, see `report.episodes`.
    """
    outcomes, wins = collections.defaultdict(list), collections.Counter()
    players: dict[str, None] = {}
    for episode in episodes:
        if episode['keys'] is None or len(episode['seats']) != 2:
            continue
        names = [_player(seat, episode['keys'][-1]) for seat in episode['seats']]
        scores = [seat.get('outcome') for seat in episode['seats']]
        players |= dict.fromkeys(names)
        for me, other in ((0, 1), (1, 0)):
            if scores[me] is not None:
                outcomes[names[me], names[other]].append(scores[me])
        if None not in scores and names[0] != names[1]:
            wins[names[0], names[1]] += 0.5 * (1 + np.sign(scores[0] - scores[1]))
            wins[names[1], names[0]] += 0.5 * (1 - np.sign(scores[0] - scores[1]))
    if not wins:
        return None
    order = sorted(players, key=lambda name: [int(part) if part.isdigit() else -1 for part in name.split()])
    table = lambda value: np.array([[value((a, b)) for b in order] for a in order])
    mean = table(lambda pair: float(np.mean(outcomes[pair])) if outcomes[pair] else np.nan)
    count = table(lambda pair: len(outcomes[pair]))
    return Payoff(order, mean, count, ratings(table(lambda pair: float(wins[pair]))))


def _player(seat: Mapping[str, Any], snapshot: Optional[int]) -> str:
    name = str(seat.get('strategist') or 'unknown')
    return f'pool {snapshot}' if name == 'pool' and snapshot is not None else name


def ratings(wins: np.ndarray) -> np.ndarray:
    """Return ratings by which players win with probability 1 / (1 + 10^((r_other - r) / 400)), with mean 1000.

    Source: Bradley and Terry (1952); the largest posterior with a normal prior, by Newton's method.

    Args:
      wins: f[players, players], episodes that the player of the row won against that of the column; a tie is half a
        win.
    """
    games, r = wins + wins.T, np.zeros(len(wins))
    for _ in range(50):
        chance = 1 / (1 + np.exp(-(r[:, None] - r[None])))
        gradient = (wins - games * chance).sum(axis=1) - PRIOR * r
        weight = games * chance * (1 - chance)
        step = np.linalg.solve(np.diag(weight.sum(axis=1) + PRIOR) - weight, gradient)
        r = r + step
        if np.abs(step).max() < 1e-9:
            break
    return 1000 + ELO * (r - r.mean())
