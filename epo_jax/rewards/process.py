"""Outcomes and process rewards: how an episode ended, and which of its turns mattered.

One function serves a host loop (NumPy arrays) and a compiled iteration (traced arrays).

Axis letters: N judged conversations (one per episode and seat), T turns of that seat.
"""

import dataclasses
from typing import Any, Callable, Optional

from flax import struct
import jax
from jaxtyping import Bool, Float
import numpy as np

from epo_jax.rewards.judge import Judge, grade_strategies, name_critical, read_stages
from epo_jax.rewards.prompts import QUESTIONS, JudgeInput
from epo_jax.runtime.hosts import fetch
from epo_jax.text import tokenizer as text
from epo_jax.text.tokens import Array, Tokens, array_module, concat, pack

METHODS = ('potential', 'critical', 'graded', 'none')


@struct.dataclass
class Verdict:
    """The assessment of conversations, by the environment's own reward and by the judge.

    Attributes:
      process: reward of every turn; 0 where it is not valid.
      valid: turns with a process reward.
      outcome: how well the goal was reached, in [0, 1]; 0 where it is not valid.
      outcome_valid: conversations with an outcome.
      rewarded: conversations whose outcome is the environment's own reward.
      turn_mask: turns that took place.
      potential: probability that the goal is reached, before the first turn and after each; None if not asked.
      critical: probability that each turn was critical; None if not asked.
      graded: how much each turn contributed to the outcome, in [0, 1]; None if not asked.
      dimensions: scores in the dimensions of a rubric, NaN where they are missing; None if not asked.
      comments: what else the judge said about each conversation, a dict for its record (object[N], on the host only).
    """

    process: Float[Array, 'N T']
    valid: Bool[Array, 'N T']
    outcome: Float[Array, ' N']
    outcome_valid: Bool[Array, ' N']
    rewarded: Bool[Array, ' N']
    turn_mask: Bool[Array, 'N T']
    potential: Optional[Float[Array, 'N T+1']] = None
    critical: Optional[Float[Array, 'N T']] = None
    graded: Optional[Float[Array, 'N T']] = None
    dimensions: Optional[dict[str, Float[Array, ' N']]] = None
    comments: Optional[Any] = None

    def __getitem__(self, rows: Any) -> 'Verdict':
        """Return the verdict on some of the conversations."""
        return jax.tree.map(lambda x: x[rows], self)

    def notes(self) -> list[dict[str, Any]]:
        """Return the judge's numbers on every conversation, for the record of its episode (host)."""
        number = lambda value: round(float(value), 6) if np.isfinite(value) else None
        turns, notes = self.turn_mask.sum(axis=1), []
        for n, count in enumerate(turns):
            note = {'by_rule': bool(self.rewarded[n]),
                    'rating': number(10 * self.outcome[n]) if self.outcome_valid[n] else None}
            if self.potential is not None:
                note['potential'] = [number(p) for p in self.potential[n, :count + 1]]
            if self.critical is not None:
                note['critical'] = [number(p) for p in self.critical[n, :count]]
            if self.graded is not None:
                note['graded'] = [number(p) for p in self.graded[n, :count]]
            if self.dimensions is not None:
                note['scores'] = {name: number(scores[n]) for name, scores in self.dimensions.items()}
            notes.append(note | (self.comments[n] if self.comments is not None else {}))
        return notes


@dataclasses.dataclass(frozen=True)
class Readings:
    """What judges outside of the program said, on the host; None where no such judge was asked.

    Attributes:
      outcome: how well the goal was reached, in [0, 1]; NaN where it is missing.
      critical: function that asks for critical turns, from the outcomes f[N], NaN where they are missing, to f[N, T] (1
        for those that were, 0 for the others, NaN where the answer is missing) and comments object[N].
      dimensions, comments: see Verdict.
    """

    outcome: Optional[Float[Array, ' N']] = None
    critical: Optional[Callable[[np.ndarray], tuple[Float[Array, 'N T'], np.ndarray]]] = None
    dimensions: Optional[dict[str, Float[Array, ' N']]] = None
    comments: Optional[Any] = None


# Maps a judge (None: no judge), the method of the process reward and whether the judge reads the transcript in stages
# to what it reads: `encode_prompts` or `gather_prompts` of some episodes.
Encode = Callable[[Optional[Judge], str, bool], JudgeInput]


def assess_episodes(encode: Encode, judge: Optional[Judge], process_judge: Optional[Judge], method: str, rate: bool,
                    given: Readings = Readings()) -> Verdict:
    """Judge finished episodes, with one local judge, with two, or with judges outside of the program.

    Args:
      encode: see Encode.
      judge: the judge of outcomes; None where it is not asked.
      process_judge: the judge for the process reward; None if it is the judge of outcomes, which then reads the
        episodes only once.
      method, rate, given: see `assess`.
    """
    rate = rate and given.outcome is None
    asked = 'none' if given.critical else method
    if process_judge is None or asked == 'none':
        return assess(judge, encode(judge, asked, rate or asked == 'potential'), method, rate, None, given)
    process = process_judge, encode(process_judge, asked, asked == 'potential')
    return assess(judge, encode(judge, 'none', rate), method, rate, process, given)


def assess(judge: Optional[Judge], conversations: JudgeInput, method: str, rate: bool,
           process: Optional[tuple[Judge, JudgeInput]] = None, given: Readings = Readings()) -> Verdict:
    """Judge finished conversations.

    The outcome is the environment's own reward where there is one, else what is given, else the judge's rating / 10.
    The process reward of a turn is by `method`:

    `potential`: before the seat's first turn and after each (with the replies to it), the judge's probability that the
    goal has been reached; the reward of a turn is the change of this probability. IGPO's information
    gain, the change of the probability of the right answer, is of the same kind.
    `critical`: after the end, the judge goes through the seat's strategies and says Yes or No to each; 1 for those
    it names, else 0.
    `graded`: after the end, the judge grades the contribution of every strategy to the outcome in [0, 1]; the reward is
    the grade times the outcome, so it goes with reward.combine='process' (Sotopia-RL, Yu et al. 2025).
    `none`: 0.

    Args:
      judge: the judge; None where it is not asked.
      conversations: what the judge reads.
      method: one of METHODS.
      rate: whether the judge rates the conversations that have no reward; otherwise they have no outcome.
      process: another judge for the process reward, and what it reads; None if it is the same judge.
      given: answers of judges outside of the program.

    Raises:
      ValueError: the method is unknown.
    """
    if method not in METHODS:
        raise ValueError(f'the process reward must be one of {", ".join(METHODS)}, not {method!r}')
    xp = array_module(conversations.reward)
    mask, reward = conversations.turn_mask, conversations.reward
    values, outcome, potential = xp.zeros(mask.shape, reward.dtype), reward, None
    critical, graded, comments = None, None, given.comments
    rate, follow = rate and given.outcome is None, method == 'potential'
    if rate or follow and process is None:
        reached, rating = _read(judge, conversations, follow and process is None, rate)
    if follow and process is not None:
        reached, _ = _read(*process, True, False)
    if rate or given.outcome is not None:
        outcome = xp.where(xp.isfinite(reward), reward, rating / 10 if rate else given.outcome)  # NaN where missing
    if method == 'potential':
        potential = xp.where(xp.pad(mask, ((0, 0), (1, 0)), constant_values=True), reached, xp.nan)
        values = xp.diff(potential, axis=1)
    known = ~xp.isnan(outcome)[:, None]
    if method in QUESTIONS and given.critical is None:  # without an outcome, the question names a score nobody gave
        other, seen = process or (judge, conversations)
        message = _with_score(other, *seen.question, outcome)
    if method == 'critical' and given.critical is None:
        critical = _in_batches(other, (message, mask), lambda part: name_critical(other, *part))
    elif method == 'critical':
        critical, said = given.critical(np.where(conversations.complete, outcome, np.nan))
        comments = said if comments is None else np.array([a | b for a, b in zip(comments, said, strict=True)], object)
    if method == 'critical':
        values = xp.where(xp.isnan(critical) | ~known, xp.nan, critical >= 0.5)
    if method == 'graded':
        graded = _in_batches(other, (message, mask), lambda part: grade_strategies(other, *part))
        values = xp.where(known, graded * outcome[:, None], xp.nan)
    valid = mask & conversations.complete[:, None] & xp.isfinite(values)
    outcome_valid = conversations.complete & xp.isfinite(outcome)
    return Verdict(
        xp.where(valid, values, 0), valid, xp.where(outcome_valid, outcome, 0), outcome_valid, xp.isfinite(reward),
        mask, potential, critical, graded, given.dimensions, comments)


def _read(judge: Judge, conversations: JudgeInput, ask: bool, rate: bool) -> tuple[Any, Any]:
    """Return what `read_stages` returns about all conversations."""
    return _in_batches(judge, conversations.stages, lambda part: read_stages(
        judge, jax.tree.map(lambda x: array_module(x).moveaxis(x, 1, 0), part), np.bool_(ask), rate))


def _with_score(judge: Judge, before: Tokens, after: Tokens, outcome) -> Tokens:
    """Put the outcomes f[N], as scores out of 10, into the question about strategies; cut to the capacity."""
    xp = array_module(outcome)
    scores = pack([text.encode(judge.tokenizer, f'{tenths / 10:.1f}') for tenths in range(101)])
    at = xp.round(100 * xp.nan_to_num(outcome)).astype(int)
    score = jax.tree.map(lambda x: xp.asarray(x)[at], scores)
    message = concat([before, score, after], judge.capacity)
    return message.replace(length=xp.minimum(message.length, judge.capacity))


def _in_batches(judge: Judge, rows: Any, ask: Callable[[Any], Any]) -> Any:
    """Return what `ask` answers about a tree of rows [N, ...], asked `judge.batch` rows at once."""
    count = len(jax.tree.leaves(rows)[0])
    xp, missing = array_module(rows), -count % judge.batch
    batches = jax.tree.map(
        lambda x: xp.pad(x, ((0, missing), *((0, 0),) * (x.ndim - 1))).reshape(-1, judge.batch, *x.shape[1:]), rows)
    if xp is np:
        answers = [fetch(ask(jax.tree.map(lambda x: x[i], batches))) for i in range(-(-count // judge.batch))]
        return jax.tree.map(lambda *xs: np.concatenate(xs).astype(np.float64)[:count], *answers)
    answers = jax.lax.map(ask, batches)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], answers)
