"""Log-probabilities and entropies from one full forward pass, for the learner.

Logits never exist for all positions at once. The tokens that count are gathered, projected and reduced in chunks, and
chunks without any such token are skipped. Because the objective is linear in the log-probabilities (rl/losses.py), the
weight of every token is known before the forward pass. Therefore the gradient of a chunk is computed while its logits
exist, and the backward pass does not project again.

Axis letters: N conversations, L token positions, C positions of a chunk, M statistics per token (log-probability and
optionally entropy), V vocabulary, W residual width.
"""

from einops import rearrange
import jax
from jax.custom_derivatives import SymbolicZero
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from epo_jax.models.decoder import Decoder
from epo_jax.text.tokens import Array


def score(model: Decoder, params, ids: Int[Array, 'N L'], chunk: int = 256) -> Float[Array, 'N L']:
    """Return the log-probability of every token given the preceding tokens; 0 at position 0.

    The result cannot be differentiated; use `weighted_sum` instead.

    Args:
      model: the decoder.
      params: its parameters, in either layout.
      ids: token ids.
      chunk: number of tokens, in all rows together, whose logits are computed at once.
    """
    return weighted_sum(model, params, ids, jnp.ones(ids.shape, bool), jnp.ones((1, *ids.shape)), chunk)[1][0]


def weighted_sum(model: Decoder, params, ids: Int[Array, 'N L'], counts: Bool[Array, 'N L'],
                 weights: Float[Array, 'M N L'], chunk: int = 256) -> tuple[Float[Array, ''], Float[Array, 'M N L']]:
    """Return a weighted sum of statistics of tokens, and the statistics. Only the sum can be differentiated.

    Args:
      model: the decoder.
      params: its parameters, in either layout.
      ids: token ids.
      counts: tokens that count; the statistics of all others are 0.
      weights: weights of the log-probability of each token and, if M is 2, of the entropy (in nats) of the distribution
        that the token was sampled from.
      chunk: number of tokens, in all rows together, whose logits are computed at once.

    Returns:
      The sum, and the float32 statistics, which are 0 at position 0.
    """
    rows, length = ids.shape
    positions = jnp.broadcast_to(jnp.arange(length), ids.shape)
    hidden, _ = model.apply({'params': params}, ids, positions)
    # Position l predicts token l + 1. Move the tokens that count to the front, so that whole chunks can be skipped.
    shift = lambda x: jnp.roll(x, -1, axis=-1)
    counts = shift(counts) & (positions < length - 1)
    order = jnp.argsort(~counts, axis=1, stable=True)
    size = max(1, chunk // rows)
    padding = -length % size

    def split(x):
        """Reorder x [N, L, ...] and split it into [chunks, N, C, ...]."""
        x = jnp.take_along_axis(x, order.reshape(*order.shape, *[1] * (x.ndim - 2)), axis=1)
        x = jnp.pad(x, ((0, 0), (0, padding), *[(0, 0)] * (x.ndim - 2)))
        return rearrange(x, 'n (s c) ... -> s n c ...', c=size)

    chunks = split(shift(ids)), split(counts), split(rearrange(shift(weights), 'm n l -> n l m'))
    name = 'embed' if model.config.tied else 'head'
    total, statistics = _project(
        model, {name: params[name]}, jax.lax.stop_gradient({'embed': params['embed']}), split(hidden), chunks)
    statistics = rearrange(statistics, 's n c m -> n (s c) m')[:, :length]
    statistics = jnp.take_along_axis(statistics, jnp.argsort(order, axis=1)[:, :, None], axis=1)
    return total, rearrange(jnp.roll(statistics, 1, axis=1), 'n l m -> m n l')


def _project(model: Decoder, head, rest, hidden, chunks):
    """Return the weighted sum f32[] and the statistics f32[chunks, N, C, M].

    Args:
      model: the decoder.
      head: the parameters that project to the vocabulary.
      rest: other parameters that the model needs; they get no gradient.
      hidden: [chunks, N, C, W].
      chunks: target ids [chunks, N, C], counts [chunks, N, C] and weights [chunks, N, C, M].
    """
    def reduce(logits, targets, counts, weights):
        """Return the weighted sum, the statistics f32[N, C, M], and the gradient of the sum by logits, f32[N, C, V]."""
        weights = jnp.where(counts[..., None], weights, 0)
        logprob = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
        statistics = [jnp.take_along_axis(logprob, targets[..., None], axis=-1)]
        d_logits = weights[..., :1] * (is_target - jnp.exp(logprob))
        if weights.shape[-1] == 2:
            statistics.append(-(jnp.exp(logprob) * logprob).sum(axis=-1, keepdims=True))
            d_logits -= weights[..., 1:] * jnp.exp(logprob) * (logprob + statistics[1])
        statistics = jnp.where(counts[..., None], jnp.concatenate(statistics, axis=-1), 0)
        return (statistics * weights).sum(), statistics, d_logits

    def scan(run, skip, carry, hidden, chunks):
        """Scan chunks with `run`, or with `skip` if no token counts: (carry, hidden, *chunk) -> (carry, results)."""
        step = lambda carry, chunk: jax.lax.cond(chunk[2].any(), run, skip, carry, *chunk)
        return jax.lax.scan(step, carry, (hidden, *chunks))

    @jax.custom_vjp
    def project(head, rest, hidden, chunks):
        def run(total, hidden, *chunk):
            logits = model.apply({'params': rest | head}, hidden, method='logits')
            value, statistics, _ = reduce(logits, *chunk)
            return total + value, statistics

        skip = lambda total, hidden, targets, counts, weights: (total, jnp.zeros(weights.shape))
        return scan(run, skip, jnp.zeros(()), hidden, chunks)

    def forward(head, rest, hidden, chunks):
        head_is_trained = any(x.perturbed for x in jax.tree.leaves(head))  # it is frozen if an adapter is trained
        head, rest, hidden, chunks = jax.tree.map(lambda x: x.value, (head, rest, hidden, chunks))

        def run(carry, hidden, *chunk):
            total, d_head = carry
            to_logits = lambda hidden, head=head: model.apply({'params': rest | head}, hidden, method='logits')
            logits, vjp = jax.vjp(to_logits, hidden, *([head] if head_is_trained else []))
            value, statistics, d_logits = reduce(logits, *chunk)
            d_hidden, *new = vjp(d_logits)
            return (total + value, jax.tree.map(jnp.add, d_head, new)), (statistics, d_hidden)

        def skip(carry, hidden, targets, counts, weights):
            return carry, (jnp.zeros(weights.shape), jnp.zeros_like(hidden))

        carry = jnp.zeros(()), [jax.tree.map(jnp.zeros_like, head)] if head_is_trained else []
        (total, d_head), (statistics, d_hidden) = scan(run, skip, carry, hidden, chunks)
        return (total, statistics), (d_head, d_hidden)

    def backward(gradients, d_result):
        d_total, d_statistics = d_result
        if not isinstance(d_statistics, SymbolicZero):
            raise TypeError('the statistics that `weighted_sum` returns cannot be differentiated, only the sum')
        d_head, d_hidden = jax.tree.map(lambda x: (x * d_total).astype(x.dtype), gradients)
        return d_head[0] if d_head else None, None, d_hidden, None

    project.defvjp(forward, backward, symbolic_zeros=True)
    return project(head, rest, hidden, chunks)
