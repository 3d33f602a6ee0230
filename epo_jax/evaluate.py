"""Evaluation: the same held-out scenarios and random keys, with and without a strategist.

Axis letters: E episodes, S seats.
"""

import collections
import dataclasses
import json
import math
import pathlib
from typing import Any, Callable, Hashable, Mapping, Optional, Sequence

import numpy as np

from epo_jax.iteration import Experiment
from epo_jax.rl.selfplay import Match, RunState
from epo_jax.runtime import hosts, streams
from epo_jax.runtime.files import write_atomically, write_jsonl

KEYS = 2**31 - 1      # used instead of an iteration number in the random keys of an evaluation
MAX_CATEGORIES = 12   # more are not printed


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


def run_evaluation(exp: Experiment, state: RunState, held_out: Sequence[Any], workdir: pathlib.Path,
                   stop: Callable[[], None] = lambda: None) -> list[Row]:
    """Play held-out scenarios under every condition with the same keys; print and write (evaluation.json) the scores.

    If the partner is the pool, every condition plays against each of its snapshots. Between the matches, `stop` is
    called, which may raise an error to stop the evaluation.
    """
    config = exp.config
    scenarios = choose(held_out, exp.domain.situation, config.evaluation.episodes, config.seed)
    policy = exp.sampling_params(state.train.params)
    partners = state.snapshots if config.evaluation.partner == 'pool' else (None,)
    scores, saved = {}, []
    for kind in config.evaluation.conditions:
        exp.progress.stage(f'evaluation: {kind}')
        by_partner = []
        for number, partner in enumerate(partners):
            score = np.full((len(scenarios), exp.domain.seats), np.nan)
            for kinds, tested in pairings(kind, exp.domain.seats, config.evaluation.partner):
                stop()
                match = Match(kinds, tuple(range(len(scenarios))))
                table = exp.table(tuple(
                    dataclasses.replace(exp.seat(k, policy, (partner,), 0), trained=False) for k in kinds))
                result = exp.judge(exp.collect(match, table, scenarios, KEYS), 'none')
                outcome = np.where(result.verdict.outcome_valid, 10 * result.verdict.outcome, np.nan)
                for s in tested:
                    score[:, s] = outcome[s * len(scenarios):(s + 1) * len(scenarios)]
                label = {'condition': kind} | ({} if partner is None else {'partner': number})
                saved += [label | record for record in result.records()]
            by_partner.append(score)
        scores[kind] = np.concatenate(by_partner, axis=1)
    variant, categories = exp.domain.variant(config.environment), [scenario.category for scenario in scenarios]
    rows = compare(scores, [exp.domain.situation(s) for s in scenarios], config.evaluation.bootstrap, config.seed)
    if hosts.is_primary():
        write_jsonl(workdir / 'episodes' / 'evaluation.jsonl', saved)
        write_atomically(workdir / 'evaluation.json', to_json(rows, scores, variant, categories))
    exp.progress.table(f'Goal scores on held-out scenarios of {variant}', *table_of(rows))
    if 1 < len(set(categories)) <= MAX_CATEGORIES:
        exp.progress.table('By category', *by_category(scores, categories))
    return rows


def choose(scenarios: Sequence[Any], situation: Callable[[Any], Hashable], count: int, seed: int) -> list[Any]:
    """Choose scenarios at random, so that every situation occurs once before any occurs again.

    Args:
      scenarios: the set.
      situation: see `Domain.situation`.
      count: number of scenarios, at most; all of them if there are fewer.
      seed: of the choice.
    """
    shuffled = [scenarios[i] for i in streams.generator('evaluation', seed).permutation(len(scenarios))]
    seen, rank = collections.Counter(), []
    for scenario in shuffled:
        rank.append(seen[situation(scenario)])
        seen[situation(scenario)] += 1
    return [shuffled[i] for i in np.argsort(rank, kind='stable')[:count]]


def pairings(kind: str, seats: int, partner: str) -> list[tuple[tuple[str, ...], tuple[int, ...]]]:
    """Return the tables at which a kind of strategist is evaluated: (strategists by seat, seats that are tested)."""
    other = kind if partner == 'self' else partner
    if kind == other:
        return [((kind,) * seats, tuple(range(seats)))]
    return [(tuple(kind if s == tested else other for s in range(seats)), (tested,)) for tested in range(seats)]


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
    def with_interval(mean, low, high, sign=''):
        if math.isnan(mean):
            return 'missing'
        return f'{mean:{sign}.2f}' + ('' if math.isnan(low) else f' [{low:{sign}.2f}, {high:{sign}.2f}]')

    signed = lambda d: '' if d is None else with_interval(*d, '+')
    columns = ['condition', 'goal 0-10 [95 %]', f'difference to {rows[0].condition}', 'scored', 'missing']
    return columns, [
        [row.condition, with_interval(row.mean, row.low, row.high), signed(row.difference), str(row.scored),
         str(row.missing)] for row in rows]


def by_category(scores: Mapping[str, np.ndarray], categories: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Return column titles and cells, as text: the mean scores of every category, and its number of episodes.

    Args:
      scores: as in `compare`.
      categories: of the E episodes.
    """
    cells = []
    for name in sorted(set(categories)):
        chosen = np.array([category == name for category in categories])
        found = [values[chosen][np.isfinite(values[chosen])] for values in scores.values()]
        cells.append([name, str(int(chosen.sum())), *(f'{part.mean():.2f}' if len(part) else '' for part in found)])
    return ['category', 'episodes', *scores], cells


def to_json(rows: Sequence[Row], scores: Mapping[str, np.ndarray], environment: str,
            categories: Sequence[str]) -> str:
    """Return the table and its scores, by condition, episode and seat, as JSON; a missing score is null.

    Args:
      rows: from `compare`.
      scores: as in `compare`.
      environment: name under which results are reported.
      categories: of the E episodes.
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
