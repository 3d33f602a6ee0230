"""What could be reached at best: with everything known beforehand, with what a side is told, and by theory.

Axis letters: B slots, E episodes, N sequences of intents, R rounds, P splits.
"""

import collections
import dataclasses
import functools
from typing import Any, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from epo_jax.envs.bargain.language import INTENT_IDS, INTENTS
from epo_jax.envs.bargain.scenarios import BOARDS, NOTHING, REAL, SPLITS, P, Queue, Scenario
from epo_jax.text.tokens import Tokens

TRIED = tuple(i for i, word in zip(INTENT_IDS, INTENTS) if word != 'walk')    # walking away is worth 0 at any time


@functools.partial(jax.jit, static_argnums=0)
def sequences(env: Any, queue: Queue) -> tuple[jax.Array, jax.Array]:
    """Every sequence of intents against an opponent; those after the end are ignored.

    Args:
      env: a `game.Bargain` against the family.
      queue: E scenarios.

    Returns:
      (f32[E, N] seat 0's reward, i32[E, N, R] the opponent's answers as in `game.State.actions`).
      N = len(TRIED) ** R; column n plays the digits of n to the base len(TRIED), the first intent first.
    """
    def of(episode):
        state, _ = env.reset(env.start(1), queue, episode[None], jnp.ones(1, bool))
        reward, live = jnp.zeros(1), jnp.ones(1, bool)
        for _ in range(env.rounds):    # all intents in every state so far
            state, reward, live = jax.tree.map(lambda x: jnp.repeat(x, len(TRIED), axis=0), (state, reward, live))
            ids = jnp.tile(jnp.array(TRIED), len(live) // len(TRIED))[:, None]
            state, seen = env.step(state, 0, Tokens(ids, jnp.ones_like(ids[:, 0])), live)
            reward, live = reward + seen.reward[:, 0], live & ~seen.done
        return reward, state.actions[:, 1::2]

    return jax.lax.map(of, jnp.arange(len(queue.board)))


@functools.partial(jax.jit, static_argnums=0)
def best_rewards(env: Any, queue: Queue) -> jax.Array:
    """f32[E] the most that seat 0 can get who knows everything; exact, by trying everything (some 10 ms an episode of
    four rounds)."""
    one = lambda i: sequences(env, jax.tree.map(lambda x: x[i][None], queue))[0].max()
    return jax.lax.map(one, jnp.arange(len(queue.board)))


def adaptive_rewards(env: Any, scenarios: Sequence[Scenario]) -> np.ndarray:
    """f32[E] what the best of all policies gets that sees only what seat 0 is told.

    It knows that the world consists of these scenarios, each equally likely. Exact, by going backwards through
    everything that can have been said and seen (expectimax over information sets).
    """
    queue = env.encode(scenarios)
    alike = collections.defaultdict(list)    # what cannot be told apart at the opening
    for e, scenario in enumerate(scenarios):
        alike[scenario.opening].append(e)
    found = np.zeros(len(scenarios), np.float32)
    for episodes in alike.values():
        tried = [sequences(env, jax.tree.map(lambda x: x[e:e + 1], queue)) for e in episodes]
        value, answers = (np.concatenate(parts) for parts in zip(*tried))    # [E, N], [E, N, R]
        for t in reversed(range(env.rounds)):
            # What it knows when it speaks in round t: what it said before (the column), and every answer.
            known = np.broadcast_to(np.arange(len(TRIED) ** t, dtype=np.int64), (len(episodes), len(TRIED) ** t))
            for answer in answers[:, ::len(TRIED) ** (env.rounds - t), :t].transpose(2, 0, 1):
                known = known * (P - NOTHING) + answer - NOTHING
            _, known = np.unique(known, return_inverse=True)
            known, value = known.ravel(), value.reshape(-1, len(TRIED))
            total = np.zeros((known.max() + 1, len(TRIED)))
            np.add.at(total, known, value)
            best = total.argmax(axis=1)[known]
            value = np.take_along_axis(value, best[:, None], axis=1)
        found[episodes] = value[:, 0]
    return found


def words(env: Any, column: int) -> list[str]:
    """The intents of a column of `sequences`."""
    names = [INTENTS[INTENT_IDS.index(i)] for i in TRIED]
    return [names[column // len(names) ** (env.rounds - 1 - t) % len(names)] for t in range(env.rounds)]


@dataclasses.dataclass(frozen=True)
class Solutions:
    """Splits that theory names, in points of both sides.

    Attributes:
      nash: the Nash bargaining solution: the split with the largest product of both sides' points (of several, the
        one with most points together, then the more even one).
      pareto: the splits that no other split betters for one side without worsening it for the other.
      most: points of both sides together, at most.
    """

    nash: tuple[int, int]
    pareto: tuple[tuple[int, int], ...]
    most: int


def solutions(scenario: Scenario) -> Solutions:
    """The splits of one scenario that theory names (Nash 1950, The Bargaining Problem)."""
    board = int((BOARDS == scenario.counts).all(axis=1).argmax())
    first = SPLITS[board][:, REAL[board]].T
    points = np.stack([first @ scenario.values[0], (BOARDS[board] - first) @ scenario.values[1]], axis=1)
    points = np.unique(points, axis=0)
    no_less, more = points[None] >= points[:, None], points[None] > points[:, None]
    bettered = (no_less.all(axis=2) & more.any(axis=2)).any(axis=1)
    pareto = [tuple(pair) for pair in points[~bettered].tolist()]
    nash = max(pareto, key=lambda pair: (pair[0] * pair[1], sum(pair), -abs(pair[0] - pair[1])))
    return Solutions(nash, tuple(pareto), max(map(sum, pareto)))
