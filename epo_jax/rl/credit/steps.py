"""Credit of turns that were taken in the same situation by other episodes of the group.

Two turns are in the same situation if the seat read exactly the same before them (`fingerprints`). Where texts never
repeat, these methods reduce to credit of whole episodes, so a configuration in which they cannot repeat is refused.

Axis letters: N conversations, T turns, L token positions.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, UInt32

from epo_jax.rl.credit import grouping
from epo_jax.rl.credit.groups import centered, dr_grpo
from epo_jax.rl.credit.turns import returns
from epo_jax.text.tokens import Array


def fingerprints(ids: Int[Array, 'N L'], turn: Int[Array, 'N L'], turns: int) -> UInt32[Array, 'N T']:
    """Return a hash of what was read between the previous strategy and that of every turn.

    The first turn's covers the conversation from its beginning. Different texts collide with a chance of 2^-32.

    Args:
      ids: the conversations.
      turn: the turn in which a token was sampled; -1 for context.
      turns: T.
    """
    sampled, positions = turn >= 0, jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    # The turn that follows a context token is that of the next sampled token.
    follows = jax.lax.cummin(jnp.where(sampled, turn, turns), axis=1, reverse=True)
    last_sampled = jax.lax.cummax(jnp.where(sampled, positions, -1), axis=1)
    mixed = _mix(_mix(ids.astype(jnp.uint32)) + (positions - last_sampled).astype(jnp.uint32))
    rows = jnp.arange(len(ids))[:, None]
    empty = jnp.zeros((len(ids), turns), jnp.uint32)
    return empty.at[rows, jnp.where(sampled, turns, follows)].add(mixed, mode='drop')


def gigpo(reward: Float[Array, 'N T'], valid: Bool[Array, 'N T'], group: Int[Array, ' N'],
          observation: UInt32[Array, 'N T'], gamma: float, step_weight: float) -> Float[Array, 'N T']:
    """Add the credit among turns in the same situation to that of the episode: A_E + step_weight A_S.

        A_E = R - mean of R over the conversations of the group
        A_S = G_t - mean of G over the group's turns with the same observation,   G_t = sum gamma^(t' - t) r_t'

    A_S is 0 for an observation that occurs once. A_E is the mean over conversations, as in the paper; the released code
    takes it over turns, so that long episodes weigh more.

    Source: Feng et al. 2025 (GiGPO), without division by standard deviations.
    """
    value = returns(reward, valid, gamma)
    step = _among(value, valid, _situations(group, [observation]))
    return dr_grpo(reward, valid, group) + step_weight * step


def hgpo(reward: Float[Array, 'N T'], valid: Bool[Array, 'N T'], group: Int[Array, ' N'],
         observation: UInt32[Array, 'N T'], gamma: float, history: int, history_power: float) -> Float[Array, 'N T']:
    """Average the credit among turns with the same last k observations over k = 1 .. history + 1.

        A = sum_k w_k A_k / sum_k w_k,   w_k = (k + 1)^history_power
        A_k = G_t - mean of G over the turns with the same k observations

    The sums run over the k for which other turns of the group agree, so longer histories count more. k = 0 stands for
    the credit of the episode, R - mean.

    Source: verl-agent, recipe/hgpo (HGPO 2026), its mode 'mean_norm' with base_group; the mean of k = 0 is over
      conversations.
    """
    value = returns(reward, valid, gamma)
    summed, weight = dr_grpo(reward, valid, group), jnp.ones_like(value)
    earlier, long_enough = [], valid
    for k in range(1, history + 2):
        shifted = jnp.pad(observation, ((0, 0), (k - 1, 0)))[:, :observation.shape[1]]
        earlier.append(shifted)
        long_enough = valid & (jnp.arange(valid.shape[1]) >= k - 1)
        numbers = _situations(group, earlier)
        several = grouping.count(long_enough.ravel(), numbers).reshape(valid.shape) > 1
        own = jnp.where(long_enough & several, (k + 1.0) ** history_power, 0)
        summed += own * _among(value, long_enough, numbers)
        weight += own
    return jnp.where(valid, summed / weight, 0)


def _situations(group: Int[Array, ' N'], observations: list[UInt32[Array, 'N T']]) -> Int[Array, ' M']:
    """Return numbers of all N T turns: the same number for the same group and the same observations."""
    everywhere = jnp.broadcast_to(jnp.asarray(group)[:, None], observations[0].shape)
    return grouping.same(everywhere.ravel(), *(x.ravel() for x in observations))


def _among(value: Float[Array, 'N T'], used: Bool[Array, 'N T'], numbers: Int[Array, ' M']) -> Float[Array, 'N T']:
    """Return values minus the mean of the used turns with the same number; 0 where there is no other."""
    found = centered(value.ravel(), used.ravel(), numbers).reshape(value.shape)
    return jnp.where(used, found, 0)


def _mix(x: UInt32[Array, '...']) -> UInt32[Array, '...']:
    """Scramble the bits of integers (the finalizer of MurmurHash3)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
