"""Finished episodes as readable JSON: one object an episode."""

from typing import Any, Optional, Sequence

import numpy as np

from epo_jax.rewards.process import Verdict
from epo_jax.rewards.reading import Reading
from epo_jax.rollout import Episodes, Table


def episode_records(table: Table, kinds: Sequence[str], episodes: Episodes, readings: Sequence[Reading],
                    verdict: Verdict, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """One record an episode, without what only training adds (see `add_credit`).

    Args:
      table, episodes: what was played; kinds: the strategist's kind at every seat.
      readings, verdict: of every seat, seat-major.
      numbers: of the episodes within the iteration; the rest of the batch is padding and is left out.
    """
    why, batch = failures(table, episodes), len(episodes.scenarios)
    env, state = table.env.env, episodes.state.env
    records = []
    for b, number in enumerate(numbers):
        scenario = episodes.scenarios[b]
        spoken = [iter(readings[s * batch + b].strategies) for s in range(len(table.seats))]
        seats = []
        for s, character in enumerate(scenario.characters):
            row = s * batch + b
            seats.append({
                'name': character.name, 'goal': scenario.goals[s], 'strategist': kinds[s],
                'outcome': float(verdict.outcome[row]) if verdict.outcome_valid[row] else None,
                'judge': verdict.note[row]})
        records.append({
            'episode': number, 'scenario': scenario.id, 'environment': scenario.environment,
            'category': scenario.category, 'situation': scenario.text, 'truncated': bool(episodes.state.failed[b]),
            'failure': why[b], 'events': list(state.events[b]), 'seats': seats,
            'turns': [{'seat': seat, 'strategy': next(spoken[seat]) or None, 'line': line}
                      for seat, line in env.transcript(state.episodes[b])]})
    return records


def add_credit(record: dict[str, Any], seat: int, ids, turn, logprob, length: int, turns: int,
               reward: Sequence[float], valid: Sequence[bool], advantage: Sequence[float]) -> None:
    """Adds to a seat of a record what it was trained on: exact ids and turns, reward and advantage by turn."""
    number = lambda value, ok: round(float(value), 6) if ok else None
    record['seats'][seat] |= {
        'reward': [number(reward[t], valid[t]) for t in range(turns)],
        'advantage': [number(advantage[t], valid[t]) for t in range(turns)],
        'ids': np.asarray(ids[:length]).tolist(), 'turn': np.asarray(turn[:length]).tolist(),
        'logprob': [round(float(p), 6) for p in logprob[:length]]}


def failures(table: Table, episodes: Episodes) -> list[Optional[str]]:
    """For every episode why it broke, None where it did not."""
    state = episodes.state
    reasons = list(state.env.failures)
    for s, seat in enumerate(table.seats):
        for role, player, memory in (('strategist', seat.strategist, state.strategists[s]),
                                     ('actor', seat.actor, state.actors[s])):
            if player is None:
                continue
            known = getattr(memory, 'failures', None)  # agents on the host say why
            for b in np.flatnonzero(player.agent.failed(memory)):
                said = known[b] if known else 'the conversation does not fit its capacity'
                reasons[b] = reasons[b] or f'{role} of seat {s}: {said}'
    return [(reason or 'the news of two turns do not fit rollout.view_tokens') if failed else None
            for reason, failed in zip(reasons, state.failed)]


def failure_reason(records: Sequence[dict[str, Any]]) -> Optional[str]:
    """The first reason why an episode broke, for the log."""
    return next((record['failure'] for record in records if record['failure']), None)
