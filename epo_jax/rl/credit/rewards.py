"""From process reward and outcome to one reward per turn.

A new rule is a function in the table COMBINE; its name is then a value of `reward.combine`.

Axis letters: N conversations, T turns.
"""

import functools

import jax
import jax.numpy as jnp

from epo_jax.rl.credit.turns import pick


def sum_rewards(process, final, weight: float):
    """Return r_t = weight * process_t, plus the outcome at the last turn."""
    return weight * process + final


def official_rewards(process, final, weight: float):
    """Return r_t = 1 where the process reward selected the turn, else the outcome at the last turn, else 0.

    A selected last turn loses the outcome (released code, LLaMA-Factory/data/utils/preprocessing.py).
    """
    return jnp.where(process > 0, 1.0, final)


def process_rewards(process, final, weight: float):
    """Return r_t = weight * process_t, without the outcome, which may be a factor of the process reward."""
    return weight * process


COMBINE = {'sum': sum_rewards, 'official': official_rewards, 'process': process_rewards}


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
      weight: of the process reward in 'sum' and 'process'.

    Returns:
      (reward f[N, T], valid bool[N, T]). The returns of all turns up to a missing reward would
      contain it, so a conversation in which anything is missing is invalid as a whole.
    """
    rule = pick(COMBINE, how, 'rule to combine rewards')
    last = turn_mask & (jnp.cumsum(turn_mask, axis=1) == turn_mask.sum(axis=1, keepdims=True))
    process = jnp.where(process_valid, process, 0)
    final = jnp.where(outcome_valid, outcome, 0)[:, None] * last
    reward = rule(process, final, weight)
    complete = outcome_valid & (process_valid | ~turn_mask).all(axis=1)
    return jnp.where(turn_mask, reward, 0), turn_mask & complete[:, None]
