"""Finished episodes as readable JSON, one object per episode."""

from typing import Any, Mapping, Optional, Sequence

import numpy as np

from epo_jax.envs.base import EpisodeText
from epo_jax.rewards.process import Verdict
from epo_jax.rl.credit.assign import Credit
from epo_jax.rl.selfplay import Match
from epo_jax.rl.trajectory import Trajectory
from epo_jax.rollout import OBSERVATION, Episodes
from epo_jax.runtime.secrets import redact


def episode_records(match: Match, episodes: Episodes, texts: Sequence[EpisodeText], reasons: Mapping[int, str],
                    strategies: Sequence[Sequence[Sequence[str]]], verdict: Verdict) -> list[dict[str, Any]]:
    """Return one record for each episode, without the fields that training adds (see `add_credit`).

    Args:
      match: the kind of strategist in every seat, and the numbers of the episodes within the iteration.
      episodes: what was played.
      texts: the same episodes as text.
      reasons: why an agent cut an episode off, by episode.
      strategies: texts by seat, episode and turn of the seat.
      verdict: on every seat, seat-major.
    """
    records, notes = [], verdict.notes()
    for e, (number, text) in enumerate(zip(match.episodes, texts, strict=True)):
        rows = [s * len(texts) + e for s in range(len(match.kinds))]
        spoken = [iter(strategies[s][e]) for s in range(len(match.kinds))]
        seats = [{
            **about, 'strategist': redact(kind),
            'outcome': float(verdict.outcome[row]) if verdict.outcome_valid[row] else None,
            'judge': notes[row]} for about, kind, row in zip(text.facts['seats'], match.kinds, rows, strict=True)]
        records.append({
            'episode': number, **text.facts, 'truncated': bool(episodes.cause[e]),
            'failure': failure(episodes.cause[e], text, reasons.get(e)), 'events': list(text.events),
            'seats': seats,
            'turns': [{'seat': seat, 'strategy': next(spoken[seat], '') or None, 'line': line}
                      for seat, line in text.lines]})
    return records


def failure(cause: int, text: EpisodeText, reason: Optional[str]) -> Optional[str]:
    """Return why an episode was cut off, or None if it was not; `reason` comes from the agent that cut it off."""
    if cause == 0:
        return None
    if cause == OBSERVATION:
        return 'the observations between two turns of a seat do not fit rollout.view_tokens'
    if cause > 0:
        s, actor = divmod(int(cause) - 1, 2)
        agent = f'{"actor" if actor else "strategist"} of seat {s}'
        return reason or f'{agent}: the conversation does not fit its capacity, or logits are not finite'
    return text.failure or 'the environment failed'


def add_credit(record: dict[str, Any], n: int, rows: Trajectory, credit: Credit) -> None:
    """Add to a seat of a record what it was trained on: exact ids and turns, reward and advantage of every turn.

    Args:
      record: of the episode that row n comes from.
      n: the trained conversation.
      rows, credit: of all trained conversations.
    """
    number = lambda value, valid: round(float(value), 6) if valid else None
    length, turns = int(rows.length[n]), int(rows.turn_mask[n].sum())
    record['seats'][int(rows.seat[n])] |= {
        'reward': [number(credit.reward[n, t], credit.valid[n, t]) for t in range(turns)],
        'advantage': [number(credit.advantage[n, t], credit.valid[n, t]) for t in range(turns)],
        'ids': np.asarray(rows.ids[n, :length]).tolist(), 'turn': np.asarray(rows.turn[n, :length]).tolist(),
        'logprob': [round(float(p), 6) for p in rows.logprob[n, :length]]}


def failure_reason(records: Sequence[dict[str, Any]]) -> Optional[str]:
    """Return the first reason why an episode was cut off, for the log."""
    return next((record['failure'] for record in records if record['failure']), None)
