"""What an iteration leaves: the episodes of its matches, what was trained on, and its metrics.

Axis letters: E episodes of a match.
"""

import dataclasses
import math
from typing import Any, Mapping, Optional, Sequence

import numpy as np

from epo_jax import records
from epo_jax.envs.base import EpisodeText
from epo_jax.rewards.process import Verdict
from epo_jax.rewards.prompts import strategy_texts
from epo_jax.rl.credit.assign import Credit
from epo_jax.rl.selfplay import Match
from epo_jax.rl.trajectory import Trajectory
from epo_jax.rollout import Episodes, Table
from epo_jax.runtime.errors import InputError, TrainingError


@dataclasses.dataclass(frozen=True)
class MatchResult:
    """The finished episodes of one match.

    Attributes:
      table: who played.
      match: the strategists of the seats, and the numbers of the episodes.
      scenarios: of the E episodes.
      episodes: what was played.
      reasons: why an agent cut an episode off, by episode.
      verdict: on every seat, seat-major; None before the episodes are judged.

    Raises:
      InputError: rewards of the environment do not add up to an outcome in [0, 1].
    """

    table: Table
    match: Match
    scenarios: Sequence[Any]
    episodes: Episodes
    reasons: Mapping[int, str] = dataclasses.field(default_factory=dict)
    verdict: Optional[Verdict] = None

    def __post_init__(self):
        reward = np.asarray(self.episodes.reward)
        wrong = reward[(reward < -1e-5) | (reward > 1 + 1e-5)]
        if len(wrong):
            raise InputError(f'the rewards that an environment gives a seat must add up to a number in [0, 1] in every '
                             f'episode; here they add up to {wrong[0]:g}')

    def texts(self) -> list[EpisodeText]:
        """Return the episodes in text."""
        return self.table.env.texts(self.scenarios, self.episodes.env)

    def records(self) -> list[dict[str, Any]]:
        """Return one record for each episode, see `records.episode_records`."""
        return records.episode_records(
            self.match, self.episodes, self.texts(), self.reasons, strategy_texts(self.table, self.episodes),
            self.verdict)


@dataclasses.dataclass(frozen=True)
class IterationResult:
    """The results of an iteration besides the new state.

    Attributes:
      matches: the episodes of every match.
      rows: the trained conversations.
      verdict: on the trained conversations.
      credit: rewards and advantages of their turns.
      metrics: of the gradient steps.
    """

    matches: Sequence[MatchResult]
    rows: Trajectory
    verdict: Verdict
    credit: Credit
    metrics: Mapping[str, float]

    def records(self) -> list[dict[str, Any]]:
        """Return one record for each episode, with what was trained on."""
        saved = [record for match in self.matches for record in match.records()]
        by_number = {record['episode']: record for record in saved}
        for n, episode in enumerate(self.rows.episode):
            records.add_credit(by_number[int(episode)], n, self.rows, self.credit)
        return saved


def check_trained(result: IterationResult, saved: Optional[Sequence[dict]], iteration: int, judged: bool) -> None:
    """Check that an iteration had something to learn from: an episode with an outcome and all process rewards.

    Args:
      result: the result of the iteration.
      saved: its records, if they were written.
      iteration: its number, from 0.
      judged: whether a judge was asked for outcomes.

    Raises:
      TrainingError: there was nothing to learn from; the message counts what is missing.
    """
    if result.credit.valid.any():
        return
    verdict, cut = result.verdict, int(result.rows.truncated.sum())
    if reason := records.failure_reason(saved or ()):
        hint = f'the first failure: {reason}'
    elif judged:
        hint = 'check judge.model and judge.capacity'
    else:
        hint = 'the environment must reward a seat in some step, also of an episode that max_turns ends'
    raise TrainingError(
        f'iteration {iteration + 1} trains nothing: of {len(verdict.outcome)} conversations, {cut} were cut off, '
        f'{int((~verdict.outcome_valid).sum())} have no outcome, and '
        f'{int(((verdict.turn_mask & ~verdict.valid).any(axis=1)).sum())} lack process rewards; {hint}')


def mean_metrics(steps: Sequence[Mapping[str, Any]], iteration: int) -> dict[str, float]:
    """Return the metrics of an iteration's gradient steps.

    Raises:
      TrainingError: a loss or gradient is not finite.
    """
    steps = [{name: float(value) for name, value in step.items()} for step in steps]
    for step in steps:
        if not math.isfinite(step['loss'] + step['gradient_norm']):
            raise TrainingError(
                f'iteration {iteration + 1}: loss {step["loss"]}, gradient norm {step["gradient_norm"]}; training '
                'stopped, and the last checkpoint is that of an earlier iteration')
    mean = {f'learner/{name}': float(np.mean([step[name] for step in steps])) for name in steps[0]}
    # Before the first step, the policy is the one that sampled, so there the gap is numerical error.
    return mean | {'learner/logprob_gap': steps[0]['logprob_gap'], 'learner/steps': len(steps)}


def iteration_metrics(result: IterationResult, saved: Optional[Sequence[dict]]) -> dict[str, float]:
    """Return the metrics of an iteration; those that need text are included only if there are records."""
    mean = lambda values: float(np.mean(values)) if len(values) else math.nan
    rows, verdict, credit = result.rows, result.verdict, result.credit
    field = lambda name: np.concatenate([np.asarray(getattr(match.episodes, name)) for match in result.matches])
    turns = int(rows.turn_mask.sum())
    metrics = dict(result.metrics) | {
        'outcome/mean': mean(verdict.outcome[verdict.outcome_valid]),
        'outcome/missing': int((~verdict.outcome_valid).sum()),
        'reward/process': mean(verdict.process[verdict.valid]),
        'reward/per_turn': mean(credit.reward[credit.valid]),
        'reward/missing_turns': turns - int(credit.valid.sum()),
        'episodes/count': len(field('cause')),
        'episodes/turns': mean(field('actions')),
        'episodes/truncated': int((field('cause') != 0).sum()),
        'strategy/tokens': int((rows.turn >= 0).sum()) / max(turns, 1),
        'strategy/logprob': mean(rows.logprob[rows.turn >= 0]),
    }
    if saved is None:
        return metrics
    strategies = [turn['strategy'] for record in saved for turn in record['turns'] if turn['strategy']]
    events = [event for record in saved for event in record['events']]
    names = set(events) | {'action/repaired', 'action/unparsable'}
    return metrics | {'strategy/distinct': len(set(strategies)) / max(len(strategies), 1)} | {
        name: events.count(name) for name in sorted(names)}
