"""The objective: REINFORCE on the tokens of every strategy.

Axis letters: N conversations, L token positions, T turns.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from epo_jax.text.tokens import Array


def turn_means(values: Float[Array, 'N L'], turn: Int[Array, 'N L'],
               turns: int) -> tuple[Float[Array, 'N T'], Float[Array, 'N T']]:
    """Return the mean of token values over every turn, and the number of sampled tokens of every turn.

    Args:
      values: one number for each token.
      turn: the turn in which a token was sampled; -1 for context, which belongs to no turn.
      turns: T.
    """
    member = jax.nn.one_hot(turn, turns, dtype=values.dtype)
    count = member.sum(axis=1)
    total = jnp.einsum('nl,nlt->nt', values, member, precision='highest')
    return total / jnp.maximum(count, 1), count


def epo_loss(logprob: Float[Array, 'N L'], advantage: Float[Array, 'N T'], turn: Int[Array, 'N L'],
             valid: Bool[Array, 'N T']) -> Float[Array, ' N']:
    """Return EPO's loss of every conversation (Liu et al. 2025; released code, sft/trainer.py).

        loss_n = -(1 / T_n) sum over t of A_t (1 / k_t) sum over i of log pi(a_{t,i})

    T_n is the number of valid turns, and k_t the number of tokens of a turn, its end-of-turn token included.

    Args:
      logprob: log-probability of every token under the policy.
      advantage: weight of every turn.
      turn: the turn in which a token was sampled; -1 for context.
      valid: turns with a reward; the others are not trained.

    Returns:
      The losses; 0 for a conversation without a valid turn. The loss of a batch is their mean over the conversations
      that have one (`has_turns`).
    """
    means, count = turn_means(logprob, turn, advantage.shape[1])
    used = valid & (count > 0)
    return -(jnp.where(used, advantage, 0) * means).sum(axis=1) / jnp.maximum(used.sum(axis=1), 1)


def mean_entropy(entropy: Float[Array, 'N L'], turn: Int[Array, 'N L'],
                 valid: Bool[Array, 'N T']) -> Float[Array, ' N']:
    """Return the entropy of every conversation: the mean over its valid turns of the mean over a turn's tokens.

    Args:
      entropy: in nats, of the distribution that each token was drawn from.
      turn: as in `epo_loss`.
      valid: as in `epo_loss`.
    """
    means, count = turn_means(entropy, turn, valid.shape[1])
    used = valid & (count > 0)
    return jnp.where(used, means, 0).sum(axis=1) / jnp.maximum(used.sum(axis=1), 1)


def has_turns(turn: Int[Array, 'N L'], valid: Bool[Array, 'N T']) -> Bool[Array, ' N']:
    """Return which conversations have at least one token that is trained."""
    _, count = turn_means(jnp.ones(turn.shape, jnp.float32), turn, valid.shape[1])
    return (valid & (count > 0)).any(axis=1)


def official_scale(conversations, rows: int, micro_batch: int):
    """Return the factor between the mean over conversations and the loss of the released trainer.

    The released trainer sums over the conversations of a micro-batch and divides by the number of micro-batches of a
    full batch (sft/trainer.py: total_loss; the division is the Trainer's, for gradient accumulation). Its loss
    therefore grows with the micro-batch, and a batch that is not full counts less.

    Args:
      conversations: number of conversations in the batch.
      rows: number of conversations in a full batch.
      micro_batch: number of conversations that are run through the model at once.
    """
    return conversations * micro_batch / rows
