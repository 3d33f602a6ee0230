"""The rollout: `turn` plays one turn, and an episode is a loop over turns.

`turn` and `refill` serve two drivers. `rollout_compiled` runs them in one traced loop, where every agent is on the
device. `rollout_on_host` calls them from a host loop, for API models and text environments. Both keep B slots busy: a
slot whose episode is over stores it and starts the next one.

Axis letters: B slots, E episodes, S seats, A actions of all seats together, T turns of one seat, L token positions,
K tokens.
"""

from typing import Any, Callable, NamedTuple, Optional, Sequence

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int
import numpy as np

from epo_jax.agents.base import Player, Seat
from epo_jax.envs.base import Environment, Observation
from epo_jax.runtime.hosts import fetch
from epo_jax.text import tokenizer as text
from epo_jax.text.tokens import Array, Tokens, array_module, concat, keep, pack, repeat

# Why an episode was cut off: one of these, or 1 + the number of the agent that failed (see `agent_number`).
OBSERVATION, ENVIRONMENT = -1, -2


@struct.dataclass
class Table:
    """Who plays what: everything that stays the same during a rollout. A pytree of weights.

    Attributes:
      env: the environment.
      seats: the agents.
      group: episodes come in groups of this size with the same scenario, which start together in neighboring slots.
      advice_width: number of token positions reserved for a strategy in what an actor without a strategist reads, so
        that one program serves actors with and without; 0 reserves none.
    """

    env: Environment = struct.field(pytree_node=False)
    seats: tuple[Seat, ...]
    group: int = struct.field(pytree_node=False, default=1)
    advice_width: int = struct.field(pytree_node=False, default=0)

    @property
    def players(self) -> list[Player]:
        """Return all players, the strategist of a seat before its actor."""
        return [player for seat in self.seats for player in (seat.strategist, seat.actor) if player is not None]

    @property
    def on_device(self) -> bool:
        """Return whether a rollout can be one traced program."""
        same = all(seat.strategist is None or seat.strategist.tokenizer is seat.actor.tokenizer for seat in self.seats)
        return same and self.env.on_device and all(player.agent.on_device for player in self.players)


@struct.dataclass
class TableState:
    """The slots at one moment.

    Attributes:
      env: state of the environment.
      strategists, actors: memory of the agents of every seat; None without a strategist.
      unread: for every seat, the Observation (of Tokens) that it has not read yet.
      episode: number of the episode in each slot; E for none.
      next: number of the first episode that has not started.
      keys: random keys of the episodes, key[B].
      done: whether the episode is over, for whatever reason.
      cause: 0, or why the episode was cut off: 1 + the number of an agent, OBSERVATION or ENVIRONMENT.
      actions: number of actions so far.
      reward: sum of the environment's rewards; NaN until there is one.
      strategies, messages: what was written in each action, Tokens [B, A, K] (lengths i32[B, A]).
    """

    env: Any
    strategists: tuple[Any, ...]
    actors: tuple[Any, ...]
    unread: tuple[Observation, ...]
    episode: Int[Array, ' B']
    next: Int[Array, '']
    keys: jax.Array
    done: Bool[Array, ' B']
    cause: Int[Array, ' B']
    actions: Int[Array, ' B']
    reward: Float[Array, 'B S']
    strategies: Tokens
    messages: Tokens


class Turn(NamedTuple):
    """What was sampled in one turn.

    Attributes:
      seat: whose turn it was.
      live: bool[B], the slots that took part.
      strategy: Tokens [B, K], or None without a strategist.
      message: Tokens [B, K].
    """

    seat: int
    live: Any
    strategy: Optional[Tokens]
    message: Tokens


@struct.dataclass
class Conversation:
    """What a strategist's session holds besides its cache; see models/sampling.py."""

    ids: Int[Array, 'E L']
    turn: Int[Array, 'E L']
    logprob: Float[Array, 'E L']
    length: Int[Array, ' E']
    turns: Int[Array, ' E']


@struct.dataclass
class Episodes:
    """Finished episodes, by number.

    Attributes:
      env: the environment's state at the end of each.
      conversations: of the strategist of every seat; None where it is not trained.
      cause, actions, reward, strategies, messages: as in TableState.
    """

    env: Any
    conversations: tuple[Optional[Conversation], ...]
    cause: Int[Array, ' E']
    actions: Int[Array, ' E']
    reward: Float[Array, 'E S']
    strategies: Tokens
    messages: Tokens


def agent_number(seat: int, actor: bool) -> int:
    """Return the number of an agent at the table: the strategist of a seat, then its actor."""
    return 2 * seat + actor


def on_host(tree):
    """Turn small arrays into NumPy arrays in a host loop, so that only agents are compiled; keep traced ones."""
    return jax.tree.map(lambda x: x if isinstance(x, jax.core.Tracer) else np.asarray(x), fetch(tree))


def turn(table: Table, state: TableState, seat: int) -> tuple[TableState, Turn]:
    """Play one turn of a seat in every live slot: read, get a strategy, act, and let the environment answer.

    Args:
      table: who plays what.
      state: the slots before the turn.
      seat: whose turn it is.

    Returns:
      The slots after the turn, and what was written.
    """
    strategist, actor = table.seats[seat].strategist, table.seats[seat].actor
    strategists, actors = list(state.strategists), list(state.actors)
    observation, live = state.unread[seat], ~state.done
    xp = array_module(live)
    cause = state.cause
    blame = lambda cause, broken, number: xp.where((cause == 0) & live & on_host(broken), number, cause)
    content, strategy, cues = [observation.actor], None, table.env.cues(state.env, seat)

    if strategist is not None:
        reasoning = table.seats[seat].reasoning
        tell = lambda part: keep(repeat(part, len(live)), live)
        read = [observation.strategist] if reasoning is None else [observation.actor, tell(reasoning.request)]
        cue = keep(cues.strategist, reasoning is None)
        strategists[seat], strategy = strategist.agent.respond(
            strategist.params, strategists[seat], read, cue, None, state.keys, agent_number(seat, False), live)
        strategy = on_host(strategy)
        cause = blame(cause, strategist.agent.failed(strategists[seat]), 1 + agent_number(seat, False))
        before, after = table.env.advice(seat) if reasoning is None else (reasoning.before, reasoning.after)
        content += [tell(before), translate(strategy, strategist, actor), tell(after)]
    elif table.advice_width:
        before, after = (repeat(part, len(live)) for part in table.env.advice(seat))
        content += [keep(part, False) for part in (before, repeat([0] * table.advice_width, len(live)), after)]
    actors[seat], message = actor.agent.respond(
        actor.params, actors[seat], content, cues.actor, table.env.choices(state.env, seat), state.keys,
        agent_number(seat, True), live & (cause == 0))
    cause, message = blame(cause, actor.agent.failed(actors[seat]), 1 + agent_number(seat, True)), fetch(message)
    env, step = table.env.step(state.env, seat, message, live & (cause == 0))
    step, message = on_host((step, message))
    cause = blame(cause, step.failed, ENVIRONMENT)

    unread = []
    for s, (old, new) in enumerate(zip(state.unread, step.observations, strict=True)):
        if s == seat:  # everything before this turn has been read
            old = Observation(*(keep(part, False) for part in old))
        unread.append(Observation(*(concat(pair, pair[1].ids.shape[1]) for pair in zip(old, new, strict=True))))
        for part, more in zip(old, new, strict=True):
            cause = blame(cause, part.length + more.length > more.ids.shape[1], OBSERVATION)

    actions = state.actions + live
    rewarded = live[:, None] & ~xp.isnan(step.reward)
    return state.replace(
        env=env, strategists=tuple(strategists), actors=tuple(actors), unread=tuple(unread),
        done=state.done | step.done | (cause != 0) | (actions >= table.env.max_turns),
        cause=cause, actions=actions,
        reward=xp.where(rewarded, xp.where(xp.isnan(state.reward), 0, state.reward) + step.reward, state.reward),
        strategies=_record(state.strategies, strategy, state.actions, live),
        messages=_record(state.messages, message, state.actions, live)), Turn(seat, live, strategy, message)


def _record(record: Tokens, written: Optional[Tokens], actions, live) -> Tokens:
    """Put what was written in action number actions[B] of the live slots into Tokens [B, A, K]."""
    if written is None:
        return record
    xp = array_module(live)
    now = (xp.arange(record.length.shape[1]) == actions[:, None]) & live[:, None]
    ids = xp.pad(written.ids, ((0, 0), (0, record.ids.shape[2] - written.ids.shape[1])))
    return Tokens(
        xp.where(now[:, :, None], ids[:, None], record.ids), xp.where(now, written.length[:, None], record.length))


def translate(message: Tokens, speaker: Player, reader: Player) -> Tokens:
    """Return a message in the reader's tokens: the same ids if both use one tokenizer, else by its text (host).

    A translation is cut to four times the length of the longest message, so that the width of the result does not
    depend on the text.
    """
    if speaker.tokenizer is reader.tokenizer:
        return message
    width = 4 * message.ids.shape[1]
    texts = [text.decode(speaker.tokenizer, row, speaker.leads[1]) for row in message.rows()]
    rows = [text.encode(reader.tokenizer, part)[:width] for part in texts]
    return pack(rows, width)


def encode(table: Table, scenarios: Sequence[Any]) -> Any:
    """Encode the scenarios of a rollout, one for each episode, as its queue.

    Raises:
      ValueError: neighbors that form a group do not share a scenario; an agent reads an opening once for its group.
    """
    group = table.group
    if len(scenarios) % group or any(scenario is not scenarios[i - i % group] for i, scenario in enumerate(scenarios)):
        raise ValueError(f'{len(scenarios)} scenarios are not groups of {group} episodes with the same scenario')
    return table.env.encode(scenarios, [seat.advised for seat in table.seats])


def open_table(table: Table, batch: int, count: int, keys) -> tuple[TableState, Episodes]:
    """Return `batch` empty slots, to be refilled first, and empty storage for `count` episodes."""
    env, S, A = table.env, len(table.seats), table.env.max_turns
    start = lambda player: player and player.agent.start(batch)
    record = lambda rows, players: Tokens(
        np.zeros((rows, A, max((p.agent.width for p in players if p), default=0)), np.int32),
        np.zeros((rows, A), np.int32))
    strategists, actors = [seat.strategist for seat in table.seats], [seat.actor for seat in table.seats]
    nothing = Tokens(np.zeros((batch, env.width), np.int32), np.zeros(batch, np.int32))
    state = TableState(
        env=env.start(batch), strategists=tuple(map(start, strategists)), actors=tuple(map(start, actors)),
        unread=(Observation(nothing, nothing),) * S, episode=np.full(batch, count, np.int32),
        next=np.zeros((), np.int32), keys=_pick(keys, np.zeros(batch, np.int32)),
        done=np.ones(batch, bool), cause=np.zeros(batch, np.int32), actions=np.zeros(batch, np.int32),
        reward=np.full((batch, S), np.nan, np.float32), strategies=record(batch, strategists),
        messages=record(batch, actors))
    blank = lambda x: np.zeros((count, *x.shape[1:]), x.dtype)
    return state, jax.tree.map(blank, _finished(table, state))


def _finished(table: Table, state: TableState) -> Episodes:
    """Return the parts of the slots that are stored for finished episodes."""
    conversations = tuple(
        Conversation(memory.ids, memory.turn, memory.logprob, memory.length, memory.turns) if seat.trained else None
        for seat, memory in zip(table.seats, state.strategists, strict=True))
    return Episodes(state.env, conversations, state.cause, state.actions, state.reward, state.strategies,
                    state.messages)


@jax.jit
def _pick(keys, at):
    return keys[jnp.minimum(at, len(keys) - 1)]


def refill(table: Table, state: TableState, episodes: Episodes, queue: Any,
           keys: jax.Array) -> tuple[TableState, Episodes]:
    """Store the episodes that are over and start the next ones in their slots.

    Args:
      table: who plays what.
      state: the slots.
      episodes: what was stored so far.
      queue: the encoded scenarios of all E episodes.
      keys: key[E].

    Returns:
      The slots and the stored episodes.
    """
    count = len(episodes.cause)
    xp = array_module(state.done)
    over = xp.repeat(state.done.reshape(-1, table.group).all(axis=1), table.group)
    if xp is np and not over.any():
        return state, episodes
    episodes = store(episodes, xp.where(over, state.episode, count), _finished(table, state))

    number = state.next + xp.cumsum(over).astype(np.int32) - 1
    rows = over & (number < count)
    episode = xp.where(rows, number, xp.where(over, count, state.episode)).astype(np.int32)
    env, strategists, actors = state.env, state.strategists, state.actors
    if xp is jnp or rows.any():
        env, first = table.env.reset(env, queue, episode, rows)
        begin = lambda player, memory, opening: player and player.agent.begin(
            player.params, memory, opening, rows, table.group)
        strategists = tuple(begin(seat.strategist, memory, opening[seat.reasoning is not None])
                            for seat, memory, opening in zip(table.seats, strategists, first, strict=True))
        actors = tuple(begin(seat.actor, memory, opening.actor)
                       for seat, memory, opening in zip(table.seats, actors, first, strict=True))
    fresh = lambda x, value=0: xp.where(over.reshape(-1, *[1] * (x.ndim - 1)), xp.full_like(x, value), x)
    clear = lambda tokens: tokens.replace(length=fresh(tokens.length))
    return state.replace(
        env=env, strategists=strategists, actors=actors, unread=jax.tree.map(fresh, state.unread), episode=episode,
        next=state.next + rows.sum().astype(np.int32), keys=_pick(keys, episode),
        done=xp.where(over, ~rows, state.done), cause=fresh(state.cause), actions=fresh(state.actions),
        reward=fresh(state.reward, np.nan), strategies=clear(state.strategies), messages=clear(state.messages)
        ), episodes


def store(episodes: Episodes, at, rows: Episodes) -> Episodes:
    """Store slot b under number at[b]; numbers beyond the last episode are dropped."""
    if isinstance(at, np.ndarray):
        kept = at < len(episodes.cause)
        if not kept.any():
            return episodes
        rows = fetch(rows)

        def put(into, x):
            into = into.copy()
            into[at[kept]] = np.asarray(x)[kept]
            return into
    else:
        def put(into, x):
            return into.at[at].set(x, mode='drop')
    return jax.tree.map(put, episodes, rows)


def rollout_compiled(table: Table, queue: Any, keys: jax.Array, batch: int) -> Episodes:
    """Play all episodes of the queue in one traced loop; the table must be `on_device`.

    Args:
      table: who plays what.
      queue: the encoded scenarios of E episodes.
      keys: key[E], one per episode. What an episode samples depends on its own key alone.
      batch: number of slots, a multiple of the table's group.
    """
    count = len(keys)
    state, episodes = jax.tree.map(jnp.asarray, open_table(table, batch, count, keys))

    def play_round(carry):
        state, episodes = carry
        for seat in range(len(table.seats)):
            state, _ = turn(table, state, seat)
        return refill(table, state, episodes, queue, keys)

    start = refill(table, state, episodes, queue, keys)
    _, episodes = jax.lax.while_loop(lambda carry: (carry[0].episode < count).any(), play_round, start)
    return episodes


def rollout_on_host(table: Table, queue: Any, keys: jax.Array, batch: int,
                    on_turn: Callable[[Turn], None] = lambda record: None) -> tuple[Episodes, dict[int, str]]:
    """Play all episodes of the queue from a host loop, at any table.

    Args:
      table: who plays what.
      queue: the encoded scenarios of E episodes.
      keys: key[E], as in `rollout_compiled`.
      batch: number of slots, a multiple of the table's group.
      on_turn: called after every turn, to report progress.

    Returns:
      The episodes, and the reason for every episode that an agent cut off.
    """
    count, reasons = len(keys), {}
    state, episodes = refill(table, *open_table(table, batch, count, keys), queue, keys)
    while (state.episode < count).any():
        for seat in range(len(table.seats)):
            if state.done.all():
                break
            state, record = turn(table, state, seat)
            on_turn(record)
        reasons |= failure_reasons(table, state)
        state, episodes = refill(table, state, episodes, queue, keys)
    return episodes, reasons


def failure_reasons(table: Table, state: TableState) -> dict[int, str]:
    """Return the reason for every episode in a slot that an agent cut off (host)."""
    reasons = {}
    for b in np.flatnonzero(state.cause > 0):
        s, actor = divmod(int(state.cause[b]) - 1, 2)
        seat, memory = table.seats[s], (state.actors if actor else state.strategists)[s]
        player = seat.actor if actor else seat.strategist
        reasons[int(state.episode[b])] = (
            f'{"actor" if actor else "strategist"} of seat {s}: {player.agent.reasons(memory)[b]}')
    return reasons


def max_seat_turns(env: Environment) -> int:
    """Return T, the largest number of turns of one seat."""
    return -(-env.max_turns // env.num_seats)


def episode_keys(seed: int, iteration: int, episodes: Int[Array, ' E']) -> jax.Array:
    """Return key[E] = fold_in(fold_in(key(seed), iteration), episode)."""
    return _episode_keys(np.uint32(seed), iteration, episodes)  # an int is traced as int32, which is too small for it


@jax.jit
def _episode_keys(seed, iteration, episodes):
    key = jax.random.fold_in(jax.random.key(seed), iteration)
    return jax.vmap(lambda episode: jax.random.fold_in(key, episode))(episodes)
