"""Credit that compares a seat with itself: the two sides of a game do not have the same chances.

Axis letters: N conversations, T turns, S seats.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from epo_jax.rl.credit import grouping
from epo_jax.rl.credit.groups import centered
from epo_jax.text.tokens import Array


def rae(reward: Float[Array, 'N T'], valid: Bool[Array, 'N T'], seat: Int[Array, ' N'], memory: Float[Array, ' S'],
        decay: float) -> tuple[Float[Array, 'N T'], Float[Array, ' S']]:
    """Subtract a running mean of the returns of the same seat (role-conditioned advantage estimation).

        A_n = R_n - b_seat,   then   b_seat <- decay b_seat + (1 - decay) R_n

    Conversations are taken in their order. The baseline is 0 at first, is used before its own conversation updates it,
    and lasts from iteration to iteration.

    Source: Liu et al. 2025 (SPIRAL); order of use and update as in prime-rl.
    """
    own, used = jnp.where(valid, reward, 0).sum(axis=1), valid.any(axis=1)

    def step(baseline, conversation):
        value, s, ok = conversation
        before = baseline[s]
        after = jnp.where(ok, decay * before + (1 - decay) * value, before)
        return baseline.at[s].set(after), value - before

    memory, advantage = jax.lax.scan(step, memory.astype(own.dtype), (own, seat, used))
    return jnp.where(valid, advantage[:, None], 0), memory


def dr_mas(reward: Float[Array, 'N T'], valid: Bool[Array, 'N T'], seat: Int[Array, ' N']) -> Float[Array, 'N T']:
    """Normalize the return by mean and standard deviation of the same seat: (R - mean) / (std + 1e-6).

    Mean and standard deviation (n - 1) are over all conversations of the seat in the batch. With groups of several
    episodes, `grpo` normalizes per scenario and seat, as the released code does.

    Source: Feng et al. 2026 (Dr. MAS, agent-wise normalization), over the batch.
    """
    own, used, seat = jnp.where(valid, reward, 0).sum(axis=1), valid.any(axis=1), grouping.same(seat)
    advantage = centered(own, used, seat) / (grouping.deviation(own, used, seat) + 1e-6)
    return jnp.where(valid, advantage[:, None], 0)
