"""A small model with random weights, and the functions of `sampling` and `scoring`, compiled once for all tests."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from epo_jax.models import sampling, scoring
from epo_jax.models.sampling import SamplingConfig
from epo_jax.models.transformer import Transformer
from epo_jax.testing import dummy_config
from epo_jax.text.tokens import pack

B, L, K, V = 3, 64, 12, 61
STOP, CLOSING = 0, 1
CONFIG = SamplingConfig(max_tokens=8, stop=(STOP,), closing=(CLOSING,))
ENDLESS = dataclasses.replace(CONFIG, min_tokens=8)
TOLERANCE = 1e-3  # of a log-probability, in nats; float32

extend = jax.jit(sampling.extend, static_argnums=(0, 4))
generate = jax.jit(sampling.generate, static_argnums=(0, 5))
peek = jax.jit(sampling.peek, static_argnums=(0, 4))
next_logits = jax.jit(sampling.next_logits, static_argnums=0)
score = jax.jit(scoring.score, static_argnums=(0, 3))
draw = jax.jit(sampling.sample, static_argnums=2)


def make_model(window=None, layers=2):
    return Transformer(dataclasses.replace(dummy_config(V), sliding_window=window, num_layers=layers))


@functools.cache
def make_params(layers=2):
    """Return random parameters, large enough that the most probable token differs between positions."""
    shapes = jax.eval_shape(make_model(layers=layers).init_params, jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape), jnp.float32), shapes)


def make_keys(seed, batch=B):
    return jax.vmap(lambda row: jax.random.fold_in(jax.random.key(seed), row))(jnp.arange(batch))


def text(rng, *lengths):
    """Return random ids without stop tokens, one row for each length."""
    return pack([rng.integers(2, V, n).tolist() for n in lengths], K)


@functools.partial(jax.jit, static_argnums=0)
def full_logits(model, params, ids):
    """Return logits, f32[B, L, V], from one pass over whole conversations, without a cache."""
    hidden, _ = model.apply({'params': params}, ids, jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape))
    return model.apply({'params': params}, hidden, method='logits')


def started_session(model, params, seed=0, lengths=(5, 1, 9)):
    """Return a session of three conversations of different lengths."""
    return extend(model, params, sampling.open_session(model, B, L), text(np.random.default_rng(seed), *lengths), 4)


def row(session, b):
    """Return everything that a session holds of one conversation, and the valid part of its cache."""
    n = int(session.length[b])
    said = [np.asarray(x)[b] for x in (session.ids, session.turn, session.logprob)]
    cache = [(np.asarray(k)[b, :, :, :n - 1], np.asarray(v)[b, :, :n - 1]) for k, v in session.cache]
    flags = [np.asarray(x)[b] for x in (session.length, session.turns, session.overflow)]
    return [x[:n] for x in said], flags, cache


def assert_same_row(a, b, at):
    jax.tree.map(np.testing.assert_array_equal, row(a, at), row(b, at))
