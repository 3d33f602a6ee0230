"""Curves of metrics over iterations or steps, of several runs, with the mean and interval over seeds."""

import json
import math
from typing import Any, Mapping, NamedTuple, Optional, Sequence

import numpy as np
from scipy import special

from epo_jax.config import to_json
from epo_jax.report.sources import Source

POINTS = 2000  # of a curve, at most; of longer ones, evenly spaced points are drawn


class Chart(NamedTuple):
    """Curves that share a plot.

    Attributes:
      title: of the plot.
      metrics: names in metrics.jsonl.
      note: what the numbers mean.
      log: whether the axis is logarithmic.
    """

    title: str
    metrics: tuple[str, ...]
    note: str = ''
    log: bool = False


CHARTS = (
    Chart('Outcome', ('outcome/mean', 'evaluation/outcome'), 'of the trained seats, and of the policy on held-out '
          'scenarios; 0 to 1'),
    Chart('Process reward', ('reward/process', 'reward/per_turn'), 'mean of a turn; per_turn includes the outcome'),
    Chart('Entropy of strategies', ('learner/entropy',), 'nats of a token'),
    Chart('Log-probability of strategies', ('strategy/logprob',), 'mean of a token, nats; an estimate of the negative '
          'entropy'),
    Chart('Distinct strategies', ('strategy/distinct',), 'share of the strategies of an iteration'),
    Chart('Log-probability gap', ('learner/logprob_gap',), 'largest difference between sampling and learner before the '
          'first step', log=True),
    Chart('Gradient norm', ('learner/gradient_norm',)),
    Chart('Loss', ('learner/loss',)),
    Chart('Truncated episodes', ('episodes/truncated', 'outcome/missing'), 'episodes that were cut off; seats without '
          'an outcome'),
    Chart('Seconds by phase', ('time/rollout', 'time/judge', 'time/learn', 'time/program', 'time/load')),
    Chart('Tokens of a step', ('data/tokens', 'data/trained_tokens')),
)


def curves(sources: Sequence[Source]) -> Optional[dict[str, Any]]:
    """Return the curves for the scripts of the page; None if no source has metrics.

    Returns:
      charts: title, note, log and metrics of every plot; the metrics that CHARTS does not name follow, one a plot, with
        `more`.
      runs: name, x (iterations) and y (by metric, None where a value is missing or not finite) of every run.
      bands: for runs that differ in the seed alone: name, runs (their numbers), x, and y: by metric, [mean, low, high].
    """
    runs = [_series(source) for source in sources]
    metrics = {name for run in runs for name in run['y']}
    if not metrics:
        return None
    charts = [chart._asdict() | {'metrics': [name for name in chart.metrics if name in metrics], 'more': False}
              for chart in CHARTS]
    named = {name for chart in CHARTS for name in chart.metrics}
    charts += [Chart(name, (name,))._asdict() | {'more': True} for name in sorted(metrics - named)]
    unit = 'step' if all(source.kind == 'offline run' for source in sources if source.metrics) else 'iteration'
    return {'unit': unit, 'charts': [chart for chart in charts if chart['metrics']], 'runs': runs,
            'bands': _bands(sources, runs)}


def _series(source: Source) -> dict[str, Any]:
    rows = source.metrics
    every = -(-len(rows) // POINTS)
    kept = [row for i, row in enumerate(rows) if i % every == 0 or i == len(rows) - 1] if rows else []
    names = sorted({name for row in rows for name in row} - {'iteration'})
    return {'name': source.name, 'every': every, 'x': [int(row['iteration']) for row in kept],
            'y': {name: [_finite(row.get(name)) for row in kept] for name in names}}


def _finite(value: Optional[float]) -> Optional[float]:
    return value if value is not None and math.isfinite(value) else None


def _bands(sources: Sequence[Source], runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the mean over seeds with its 95 % interval (Student's t), at iterations that all runs of a group have."""
    groups: dict[str, list[int]] = {}
    for r, source in enumerate(sources):
        if source.config is not None and source.metrics:
            tree = json.loads(to_json(source.config))
            tree.pop('seed', None)
            groups.setdefault(json.dumps(tree, sort_keys=True), []).append(r)
    bands = []
    for members in groups.values():
        if len({sources[r].config.get('seed') for r in members}) < 2:
            continue
        shared = sorted(set.intersection(*(set(runs[r]['x']) for r in members)))
        at = [[runs[r]['x'].index(x) for x in shared] for r in members]
        names = set.intersection(*(set(runs[r]['y']) for r in members))
        y = {name: interval(np.array([[runs[r]['y'][name][i] for i in rows] for r, rows in zip(members, at)], float))
             for name in sorted(names)}
        bands.append({'name': f'mean of {len(members)} seeds', 'runs': members, 'x': shared, 'y': y})
    return bands


def interval(values: np.ndarray) -> list[list[Optional[float]]]:
    """Return mean, low and high over the first axis of f[runs, points]; None where a run has no value."""
    count = len(values)
    mean = values.mean(axis=0)
    half = special.stdtrit(count - 1, 0.975) * values.std(axis=0, ddof=1) / math.sqrt(count)
    return [[_finite(float(x)) for x in row] for row in (mean, mean - half, mean + half)]
