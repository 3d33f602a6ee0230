"""Losses of single tokens, and what they are made of. Pure functions of arrays [N, C].

A new loss is a function in the table LOSSES, or any function 'package.module:function'; its name is then a value of
`loss.name`. Its parameters are among INPUTS and the keys of the configuration group `loss` (see methods.py). A loss is
differentiated by `logprob` and `entropy` where the logits are (models/scoring.py), so it need not be linear. How the
losses of tokens are averaged is another choice (aggregation.py).

Axis letters: N conversations, C token positions. r = exp(logprob - sampled) is the ratio of a token's probability now
and at sampling, A the advantage of its turn, sg stops the gradient.
"""

from jax.lax import stop_gradient as sg
import jax.numpy as jnp
from jaxtyping import Float

from epo_jax.text.tokens import Array

INPUTS = {
    'logprob': 'log-probability of the token under the policy',
    'entropy': 'entropy in nats of the distribution that the token was drawn from; costs an array like the logits',
    'advantage': 'credit of its turn',
    'sampled': 'log-probability of the token when it was sampled',
    'turn_ratio': "mean of logprob - sampled over the tokens of its turn, without gradient; costs a forward pass",
    'reference': 'log-probability of the token under the model before training; costs a forward pass',
}
Tokens = Float[Array, 'N C']


def epo(logprob: Tokens, advantage: Tokens) -> Tokens:
    """Weigh the log-probability by the credit of the turn (REINFORCE): -A log pi.

    With the aggregation 'official', this is the objective of EPO.

    Source: Liu et al. 2025 (EPO), released code, sft/trainer.py.
    """
    return -advantage * logprob


def ppo(logprob: Tokens, advantage: Tokens, sampled: Tokens, clip_low: float, clip_high: float,
        dual_clip: float) -> Tokens:
    """Clip the ratio of the policies (PPO): -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A).

    clip_high > clip_low is DAPO's clip-higher. With dual_clip c > 1, the loss of tokens with A < 0 is at most -c A, so
    that a large ratio cannot dominate a batch.

    Source: Schulman et al. 2017 (PPO); Ye et al. 2020 (dual clip); Yu et al. 2025 (DAPO, clip-higher).
    """
    gain = _clipped(_ratio(logprob, sampled), advantage, clip_low, clip_high)
    if dual_clip:
        gain = jnp.where(advantage < 0, jnp.maximum(gain, dual_clip * advantage), gain)
    return -gain


def gspo(logprob: Tokens, advantage: Tokens, turn_ratio: Tokens, clip_low: float, clip_high: float) -> Tokens:
    """Clip the ratio of a whole turn (GSPO): -min(s A, clip(s, 1 - clip_low, 1 + clip_high) A).

        s = exp(1/k sum over the turn's k tokens of log r),   for token i: sg(s) pi_i / sg(pi_i)

    A message of the policy is a sequence, so s is per turn. Use an aggregation that averages over turns, and clips of
    the order of 1e-3.

    Source: Zheng et al. 2025 (GSPO), the form per token.
    """
    ratio = jnp.exp(jnp.clip(turn_ratio, -20, 20)) * jnp.exp(logprob - sg(logprob))
    return -_clipped(ratio, advantage, clip_low, clip_high)


def cispo(logprob: Tokens, advantage: Tokens, sampled: Tokens, clip_low: float, clip_high: float) -> Tokens:
    """Clip the importance weight of REINFORCE (CISPO): -sg(clip(r, 1 - clip_low, 1 + clip_high)) A log pi.

    Unlike with PPO, a token outside the clip keeps its gradient.

    Source: MiniMax 2025 (MiniMax-M1, CISPO).
    """
    return -sg(jnp.clip(_ratio(logprob, sampled), 1 - clip_low, 1 + clip_high)) * advantage * logprob


def truncated(logprob: Tokens, advantage: Tokens, sampled: Tokens, ratio_high: float) -> Tokens:
    """Truncate the importance weight of REINFORCE: -sg(min(r, ratio_high)) A log pi.

    Source: Yao et al. 2025 (truncated importance sampling); Ionides 2008.
    """
    return -sg(jnp.minimum(_ratio(logprob, sampled), ratio_high)) * advantage * logprob


def masked(logprob: Tokens, advantage: Tokens, sampled: Tokens, ratio_low: float, ratio_high: float) -> Tokens:
    """Mask tokens whose importance weight is outside of [ratio_low, ratio_high]: -sg(w) A log pi, w = r or 0.

    Source: masked importance sampling, as in TRL and in IcePop (Ling team 2025).
    """
    ratio = _ratio(logprob, sampled)
    inside = (ratio >= ratio_low) & (ratio <= ratio_high)
    return -sg(jnp.where(inside, ratio, 0)) * advantage * logprob


def sft(logprob: Tokens) -> Tokens:
    """Imitate all trained turns, whatever their credit (supervised fine-tuning): -log pi.

    Source: maximum likelihood.
    """
    return -logprob


def cloning(logprob: Tokens, advantage: Tokens) -> Tokens:
    """Imitate the turns with positive credit (behavior cloning): -1[A > 0] log pi.

    Source: filtered behavior cloning; compare self-imitation learning (Oh et al. 2018).
    """
    return -jnp.where(advantage > 0, logprob, 0)


LOSSES = {
    'epo': epo, 'ppo': ppo, 'gspo': gspo, 'cispo': cispo, 'truncated': truncated, 'masked': masked, 'sft': sft,
    'cloning': cloning}


# Divergence from the reference


def divergence(logprob: Tokens, reference: Tokens, how: str) -> Tokens:
    """Return an estimate of KL(pi || reference) at sampled tokens, with d = log pi - log reference.

    `k1`: d.   `k2`: d^2 / 2.   `k3`: exp(-d) - 1 + d.

    Averaged over tokens sampled from pi, k1 and k3 equal the divergence, but their derivatives do not equal its
    gradient: that of k1 averages to 0, and that of k3 is the gradient of KL(reference || pi). The derivative of k2,
    d grad log pi, averages to the right one. Therefore all three have the derivative of k2 here. `grpo` is k3 with its
    own derivative, as GRPO uses it.

    Source: Schulman 2020 (approximating KL divergence); Shao et al. 2024 (GRPO); Tang and Munos 2025 (the gradients).

    Args:
      logprob, reference: log-probabilities of the sampled tokens.
      how: k1, k2, k3 or grpo.

    Raises:
      ValueError: `how` is unknown.
    """
    d = jnp.clip(logprob - reference, -20, 20)
    estimates = {'k1': lambda: d, 'k2': lambda: d ** 2 / 2, 'k3': lambda: jnp.exp(-d) - 1 + d,
                 'grpo': lambda: jnp.exp(-d) - 1 + d}
    if how not in estimates:
        raise ValueError(f'the estimate of the divergence must be one of {", ".join(estimates)}, not {how!r}')
    value = estimates[how]()
    if how == 'grpo':
        return value
    slope = sg(d) * logprob
    return sg(value) + slope - sg(slope)


DIVERGENCES = ('none', 'k1', 'k2', 'k3', 'grpo')


def _ratio(logprob: Tokens, sampled: Tokens) -> Tokens:
    """Return r; the logarithm is clipped so that it and its products stay finite."""
    return jnp.exp(jnp.clip(logprob - sampled, -20, 20))


def _clipped(ratio: Tokens, advantage: Tokens, low: float, high: float) -> Tokens:
    """Return min(r A, clip(r, 1 - low, 1 + high) A)."""
    return jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - low, 1 + high) * advantage)
