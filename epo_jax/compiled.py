"""A whole self-play iteration as one compiled program: rollout, process reward, credit, gradient steps.

From the scenarios to the new weights nothing returns to the host; what was said is read from the returned archive
afterwards. It needs everybody on the device: local models, an environment in array code, a judge of our own.

Axis letters: E episodes of a match, S seats, N conversations, T turns of one seat, A actions, K tokens.
"""

import dataclasses
import functools
from typing import Any, Callable, Optional, Sequence

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from epo_jax.rewards.judge import Judge, follow, name_turns
from epo_jax.rewards.process import CRITICAL
from epo_jax.rl.credit import Rules, assign
from epo_jax.rl.learner import Batch, Learner, TrainState
from epo_jax.rl.trajectory import Trajectory, trajectory
from epo_jax.roles import for_sampling
from epo_jax.rollout import Archive, Table, play, turns_of
from epo_jax.text import tokenizer as text
from epo_jax.text.tokens import Tokens, concat, keep, pack, repeat


@dataclasses.dataclass(frozen=True)
class Settings:
    """What does not change during a run; static.

    Attributes:
      learner: the gradient step; dtype: in which the policy samples.
      slots: episodes played at once.
      process: 'potential', 'critical' or 'none'; outcome: 'judge' or 'environment'.
      credit: see rl/credit.py.
    """

    learner: Learner
    dtype: Any
    slots: int
    process: str
    outcome: str
    credit: Rules


@struct.dataclass
class Judged:
    """Of every conversation: process f32[N, T] and outcome f32[N] with what of them is valid; the judge's
    probabilities behind them, potential f32[N, T + 1] and critical f32[N, T] (NaN: not asked)."""

    process: Any
    valid: Any
    outcome: Any
    outcome_valid: Any
    potential: Any
    critical: Any


@struct.dataclass
class Result:
    """What an iteration leaves besides the new state.

    Attributes:
      archives, judged: of every match; judged rows are seat-major, all seats.
      rows: the trained conversations of all matches; reward, valid, advantage: [N, T].
      metrics: of every gradient step.
    """

    archives: tuple[Archive, ...]
    judged: tuple[Judged, ...]
    rows: Trajectory
    reward: Any
    valid: Any
    advantage: Any
    metrics: dict[str, Any]


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def iterate(settings: Settings, train: TrainState, tables: Sequence[Table], queues: Sequence[Any],
            keys: Sequence[jax.Array], groups: Sequence[jax.Array], judge: Optional[Judge],
            order: jax.Array, base: Any = None) -> tuple[TrainState, Result]:
    """One iteration; `train` is donated.

    Args:
      settings: see there.
      train: the learner's state.
      tables: of every match; seats that are trained come without weights and get them from `train`.
      queues: encoded scenarios; keys: key[E]; groups: i32[E] number of each episode's group; of every match.
      judge: who judges; None where nobody is asked.
      order: i32[steps, batch] rows of every gradient step; N and beyond: none.
      base: the frozen parameters under an adapter.
    """
    policy = for_sampling(train.params, settings.learner.lora, settings.dtype, base)
    archives, judged, rows = [], [], []
    for table, queue, key, group in zip(tables, queues, keys, groups):
        seats = tuple(seat.replace(strategist=seat.strategist.replace(params=policy)) if seat.trained else seat
                      for seat in table.seats)
        table = table.replace(seats=seats)
        archive = play(table, queue, key, settings.slots)
        archives.append(archive)
        judged.append(assess(settings, table, judge, queue, archive))
        rows.append(trajectory(table, archive, group))
    trained = [jnp.concatenate([s * len(a.cause) + jnp.arange(len(a.cause))
                                for s, seat in enumerate(table.seats) if seat.trained])
               for table, a in zip(tables, archives)]
    verdict = _join([jax.tree.map(lambda x: x[at], j) for j, at in zip(judged, trained)])
    rows = _join(rows)

    reward, valid, advantage = assign(
        verdict.process, verdict.valid, verdict.outcome, verdict.outcome_valid, rows.turn_mask, rows.group,
        settings.credit)

    def step(train, at):
        taken = at < len(rows.length)
        take = lambda x, empty: jnp.where(
            taken.reshape(-1, *[1] * (x.ndim - 1)), x[jnp.minimum(at, len(x) - 1)], empty)
        batch = Batch(take(rows.ids, 0), take(rows.turn, -1), take(rows.logprob, 0.0), take(advantage, 0.0),
                      take(valid, False))
        return settings.learner.step(train, batch, base)

    train, metrics = jax.lax.scan(step, train, order)
    return train, Result(tuple(archives), tuple(judged), rows, reward, valid, advantage, metrics)


def _join(parts):
    return jax.tree.map(lambda *xs: jnp.concatenate(xs), *parts)


def assess(settings: Settings, table: Table, judge: Optional[Judge], queue: Any, archive: Archive) -> Judged:
    """Process reward and outcome of all episodes and seats; the same as rewards/process.py, in array code."""
    S, E, T = len(table.seats), len(archive.cause), turns_of(table.env)
    seat = jnp.repeat(jnp.arange(S), E)
    actions, complete = jnp.tile(archive.actions, S), jnp.tile(archive.cause == 0, S)
    had = jnp.arange(T) < ((actions + S - 1 - seat) // S)[:, None]
    process = jnp.zeros((S * E, T))
    potential, critical = jnp.full((S * E, T + 1), jnp.nan), jnp.full((S * E, T), jnp.nan)
    outcome = archive.reward.T.reshape(-1)
    by_seat = lambda read: _join([read(s, *table.env.reading(queue, archive.env, s)) for s in range(S)])
    if settings.process == 'potential' or settings.outcome == 'judge':
        stages = by_seat(lambda s, opening, lines: _stages(judge, opening, lines, archive.actions, s, S, T))
        potential, rating = _in_batches(judge, stages, lambda part: follow(
            judge, jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), part), jnp.bool_(settings.process == 'potential'),
            settings.outcome == 'judge'))
        potential = jnp.where(jnp.pad(had, ((0, 0), (1, 0)), constant_values=True), potential, jnp.nan)
        outcome = rating / 10 if settings.outcome == 'judge' else outcome
    if settings.process == 'potential':
        process = jnp.diff(potential, axis=1)
    if settings.process == 'critical':
        scores = outcome.reshape(S, E)
        messages = by_seat(lambda s, opening, lines: _listed(judge, opening, lines, archive, s, S, scores[s]))
        critical = _in_batches(judge, (messages, had), lambda part: name_turns(judge, *part))
        process = jnp.where(jnp.isnan(critical), jnp.nan, critical >= 0.5)
    valid = had & complete[:, None] & jnp.isfinite(process)
    outcome_valid = complete & jnp.isfinite(outcome)
    return Judged(jnp.where(valid, process, 0), valid, jnp.where(outcome_valid, outcome, 0), outcome_valid, potential,
                  critical)


def _stages(judge: Judge, opening: Tokens, lines: Tokens, actions, seat: int, S: int, T: int) -> Tokens:
    """Tokens [E, T + 1, K]: what a judge reads before a seat's first turn, and after each with the replies to it."""
    E, A, K = lines.ids.shape
    lines = lines.replace(length=jnp.where(jnp.arange(A) < actions[:, None], lines.length, 0))
    front, back = S - seat, (T + 1) * S - A - (S - seat)
    fill = lambda x: jnp.pad(x, ((0, 0), (front, max(back, 0)), *((0, 0),) * (x.ndim - 2)))[:, :(T + 1) * S]
    lines = jax.tree.map(fill, lines)
    parts = jax.tree.map(lambda x: x.reshape(E, T + 1, S, *x.shape[2:]), lines)
    first = concat([repeat(judge.chat.open, E), opening])
    width = first.ids.shape[1] + S * K
    return jax.tree.map(lambda *xs: jnp.stack(xs, axis=1), *(
        concat([keep(first, t == 0), *(jax.tree.map(lambda x: x[:, t, s], parts) for s in range(S))], width)
        for t in range(T + 1)))


def _listed(judge: Judge, opening: Tokens, lines: Tokens, archive: Archive, seat: int, S: int,
            outcome) -> Tokens:
    """Tokens [E, K]: the whole episode, its outcome f32[E], and a seat's strategies, among which a judge chooses.

    What is too long fills the judge's capacity, and so overflows.
    """
    E, A = lines.length.shape
    say = lambda part: repeat(text.encode(judge.tokenizer, part), E)
    at = lambda tokens, a: keep(jax.tree.map(lambda x: x[:, a], tokens), a < archive.actions)
    before, after = CRITICAL.split('{score:.1f}')
    between, end = after.split('{strategies}')
    scores = pack([text.encode(judge.tokenizer, f'{tenths / 10:.1f}') for tenths in range(101)])
    score = jax.tree.map(lambda x: jnp.asarray(x)[jnp.round(100 * jnp.nan_to_num(outcome)).astype(int)], scores)
    strategies = [part for t, a in enumerate(range(seat, A, S)) for part in (
        keep(say(f'\n{t + 1}. '), a < archive.actions), at(archive.strategies, a))]
    message = concat([repeat(judge.chat.open, E), opening, *(at(lines, a) for a in range(A)),
                      say(before), score, say(between), *strategies, say(end)], judge.capacity)
    return message.replace(length=jnp.minimum(message.length, judge.capacity))


def _in_batches(judge: Judge, rows: Any, ask: Callable[[Any], Any]) -> Any:
    """What `ask` answers to a tree of rows [N, ...], asked `judge.batch` at once."""
    count = len(jax.tree.leaves(rows)[0])
    missing = -count % judge.batch
    cut = lambda x: jnp.pad(x, ((0, missing), *((0, 0),) * (x.ndim - 1))).reshape(-1, judge.batch, *x.shape[1:])
    answers = jax.lax.map(ask, jax.tree.map(cut, rows))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], answers)


def order(count: int, batch: int, epochs: int, seed: tuple[int, ...]) -> np.ndarray:
    """i32[steps, batch] shuffled rows of all gradient steps, each epoch's last step filled up with `count`.

    The same orders as learner.batches draws.
    """
    steps = -(-count // batch)
    rows = [np.concatenate([np.random.default_rng((*seed, epoch)).permutation(count),
                            np.full(steps * batch - count, count)]) for epoch in range(epochs)]
    return np.concatenate(rows).reshape(-1, batch).astype(np.int32)
