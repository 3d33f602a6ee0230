"""What a turn was worth, by playing on from the state before it: siblings of a turn, sampled and played to the end.

A conversation is a value, so a state is branched by a gather of sessions and of the environment's state, and nothing is
read twice. The mean outcome of the siblings is an unbiased estimate of the value of the state, and does not depend on
what was done in it.

Axis letters: B slots, E episodes, S seats, T turns of one seat, K siblings.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int
import numpy as np

from epo_jax.agents.base import Player
from epo_jax.agents.local import LocalAgent
from epo_jax.rollout import Episodes, Table, TableState, max_seat_turns, open_table, refill, turn

_SIBLINGS = 2**30  # random keys of siblings are those of no agent of an episode


def rollout_branched(table: Table, queue: Any, keys: jax.Array, batch: int,
                     siblings: int) -> tuple[Episodes, Float[jax.Array, 'E S T K'], Int[jax.Array, '']]:
    """Play all episodes of the queue as `rollout_compiled` does, and branch before every turn of a trained seat.

    Args:
      table: who plays what; it must be `on_device`.
      queue: the encoded scenarios of E episodes.
      keys: key[E]. The episodes are those of `rollout_compiled`, because siblings have keys of their own.
      batch: number of slots, a multiple of the table's group; a branch plays `siblings` times as many.
      siblings: K.

    Returns:
      The episodes; the reward of every sibling, NaN for turns that did not take place and for siblings without a
      reward; and the number of tokens that the siblings sampled.
    """
    count, seats = len(keys), range(len(table.seats))
    state, episodes = jax.tree.map(jnp.asarray, open_table(table, batch, count, keys))
    outcomes = jnp.full((count, len(seats), max_seat_turns(table.env), siblings), jnp.nan)

    def play_round(carry):
        state, episodes, outcomes, tokens = carry
        for seat in seats:
            if table.seats[seat].trained:
                found, sampled = branch(table, state, seat, siblings)
                at = jnp.where(state.done, count, state.episode)
                outcomes = outcomes.at[at, seat, state.actions // len(seats)].set(found, mode='drop')
                tokens += sampled
            state, _ = turn(table, state, seat)
        return *refill(table, state, episodes, queue, keys), outcomes, tokens

    start = (*refill(table, state, episodes, queue, keys), outcomes, jnp.zeros((), jnp.int32))
    _, episodes, outcomes, tokens = jax.lax.while_loop(
        lambda carry: (carry[0].episode < count).any(), play_round, start)
    return episodes, outcomes, tokens


def values(outcomes: Float[jax.Array, '... K']) -> Float[jax.Array, '...']:
    """Return the mean outcome of siblings; NaN where none has one."""
    known = ~jnp.isnan(outcomes)
    return jnp.where(known, outcomes, 0).sum(axis=-1) / known.sum(axis=-1)


def branch(table: Table, state: TableState, seat: int,
           siblings: int) -> tuple[Float[jax.Array, 'B K'], Int[jax.Array, '']]:
    """Play the turn of a seat and all that follows `siblings` times from the same state.

    Returns:
      The reward of the seat in every sibling, NaN where it got none, and the number of tokens that were sampled.
    """
    wide = repeat_slots(table, state, siblings)
    before = written(wide)
    for s in range(seat, len(table.seats)):
        wide, _ = turn(table, wide, s)

    def play_round(state):
        for s in range(len(table.seats)):
            state, _ = turn(table, state, s)
        return state

    wide = jax.lax.while_loop(lambda state: ~state.done.all(), play_round, wide)
    reward = jnp.where(wide.cause == 0, wide.reward[:, seat], jnp.nan)
    return reward.reshape(-1, siblings), written(wide) - before


def written(state: TableState) -> Int[jax.Array, '']:
    """Return the number of tokens that strategists and actors have written in all slots."""
    return state.strategies.length.sum() + state.messages.length.sum()


def repeat_slots(table: Table, state: TableState, times: int) -> TableState:
    """Return every slot `times` times, next to each other, with random keys that differ from those of the episode."""
    def repeat(tree, axis=0):
        return jax.tree.map(lambda x: jnp.repeat(x, times, axis=axis), tree)

    def remember(player: Player, memory):
        if isinstance(getattr(player, 'agent', None), LocalAgent):  # the cache of stacked layers begins with the layers
            cache = repeat(memory.cache, axis=int(player.agent.model.stacked))
            return repeat(memory.replace(cache=None)).replace(cache=cache)
        return repeat(memory)

    keys = jax.vmap(lambda key, action: jax.vmap(
        lambda k: jax.random.fold_in(jax.random.fold_in(key, _SIBLINGS + action), k))(np.arange(times)))(
            state.keys, state.actions).reshape(-1)
    strategists, actors = ([getattr(seat, role) for seat in table.seats] for role in ('strategist', 'actor'))
    rest = state.replace(strategists=(), actors=(), keys=(), next=())
    return repeat(rest).replace(
        strategists=tuple(map(remember, strategists, state.strategists)),
        actors=tuple(map(remember, actors, state.actors)), keys=keys, next=state.next)
