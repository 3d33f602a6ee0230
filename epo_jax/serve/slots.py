"""What the engine runs on the device: a session whose rows are slots, each with sampling settings of its own.

A slot holds one conversation. `place` gives it to a request and cuts it back to the prefix that both share, `read`
appends tokens to one slot, and `decode` samples a few tokens in all live slots at once. Every function donates the
slots, so that XLA updates the cache in place.

Axis letters: B slots, L capacity in tokens, K tokens, N steps, T most probable tokens, V vocabulary.
"""

import functools
from typing import NamedTuple

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, UInt32

from epo_jax.models import sampling
from epo_jax.models.decoder import Decoder
from epo_jax.models.sampling import Session
from epo_jax.text.tokens import Array, Tokens

TOP = 20  # most probable tokens that are returned where they are asked for, as in OpenAI's API


@struct.dataclass
class Settings:
    """How each slot samples; the fields are those of `sampling.SamplingConfig`, but may differ between slots.

    Attributes:
      key: data of a random key. As in `sampling.generate`, a token at position p is sampled with fold_in(key, p).
      temperature: 0 selects the most probable token.
      top_p, top_k, min_tokens, max_tokens: as in SamplingConfig; top_k = 0 means all tokens.
      no_repeat: whether sequences of the engine's `no_repeat` tokens must not occur twice.
      ends: ids that end a message.
      banned: ids that are never sampled.
    """

    key: UInt32[Array, 'B 2']
    temperature: Float[Array, ' B']
    top_p: Float[Array, ' B']
    top_k: Int[Array, ' B']
    min_tokens: Int[Array, ' B']
    max_tokens: Int[Array, ' B']
    no_repeat: Bool[Array, ' B']
    ends: Bool[Array, 'B V']
    banned: Bool[Array, 'B V']


@struct.dataclass
class Slots:
    """The conversations, their settings, and the number of tokens that each has sampled for its present message."""

    session: Session
    settings: Settings
    count: Int[Array, ' B']


class Sampled(NamedTuple):
    """The tokens of one `decode`; id -1 where a slot did not sample.

    Attributes:
      ids, logprob: the tokens and their log-probabilities at temperature 1.
      top_ids, top_logprob: the TOP most probable tokens, or arrays of width 0.
      broken: whether logits were not finite.
    """

    ids: Int[Array, 'N B']
    logprob: Float[Array, 'N B']
    top_ids: Int[Array, 'N B T']
    top_logprob: Float[Array, 'N B T']
    broken: Bool[Array, ' B']


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def open_slots(model: Decoder, batch: int, capacity: int) -> Slots:
    """Return `batch` empty slots of `capacity` tokens."""
    numbers, vocab = lambda dtype: jnp.zeros(batch, dtype), jnp.zeros((batch, model.config.vocab_size), bool)
    integers = numbers(jnp.int32)
    return Slots(sampling.open_session(model, batch, capacity), Settings(
        jnp.zeros((batch, 2), jnp.uint32), numbers(jnp.float32), numbers(jnp.float32), integers, integers, integers,
        numbers(bool), vocab, vocab), integers)


@functools.partial(jax.jit, donate_argnums=0)
def place(slots: Slots, row: int, length: int, settings: Settings) -> Slots:
    """Give a slot to a request: keep the first `length` ids of its conversation, and sample with new settings."""
    session = slots.session
    at = lambda x, value: x.at[row].set(value)
    session = session.replace(length=at(session.length, length), broken=at(session.broken, False))
    return slots.replace(
        session=session, count=at(slots.count, 0), settings=jax.tree.map(at, slots.settings, settings))


@functools.partial(jax.jit, donate_argnums=0)
def ban(slots: Slots, row: int, banned: Bool[Array, ' V']) -> Slots:
    """Change which ids a slot never samples."""
    settings = slots.settings
    return slots.replace(settings=settings.replace(banned=settings.banned.at[row].set(banned)))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def copy_row(model: Decoder, slots: Slots, source: int, target: int) -> Slots:
    """Copy a slot to another one."""
    return _put_row(model, slots, _row(model, slots, source), target)


@functools.partial(jax.jit, static_argnums=(0, 5), donate_argnums=2)
def read(model: Decoder, params, slots: Slots, row: int, tokens: Tokens, chunk: int) -> Slots:
    """Append tokens to the conversation of one slot, in as many chunks as they need.

    Args:
      model: the decoder.
      params: its parameters.
      slots: the slots.
      row: the slot. Only its row of the cache is run through the model, so the other slots cost nothing.
      tokens: the tokens, [1, K].
      chunk: number of tokens in one forward pass; static.
    """
    part = _row(model, slots, row)
    session = sampling.extend(model, params, part.session, tokens, chunk)
    return _put_row(model, slots, part.replace(session=session), row)


@functools.partial(jax.jit, static_argnums=(0, 5, 6, 7), donate_argnums=2)
def decode(model: Decoder, params, slots: Slots, live: Bool[Array, ' B'], steps: int, block: int, top: int,
           no_repeat: int) -> tuple[Slots, Sampled]:
    """Sample up to `steps` tokens in every live slot, and stop early as soon as one of them ends its message.

    Args:
      model: the decoder.
      params: its parameters.
      slots: the slots; live ones must have room for `steps` tokens.
      live: slots that sample.
      steps: largest number of tokens, at most `block`.
      block: number of rows of the result; static.
      top: number of most probable tokens to return; static.
      no_repeat: size of token sequences that must not occur twice, where the settings say so; static.
    """
    batch, capacity = slots.session.ids.shape
    rows = jnp.arange(batch)
    sampled = Sampled(
        jnp.full((block, batch), -1, jnp.int32), jnp.zeros((block, batch)), jnp.zeros((block, batch, top), jnp.int32),
        jnp.zeros((block, batch, top)), jnp.zeros(batch, bool))

    def step(carry):
        i, slots, sampled, _ = carry
        settings = slots.settings
        session, logits = sampling.next_logits(model, params, slots.session, live)
        banned = settings.banned | (settings.ends & (slots.count < settings.min_tokens)[:, None])
        if no_repeat:
            repeats = sampling.would_repeat(session, no_repeat, logits.shape[-1])
            banned |= repeats & settings.no_repeat[:, None]
        banned &= ~(banned.all(axis=1)[:, None] & settings.ends)  # where nothing is left to say, the message ends
        keys = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(settings.key), session.length)
        new = choose(logits, keys, settings, banned)
        logprob = sampling.logprob_of(logits, new)
        at = jnp.where(live, session.length, capacity)
        session = session.replace(
            ids=session.ids.at[rows, at].set(new, mode='drop'), length=session.length + live,
            broken=session.broken | (live & ~jnp.isfinite(logprob)))
        count = slots.count + live
        ended = live & (settings.ends[rows, new] | (count >= settings.max_tokens) | session.broken)
        best, best_ids = jax.lax.top_k(logits, top) if top else (jnp.zeros((batch, 0)), jnp.zeros((batch, 0), int))
        record = Sampled(jnp.where(live, new, -1), logprob, best_ids,
                         best - jax.nn.logsumexp(logits, axis=-1, keepdims=True), session.broken)
        sampled = Sampled(*(old.at[i].set(x) for old, x in zip(sampled[:4], record[:4])), record.broken)
        return i + 1, slots.replace(session=session, count=count), sampled, ended.any()

    _, slots, sampled, _ = jax.lax.while_loop(
        lambda carry: (carry[0] < steps) & ~carry[3], step, (0, slots, sampled, False))
    return slots, sampled


@functools.partial(jax.jit, static_argnums=(0, 5, 6, 7), donate_argnums=2)
def decode_row(model: Decoder, params, slots: Slots, row: int, steps: int, block: int, top: int,
               no_repeat: int) -> tuple[Slots, Sampled]:
    """Sample in one slot as `decode` does, without running the others through the model; the result has B = 1."""
    part, sampled = decode(
        model, params, _row(model, slots, row), jnp.ones(1, bool), steps, block, top, no_repeat)
    return _put_row(model, slots, part, row), sampled


def choose(logits: Float[Array, 'B V'], keys, settings: Settings, banned: Bool[Array, 'B V']) -> Int[Array, ' B']:
    """Sample one token per slot, as `sampling.sample` does, with the settings of the slot.

    What no slot asks for is not computed.
    """
    masked = jnp.where(banned, -jnp.inf, logits)
    most_probable = jnp.argmax(masked, axis=-1).astype(jnp.int32)

    def sample():
        temperature = jnp.where(settings.temperature > 0, settings.temperature, 1.0)[:, None]
        weights = jnp.exp((masked - masked.max(axis=-1, keepdims=True)) / temperature)
        weights = jax.lax.cond((settings.top_k > 0).any(), lambda: _largest(weights, settings.top_k), lambda: weights)

        def nucleus():
            threshold = sampling.nucleus(weights, settings.top_p[:, None])
            return jnp.where((weights >= threshold) | (settings.top_p >= 1)[:, None], weights, 0.0)

        weights = jax.lax.cond((settings.top_p < 1).any(), nucleus, lambda: weights)
        return sampling.draw(weights, keys).astype(jnp.int32)

    drawn = jax.lax.cond((settings.temperature > 0).any(), sample, lambda: most_probable)
    return jnp.where(settings.temperature > 0, drawn, most_probable)


def _largest(weights: Float[Array, 'B V'], top_k: Int[Array, ' B']) -> Float[Array, 'B V']:
    """Set all but the `top_k` largest weights of a row to 0; equal ones stay together. 0 keeps all.

    The threshold is found by bisection of the logarithm, which is much cheaper than sorting the vocabulary.
    """
    logs = jnp.log(weights)

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        enough = (logs >= middle[:, None]).sum(axis=-1) >= top_k
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    zeros = jnp.zeros(len(weights))
    threshold = jax.lax.fori_loop(0, 40, halve, (zeros - 100.0, zeros + 1e-3))[0]
    return jnp.where((logs >= threshold[:, None]) | (top_k == 0)[:, None], weights, 0.0)


@functools.partial(jax.jit, static_argnums=(0, 2))
def resize(model: Decoder, slots: Slots, capacity: int) -> Slots:
    """Return the slots with another capacity; what does not fit is lost, and the caller must not need it."""
    batch, old = slots.session.ids.shape
    shapes = [jax.eval_shape(lambda size=size: sampling.open_session(model, batch, size)) for size in (old, capacity)]

    def fit(x, before, after):
        x = x[tuple(slice(n) for n in after.shape)]
        return jnp.pad(x, [(0, n - m) for n, m in zip(after.shape, x.shape)])

    return slots.replace(session=jax.tree.map(fit, slots.session, *shapes))


def _row(model: Decoder, slots: Slots, row) -> Slots:
    """Return one slot."""
    return _by_row(model, lambda x, axis: jax.lax.dynamic_slice_in_dim(x, row, 1, axis), slots)


def _put_row(model: Decoder, slots: Slots, part: Slots, row) -> Slots:
    """Replace one slot."""
    return _by_row(model, lambda x, new, axis: jax.lax.dynamic_update_slice_in_dim(x, new, row, axis), slots, part)


def _by_row(model: Decoder, function, *slots: Slots) -> Slots:
    """Apply a function to the arrays of slots and the axis of their rows."""
    cache = jax.tree.map(functools.partial(function, axis=int(model.stacked)), *(s.session.cache for s in slots))
    rest = jax.tree.map(
        functools.partial(function, axis=0), *(s.replace(session=s.session.replace(cache=None)) for s in slots))
    return rest.replace(session=rest.session.replace(cache=cache))
