"""Credit of whole episodes: every turn gets the same, the return of its conversation compared with others.

R is the sum of a conversation's rewards. A group holds the conversations of one seat in one scenario, each from another
episode. In a group of one there is nothing to compare with, so its credit is 0; some implementations pass R through.

Process rewards that add up to the outcome, such as those by potential, change nothing here: only their sum counts.

Axis letters: N conversations, T turns.
"""

import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from epo_jax.rl.credit import grouping
from epo_jax.rl.credit.turns import returns
from epo_jax.text.tokens import Array

Turns, Flags, Numbers = Float[Array, 'N T'], Bool[Array, 'N T'], Int[Array, ' N']


def rloo(reward: Turns, valid: Flags, group: Numbers) -> Turns:
    """Subtract the mean return of the others of the group (leave-one-out): n / (n - 1) (R - mean).

    Source: Kool et al. 2019; Ahmadian et al. 2024 (RLOO).
    """
    own, used, group = _episodes(reward, valid, group)
    number = grouping.count(used, group, own.dtype)
    return _spread(number / jnp.maximum(number - 1, 1) * centered(own, used, group), valid)


def grpo(reward: Turns, valid: Flags, group: Numbers) -> Turns:
    """Normalize the return in its group: (R - mean) / (standard deviation + 1e-6).

    The standard deviation is that of a sample, with n - 1. Division by it gives groups that are almost always won or
    lost the same weight as those on the edge (see `dr_grpo`).

    Source: Shao et al. 2024 (GRPO); verl for n - 1 and 1e-6.
    """
    own, used, group = _episodes(reward, valid, group)
    return _spread(centered(own, used, group) / (grouping.deviation(own, used, group) + 1e-6), valid)


def dr_grpo(reward: Turns, valid: Flags, group: Numbers) -> Turns:
    """Subtract the mean return of the group: R - mean. Goes with loss.aggregation='constant'.

    Source: Liu et al. 2025 (Dr. GRPO).
    """
    own, used, group = _episodes(reward, valid, group)
    return _spread(centered(own, used, group), valid)


def lite_ppo(reward: Turns, valid: Flags, group: Numbers) -> Turns:
    """Subtract the mean return of the group, and divide by the deviation of the batch: (R - mean) / (std + 1e-6).

    The standard deviation is that of the returns of all conversations, with N - 1. Goes with
    loss.name='ppo' and loss.aggregation='token_mean'.

    Source: Liu et al. 2025 (Tricks or Traps, Lite PPO).
    """
    own, used, group = _episodes(reward, valid, group)
    whole = grouping.deviation(own, used, jnp.zeros_like(group))
    return _spread(centered(own, used, group) / (whole + 1e-6), valid)


def reinforce_pp(reward: Turns, valid: Flags, tokens: Turns, gamma: float) -> Turns:
    """Normalize the discounted return of the turn over all trained tokens of the batch.

    The return is carried across what the other side says. Every token counts once in mean and variance (n - 1).

    Source: Hu et al. 2025 (REINFORCE++), with turns as actions.
    """
    return _whitened(returns(reward, valid, gamma), valid, tokens)


def reinforce_pp_baseline(reward: Turns, valid: Flags, group: Numbers, tokens: Turns) -> Turns:
    """Subtract the mean return of the group, then normalize over all trained tokens of the batch.

    Source: Hu et al. 2025 (REINFORCE++-baseline).
    """
    own, used, group = _episodes(reward, valid, group)
    return _whitened(_spread(centered(own, used, group), valid), valid, tokens)


def centered(value: Float[Array, ' M'], used: Bool[Array, ' M'], group: Int[Array, ' M']) -> Float[Array, ' M']:
    """Return values minus the mean of their group; 0 for a group of one."""
    return jnp.where(grouping.count(used, group) > 1, grouping.difference(value, grouping.mean(value, used, group)), 0)


def _episodes(reward: Turns, valid: Flags, group: Numbers):
    """Return R f[N], which conversations have any valid turn, and the groups numbered by `grouping.same`."""
    return jnp.where(valid, reward, 0).sum(axis=1), valid.any(axis=1), grouping.same(group)


def _spread(value: Float[Array, ' N'], valid: Flags) -> Turns:
    """Give every valid turn the value of its conversation."""
    return jnp.where(valid, value[:, None], 0)


def _whitened(value: Turns, valid: Flags, tokens: Turns) -> Turns:
    """Return (value - mean) / (std + 1e-8) with mean and variance over tokens, each with the value of its turn."""
    weight = jnp.where(valid, tokens, 0).astype(value.dtype)
    number = weight.sum()
    mean = lambda x: (weight * x).sum() / jnp.maximum(number, 1)
    rough = mean(value)
    difference = grouping.difference(value, rough + mean(value - rough))
    deviation = jnp.sqrt((weight * difference ** 2).sum() / jnp.maximum(number - 1, 1))
    return jnp.where(valid, difference / (deviation + 1e-8), 0)
