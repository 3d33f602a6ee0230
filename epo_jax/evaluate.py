"""Paired comparison: the same held-out scenarios and random keys, with and without a strategist.

Axis letters: E episodes, S seats.
"""

import dataclasses
import json
import math
from typing import Mapping, Optional, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
      condition: name.
      mean: mean goal score, 0 to 10, over tested seats of all episodes; low, high: its 95 % interval.
      difference: mean paired difference to the first condition, with its interval; None for the first itself.
      scored, missing: seats with and without a score.
    """

    condition: str
    mean: float
    low: float
    high: float
    difference: Optional[tuple[float, float, float]]
    scored: int
    missing: int


def compare(scores: Mapping[str, np.ndarray], samples: int, seed: int) -> list[Row]:
    """Means and paired differences with bootstrap intervals.

    Episodes are drawn with replacement, with all their seats: the two seats of one dialogue are not independent.
    The same draws serve all conditions.

    Args:
      scores: for every condition f[E, S] goal scores from 0 to 10, NaN where there is no verdict. A difference
        uses the seats that have a score in both.
      samples: bootstrap samples.
      seed: of the draws.
    """
    names = list(scores)
    count = len(scores[names[0]])
    draws = np.random.default_rng(seed).integers(0, count, (samples, count))

    def interval(values) -> tuple[float, float, float]:
        if not np.isfinite(values).any():
            return np.nan, np.nan, np.nan
        resampled = values[draws].reshape(samples, -1)
        kept = np.isfinite(resampled).any(axis=1)
        low, high = np.percentile(np.nanmean(resampled[kept], axis=1), (2.5, 97.5))
        return float(np.nanmean(values)), float(low), float(high)

    rows = []
    for name in names:
        mean, low, high = interval(scores[name])
        difference = None if name == names[0] else interval(scores[name] - scores[names[0]])
        finite = np.isfinite(scores[name])
        rows.append(Row(name, mean, low, high, difference, int(finite.sum()), int((~finite).sum())))
    return rows


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Column titles and cells for print."""
    with_interval = lambda mean, low, high: f'{mean:.2f} [{low:.2f}, {high:.2f}]'
    signed = lambda d: '' if d is None else f'{d[0]:+.2f} [{d[1]:+.2f}, {d[2]:+.2f}]'
    columns = ['condition', 'goal 0-10 [95 %]', f'difference to {rows[0].condition}', 'scored', 'missing']
    return columns, [
        [row.condition, with_interval(row.mean, row.low, row.high), signed(row.difference), str(row.scored),
         str(row.missing)] for row in rows]


def by_category(scores: Mapping[str, np.ndarray], categories: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Column titles and cells for print: mean scores of the episodes of every category, and how many there are.

    Args:
      scores: as in `compare`; categories: of the E episodes.
    """
    cells = []
    for name in sorted(set(categories)):
        chosen = np.array([category == name for category in categories])
        found = [values[chosen][np.isfinite(values[chosen])] for values in scores.values()]
        cells.append([name, str(int(chosen.sum())), *(f'{part.mean():.2f}' if len(part) else '' for part in found)])
    return ['category', 'episodes', *scores], cells


def to_json(rows: Sequence[Row], scores: Mapping[str, np.ndarray], environment: str,
            categories: Sequence[str]) -> str:
    """The table and the scores it came from, by condition, episode and seat; a missing score is null.

    Args:
      environment: what was played; categories: of the E episodes.
    """
    number = lambda value: None if math.isnan(value) else round(float(value), 6)
    cell = lambda value: number(value) if isinstance(value, float) else value
    return json.dumps({
        'environment': environment,
        'table': [{name: [cell(v) for v in value] if isinstance(value, tuple) else cell(value)
                   for name, value in dataclasses.asdict(row).items()} for row in rows],
        'categories': list(categories),
        'scores': {name: [[number(v) for v in row] for row in values] for name, values in scores.items()},
    }, indent=1, allow_nan=False)
