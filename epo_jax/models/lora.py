"""Low-rank adapters (Hu et al., 2021): y = x W + (alpha / rank) x A B, where W is frozen.

An adapter has the tree structure of the layers in the stacked layout, with leaves `a` [layers, in, rank] and
`b` [layers, rank, out...] for every adapted matrix. `join` adds them next to the kernels of the base model, and the
decoder applies both. Strategist, actor and judge share one base model; only the adapter is trained, checkpointed and
saved in the self-play pool.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from epo_jax.models.decoder import Decoder

TARGETS = ('q', 'k', 'v', 'o', 'gate', 'up', 'down')


@dataclasses.dataclass(frozen=True)
class LoRA:
    """The shape of an adapter.

    Attributes:
      rank: the rank.
      alpha: the output of the adapter is scaled by alpha / rank.
      targets: names of the adapted matrices of every layer, a subset of TARGETS.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] = TARGETS

    def __post_init__(self):
        unknown = set(self.targets) - set(TARGETS)
        if self.rank < 1 or unknown or not self.targets:
            raise ValueError(
                f'an adapter needs a positive rank and targets from {", ".join(TARGETS)}, but got {self}')

    def init_boxed(self, model: Decoder, key: jax.Array) -> Any:
        """Return a new float32 adapter of a model, whose leaves carry the names of their logical axes.

        As in the PEFT library, `b` is 0 and `a` is uniform in [-1 / sqrt(in), 1 / sqrt(in)].

        Args:
          model: the decoder, in the stacked layout.
          key: the random key.
        """
        layers = jax.eval_shape(model.init_boxed, key)['layers']
        adapter = {}
        for i, name in enumerate(self.targets):
            kernel = layers[name]['kernel']
            shape, axes = kernel.value.shape, kernel.names
            bound = shape[1] ** -0.5
            a = jax.random.uniform(jax.random.fold_in(key, i), (*shape[:2], self.rank), minval=-bound, maxval=bound)
            b = jnp.zeros((shape[0], self.rank, *shape[2:]))
            adapter[name] = {
                'a': nn.LogicallyPartitioned(a, (*axes[:2], None)),
                'b': nn.LogicallyPartitioned(b, (axes[0], None, *axes[2:]))}
        return {'layers': adapter}

    def init(self, model: Decoder, key: jax.Array) -> Any:
        """Return a new adapter as a plain nested dict."""
        return nn.meta.unbox(self.init_boxed(model, key))

    def join(self, base: Any, adapter: Any) -> Any:
        """Return the parameters of the base model with the adapter. The arrays of the base are not copied."""
        layers = dict(base['layers'])
        for name, pair in adapter['layers'].items():
            layers[name] = layers[name] | {'a': pair['a'], 'b': pair['b'] * (self.alpha / self.rank)}
        return base | {'layers': layers}

    def merge(self, base: Any, adapter: Any) -> Any:
        """Return the parameters W + (alpha / rank) A B of an equivalent model without adapter, in the base's dtype."""
        layers = dict(base['layers'])
        for name, pair in adapter['layers'].items():
            kernel = layers[name]['kernel']
            product = jnp.einsum('lir,lr...->li...', pair['a'], pair['b'], precision='highest')
            layers[name] = layers[name] | {
                'kernel': (kernel + product * (self.alpha / self.rank)).astype(kernel.dtype)}
        return base | {'layers': layers}
