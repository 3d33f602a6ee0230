"""The rollout: one function is one turn, and an episode is that function again and again.

Axis letters: B episodes in a batch, S seats, N trained conversations (seat-major: all episodes of one trained
seat, then of the next), T turns of one seat, L token positions.
"""

import dataclasses
from typing import Any, Callable, Optional, Sequence

from flax import struct
import jax
import numpy as np

from epo_jax.agents.base import Player, Seat
from epo_jax.envs.base import Environment, View
from epo_jax.text import tokenizer as text
from epo_jax.text.tokens import Tokens, concat, keep, pack, repeat


@dataclasses.dataclass(frozen=True)
class Table:
    """Who plays what: everything about a rollout that does not change during it."""

    env: Environment
    seats: tuple[Seat, ...]


@struct.dataclass
class TableState:
    """The episodes at one moment.

    Attributes:
      env: state of the environment.
      strategists, actors: memory of every seat's agents (None: no strategist).
      views: for every seat, what it has not read yet.
      done: bool[B] over, for whatever reason.
      failed: bool[B] over because something broke or did not fit: the episode is truncated.
      reward: f32[B, S] sum of the environment's own rewards.
    """

    env: Any
    strategists: tuple[Any, ...]
    actors: tuple[Any, ...]
    views: tuple[View, ...]
    done: Any
    failed: Any
    reward: Any


@struct.dataclass
class Turn:
    """What was sampled in one turn, for the record.

    Attributes:
      seat: whose turn it was.
      live: bool[B] episodes in which it took place.
      strategy: Tokens [B, K], or None.
      message: Tokens [B, K].
    """

    seat: int = struct.field(pytree_node=False)
    live: Any
    strategy: Optional[Tokens]
    message: Tokens


@struct.dataclass
class Trajectory:
    """What the learner gets, one row a trained conversation. Host arrays.

    Attributes:
      ids: i32[N, L] the strategist's conversation.
      turn: i32[N, L] turn in which an id was sampled; -1: context, not trained.
      logprob: f32[N, L] log-probability at which it was sampled.
      length: i32[N].
      turn_mask: bool[N, T] turns that took place.
      truncated: bool[N] the episode was cut off.
      episode, seat: i32[N] where the row comes from.
      group: i32[N] rows of the same scenario and seat have the same number.
    """

    ids: np.ndarray
    turn: np.ndarray
    logprob: np.ndarray
    length: np.ndarray
    turn_mask: np.ndarray
    truncated: np.ndarray
    episode: np.ndarray
    seat: np.ndarray
    group: np.ndarray


@dataclasses.dataclass(frozen=True)
class Episodes:
    """A finished batch.

    Attributes:
      scenarios: what was played, B of them.
      state: the table at the end.
      turns: the record, in order.
      max_turns: T, turns one seat can have.
    """

    scenarios: Sequence[Any]
    state: TableState
    turns: Sequence[Turn]
    max_turns: int


def open_table(table: Table, scenarios: Sequence[Any]) -> TableState:
    """Seats everybody and deals the opening views."""
    env, views = table.env.reset(scenarios)
    batch = len(scenarios)
    start = lambda player: player and player.agent.start(batch)
    return TableState(
        env=env,
        strategists=tuple(start(seat.strategist) for seat in table.seats),
        actors=tuple(start(seat.actor) for seat in table.seats),
        views=views,
        done=np.zeros(batch, bool),
        failed=np.zeros(batch, bool),
        reward=np.zeros((batch, len(table.seats)), np.float32))


def turn(table: Table, state: TableState, seat: int, keys: jax.Array) -> tuple[TableState, Turn]:
    """One seat's turn in every live episode: read, get advice, act; the environment answers.

    Args:
      table: who plays what.
      state: the episodes before.
      seat: whose turn it is.
      keys: key[B], one an episode.

    Returns:
      (the episodes after, the record).
    """
    strategist, actor = table.seats[seat].strategist, table.seats[seat].actor
    strategists, actors = list(state.strategists), list(state.actors)
    view, live, failed = state.views[seat], ~state.done, state.failed
    content, strategy, cues = [view.actor], None, table.env.cues(state.env, seat)
    if strategist is not None:
        strategists[seat], strategy = strategist.agent.respond(
            strategist.params, strategists[seat], [view.strategist], cues.strategist, keys, 2 * seat,
            live)
        failed = failed | (live & np.asarray(strategist.agent.failed(strategists[seat])))
        advice = translate(strategy, strategist, actor)
        before, after = (keep(repeat(part, len(live)), live) for part in table.env.advice(seat))
        content += [before, advice, after]
    actors[seat], message = actor.agent.respond(
        actor.params, actors[seat], content, cues.actor, keys, 2 * seat + 1, live & ~failed)
    failed = failed | (live & np.asarray(actor.agent.failed(actors[seat])))
    env, seen = table.env.step(state.env, seat, message, live & ~failed)
    failed = failed | (live & seen.failed)

    views = []
    for s, (old, new) in enumerate(zip(state.views, seen.views)):
        if s == seat:  # everything before this turn has been read
            old = View(*(keep(part, False) for part in old))
        views.append(View(*(concat(pair, pair[0].ids.shape[1]) for pair in zip(old, new))))
        for pair in zip(old, new):
            failed = failed | (live & (pair[0].length + pair[1].length > pair[0].ids.shape[1]))
    state = TableState(
        env=env, strategists=tuple(strategists), actors=tuple(actors), views=tuple(views),
        done=state.done | seen.done | failed, failed=failed, reward=state.reward + seen.reward)
    return state, Turn(seat, live, strategy, message)


def translate(message: Tokens, speaker: Player, reader: Player) -> Tokens:
    """The same ids where both use one tokenizer; else the text of the message in the reader's tokens (host).

    What becomes more than four times as long is cut there: the width of what is read must not depend on the text.
    """
    if speaker.tokenizer is reader.tokenizer:
        return message
    width = 4 * message.ids.shape[1]
    rows = [text.encode(reader.tokenizer, text.decode(speaker.tokenizer, row))[:width] for row in message.rows()]
    return pack(rows, width)


def rollout(table: Table, scenarios: Sequence[Any], keys: jax.Array, count: Optional[int] = None,
            on_turn: Callable[[Turn], None] = lambda record: None) -> Episodes:
    """Plays every scenario to its end, seats taking turns; host loop.

    Args:
      table: who plays what.
      scenarios: B of them.
      keys: key[B], one an episode: what an episode samples depends on its own key alone.
      count: play the first `count` scenarios only; the others fill up the batch. None: all.
      on_turn: called after every turn (progress).
    """
    state, record = open_table(table, scenarios), []
    seats = len(table.seats)
    if count is not None:
        state = state.replace(done=np.arange(len(scenarios)) >= count)
    for t in range(table.env.max_turns):
        if state.done.all():
            break
        state, done = turn(table, state, t % seats, keys)
        record.append(done)
        on_turn(done)
    return Episodes(scenarios, state, record, -(-table.env.max_turns // seats))


def trajectory(table: Table, episodes: Episodes, groups: Sequence[int]) -> Trajectory:
    """The conversations of the trained strategists.

    Args:
      table: who played.
      episodes: what came out.
      groups: B numbers; episodes of the same scenario share one.
    """
    batch, T = len(episodes.scenarios), episodes.max_turns
    trained = [s for s, seat in enumerate(table.seats) if seat.trained]
    if not trained:
        raise ValueError('no seat at this table is trained')
    sessions = [episodes.state.strategists[s] for s in trained]
    join = lambda name: np.concatenate([np.asarray(getattr(session, name)) for session in sessions])
    return Trajectory(
        ids=join('ids'), turn=join('turn'), logprob=join('logprob'), length=join('length'),
        turn_mask=np.arange(T) < join('turns')[:, None],
        truncated=np.tile(episodes.state.failed, len(trained)),
        episode=np.tile(np.arange(batch, dtype=np.int32), len(trained)),
        seat=np.repeat(np.array(trained, np.int32), batch),
        group=np.concatenate([np.asarray(groups, np.int32) * len(table.seats) + s for s in trained]))


@jax.jit
def episode_keys(key: jax.Array, iteration, episodes: jax.Array) -> jax.Array:
    """key[B]: fold_in(fold_in(run, iteration), episode), for episode numbers i32[B]."""
    key = jax.random.fold_in(key, iteration)
    return jax.vmap(lambda episode: jax.random.fold_in(key, episode))(episodes)
