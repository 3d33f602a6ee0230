"""Credit: which turn deserves how much. Pure functions between arrays of turns.

Axis letters: N conversations, T turns. Every array is float32 or float64 as given; masks are bool. A turn that
did not take place, or whose reward is missing, has no part in any sum, mean or maximum, and gets advantage 0.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from epo_jax.text.tokens import Array


@dataclasses.dataclass(frozen=True)
class CreditRules:
    """How credit is assigned; static.

    Attributes:
      combine, weight: see `combine`.
      gamma: see `returns`.
      baseline: see `baseline`.
      normalise: see `normalise`.
    """

    combine: str
    weight: float
    gamma: float
    baseline: str
    normalise: str


class Credit(NamedTuple):
    """Credit of every turn.

    Attributes:
      reward: process reward and outcome combined; 0 where no turn took place.
      valid: turns that can be trained on: nothing in their conversation is missing.
      advantage: what the loss of a turn is weighted with; 0 where it is not valid.
    """

    reward: Float[Array, 'N T']
    valid: Bool[Array, 'N T']
    advantage: Float[Array, 'N T']


@functools.partial(jax.jit, static_argnames='rules')
def assign(process, process_valid, outcome, outcome_valid, turn_mask, group, rules: CreditRules) -> Credit:
    """Turn rewards into advantages.

    Args:
      process: f[N, T], process rewards.
      process_valid: bool[N, T], turns with a process reward.
      outcome: f[N], in [0, 1].
      outcome_valid: bool[N], conversations with an outcome.
      turn_mask: bool[N, T], turns that took place.
      group: i32[N], conversations of the same scenario and seat have the same number.
      rules: see there.
    """
    reward, valid = combine(
        process, process_valid, outcome, outcome_valid, turn_mask, rules.combine, rules.weight)
    advantage = advantages(reward, valid, group, rules.gamma, rules.baseline, rules.normalise)
    return Credit(reward, valid, advantage)


@functools.partial(jax.jit, static_argnames=('how',))
def combine(process, process_valid, outcome, outcome_valid, turn_mask, how: str, weight: float = 1.0):
    """Joins process rewards with the outcome into one reward a turn.

    `official` (released code, LLaMA-Factory/data/utils/preprocessing.py): r_t = 1 where the process reward
    selected the turn, else the outcome at the last turn, else 0; a selected last turn loses the outcome.
    `sum`: r_t = weight * process_t, plus the outcome at the last turn.

    Args:
      process: [N, T] process rewards; process_valid: bool[N, T].
      outcome: [N] in [0, 1]; outcome_valid: bool[N].
      turn_mask: bool[N, T] turns that took place.
      how: 'official' or 'sum'.
      weight: of the process reward in 'sum'.

    Returns:
      (reward [N, T], valid bool[N, T]). One missing reward makes the turns up to it worthless, since their
      returns contain it; so a conversation in which anything is missing is invalid as a whole.
    """
    last = turn_mask & (jnp.cumsum(turn_mask, axis=1) == turn_mask.sum(axis=1, keepdims=True))
    process = jnp.where(process_valid, process, 0)
    final = jnp.where(outcome_valid, outcome, 0)[:, None] * last
    if how == 'official':
        reward = jnp.where(process > 0, 1.0, final)
    elif how == 'sum':
        reward = weight * process + final
    else:
        raise ValueError(f"rewards are combined by 'official' or 'sum', not {how!r}")
    whole = outcome_valid & (process_valid | ~turn_mask).all(axis=1)
    return jnp.where(turn_mask, reward, 0), turn_mask & whole[:, None]


def returns(reward, mask, gamma: float):
    """R_t = sum over t' >= t of gamma^(t' - t) r_t' (EPO, eq. of the return), [N, T]."""
    def back(later, now):
        r, m = now
        total = jnp.where(m, r + gamma * later, later)
        return total, total

    steps = jnp.where(mask, reward, 0).T, mask.T
    _, total = jax.lax.scan(back, jnp.zeros_like(reward[:, 0]), steps, reverse=True)
    return jnp.where(mask, total.T, 0)


def baseline(value, mask, group, how: str):
    """What to expect of a turn, [N, T], to be subtracted from its return.

    'none': 0, as EPO does. 'batch': the mean return of the other conversations' turns of the same number.
    'group': the same among conversations of the same scenario and seat. A turn with nothing to compare to
    gets its own value, and so advantage 0.
    """
    if how == 'none':
        return jnp.zeros_like(value)
    if how not in ('batch', 'group'):
        raise ValueError(f"the baseline is 'none', 'batch' or 'group', not {how!r}")
    same = jnp.ones((len(value), len(value)), bool) if how == 'batch' else group[:, None] == group[None, :]
    others = (same & ~jnp.eye(len(value), dtype=bool)).astype(value.dtype)
    total = lambda x: jnp.matmul(others, x, precision='highest')  # matrix units would round credit to bfloat16
    count = total(mask.astype(value.dtype))
    mean = total(jnp.where(mask, value, 0)) / jnp.maximum(count, 1)
    return jnp.where(count > 0, mean, value)


def normalise(value, mask, how: str):
    """Scales advantages, [N, T].

    'trajectory' (official): A_t = R_t / max |R| of its own conversation. It erases how well the conversation
    went: with no turn selected, goal scores of 1 and of 10 give the same weights.
    'batch': divided by max |R| over the whole batch, which keeps them apart. 'none': as they are.
    All zeros stay zeros.
    """
    value = jnp.where(mask, value, 0)
    if how == 'none':
        return value
    if how not in ('trajectory', 'batch'):
        raise ValueError(f"advantages are normalised by 'trajectory', 'batch' or 'none', not {how!r}")
    size = jnp.abs(value).max(axis=1, keepdims=True)
    size = size.max() if how == 'batch' else size
    return value / jnp.where(size > 0, size, 1)


@functools.partial(jax.jit, static_argnames=('gamma', 'base', 'norm'))
def advantages(reward, valid, group, gamma: float, base: str, norm: str):
    """Rewards of turns -> advantages of turns, f[N, T]: returns, minus baseline, normalised."""
    value = returns(reward, valid, gamma)
    return normalise(value - baseline(value, valid, group, base), valid, norm)
