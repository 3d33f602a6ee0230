"""Finished episodes as readable JSON: one object an episode."""

from typing import Any, Mapping, Optional, Sequence

import numpy as np

from epo_jax.envs.base import Account
from epo_jax.rewards.process import Verdict
from epo_jax.rewards.reading import Reading
from epo_jax.rollout import NEWS, Archive


def episode_records(kinds: Sequence[str], archive: Archive, accounts: Sequence[Account], reasons: Mapping[int, str],
                    readings: Sequence[Reading], verdict: Verdict, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """One record an episode, without what only training adds (see `add_credit`).

    Args:
      kinds: the strategist's kind at every seat.
      archive, accounts, reasons: what was played.
      readings, verdict: of every seat, seat-major.
      numbers: of the episodes within the iteration.
    """
    records = []
    for e, (number, account) in enumerate(zip(numbers, accounts)):
        rows = [s * len(accounts) + e for s in range(len(kinds))]
        spoken = [iter(readings[row].strategies) for row in rows]
        seats = [{
            **about, 'strategist': kind,
            'outcome': float(verdict.outcome[row]) if verdict.outcome_valid[row] else None,
            'judge': verdict.note[row]} for about, kind, row in zip(account.facts['seats'], kinds, rows)]
        records.append({
            'episode': number, **account.facts, 'truncated': bool(archive.cause[e]),
            'failure': failure(archive.cause[e], account, reasons.get(e)), 'events': list(account.events),
            'seats': seats,
            'turns': [{'seat': seat, 'strategy': next(spoken[seat], '') or None, 'line': line}
                      for seat, line in account.lines]})
    return records


def failure(cause: int, account: Account, reason: Optional[str]) -> Optional[str]:
    """Why an episode was cut off, None where it was not; `reason`: of the agent that did it, in its words."""
    if cause == 0:
        return None
    if cause == NEWS:
        return 'the news of two turns do not fit rollout.view_tokens'
    if cause > 0:
        s, actor = divmod(int(cause) - 1, 2)
        return reason or f'{"actor" if actor else "strategist"} of seat {s}: the conversation does not fit its capacity'
    return account.failure or 'the environment broke off'


def add_credit(record: dict[str, Any], seat: int, ids, turn, logprob, length: int, turns: int,
               reward: Sequence[float], valid: Sequence[bool], advantage: Sequence[float]) -> None:
    """Adds to a seat of a record what it was trained on: exact ids and turns, reward and advantage by turn."""
    number = lambda value, ok: round(float(value), 6) if ok else None
    record['seats'][seat] |= {
        'reward': [number(reward[t], valid[t]) for t in range(turns)],
        'advantage': [number(advantage[t], valid[t]) for t in range(turns)],
        'ids': np.asarray(ids[:length]).tolist(), 'turn': np.asarray(turn[:length]).tolist(),
        'logprob': [round(float(p), 6) for p in logprob[:length]]}


def failure_reason(records: Sequence[dict[str, Any]]) -> Optional[str]:
    """The first reason why an episode broke, for the log."""
    return next((record['failure'] for record in records if record['failure']), None)
