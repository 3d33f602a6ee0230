"""Scores of an evaluation: means, intervals, paired differences and tables.

Axis letters: E episodes, S seats.
"""

import dataclasses
import json
import math
from typing import Any, Hashable, Mapping, Optional, Sequence

import numpy as np

from epo_jax.runtime import streams
from epo_jax.runtime.secrets import redact

MAX_CATEGORIES = 12  # more are not printed


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
      condition: name of the condition.
      mean: mean goal score, 0 to 10, over the tested seats of all episodes.
      low, high: 95 % interval of the mean; NaN if there is none.
      difference: mean paired difference to the first condition, and its interval; None for the first condition.
      scored, missing: number of seats with and without a score.
    """

    condition: str
    mean: float
    low: float
    high: float
    difference: Optional[tuple[float, float, float]]
    scored: int
    missing: int


def compare(scores: Mapping[str, np.ndarray], situations: Sequence[Hashable], samples: int, seed: int) -> list[Row]:
    """Return means and paired differences with bootstrap intervals.

    Situations are resampled with all their episodes and seats, since those are not independent. All conditions use the
    same samples. Scores of a single situation have no interval.

    Args:
      scores: for every condition f[E, S], goal scores from 0 to 10; NaN where there is none. A difference uses the
        seats that have a score in both conditions.
      situations: of the E episodes; episodes of the same situation are not independent.
      samples: number of bootstrap samples.
      seed: of the samples.
    """
    names = list(scores)
    numbers = {situation: i for i, situation in enumerate(dict.fromkeys(situations))}
    member = np.eye(len(numbers))[[numbers[situation] for situation in situations]]
    draws = streams.generator('bootstrap', seed).integers(0, len(numbers), (samples, len(numbers)))

    def interval(values) -> tuple[float, float, float]:
        if not np.isfinite(values).any():
            return np.nan, np.nan, np.nan
        mean = float(np.nanmean(values))
        total, count = member.T @ np.nansum(values, axis=1), member.T @ np.isfinite(values).sum(axis=1)
        if (count > 0).sum() < 2:
            return mean, np.nan, np.nan
        total, count = total[draws].sum(axis=1), count[draws].sum(axis=1)
        low, high = np.percentile(total[count > 0] / count[count > 0], (2.5, 97.5))
        return mean, float(low), float(high)

    rows = []
    for name in names:
        mean, low, high = interval(scores[name])
        difference = None if name == names[0] else interval(scores[name] - scores[names[0]])
        finite = np.isfinite(scores[name])
        rows.append(Row(name, mean, low, high, difference, int(finite.sum()), int((~finite).sum())))
    return rows


def table_of(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return column titles and cells, as text."""
    columns = ['condition', 'goal 0-10 [95 %]', f'difference to {redact(rows[0].condition)}', 'scored', 'missing']
    return columns, [
        [redact(row.condition), with_interval(row.mean, row.low, row.high), _difference(row), str(row.scored),
         str(row.missing)] for row in rows]


def by_dimension(tables: Mapping[str, Sequence[Row]]) -> tuple[list[str], list[list[str]]]:
    """Return column titles and cells, as text: for every dimension the means of the conditions and their differences.

    Args:
      tables: the rows of every dimension, see `compare`.
    """
    columns, cells = ['dimension'], []
    for row in next(iter(tables.values())):
        columns += [redact(row.condition)] + ([] if row.difference is None else ['difference'])
    for name, rows in tables.items():
        cells.append([name])
        for row in rows:
            cells[-1] += [with_interval(row.mean, row.low, row.high)] + (
                [] if row.difference is None else [_difference(row)])
    return columns, cells


def with_interval(mean: float, low: float, high: float, sign: str = '') -> str:
    """Return a mean with its interval, if it has one, as text; `sign` is that of a format string."""
    if math.isnan(mean):
        return 'missing'
    return f'{mean:{sign}.2f}' + ('' if math.isnan(low) else f' [{low:{sign}.2f}, {high:{sign}.2f}]')


def _difference(row: Row) -> str:
    return '' if row.difference is None else with_interval(*row.difference, '+')


def by_category(scores: Mapping[str, np.ndarray],
                categories: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """Return column titles and cells, as text: the mean scores of every category, and its number of episodes.

    Args:
      scores: as in `compare`.
      categories: of the E episodes, each of which may belong to several.
    """
    cells = []
    for name in sorted({name for group in categories for name in group}):
        chosen = np.array([name in group for group in categories])
        found = [values[chosen][np.isfinite(values[chosen])] for values in scores.values()]
        cells.append([name, str(int(chosen.sum())), *(f'{part.mean():.2f}' if len(part) else '' for part in found)])
    return ['category', 'episodes', *map(redact, scores)], cells


def to_json(facts: Mapping[str, Any], rows: Sequence[Row], scores: Mapping[str, np.ndarray],
            categories: Sequence[str], dimensions: Mapping[str, Sequence[Row]]) -> str:
    """Return the table and its scores, by condition, episode and seat, as JSON; a missing score is null.

    Args:
      facts: about the evaluation, as JSON.
      rows: from `compare`.
      scores: as in `compare`.
      categories: of the E episodes.
      dimensions: the table of every dimension.
    """
    number = lambda value: None if math.isnan(value) else round(float(value), 6)
    cell = lambda value: number(value) if isinstance(value, float) else value
    table = lambda rows: [
        {name: [cell(v) for v in value] if isinstance(value, tuple) else redact(value) if isinstance(value, str)
         else cell(value) for name, value in dataclasses.asdict(row).items()} for row in rows]
    return json.dumps({
        **facts,
        'table': table(rows),
        'dimensions': {name: table(part) for name, part in dimensions.items()},
        'categories': list(categories),
        'scores': {redact(name): [[number(v) for v in row] for row in values] for name, values in scores.items()},
    }, indent=1, allow_nan=False)
