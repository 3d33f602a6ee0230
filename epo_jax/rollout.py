"""The rollout: one function is one turn, and an episode is that function again and again.

`turn` and `refill` serve two drivers. `play` runs them in one traced loop, where everybody at the table is on the
device; `rollout` calls them from a host loop, where an API model or a host environment sits there. Both keep B
slots busy: a slot whose episode is over files it in the archive and gets the next one.

Axis letters: B slots, E episodes, S seats, A actions of all seats together, T turns of one seat, L token positions,
K tokens.
"""

from typing import Any, Callable, NamedTuple, Optional

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from epo_jax.agents.base import Player, Seat
from epo_jax.envs.base import Environment, View
from epo_jax.runtime.hosts import everywhere
from epo_jax.text import tokenizer as text
from epo_jax.text.tokens import Tokens, concat, keep, pack, repeat

# Why an episode was cut off, by number; in front of them, one number for each agent (see `who`).
NEWS, ENVIRONMENT = -1, -2


@struct.dataclass
class Table:
    """Who plays what: everything about a rollout that does not change during it. A pytree of weights.

    Attributes:
      env, seats: what is played and by whom.
      group: episodes come in groups of so many with the same scenario, which begin together in neighbouring slots.
      room: tokens kept free for advice where there is no strategist, so that one program serves actors with and
        without; 0: none are.
    """

    env: Environment = struct.field(pytree_node=False)
    seats: tuple[Seat, ...]
    group: int = struct.field(pytree_node=False, default=1)
    room: int = struct.field(pytree_node=False, default=0)

    @property
    def players(self) -> list[Player]:
        """Everybody, each with its number, the strategist of a seat before its actor."""
        return [player for seat in self.seats for player in (seat.strategist, seat.actor) if player is not None]

    @property
    def on_device(self) -> bool:
        """Whether a rollout can be one traced program."""
        same = all(seat.strategist is None or seat.strategist.tokenizer is seat.actor.tokenizer for seat in self.seats)
        return same and self.env.on_device and all(player.agent.on_device for player in self.players)


@struct.dataclass
class TableState:
    """The slots at one moment.

    Attributes:
      env: state of the environment.
      strategists, actors: memory of every seat's agents (None: no strategist).
      news: for every seat, what it has not read yet.
      episode: i32[B] number of the episode in each slot; E: none.
      next: i32[] first episode that nobody has begun.
      keys: key[B] of the episodes.
      done: bool[B] over, for whatever reason.
      cause: i32[B] 0, or who or what cut the episode off: 1 + number of the agent, NEWS or ENVIRONMENT.
      actions: i32[B] so far.
      reward: f32[B, S] sum of the environment's own rewards.
      strategies, messages: Tokens [B, A, K] (lengths i32[B, A]), what was written in each action.
    """

    env: Any
    strategists: tuple[Any, ...]
    actors: tuple[Any, ...]
    news: tuple[View, ...]
    episode: Any
    next: Any
    keys: Any
    done: Any
    cause: Any
    actions: Any
    reward: Any
    strategies: Tokens
    messages: Tokens


class Turn(NamedTuple):
    """What was sampled in one turn: seat, live bool[B], strategy Tokens [B, K] or None, message Tokens [B, K]."""

    seat: int
    live: Any
    strategy: Optional[Tokens]
    message: Tokens


@struct.dataclass
class Conversation:
    """What a session holds besides its cache: ids, turn i32[E, L], logprob f32[E, L], length, turns i32[E]."""

    ids: Any
    turn: Any
    logprob: Any
    length: Any
    turns: Any


@struct.dataclass
class Archive:
    """Finished episodes, by number.

    Attributes:
      env: the environment's state of each.
      conversations: of every seat's strategist (None: not a trained one).
      cause, actions, reward, strategies, messages: as in TableState.
    """

    env: Any
    conversations: tuple[Optional[Conversation], ...]
    cause: Any
    actions: Any
    reward: Any
    strategies: Tokens
    messages: Tokens


def who(seat: int, actor: bool) -> int:
    """Number of an agent at the table."""
    return 2 * seat + actor


def settle(tree):
    """In a host loop small arrays are NumPy's, so that nothing but the agents is compiled; in a trace they stay."""
    return jax.tree.map(lambda x: x if isinstance(x, jax.core.Tracer) else np.asarray(x), everywhere(tree))


def numpy_or_jax(*trees):
    """The array module that goes with settled arrays."""
    return jnp if any(isinstance(x, jax.Array) for x in jax.tree.leaves(trees)) else np


def turn(table: Table, state: TableState, seat: int) -> tuple[TableState, Turn]:
    """One seat's turn in every live slot: read, get advice, act; the environment answers.

    Args:
      table: who plays what.
      state: the slots before.
      seat: whose turn it is.

    Returns:
      (the slots after, what was written).
    """
    strategist, actor = table.seats[seat].strategist, table.seats[seat].actor
    strategists, actors = list(state.strategists), list(state.actors)
    news, live = state.news[seat], ~state.done
    xp = numpy_or_jax(live)
    cause = state.cause
    blame = lambda cause, broken, number: xp.where((cause == 0) & live & settle(broken), number, cause)
    content, strategy, cues = [news.actor], None, table.env.cues(state.env, seat)

    if strategist is not None:
        strategists[seat], strategy = strategist.agent.respond(
            strategist.params, strategists[seat], [news.strategist], cues.strategist, None, state.keys,
            who(seat, False), live)
        strategy = settle(strategy)
        cause = blame(cause, strategist.agent.failed(strategists[seat]), 1 + who(seat, False))
        before, after = (keep(repeat(part, len(live)), live) for part in table.env.advice(seat))
        content += [before, translate(strategy, strategist, actor), after]
    elif table.room:
        before, after = (repeat(part, len(live)) for part in table.env.advice(seat))
        content += [keep(part, False) for part in (before, repeat([0] * table.room, len(live)), after)]
    actors[seat], message = actor.agent.respond(
        actor.params, actors[seat], content, cues.actor, table.env.choices(state.env, seat), state.keys,
        who(seat, True), live & (cause == 0))
    cause, message = blame(cause, actor.agent.failed(actors[seat]), 1 + who(seat, True)), everywhere(message)
    env, seen = table.env.step(state.env, seat, message, live & (cause == 0))
    seen, message = settle((seen, message))
    cause = blame(cause, seen.failed, ENVIRONMENT)

    unread = []
    for s, (old, new) in enumerate(zip(state.news, seen.views)):
        if s == seat:  # everything before this turn has been read
            old = View(*(keep(part, False) for part in old))
        unread.append(View(*(concat(pair, pair[1].ids.shape[1]) for pair in zip(old, new))))
        for pair in zip(old, new):
            cause = blame(cause, pair[0].length + pair[1].length > pair[1].ids.shape[1], NEWS)

    actions = state.actions + live
    return state.replace(
        env=env, strategists=tuple(strategists), actors=tuple(actors), news=tuple(unread),
        done=state.done | seen.done | (cause != 0) | (actions >= table.env.max_turns),
        cause=cause, actions=actions, reward=state.reward + xp.where(live[:, None], seen.reward, 0),
        strategies=_note(state.strategies, strategy, state.actions, live),
        messages=_note(state.messages, message, state.actions, live)), Turn(seat, live, strategy, message)


def _note(record: Tokens, said: Optional[Tokens], actions, live) -> Tokens:
    """Tokens [B, A, K] with what was said in action number actions[B] of the live slots."""
    if said is None:
        return record
    xp = numpy_or_jax(live)
    now = (xp.arange(record.length.shape[1]) == actions[:, None]) & live[:, None]
    ids = xp.pad(said.ids, ((0, 0), (0, record.ids.shape[2] - said.ids.shape[1])))
    return Tokens(
        xp.where(now[:, :, None], ids[:, None], record.ids), xp.where(now, said.length[:, None], record.length))


def translate(message: Tokens, speaker: Player, reader: Player) -> Tokens:
    """The same ids where both use one tokenizer; else the text of the message in the reader's tokens (host).

    What becomes more than four times as long is cut there: the width of what is read must not depend on the text.
    """
    if speaker.tokenizer is reader.tokenizer:
        return message
    width = 4 * message.ids.shape[1]
    rows = [text.encode(reader.tokenizer, text.decode(speaker.tokenizer, row))[:width] for row in message.rows()]
    return pack(rows, width)


def open_table(table: Table, batch: int, count: int, keys) -> tuple[TableState, Archive]:
    """(`batch` empty slots, an archive for `count` episodes), to be refilled first."""
    env, S, A = table.env, len(table.seats), table.env.max_turns
    start = lambda player: player and player.agent.start(batch)
    said = lambda rows, players: Tokens(
        np.zeros((rows, A, max((p.agent.width for p in players if p), default=0)), np.int32),
        np.zeros((rows, A), np.int32))
    strategists, actors = [seat.strategist for seat in table.seats], [seat.actor for seat in table.seats]
    nothing = Tokens(np.zeros((batch, env.width), np.int32), np.zeros(batch, np.int32))
    state = TableState(
        env=env.start(batch), strategists=tuple(map(start, strategists)), actors=tuple(map(start, actors)),
        news=(View(nothing, nothing),) * S, episode=np.full(batch, count, np.int32), next=np.zeros((), np.int32),
        keys=_pick(keys, np.zeros(batch, np.int32)),
        done=np.ones(batch, bool), cause=np.zeros(batch, np.int32), actions=np.zeros(batch, np.int32),
        reward=np.zeros((batch, S), np.float32), strategies=said(batch, strategists), messages=said(batch, actors))
    blank = lambda x: np.zeros((count, *x.shape[1:]), x.dtype)
    kept = (state.env, tuple(map(_conversation, table.seats, state.strategists)), state.cause, state.actions,
            state.reward, state.strategies, state.messages)
    return state, Archive(*jax.tree.map(blank, kept))


def _conversation(seat: Seat, memory) -> Optional[Conversation]:
    if not seat.trained:
        return None
    return Conversation(memory.ids, memory.turn, memory.logprob, memory.length, memory.turns)


@jax.jit
def _pick(keys, at):
    return keys[jnp.minimum(at, len(keys) - 1)]


def refill(table: Table, state: TableState, archive: Archive, queue: Any,
           keys: jax.Array) -> tuple[TableState, Archive]:
    """Files the episodes that are over, and begins the next ones in their slots.

    Args:
      table: who plays what.
      state, archive: the slots, and what was filed so far.
      queue: the encoded scenarios of all E episodes.
      keys: key[E].
    """
    count = len(archive.cause)
    xp = numpy_or_jax(state.done)
    over = xp.repeat(state.done.reshape(-1, table.group).all(axis=1), table.group)
    if xp is np and not over.any():
        return state, archive
    archive = archive_rows(archive, xp.where(over, state.episode, count), Archive(
        state.env, tuple(map(_conversation, table.seats, state.strategists)), state.cause, state.actions,
        state.reward, state.strategies, state.messages))

    number = state.next + xp.cumsum(over).astype(np.int32) - 1
    rows = over & (number < count)
    episode = xp.where(rows, number, xp.where(over, count, state.episode)).astype(np.int32)
    env, strategists, actors = state.env, state.strategists, state.actors
    if xp is jnp or rows.any():
        env, openings = table.env.deal(env, queue, episode, rows)
        begin = lambda player, memory, opening: player and player.agent.begin(
            player.params, memory, opening, rows, table.group)
        strategists = tuple(begin(seat.strategist, memory, opening.strategist)
                            for seat, memory, opening in zip(table.seats, strategists, openings))
        actors = tuple(begin(seat.actor, memory, opening.actor)
                       for seat, memory, opening in zip(table.seats, actors, openings))
    fresh = lambda x: xp.where(over.reshape(-1, *[1] * (x.ndim - 1)), xp.zeros_like(x), x)
    clean = lambda tokens: tokens.replace(length=fresh(tokens.length))
    return state.replace(
        env=env, strategists=strategists, actors=actors, news=jax.tree.map(fresh, state.news), episode=episode,
        next=state.next + rows.sum().astype(np.int32), keys=_pick(keys, episode),
        done=xp.where(over, ~rows, state.done), cause=fresh(state.cause), actions=fresh(state.actions),
        reward=fresh(state.reward), strategies=clean(state.strategies), messages=clean(state.messages)), archive


def archive_rows(archive: Archive, at, rows: Archive) -> Archive:
    """The archive with slot b filed under number at[b]; numbers beyond it are not filed."""
    if isinstance(at, np.ndarray):
        kept = at < len(archive.cause)
        if not kept.any():
            return archive
        rows = everywhere(rows)

        def put(into, x):
            into = into.copy()
            into[at[kept]] = np.asarray(x)[kept]
            return into
    else:
        def put(into, x):
            return into.at[at].set(x, mode='drop')
    return jax.tree.map(put, archive, rows)


def play(table: Table, queue: Any, keys: jax.Array, batch: int) -> Archive:
    """All episodes of the queue, as one traced loop; the table must be `on_device`.

    Args:
      table: who plays what.
      queue: the encoded scenarios of E episodes.
      keys: key[E], one an episode: what an episode samples depends on its own key alone.
      batch: slots, a multiple of the table's group.
    """
    count = len(keys)
    state, archive = jax.tree.map(jnp.asarray, open_table(table, batch, count, keys))

    def rounds(carry):
        state, archive = carry
        for seat in range(len(table.seats)):
            state, _ = turn(table, state, seat)
        return refill(table, state, archive, queue, keys)

    start = refill(table, state, archive, queue, keys)
    _, archive = jax.lax.while_loop(lambda carry: (carry[0].episode < count).any(), rounds, start)
    return archive


def rollout(table: Table, queue: Any, keys: jax.Array, batch: int,
            on_turn: Callable[[Turn], None] = lambda record: None) -> tuple[Archive, dict[int, str]]:
    """The same from a host loop, for any table.

    Args:
      table, queue, keys, batch: see `play`.
      on_turn: called after every turn (progress).

    Returns:
      (archive, for every episode that was cut off by one of its agents: why, in that agent's words).
    """
    count, reasons = len(keys), {}
    state, archive = refill(table, *open_table(table, batch, count, keys), queue, keys)
    while (state.episode < count).any():
        for seat in range(len(table.seats)):
            if state.done.all():
                break
            state, record = turn(table, state, seat)
            on_turn(record)
        reasons |= words(table, state)
        state, archive = refill(table, state, archive, queue, keys)
    return archive, reasons


def words(table: Table, state: TableState) -> dict[int, str]:
    """For every episode that sits in a slot, and that one of its agents has cut off, why (host)."""
    said = {}
    for b in np.flatnonzero(state.cause > 0):
        s, actor = divmod(int(state.cause[b]) - 1, 2)
        seat, memory = table.seats[s], (state.actors if actor else state.strategists)[s]
        player = seat.actor if actor else seat.strategist
        said[int(state.episode[b])] = (
            f'{"actor" if actor else "strategist"} of seat {s}: {player.agent.reasons(memory)[b]}')
    return said


def turns_of(env: Environment) -> int:
    """T, the turns one seat can have."""
    return -(-env.max_turns // env.num_seats)


@jax.jit
def episode_keys(key: jax.Array, iteration, episodes: jax.Array) -> jax.Array:
    """key[E]: fold_in(fold_in(run, iteration), episode), for episode numbers i32[E]."""
    key = jax.random.fold_in(key, iteration)
    return jax.vmap(lambda episode: jax.random.fold_in(key, episode))(episodes)
