"""What credit and loss need to know of sampled tokens besides their log-probability: further forward passes.

Axis letters: N conversations, L token positions, T turns.
"""

import functools
from typing import Any, Optional

import jax
import jax.numpy as jnp
from jaxtyping import Int

from epo_jax.models.decoder import Decoder
from epo_jax.models.scoring import Statistics, statistics
from epo_jax.rl.aggregation import turn_means
from epo_jax.rl.credit.assign import CreditRules
from epo_jax.rl.objective import Objective
from epo_jax.rl.trajectory import Trajectory
from epo_jax.runtime.parallel import constrain
from epo_jax.text.tokens import Array


def observe(model: Decoder, rows: Trajectory, rules: CreditRules, objective: Objective, policy: Any,
            reference: Optional[Any], chunk: int, micro_batch: int) -> dict[str, jax.Array]:
    """Return what the rules and the objective need, by name; nothing is computed that nobody needs.

    Args:
      model: the decoder that samples.
      rows: the trained conversations.
      rules, objective: whose needs count.
      policy, reference: parameters of the policy that sampled, and of the model before training.
      chunk, micro_batch: number of tokens, and of conversations, that are run through the model at once.

    Returns:
      'entropy' f32[N, T], mean entropies of the turns; 'reference' f32[N, L], log-probabilities of the sampled tokens
      under the reference.
    """
    found, score = {}, functools.partial(score_rows, model, ids=rows.ids, turn=rows.turn)
    if rules.needs('entropy'):
        entropy = score(policy, chunk=chunk, micro_batch=micro_batch, entropy=True).entropy
        found['entropy'] = turn_means(entropy, rows.turn, rows.turn_mask.shape[1])[0]
    if rules.needs('reference') or objective.needs('reference'):
        found['reference'] = score(reference, chunk=chunk, micro_batch=micro_batch).logprob
    return found


@functools.partial(jax.jit, static_argnames=('model', 'chunk', 'micro_batch', 'entropy'))
def score_rows(model: Decoder, params: Any, ids: Int[Array, 'N L'], turn: Int[Array, 'N L'], chunk: int,
               micro_batch: int, entropy: bool = False) -> Statistics:
    """Return the statistics of the sampled tokens of any number of conversations, f32[N, L]; 0 for context.

    Args:
      model, params: the decoder and its parameters.
      ids: the conversations.
      turn: the turn in which a token was sampled; -1 for context.
      chunk, micro_batch: number of tokens, and of conversations, that are run through the model at once.
      entropy: whether to compute entropies.
    """
    count, missing = len(ids), -len(ids) % micro_batch

    def split(x, empty):
        x = jnp.pad(x, ((0, missing), (0, 0)), constant_values=empty)
        parts = x.reshape(micro_batch, -1, x.shape[1]).swapaxes(0, 1)  # a share of the rows of every device
        return constrain(model.mesh, parts, None, 'rows')

    one = lambda part: statistics(model, params, part[0], part[1] >= 0, chunk, entropy)
    found = jax.lax.map(one, (split(ids, 0), split(turn, -1)))
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, x.shape[-1])[:count], found)
