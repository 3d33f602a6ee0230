"""Credit of single turns: returns, minus a baseline, normalized. Pure functions of arrays of turns.

A new baseline or scale is a function in the table BASELINES or NORMALIZERS; its name is then a value of
`credit.baseline` or `credit.normalise`.

Axis letters: N conversations, T turns. Floats are float32 or float64, as given. A turn that did not take place, or
whose reward is missing, is excluded from every sum, mean and maximum, and gets advantage 0.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from epo_jax.rl.credit import grouping
from epo_jax.text.tokens import Array

Turns, Flags, Numbers = Float[Array, 'N T'], Bool[Array, 'N T'], Int[Array, ' N']


def discounted(reward: Turns, valid: Flags, group: Numbers, episode: Numbers, gamma: float, baseline: str,
               normalise: str) -> Turns:
    """Subtract a baseline from the discounted return of the turn, and divide by a scale.

        A_t = (R_t - b_t) / scale,   R_t = sum over t' >= t of gamma^(t' - t) r_t'

    `baseline` is none, the mean over the other episodes of the batch, or over those of the group (leave-one-out), both
    of turns of the same number. With reward.process='potential', differences of a judge's probability that the goal is
    reached are returned to the turns that caused them; IGPO's information gain is of the same kind.

    Source: Williams 1992 (REINFORCE); Kool et al. 2019 (leave-one-out).
    """
    value = returns(reward, valid, gamma)
    difference = grouping.difference(value, subtracted(value, valid, group, episode, baseline))
    return normalize(difference, valid, group, normalise)


def epo(reward: Turns, valid: Flags, group: Numbers, gamma: float) -> Turns:
    """Divide the discounted return of the turn by the largest absolute one of its conversation: R_t / max |R|.

    Goes with reward.combine='official' and loss.name='epo'.

    Source: Liu et al. 2025 (EPO), released code, LLaMA-Factory/data/utils/preprocessing.py.
    """
    return normalize(returns(reward, valid, gamma), valid, group, 'trajectory')


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
    others = same & (episode[:, None] != episode[None, :])
    # Matrix units would round to bfloat16.
    total = lambda who, x: jnp.matmul(who.astype(value.dtype), jnp.where(mask, x, 0), precision='highest')
    count = lambda who: total(who, jnp.ones_like(value))
    rough = total(same, value) / jnp.maximum(count(same), 1)  # see grouping.py
    mean = rough + total(others, value - rough) / jnp.maximum(count(others), 1)
    return jnp.where(count(others) > 0, mean, value)


BASELINES = {'none': no_baseline, 'batch': batch_baseline, 'group': group_baseline}


def subtracted(value, mask, group, episode, how: str):
    """Return what is subtracted from the return of every turn, f[N, T].

    Args:
      value: f[N, T], returns.
      mask: bool[N, T], valid turns.
      group, episode: i32[N], see `assign.assign`.
      how: a key of BASELINES.
    """
    return pick(BASELINES, how, 'baseline')(value, mask, group, episode)


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
      group: i32[N], see `assign.assign`.
      how: a key of NORMALIZERS.
    """
    value = jnp.where(mask, value, 0)
    size = pick(NORMALIZERS, how, 'normalization')(value, mask, group)
    return value / jnp.where(size > 0, size, 1)


def pick(table, name: str, what: str):
    """Return an entry of a table; raise ValueError, which names the entries, if there is none."""
    if name not in table:
        raise ValueError(f'there is no {what} {name!r}; choose one of {", ".join(table)}')
    return table[name]
