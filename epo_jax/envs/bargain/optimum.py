"""Upper bounds: the best rewards with full and with partial information, and the solutions of bargaining theory.

Axis letters: E episodes, N sequences of intents, R rounds, P splits.
"""

import collections
import dataclasses
import functools
from typing import Any, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from epo_jax.envs.bargain.language import INTENT_IDS, INTENTS
from epo_jax.envs.bargain.scenarios import BOARDS, NOTHING, SPLITS, VALID_SPLITS, P, Queue, Scenario
from epo_jax.text.tokens import Tokens

# The intents that a search tries. Walking away is worth 0 at any time, so it is never better than another intent.
TRIED_IDS = tuple(i for i, word in zip(INTENT_IDS, INTENTS) if word != 'walk')


@functools.partial(jax.jit, static_argnums=0)
def try_sequences(env: Any, queue: Queue) -> tuple[jax.Array, jax.Array]:
    """Play every sequence of intents against the opponents; intents after the end of an episode have no effect.

    Args:
      env: a game.Bargain against the family.
      queue: E scenarios.

    Returns:
      The rewards of seat 0, f32[E, N], and the answers of the opponent, i32[E, N, R] (see game.State.actions).
      N = len(TRIED_IDS) ** R; column n plays the digits of n in base len(TRIED_IDS), beginning with the highest digit.
    """
    def of(episode):
        state, _ = env.reset(env.start(1), queue, episode[None], jnp.ones(1, bool))
        reward, live = jnp.zeros(1), jnp.ones(1, bool)
        for _ in range(env.rounds):  # every intent in every state reached so far
            state, reward, live = jax.tree.map(
                lambda x: jnp.repeat(x, len(TRIED_IDS), axis=0), (state, reward, live))
            ids = jnp.tile(jnp.array(TRIED_IDS), len(live) // len(TRIED_IDS))[:, None]
            state, step = env.step(state, 0, Tokens(ids, jnp.ones_like(ids[:, 0])), live)
            reward, live = reward + step.reward[:, 0], live & ~step.done
        return reward, state.actions[:, 1::2]

    return jax.lax.map(of, jnp.arange(len(queue.board)))


@functools.partial(jax.jit, static_argnums=0)
def best_rewards(env: Any, queue: Queue) -> jax.Array:
    """Return the best reward of seat 0 in every scenario, f32[E], for a policy that knows the opponent and its values.

    The search is exhaustive; an episode of four rounds takes about 10 ms.
    """
    best = lambda i: try_sequences(env, jax.tree.map(lambda x: x[i][None], queue))[0].max()
    return jax.lax.map(best, jnp.arange(len(queue.board)))


def adaptive_rewards(env: Any, scenarios: Sequence[Scenario]) -> np.ndarray:
    """Return the rewards of the best policy that observes only what seat 0 observes, f32[E].

    The policy knows that the opponent and its values come from these scenarios with equal probability. The result is
    exact: backward induction over all histories of intents and observations (expectimax over information sets).
    """
    queue = env.encode(scenarios)
    by_opening = collections.defaultdict(list)  # scenarios with the same first observation
    for e, scenario in enumerate(scenarios):
        by_opening[scenario.opening].append(e)
    rewards = np.zeros(len(scenarios), np.float32)
    for episodes in by_opening.values():
        results = [try_sequences(env, jax.tree.map(lambda x: x[e:e + 1], queue)) for e in episodes]
        value, answers = (np.concatenate(parts) for parts in zip(*results))  # [E, N], [E, N, R]
        for t in reversed(range(env.rounds)):
            # The information set in round t: the own intents so far (the column), and the answers to them.
            history = np.broadcast_to(np.arange(len(TRIED_IDS) ** t, dtype=np.int64),
                                      (len(episodes), len(TRIED_IDS) ** t))
            for answer in answers[:, ::len(TRIED_IDS) ** (env.rounds - t), :t].transpose(2, 0, 1):
                history = history * (P - NOTHING) + answer - NOTHING
            _, history = np.unique(history, return_inverse=True)
            history, value = history.ravel(), value.reshape(-1, len(TRIED_IDS))
            total = np.zeros((history.max() + 1, len(TRIED_IDS)))
            np.add.at(total, history, value)
            best = total.argmax(axis=1)[history]
            value = np.take_along_axis(value, best[:, None], axis=1)
        rewards[episodes] = value[:, 0]
    return rewards


def intents_of_column(env: Any, column: int) -> list[str]:
    """Return the intents that a column of `try_sequences` plays."""
    names = [INTENTS[INTENT_IDS.index(i)] for i in TRIED_IDS]
    return [names[column // len(names) ** (env.rounds - 1 - t) % len(names)] for t in range(env.rounds)]


@dataclasses.dataclass(frozen=True)
class Solutions:
    """Splits that bargaining theory distinguishes, as the points of both sides.

    Attributes:
      nash: the Nash bargaining solution: the split with the largest product of both sides' points; among equal ones
        the one with the largest sum, then the most even one.
      pareto: the splits that no other split improves for one side without a loss for the other.
      max_joint_points: largest sum of both sides' points.
    """

    nash: tuple[int, int]
    pareto: tuple[tuple[int, int], ...]
    max_joint_points: int


def solutions(scenario: Scenario) -> Solutions:
    """Return the splits of a scenario that bargaining theory distinguishes (Nash 1950, The Bargaining Problem)."""
    board = int((BOARDS == scenario.counts).all(axis=1).argmax())
    first = SPLITS[board][:, VALID_SPLITS[board]].T
    points = np.stack([first @ scenario.values[0], (BOARDS[board] - first) @ scenario.values[1]], axis=1)
    points = np.unique(points, axis=0)
    no_less, more = points[None] >= points[:, None], points[None] > points[:, None]
    dominated = (no_less.all(axis=2) & more.any(axis=2)).any(axis=1)
    pareto = [tuple(pair) for pair in points[~dominated].tolist()]
    nash = max(pareto, key=lambda pair: (pair[0] * pair[1], sum(pair), -abs(pair[0] - pair[1])))
    return Solutions(nash, tuple(pareto), max(map(sum, pareto)))
