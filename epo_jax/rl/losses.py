"""The objective: REINFORCE on the tokens of every strategy.

Axis letters: N conversations, L token positions, T turns.
"""

import jax
import jax.numpy as jnp


def turn_means(values, turn, turns: int):
    """Mean over the sampled tokens of every turn: values [N, L], turn i32[N, L] -> ([N, T], token counts [N, T])."""
    member = jax.nn.one_hot(turn, turns, dtype=values.dtype)  # context, at -1, belongs to no turn
    count = member.sum(axis=1)
    total = jnp.einsum('nl,nlt->nt', values, member, precision='highest')
    return total / jnp.maximum(count, 1), count


def epo_loss(logprob, advantage, turn, valid):
    """EPO's loss of every conversation (released code, sft/trainer.py; Liu et al. 2025).

        loss_n = -(1 / T_n) sum over t of A_t (1 / k_t) sum over i of log pi(a_{t,i})

    T_n counts the conversation's turns and k_t the turn's tokens, its end-of-turn token included.

    Args:
      logprob: f32[N, L] of every id under the policy.
      advantage: f32[N, T].
      turn: i32[N, L] turn of every sampled id, -1 for context.
      valid: bool[N, T] turns with a reward; the others are not trained.

    Returns:
      f32[N]; 0 for a conversation without a valid turn. The batch loss is its mean over the conversations that
      have one (`has_turns`).
    """
    means, count = turn_means(logprob, turn, advantage.shape[1])
    used = valid & (count > 0)
    return -(jnp.where(used, advantage, 0) * means).sum(axis=1) / jnp.maximum(used.sum(axis=1), 1)


def mean_entropy(entropy, turn, valid):
    """Entropy of every conversation, f32[N]: the mean over its valid turns of the mean over a turn's tokens.

    Args:
      entropy: f32[N, L], nats, of the distribution that each id was drawn from.
      turn: i32[N, L]; valid: bool[N, T] as in `epo_loss`.
    """
    means, count = turn_means(entropy, turn, valid.shape[1])
    used = valid & (count > 0)
    return jnp.where(used, means, 0).sum(axis=1) / jnp.maximum(used.sum(axis=1), 1)


def has_turns(turn, valid):
    """bool[N] conversations with at least one trained token."""
    _, count = turn_means(jnp.ones(turn.shape, jnp.float32), turn, valid.shape[1])
    return (valid & (count > 0)).any(axis=1)


def official_scale(conversations, rows: int, micro_batch: int):
    """What turns the mean over conversations into the loss of the released trainer.

    It sums over the conversations of a micro-batch and divides by the number of micro-batches in a full batch
    (released code, sft/trainer.py: total_loss; the division is the Trainer's, by gradient accumulation). So its loss
    grows with the micro-batch, and a batch that is not full counts less.

    Args:
      conversations: in the batch; rows: in a full batch; micro_batch: conversations run through the model at once.
    """
    return conversations * micro_batch / rows
