"""A tiny decoder that computes in the dtype of its parameters, so that gradients can be compared in float64."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

V, W = 13, 6


@dataclasses.dataclass(frozen=True)
class ExactDecoder:
    """Predicts a token from the mean of all embeddings so far, through one layer that can have an adapter."""

    tied: bool = True
    stacked: bool = True
    mesh: Any = None

    @property
    def config(self):
        return SimpleNamespace(tied=self.tied, width=W)

    def apply(self, variables, x, positions=None, method=None):
        params = variables['params']
        if method == 'logits':
            return x @ (params['embed'].T if self.tied else params['head']['kernel'])
        embedded = params['embed'][x]
        mean = jnp.cumsum(embedded, axis=1) / (positions[..., None] + 1)
        layer = params['layers']['q']
        mixed = mean @ layer['kernel'][0]
        if 'a' in layer:
            mixed += (mean @ layer['a'][0]) @ layer['b'][0]
        return embedded + jnp.tanh(mixed), None

    def params(self, seed=0):
        """Return random float64 parameters."""
        rng = np.random.default_rng(seed)
        params = {'embed': rng.normal(size=(V, W)), 'layers': {'q': {'kernel': rng.normal(size=(1, W, W))}}}
        return params if self.tied else params | {'head': {'kernel': rng.normal(size=(W, V))}}

    def adapter(self, seed=1):
        """Return a random adapter of rank 2."""
        rng = np.random.default_rng(seed)
        return {'layers': {'q': {'a': rng.normal(size=(1, W, 2)), 'b': rng.normal(size=(1, 2, W))}}}

    def all_logprobs(self, params, ids):
        """Return log-probabilities of every id after every prefix, f64[N, L, V], 0 at position 0."""
        hidden, _ = self.apply({'params': params}, ids, jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape))
        logprob = jax.nn.log_softmax(self.apply({'params': params}, hidden, method='logits'), axis=-1)
        return jnp.pad(logprob[:, :-1], ((0, 0), (1, 0), (0, 0)))
