"""Credit assignment: how much credit every turn gets. Pure functions of arrays of turns.

A new rule is a function in one of the tables COMBINE, BASELINES and NORMALIZERS; its name is then a value of the
configuration key that the table belongs to.

Axis letters: N conversations, T turns. Floats are float32 or float64, as given. A turn that did not take place, or
whose reward is missing, is excluded from every sum, mean and maximum, and gets advantage 0.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from epo_jax.text.tokens import Array


@dataclasses.dataclass(frozen=True)
class CreditRules:
    """How credit is assigned; static.

    Attributes:
      combine: a key of COMBINE.
      weight: of the process reward, where `combine` is 'sum'.
      gamma: discount of later rewards.
      baseline: a key of BASELINES.
      normalise: a key of NORMALIZERS.
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
      advantage: the weight of a turn in the loss; 0 where it is not valid.
    """

    reward: Float[Array, 'N T']
    valid: Bool[Array, 'N T']
    advantage: Float[Array, 'N T']


@functools.partial(jax.jit, static_argnames='rules')
def assign(process: Float[Array, 'N T'], process_valid: Bool[Array, 'N T'], outcome: Float[Array, ' N'],
           outcome_valid: Bool[Array, ' N'], turn_mask: Bool[Array, 'N T'], group: Int[Array, ' N'],
           episode: Int[Array, ' N'], rules: CreditRules) -> Credit:
    """Turn rewards into advantages.

    Args:
      process: process rewards.
      process_valid: turns with a process reward.
      outcome: in [0, 1].
      outcome_valid: conversations with an outcome.
      turn_mask: turns that took place.
      group: conversations of the same scenario and seat have the same number.
      episode: conversations of the same episode have the same number.
      rules: the rules to apply.
    """
    reward, valid = combine(
        process, process_valid, outcome, outcome_valid, turn_mask, rules.combine, rules.weight)
    advantage = advantages(reward, valid, group, episode, rules.gamma, rules.baseline, rules.normalise)
    return Credit(reward, valid, advantage)


# From process reward and outcome to one reward per turn


def sum_rewards(process, final, weight: float):
    """Return r_t = weight * process_t, plus the outcome at the last turn."""
    return weight * process + final


def official_rewards(process, final, weight: float):
    """Return r_t = 1 where the process reward selected the turn, else the outcome at the last turn, else 0.

    A selected last turn loses the outcome (released code, LLaMA-Factory/data/utils/preprocessing.py).
    """
    return jnp.where(process > 0, 1.0, final)


COMBINE = {'sum': sum_rewards, 'official': official_rewards}


@functools.partial(jax.jit, static_argnames=('how',))
def combine(process, process_valid, outcome, outcome_valid, turn_mask, how: str, weight: float = 1.0):
    """Combine process rewards and outcomes into one reward per turn.

    Args:
      process: f[N, T].
      process_valid: bool[N, T], turns with a process reward.
      outcome: f[N], in [0, 1].
      outcome_valid: bool[N], conversations with an outcome.
      turn_mask: bool[N, T], turns that took place.
      how: a key of COMBINE.
      weight: of the process reward in 'sum'.

    Returns:
      (reward f[N, T], valid bool[N, T]). The returns of all turns up to a missing reward would
      contain it, so a conversation in which anything is missing is invalid as a whole.
    """
    rule = _pick(COMBINE, how, 'rule to combine rewards')
    last = turn_mask & (jnp.cumsum(turn_mask, axis=1) == turn_mask.sum(axis=1, keepdims=True))
    process = jnp.where(process_valid, process, 0)
    final = jnp.where(outcome_valid, outcome, 0)[:, None] * last
    reward = rule(process, final, weight)
    complete = outcome_valid & (process_valid | ~turn_mask).all(axis=1)
    return jnp.where(turn_mask, reward, 0), turn_mask & complete[:, None]


# From rewards to returns


def returns(reward, mask, gamma: float):
    """Return R_t = sum over t' >= t of gamma^(t' - t) r_t' (Liu et al. 2025), f[N, T]."""
    def back(later, now):
        r, m = now
        total = jnp.where(m, r + gamma * later, later)
        return total, total

    steps = jnp.where(mask, reward, 0).T, mask.T
    _, total = jax.lax.scan(back, jnp.zeros_like(reward[:, 0]), steps, reverse=True)
    return jnp.where(mask, total.T, 0)


# What is subtracted from returns


def no_baseline(value, mask, group, episode):
    """Return 0, as EPO does."""
    return jnp.zeros_like(value)


def batch_baseline(value, mask, group, episode):
    """Return the mean over the turns of the same number in all other episodes."""
    return _mean_of_others(value, mask, jnp.ones((len(value), len(value)), bool), episode)


def group_baseline(value, mask, group, episode):
    """Return the mean over the turns of the same number in the other episodes of the same scenario and seat."""
    return _mean_of_others(value, mask, group[:, None] == group[None, :], episode)


def _mean_of_others(value, mask, same, episode):
    """Return the mean over the `same` conversations of other episodes; a turn without any gets its own value.

    The whole episode is left out: the return of the partner depends on this conversation's actions as well, and a
    baseline that depends on the action biases the gradient.
    """
    others = (same & (episode[:, None] != episode[None, :])).astype(value.dtype)
    total = lambda x: jnp.matmul(others, x, precision='highest')  # matrix units would round to bfloat16
    count = total(mask.astype(value.dtype))
    mean = total(jnp.where(mask, value, 0)) / jnp.maximum(count, 1)
    return jnp.where(count > 0, mean, value)


BASELINES = {'none': no_baseline, 'batch': batch_baseline, 'group': group_baseline}


def baseline(value, mask, group, episode, how: str):
    """Return what is subtracted from the return of every turn, f[N, T].

    Args:
      value: f[N, T], returns.
      mask: bool[N, T], valid turns.
      group, episode: i32[N], see `assign`.
      how: a key of BASELINES.
    """
    return _pick(BASELINES, how, 'baseline')(value, mask, group, episode)


# How advantages are scaled


def by_nothing(value, mask, group):
    """Return 1: advantages stay as they are."""
    return jnp.ones((1, 1), value.dtype)


def by_trajectory(value, mask, group):
    """Return max |A| of every conversation (released code).

    It erases how well the conversation went: with no turn selected, goal scores of 1 and of 10 give the same weights.
    """
    return jnp.abs(value).max(axis=1, keepdims=True)


def by_batch(value, mask, group):
    """Return max |A| of the whole batch."""
    return jnp.abs(value).max()


NORMALIZERS = {'none': by_nothing, 'trajectory': by_trajectory, 'batch': by_batch}


def normalize(value, mask, group, how: str):
    """Divide advantages by a scale; all zeros stay zeros.

    Args:
      value: f[N, T], advantages.
      mask: bool[N, T], valid turns.
      group: i32[N], see `assign`.
      how: a key of NORMALIZERS.
    """
    value = jnp.where(mask, value, 0)
    size = _pick(NORMALIZERS, how, 'normalization')(value, mask, group)
    return value / jnp.where(size > 0, size, 1)


@functools.partial(jax.jit, static_argnames=('gamma', 'base', 'norm'))
def advantages(reward, valid, group, episode, gamma: float, base: str, norm: str):
    """Return the advantages of turns, f[N, T]: returns, minus the baseline, normalized.

    Args:
      reward: f[N, T], from `combine`.
      valid: bool[N, T], from `combine`.
      group, episode: i32[N], see `assign`.
      gamma: discount.
      base: a key of BASELINES.
      norm: a key of NORMALIZERS.
    """
    value = returns(reward, valid, gamma)
    return normalize(value - baseline(value, valid, group, episode, base), valid, group, norm)


def _pick(table, name: str, what: str):
    if name not in table:
        raise ValueError(f'there is no {what} {name!r}; choose one of {", ".join(table)}')
    return table[name]
