"""How the losses of tokens become the loss of a batch: one weight for every token.

The weights are computed from the whole batch, before it is split into micro-batches, so they do not depend on the
number of devices or on the micro-batches.

Axis letters: N conversations, L token positions, T turns.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from epo_jax.text.tokens import Array

AGGREGATIONS = ('official', 'turn_mean', 'token_mean', 'episode_mean', 'constant')


def token_weights(how: str, turn: Int[Array, 'N L'], valid: Bool[Array, 'N T'],
                  constant: float = 1.0) -> Float[Array, 'N L']:
    """Return the weight of every token in the loss; 0 for context and for turns that are not valid.

    With n conversations that have trained tokens, T_n trained turns and K_n trained tokens in conversation n, and k_t
    tokens in turn t, the weight of a token is

    `official`:     1 / (n T_n k_t), the mean over conversations of the mean over turns of the mean over tokens (EPO)
    `turn_mean`:    1 / (sum of T_n, k_t); every turn of the batch counts the same, so long episodes weigh more
    `token_mean`:   1 / (sum of K_n); every token of the batch counts the same (DAPO)
    `episode_mean`: 1 / (n K_n), the mean over conversations of the mean over tokens (GRPO)
    `constant`:     1 / (n constant), the mean over conversations of the sum over tokens, over a constant (Dr. GRPO)

    Args:
      how: one of AGGREGATIONS.
      turn: the turn in which a token was sampled; -1 for context.
      valid: turns that are trained.
      constant: number of tokens, for 'constant'.

    Raises:
      ValueError: `how` is unknown.
    """
    _, count = turn_means(jnp.ones(turn.shape), turn, valid.shape[1])
    used = valid & (count > 0)
    conversations = used.any(axis=1).sum()
    turns = used.sum(axis=1, keepdims=True)
    tokens = jnp.where(used, count, 0).sum(axis=1, keepdims=True)
    # Products of the counts of a large batch do not fit into int32, so they are floats.
    size = {
        'official': lambda: conversations * (turns * count),
        'turn_mean': lambda: turns.sum() * count,
        'token_mean': lambda: tokens.sum() * jnp.ones_like(count),
        'episode_mean': lambda: conversations * tokens * jnp.ones_like(count),
        'constant': lambda: conversations * constant * jnp.ones_like(count)}
    if how not in size:
        raise ValueError(f'the aggregation must be one of {", ".join(AGGREGATIONS)}, not {how!r}')
    weight = jnp.where(used, 1 / jnp.where(used, size[how](), 1), 0)
    return at_tokens(weight, turn)


def at_tokens(values: Float[Array, 'N T'], turn: Int[Array, 'N L']) -> Float[Array, 'N L']:
    """Return the value of every token's turn; 0 for context."""
    return jnp.where(turn >= 0, jnp.take_along_axis(values, jnp.maximum(turn, 0), axis=1), 0)


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


def has_turns(turn: Int[Array, 'N L'], valid: Bool[Array, 'N T']) -> Bool[Array, ' N']:
    """Return which conversations have at least one token that is trained."""
    _, count = turn_means(jnp.ones(turn.shape), turn, valid.shape[1])
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
