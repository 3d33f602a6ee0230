"""What a gradient step minimizes: a loss of tokens, a divergence from the reference, and an aggregation.

Axis letters: N conversations, L token positions, C token positions of a chunk.
"""

import dataclasses
from typing import Any, Mapping, Optional

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from epo_jax.config import Key, Range
from epo_jax.rl.aggregation import AGGREGATIONS, at_tokens, token_weights
from epo_jax.rl.losses import DIVERGENCES, INPUTS, LOSSES, divergence, epo
from epo_jax.rl.methods import Method, bind
from epo_jax.runtime.errors import InputError
from epo_jax.text.tokens import Array

KEYS = {
    'name': Key('epo', f"loss of a token: {', '.join(LOSSES)}, or 'package.module:function'; see docs/credit.md"),
    'aggregation': Key('official', 'how the losses of tokens are averaged, see rl/aggregation.py', AGGREGATIONS),
    'constant': Key(64.0, "number of tokens by which aggregation='constant' divides", Range(0, above=True)),
    'clip_low': Key(0.2, 'ppo, gspo, cispo: the ratio is clipped at 1 - clip_low', Range(0, 1)),
    'clip_high': Key(0.2, 'ppo, gspo, cispo: the ratio is clipped at 1 + clip_high', Range(0)),
    'dual_clip': Key(0.0, 'ppo: largest ratio that counts where the credit is negative; 0 sets no limit', Range(0)),
    'ratio_low': Key(0.5, 'masked: smallest ratio that is trained on', Range(0)),
    'ratio_high': Key(2.0, 'truncated, masked: largest ratio', Range(0)),
    'kl': Key('none', 'divergence from the model before training that is added to the loss, see rl/losses.py',
              DIVERGENCES),
    'kl_weight': Key(0.0, 'weight of this divergence', Range(0)),
}


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is minimized; static.

    Attributes:
      loss: of tokens.
      aggregation: one of AGGREGATIONS.
      constant: for the aggregation 'constant'.
      kl: one of DIVERGENCES.
      kl_weight: weight of the divergence.
    """

    loss: Method = Method(epo, ('logprob', 'advantage'))
    aggregation: str = 'official'
    constant: float = 1.0
    kl: str = 'none'
    kl_weight: float = 0.0

    def needs(self, name: str) -> bool:
        """Return whether the objective reads an input of this name, see `losses.INPUTS`."""
        return name in self.loss.inputs or name == 'reference' and self.kl != 'none'

    def data(self, turn: Int[Array, 'N L'], valid: Bool[Array, 'N T'], advantage: Float[Array, 'N T'],
             sampled: Float[Array, 'N L'], reference: Optional[Float[Array, 'N L']]) -> dict[str, jax.Array]:
        """Return what the loss of a batch needs to know of every token, f32[N, L] by name.

        Args:
          turn: the turn in which a token was sampled; -1 for context.
          valid: turns that are trained.
          advantage: credit of every turn.
          sampled: log-probabilities at sampling.
          reference: log-probabilities under the reference; None where it is not needed.

        Raises:
          ValueError: the reference is needed and None.
        """
        if self.needs('reference') and reference is None:
            raise ValueError('this objective needs the log-probabilities under the reference, but the batch has none')
        weight = token_weights(self.aggregation, turn, valid, self.constant)
        trained = weight > 0
        found = {'advantage': at_tokens(advantage, turn), 'sampled': sampled, 'reference': reference}
        zero_elsewhere = lambda x: jnp.where(trained, x, 0)  # what is not trained may be NaN
        return {'weight': weight} | {name: zero_elsewhere(x) for name, x in found.items() if self.needs(name)}

    def token_loss(self, logprob: Float[Array, 'N C'], entropy: Optional[Float[Array, 'N C']],
                   data: Mapping[str, jax.Array]) -> Float[Array, 'N C']:
        """Return the weighted losses of tokens; the loss of the batch is their sum.

        Args:
          logprob, entropy: statistics of the tokens.
          data: from `data`; 'bonus', if it is there, is the weight of every token's entropy.
        """
        total = self.loss({'logprob': logprob, 'entropy': entropy} | data)
        if self.kl != 'none':
            total += self.kl_weight * divergence(logprob, data['reference'], self.kl)
        total = data['weight'] * total
        return total - data['bonus'] * entropy if 'bonus' in data else total


def from_config(c: Mapping[str, Any]) -> Objective:
    """Return the objective of a configuration group `loss`, whose keys are KEYS.

    Raises:
      InputError: there is no such loss, or its parameters are not known.
    """
    own = ('aggregation', 'constant', 'kl', 'kl_weight')
    options = {name: c[name] for name in KEYS if name not in (*own, 'name')}
    return Objective(bind(c['name'], LOSSES, INPUTS, options, 'loss.name'), *(c[name] for name in own))


def problems(c: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a configuration group `loss`, one sentence each."""
    try:
        from_config(c)
    except InputError as error:
        return [str(error)]
    if (c['kl'] == 'none') != (c['kl_weight'] == 0):
        return ['loss.kl and loss.kl_weight go together: set both, or neither']
    if c['dual_clip'] and c['dual_clip'] <= 1:
        return ['loss.dual_clip must be above 1, or 0 for no limit']
    if c['ratio_low'] > c['ratio_high']:
        return ['loss.ratio_low must not exceed loss.ratio_high']
    return []
