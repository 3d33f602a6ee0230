"""Log-probabilities by one full forward pass, for the learner.

Logits are never held for all positions at once. The tokens that count are moved together, projected and reduced a chunk
at a time, and chunks without any are skipped. The objective is linear in the log-probabilities (rl/losses.py), so the
weight of every token is known before the forward pass: the gradient of a chunk is computed while its logits exist, and
the backward pass projects nothing again.

Axis letters: N conversations, L token positions, C positions of a chunk, M numbers a token (log-probability and
entropy), V vocabulary, W residual width.
"""

from einops import rearrange
import jax
from jax.custom_derivatives import SymbolicZero
import jax.numpy as jnp

from epo_jax.models.decoder import Decoder


def score(model: Decoder, params, ids: jax.Array, chunk: int = 256) -> jax.Array:
    """Return the log-probability of every token given those before it, f32[N, L]; 0 at position 0.

    It cannot be differentiated; see `weighted_sum`.

    Args:
      model, params: the decoder and its parameters, in either layout.
      ids: i32[N, L].
      chunk: number of tokens, of all rows together, whose logits are computed at once.
    """
    return weighted_sum(model, params, ids, jnp.ones(ids.shape, bool), jnp.ones((1, *ids.shape)), chunk)[1][0]


def weighted_sum(model: Decoder, params, ids: jax.Array, counts: jax.Array, weights: jax.Array,
          chunk: int = 256) -> tuple[jax.Array, jax.Array]:
    """Return a weighted sum over tokens, and the numbers that were summed; only the sum can be differentiated.

    Args:
      model, params: the decoder and its parameters, in either layout.
      ids: i32[N, L].
      counts: bool[N, L], tokens that count; the numbers of all others are 0.
      weights: f32[M, N, L], the weights of each token's log-probability and, if M is 2, of the entropy (nats) of the
        distribution that it was sampled from.
      chunk: number of tokens, of all rows together, whose logits are computed at once.

    Returns:
      The sum f32[], and the numbers f32[M, N, L], which are 0 at position 0.
    """
    rows, length = ids.shape
    positions = jnp.broadcast_to(jnp.arange(length), ids.shape)
    hidden, _ = model.apply({'params': params}, ids, positions)
    # Position l predicts token l + 1. Tokens that count come first, so that whole chunks can be skipped.
    after = lambda x: jnp.roll(x, -1, axis=-1)
    counts = after(counts) & (positions < length - 1)
    order = jnp.argsort(~counts, axis=1, stable=True)
    size = max(1, chunk // rows)
    padding = -length % size

    def cut(x):
        """Cut [N, L, ...] in that order into [chunks, N, C, ...]."""
        x = jnp.take_along_axis(x, order.reshape(*order.shape, *[1] * (x.ndim - 2)), axis=1)
        x = jnp.pad(x, ((0, 0), (0, padding), *[(0, 0)] * (x.ndim - 2)))
        return rearrange(x, 'n (s c) ... -> s n c ...', c=size)

    parts = cut(after(ids)), cut(counts), cut(rearrange(after(weights), 'm n l -> n l m'))
    name = 'embed' if model.config.tied else 'head'
    total, found = _project(
        model, {name: params[name]}, jax.lax.stop_gradient({'embed': params['embed']}), cut(hidden), parts)
    found = rearrange(found, 's n c m -> n (s c) m')[:, :length]
    found = jnp.take_along_axis(found, jnp.argsort(order, axis=1)[:, :, None], axis=1)
    return total, rearrange(jnp.roll(found, 1, axis=1), 'n l m -> m n l')


def _project(model, head, rest, hidden, parts):
    """Return the weighted sum f32[] and the numbers f32[chunks, N, C, M].

    Args:
      model: the decoder.
      head: the parameters that project to the vocabulary.
      rest: other parameters that the model needs, without gradient.
      hidden: [chunks, N, C, W].
      parts: targets, counts and weights in chunks.
    """
    def numbers(logits, targets, counts, weights):
        """Return the weighted sum, the numbers f32[N, C, M], and the sum's gradient by the logits, f32[N, C, V]."""
        weights = jnp.where(counts[..., None], weights, 0)
        logprob = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        hit = jnp.arange(logits.shape[-1]) == targets[..., None]
        found = [jnp.take_along_axis(logprob, targets[..., None], axis=-1)]
        slope = weights[..., :1] * (hit - jnp.exp(logprob))
        if weights.shape[-1] == 2:
            found.append(-(jnp.exp(logprob) * logprob).sum(axis=-1, keepdims=True))
            slope -= weights[..., 1:] * jnp.exp(logprob) * (logprob + found[1])
        found = jnp.where(counts[..., None], jnp.concatenate(found, axis=-1), 0)
        return (found * weights).sum(), found, slope

    def chunks(look, skip, carry, hidden, parts):
        """Scan chunks with `look`, or with `skip` where no token counts: (carry, hidden, part) -> (carry, results)."""
        step = lambda carry, part: jax.lax.cond(part[2].any(), look, skip, carry, *part)
        return jax.lax.scan(step, carry, (hidden, *parts))

    @jax.custom_vjp
    def project(head, rest, hidden, parts):
        def look(total, hidden, *part):
            logits = model.apply({'params': rest | head}, hidden, method='logits')
            value, found, _ = numbers(logits, *part)
            return total + value, found

        skip = lambda total, hidden, targets, counts, weights: (total, jnp.zeros(weights.shape))
        return chunks(look, skip, jnp.zeros(()), hidden, parts)

    def forward(head, rest, hidden, parts):
        trained = any(x.perturbed for x in jax.tree.leaves(head))  # not under an adapter
        head, rest, hidden, parts = jax.tree.map(lambda x: x.value, (head, rest, hidden, parts))

        def look(carry, hidden, *part):
            total, gradient = carry
            by = lambda hidden, head=head: model.apply({'params': rest | head}, hidden, method='logits')
            logits, pull = jax.vjp(by, hidden, *([head] if trained else []))
            value, found, slope = numbers(logits, *part)
            back, *new = pull(slope)
            return (total + value, jax.tree.map(jnp.add, gradient, new)), (found, back)

        def skip(carry, hidden, targets, counts, weights):
            return carry, (jnp.zeros(weights.shape), jnp.zeros_like(hidden))

        carry = jnp.zeros(()), [jax.tree.map(jnp.zeros_like, head)] if trained else []
        (total, gradient), (found, back) = chunks(look, skip, carry, hidden, parts)
        return (total, found), (gradient, back)

    def backward(kept, change):
        if not isinstance(change[1], SymbolicZero):
            raise TypeError('only the sum that `weighted_sum` returns can be differentiated')
        gradient, back = jax.tree.map(lambda x: (x * change[0]).astype(x.dtype), kept)
        return gradient[0] if gradient else None, None, back, None

    project.defvjp(forward, backward, symbolic_zeros=True)
    return project(head, rest, hidden, parts)
