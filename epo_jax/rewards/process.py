"""Process rewards: which turns mattered, by two methods behind one interface.

Axis letters: N readings (one an episode and seat), T turns of that seat.
"""

import dataclasses
from typing import Sequence

import numpy as np

from epo_jax.rewards.judge import Judge, follow, name_turns, pad, stacked
from epo_jax.rewards.reading import Reading
from epo_jax.runtime.hosts import everywhere

CRITICAL = (
    '\n\nThe final score for the goal was {score:.1f} of 10. Before each turn, a strategy was chosen:{strategies}\n'
    'Which of these strategies were critical for the outcome? Answer Yes or No for each.')


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the judge made of a batch.

    Attributes:
      process: f64[N, T] reward of every turn; valid: bool[N, T].
      outcome: f64[N] in [0, 1], goal rating / 10; outcome_valid: bool[N].
      note: for every reading what the judge's numbers were, for the episode file.
    """

    process: np.ndarray
    valid: np.ndarray
    outcome: np.ndarray
    outcome_valid: np.ndarray
    note: tuple[dict, ...]


def assess(judge: Judge, readings: Sequence[Reading], turns: int, method: str) -> Verdict:
    """Reads every episode once, and answers for the outcome and for every turn.

    `potential`: before the seat's first turn and after each (with the replies to it), the judge's probability
    that the goal has been reached; a turn's reward is the change it made.
    `critical`: after the end, the judge goes through the seat's strategies and says Yes or No to each; 1 for
    those named. The answer is one of the two by construction, so it always parses.
    `none`: zeros.

    Args:
      judge: not asked where every reading has a score and the method needs nothing either.
      readings: N of them.
      turns: T.
      method: as above.
    """
    if method not in ('potential', 'critical', 'none'):
        raise ValueError(f"the process reward is 'potential', 'critical' or 'none', not {method!r}")
    had = np.arange(turns) < np.array([reading.turns for reading in readings])[:, None]
    complete = np.array([reading.complete for reading in readings])
    rating = np.array([np.nan if reading.score is None else reading.score for reading in readings], np.float64)
    ruled = np.isfinite(rating)
    process = np.zeros((len(readings), turns))
    note = [{'by_rule': bool(rule)} for rule in ruled]
    if method == 'potential' or not ruled.all():
        potential, judged = _read(judge, readings, turns, method == 'potential', not ruled.all())
        rating = np.where(ruled, rating, judged)
        if method == 'potential':
            process = np.diff(potential, axis=1)
            for n, reading in enumerate(readings):
                note[n]['potential'] = [_number(p) for p in potential[n, :reading.turns + 1]]
    if method == 'critical':
        process, chances = _critical(judge, readings, turns, rating)
        for n, reading in enumerate(readings):
            note[n]['critical'] = [_number(p) for p in chances[n, :reading.turns]]
    for n, value in enumerate(rating):
        note[n]['rating'] = _number(value)
    valid = had & complete[:, None] & np.isfinite(process)
    outcome_valid = complete & np.isfinite(rating)
    return Verdict(np.where(valid, process, 0.0), valid, np.where(outcome_valid, rating / 10, 0.0), outcome_valid,
                   tuple(note))


def _read(judge: Judge, readings: Sequence[Reading], turns: int, potential: bool,
          rate: bool) -> tuple[np.ndarray, np.ndarray]:
    """(probability that the goal is reached at every stage [N, T + 1], rating [N]); NaN where not asked."""
    parts = []
    for batch in _batches(judge, readings):
        stages = [[judge.encode(reading.brief + piece if i == 0 else piece, first=i == 0)
                   for i, piece in enumerate(_pieces(reading, turns, potential))] for reading in batch]
        packed = stacked([pad(rows, judge.batch, judge.capacity) for rows in zip(*stages)])
        chances, rating = everywhere(follow(judge, packed, np.bool_(potential), rate))
        parts.append((np.asarray(chances, np.float64)[:len(batch)], np.asarray(rating, np.float64)[:len(batch)]))
    chances, rating = map(np.concatenate, zip(*parts))
    return chances, rating


def _pieces(reading: Reading, turns: int, potential: bool) -> list[str]:
    """T + 1 pieces of the transcript; where no question comes between, everything at once."""
    stages = reading.stages(turns)
    return stages if potential else [''.join(stages), *[''] * turns]


def _batches(judge: Judge, readings: Sequence[Reading]) -> list[Sequence[Reading]]:
    return [readings[i:i + judge.batch] for i in range(0, len(readings), judge.batch)]


def _critical(judge: Judge, readings: Sequence[Reading], turns: int, rating) -> tuple[np.ndarray, np.ndarray]:
    """(1 for the strategies the judge names and 0 for the others [N, T], its probability of naming each).

    The answer is built strategy by strategy: 'Strategy 1:' Yes, 'Strategy 2:' No, and each is asked with the
    answers before it in view.
    """
    texts = []
    for reading, score in zip(readings, np.nan_to_num(rating)):
        listed = ''.join(f'\n{t + 1}. {s}' for t, s in enumerate(reading.strategies))
        transcript = ''.join(f'\n{line}' for _, line in reading.lines)
        texts.append(reading.brief + transcript + CRITICAL.format(score=score, strategies=listed))
    had = np.arange(turns) < np.array([len(reading.strategies) for reading in readings])[:, None]
    parts = []
    for i in range(0, len(texts), judge.batch):
        rows = [judge.encode(part, first=True) for part in texts[i:i + judge.batch]]
        turned = np.zeros((judge.batch, turns), bool)
        turned[:len(rows)] = had[i:i + judge.batch]
        named = everywhere(name_turns(judge, pad(rows, judge.batch, judge.capacity), turned))
        parts.append(np.asarray(named)[:len(rows)])
    chances = np.concatenate(parts).astype(np.float64)
    return np.where(np.isnan(chances), np.nan, chances >= 0.5), chances


def _number(value: float):
    """For JSON: a missing number is None."""
    return None if not np.isfinite(value) else round(float(value), 6)
