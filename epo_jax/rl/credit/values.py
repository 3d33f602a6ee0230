"""Credit of turns from the values of the states before them.

Axis letters: N conversations, T turns.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from epo_jax.text.tokens import Array


def branched(reward: Float[Array, 'N T'], valid: Bool[Array, 'N T'], value: Float[Array, 'N T'], gamma: float,
             trace: float) -> Float[Array, 'N T']:
    """Compare the return with the mean outcome of siblings: strategies sampled from the state before the turn.

        A_t = sum over l of (gamma trace)^l delta_{t+l},   delta_t = r_t + gamma V_{t+1} - V_t,   V after the end = 0

    V_t is the mean outcome of siblings of turn t that were played to the end. With trace = 1, the credit is the return
    minus V_t; with trace = 0, it is the change of V. Both are unbiased estimates of the advantage of the turn for
    gamma = 1, because V does not depend on what was done in the turn.

    Source: Schulman et al. 2016 (generalized advantage estimation), with values by branching as in VinePPO
      (Kazemnejad et al. 2024).
    """
    known = jnp.where(valid, value, 0)
    following = jnp.pad(known[:, 1:], ((0, 0), (0, 1)))
    delta = jnp.where(valid, reward + gamma * following - known, 0)

    def back(later, now):
        total = now + gamma * trace * later
        return total, total

    _, advantage = jax.lax.scan(back, jnp.zeros_like(delta[:, 0]), delta.T, reverse=True)
    return jnp.where(valid, advantage.T, 0)
