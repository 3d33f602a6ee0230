"""Log-probabilities, entropies and losses of tokens from one full forward pass, for the learner.

Logits never exist for all positions at once. The tokens that count are gathered, projected and reduced in chunks, and
chunks without any such token are skipped. A loss is a function of the statistics of single tokens. Its gradient is
taken inside the chunk, while the logits exist, so that the backward pass does not project again:

    d loss / d logits = (d loss / d logprob) (one_hot - p) - (d loss / d entropy) p (log p + entropy)

Axis letters: N conversations, L token positions, C positions of a chunk, V vocabulary, W residual width.
"""

from typing import Any, Callable, NamedTuple, Optional

from einops import rearrange
import jax
from jax.custom_derivatives import SymbolicZero
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, PyTree

from epo_jax.models.decoder import Decoder
from epo_jax.text.tokens import Array


class Statistics(NamedTuple):
    """What is known of the distribution of every token, in float32.

    Attributes:
      logprob: log-probability of the token given the preceding tokens.
      entropy: entropy of the distribution that the token was drawn from, in nats; None if it is not computed.
    """

    logprob: Float[Array, 'N L']
    entropy: Optional[Float[Array, 'N L']] = None


# logprob f[N, C], entropy f[N, C] or None, data of the same tokens -> loss f[N, C]
TokenLoss = Callable[[jax.Array, Optional[jax.Array], Any], jax.Array]


def score(model: Decoder, params, ids: Int[Array, 'N L'], chunk: int = 256) -> Float[Array, 'N L']:
    """Return the log-probability of every token given the preceding tokens; 0 at position 0.

    The result cannot be differentiated; use `summed_loss` instead.

    Args:
      model: the decoder.
      params: its parameters, in either layout.
      ids: token ids.
      chunk: number of tokens, in all rows together, whose logits are computed at once.
    """
    return statistics(model, params, ids, jnp.ones(ids.shape, bool), chunk).logprob


def statistics(model: Decoder, params, ids: Int[Array, 'N L'], counts: Bool[Array, 'N L'], chunk: int = 256,
               entropy: bool = False) -> Statistics:
    """Return the statistics of tokens, as `summed_loss` does; they cannot be differentiated."""
    no_loss = lambda logprob, entropy, data: jnp.zeros_like(logprob)
    return summed_loss(model, params, ids, counts, no_loss, (), chunk, entropy)[1]


def summed_loss(model: Decoder, params, ids: Int[Array, 'N L'], counts: Bool[Array, 'N L'], loss: TokenLoss,
                data: PyTree[Float[Array, 'N L ...']], chunk: int = 256,
                entropy: bool = False) -> tuple[Float[Array, ''], Statistics]:
    """Return the sum of the losses of tokens, and the statistics of the tokens. Only the sum can be differentiated.

    Args:
      model: the decoder.
      params: its parameters, in either layout.
      ids: token ids.
      counts: tokens that count; the losses and statistics of all others are 0.
      loss: maps (logprob, entropy, data) of N x C tokens to their losses. A token's loss may depend on this token only,
        and must be finite for a logprob and an entropy of 0.
      data: what the loss needs to know besides; a tree of arrays, which are not differentiated.
      chunk: number of tokens, in all rows together, whose logits are computed at once.
      entropy: whether the loss reads the entropy; it is None otherwise, which saves an array of the size of the logits.

    Returns:
      The sum, and the statistics, which are 0 at position 0.

    Raises:
      TypeError: the statistics, or a loss by its data, are differentiated.
      ValueError: the loss does not return one number per token.
    """
    rows, length = ids.shape
    positions = jnp.broadcast_to(jnp.arange(length), ids.shape)
    hidden, _ = model.apply({'params': params}, ids, positions)
    # Position l predicts token l + 1. Move the tokens that count to the front, so that whole chunks can be skipped.
    shift = lambda x: jnp.roll(x, -1, axis=1)
    counts = shift(counts) & (positions < length - 1)
    order = jnp.argsort(~counts, axis=1, stable=True)
    size = max(1, chunk // rows)
    padding = -length % size

    def split(x):
        """Reorder x [N, L, ...] and split it into [chunks, N, C, ...]."""
        x = jnp.take_along_axis(x, order.reshape(*order.shape, *[1] * (x.ndim - 2)), axis=1)
        x = jnp.pad(x, ((0, 0), (0, padding), *[(0, 0)] * (x.ndim - 2)))
        return rearrange(x, 'n (s c) ... -> s n c ...', c=size)

    def join(x):
        """Undo `split` and `shift` for x [chunks, N, C]."""
        x = rearrange(x, 's n c -> n (s c)')[:, :length]
        return jnp.roll(jnp.take_along_axis(x, jnp.argsort(order, axis=1), axis=1), 1, axis=1)

    chunks = split(shift(ids)), split(counts), jax.tree.map(lambda x: split(shift(x)), data)
    name = 'embed' if model.config.tied else 'head'
    total, found = _project(
        model, loss, entropy, {name: params[name]}, jax.lax.stop_gradient({'embed': params['embed']}), split(hidden),
        chunks)
    return total, jax.tree.map(join, found)


def _project(model: Decoder, loss: TokenLoss, entropy: bool, head, rest, hidden, chunks):
    """Return the summed loss f32[] and the Statistics of [chunks, N, C] tokens.

    Args:
      model, loss, entropy: as in `summed_loss`.
      head: the parameters that project to the vocabulary.
      rest: other parameters that the model needs; they get no gradient.
      hidden: [chunks, N, C, W].
      chunks: target ids [chunks, N, C], counts [chunks, N, C], and the data of the loss [chunks, N, C, ...].
    """
    def reduce(logits, targets, counts, data):
        """Return the summed loss, the statistics [N, C], and the gradient of the loss by the logits [N, C, V]."""
        logprob = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
        at_counts = lambda x: jnp.where(counts, x, 0)
        found = Statistics(
            at_counts(jnp.take_along_axis(logprob, targets[..., None], axis=-1)[..., 0]),
            at_counts(-(jnp.exp(logprob) * logprob).sum(axis=-1)) if entropy else None)

        def summed(found):
            losses = loss(found.logprob, found.entropy, data)
            if losses.shape != counts.shape:
                raise ValueError(f'a loss must return one number per token, of shape {counts.shape}, not '
                                 f'{losses.shape}')
            return at_counts(losses).sum().astype(total_type)

        value, slope = jax.value_and_grad(summed)(found)
        slope = jax.tree.map(lambda x: at_counts(x)[..., None], slope)
        d_logits = slope.logprob * (is_target - jnp.exp(logprob))
        if entropy:
            d_logits -= slope.entropy * jnp.exp(logprob) * (logprob + found.entropy[..., None])
        return value, found, d_logits

    def nothing(counts):
        """Return the statistics of a chunk without tokens that count."""
        zeros = jnp.zeros(counts.shape, total_type)
        return Statistics(zeros, zeros if entropy else None)

    def scan(run, skip, carry, hidden, chunks):
        """Scan chunks with `run`, or with `skip` if no token counts: (carry, hidden, *chunk) -> (carry, results)."""
        step = lambda carry, chunk: jax.lax.cond(chunk[2].any(), run, skip, carry, *chunk)
        return jax.lax.scan(step, carry, (hidden, *chunks))

    to_logits = lambda head, rest, hidden: model.apply({'params': rest | head}, hidden, method='logits')
    total_type = jax.eval_shape(to_logits, head, rest, hidden).dtype

    @jax.custom_vjp
    def project(head, rest, hidden, chunks):
        def run(total, hidden, *chunk):
            value, found, _ = reduce(to_logits(head, rest, hidden), *chunk)
            return total + value, found

        skip = lambda total, hidden, targets, counts, data: (total, nothing(counts))
        return scan(run, skip, jnp.zeros((), total_type), hidden, chunks)

    def forward(head, rest, hidden, chunks):
        head_is_trained = any(x.perturbed for x in jax.tree.leaves(head))  # it is frozen if an adapter is trained
        if any(x.perturbed for x in jax.tree.leaves(chunks)):
            raise TypeError('the data of a loss is not differentiated; apply jax.lax.stop_gradient to it')
        head, rest, hidden, chunks = jax.tree.map(lambda x: x.value, (head, rest, hidden, chunks))

        def run(carry, hidden, *chunk):
            total, d_head = carry
            trained = (hidden, *([head] if head_is_trained else []))
            logits, vjp = jax.vjp(lambda hidden, head=head: to_logits(head, rest, hidden), *trained)
            value, found, d_logits = reduce(logits, *chunk)
            d_hidden, *new = vjp(d_logits)
            return (total + value, jax.tree.map(jnp.add, d_head, new)), (found, d_hidden)

        def skip(carry, hidden, targets, counts, data):
            return carry, (nothing(counts), jnp.zeros_like(hidden))

        carry = jnp.zeros((), total_type), [jax.tree.map(jnp.zeros_like, head)] if head_is_trained else []
        (total, d_head), (found, d_hidden) = scan(run, skip, carry, hidden, chunks)
        return (total, found), (d_head, d_hidden)

    def backward(gradients, d_result):
        d_total, d_statistics = d_result
        if not all(isinstance(x, SymbolicZero) for x in jax.tree.leaves(
                d_statistics, is_leaf=lambda x: isinstance(x, SymbolicZero))):
            raise TypeError('the statistics that `summed_loss` returns cannot be differentiated, only the sum')
        d_head, d_hidden = jax.tree.map(lambda x: (x * d_total).astype(x.dtype), gradients)
        return d_head[0] if d_head else None, None, d_hidden, None

    project.defvjp(forward, backward, symbolic_zeros=True)
    return project(head, rest, hidden, chunks)
