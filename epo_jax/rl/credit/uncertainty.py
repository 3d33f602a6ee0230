"""Credit that depends on how uncertain the policy was.

Axis letters: N conversations, T turns.
"""

import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from epo_jax.rl.credit.groups import grpo
from epo_jax.text.tokens import Array


def empg(reward: Float[Array, 'N T'], valid: Bool[Array, 'N T'], group: Int[Array, ' N'], entropy: Float[Array, 'N T'],
         sharpness: float, future_weight: float) -> Float[Array, 'N T']:
    """Give certain turns more of the credit of the episode, and turns that lead to certain ones a bonus.

        A_t = A_E g(H_t) + future_weight f(H_{t+1}),   then minus the mean over all turns
        g(H) = exp(-sharpness H) / mean over all turns of exp(-sharpness H),   f(H) = exp(-sharpness H)

    A_E is that of `grpo`, and H_t the mean entropy of the turn's tokens, scaled to [0, 1] over the batch. The last turn
    has no bonus.

    Source: Wang et al. 2025 (EMPG).
    """
    low, high = (find(jnp.where(valid, entropy, empty)) for find, empty in ((jnp.min, jnp.inf), (jnp.max, -jnp.inf)))
    scaled = jnp.where(valid, (entropy - low) / jnp.maximum(high - low, 1e-8), 0)
    number = jnp.maximum(valid.sum(), 1)
    certainty = jnp.where(valid, jnp.exp(-sharpness * scaled), 0)
    relative = certainty / jnp.maximum(certainty.sum() / number, 1e-8)
    following = jnp.pad(certainty[:, 1:], ((0, 0), (0, 1)))
    value = jnp.where(valid, grpo(reward, valid, group) * relative + future_weight * following, 0)
    return jnp.where(valid, value - value.sum() / number, 0)
