"""What could be reached at best: every sequence of intents against an opponent, and the splits of two free sides.

The first is an upper bound for every policy: it knows the opponent and what the items are worth to it.

Axis letters: B slots, E episodes, N sequences of intents, P splits.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from epo_jax.envs.bargain.language import INTENT_IDS, INTENTS
from epo_jax.envs.bargain.scenarios import BOARDS, REAL, SPLITS, Queue, Scenario
from epo_jax.text.tokens import Tokens

TRIED = tuple(i for i, word in zip(INTENT_IDS, INTENTS) if word != 'walk')    # walking away is worth 0 at any time


@functools.partial(jax.jit, static_argnums=0)
def sequence_rewards(env: Any, queue: Queue) -> jax.Array:
    """f32[E, N] seat 0's reward for every sequence of intents, those after the end ignored.

    Args:
      env: a `game.Bargain` against the family.
      queue: E scenarios.

    Returns:
      N = len(TRIED) ** rounds; column n plays the digits of n to the base len(TRIED), the first intent first.
    """
    def of(episode):
        state, _ = env.deal(env.start(1), queue, episode[None], jnp.ones(1, bool))
        reward, live = jnp.zeros(1), jnp.ones(1, bool)
        for _ in range(env.rounds):    # all intents in every state so far
            state, reward, live = jax.tree.map(lambda x: jnp.repeat(x, len(TRIED), axis=0), (state, reward, live))
            ids = jnp.tile(jnp.array(TRIED), len(live) // len(TRIED))[:, None]
            state, seen = env.step(state, 0, Tokens(ids, jnp.ones_like(ids[:, 0])), live)
            reward, live = reward + seen.reward[:, 0], live & ~seen.done
        return reward

    return jax.lax.map(of, jnp.arange(len(queue.board)))


@functools.partial(jax.jit, static_argnums=0)
def best_rewards(env: Any, queue: Queue) -> jax.Array:
    """f32[E] the most that seat 0 can get; exact, by trying everything (some 10 ms an episode of four rounds)."""
    one = lambda i: sequence_rewards(env, jax.tree.map(lambda x: x[i][None], queue)).max()
    return jax.lax.map(one, jnp.arange(len(queue.board)))


def words(env: Any, column: int) -> list[str]:
    """The intents of a column of `sequence_rewards`."""
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
