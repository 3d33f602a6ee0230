"""Sessions: a conversation with a model as a value, and sampling from it.

A `Session` holds every id that was fed to or sampled by a model for B conversations, and the key/value cache of all but
the last id. That last token is *pending*: it is fed when the next token is needed. Appending text thus means writing
its ids and letting the cache catch up, every forward pass of the sampling loop yields a token that is used, and ids,
lengths and cache are all that is carried from turn to turn.

All functions are pure: they take a session and return a new one. If they are compiled with the session donated, the
cache is updated in place.

Axis letters: B conversations, L capacity in tokens, K new tokens, V vocabulary.
"""

import dataclasses
from typing import Optional

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from epo_jax.models.decoder import Decoder, KVCache
from epo_jax.runtime.parallel import constrain
from epo_jax.text.tokens import Array, Tokens


@struct.dataclass
class Session:
    """B conversations with a model.

    Attributes:
      ids: every id, exactly as fed or sampled.
      length: number of ids; the cache holds one fewer.
      turn: -1 for context, t >= 0 for ids that the model sampled in its t-th message.
      logprob: log-probability of a sampled id under the model at temperature 1 and without truncation; 0 for context.
      turns: number of messages generated so far.
      overflow: whether something did not fit; such a row does not change any more.
      cache: keys and values.
    """

    ids: Int[Array, 'B L']
    length: Int[Array, ' B']
    turn: Int[Array, 'B L']
    logprob: Float[Array, 'B L']
    turns: Int[Array, ' B']
    overflow: Bool[Array, ' B']
    cache: KVCache


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How a message is sampled. Static: every value is a program of its own.

    Attributes:
      max_tokens: longest message, with its stop token.
      stop: ids that end a message and are not part of it, such as the end-of-turn token.
      closing: ids that end a message and are part of it, such as those with a closing quotation mark.
      temperature: sampling temperature; 0 takes the most probable token.
      top_k: sample among the k most probable tokens; 0 among all.
      top_p: sample among the most probable tokens that hold this share of the probability; 1 among all.
      min_tokens: smallest number of tokens of a message.
      no_repeat: no sequence of this many tokens may occur twice in a conversation; 0 allows all.
    """

    max_tokens: int
    stop: tuple[int, ...]
    closing: tuple[int, ...] = ()
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_tokens: int = 0
    no_repeat: int = 0

    def __post_init__(self):
        small = min(self.min_tokens, self.no_repeat, self.top_k, self.temperature)
        if self.max_tokens < 1 or small < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f'these sampling settings are impossible: {self}')
        if not self.stop:
            raise ValueError('a message needs at least one stop id')


def open_session(model: Decoder, batch: int, capacity: int) -> Session:
    """Return a session of `batch` empty conversations of at most `capacity` tokens."""
    rows = lambda value, dtype, *shape: constrain(model.mesh, jnp.full((batch, *shape), value, dtype), 'rows')
    return Session(
        ids=rows(0, jnp.int32, capacity),
        length=rows(0, jnp.int32),
        turn=rows(-1, jnp.int32, capacity),
        logprob=rows(0, jnp.float32, capacity),
        turns=rows(0, jnp.int32),
        overflow=rows(False, bool),
        cache=model.init_cache(batch, capacity))


def clear(session: Session, rows) -> Session:
    """Empty the conversations of rows bool[B]; later tokens overwrite their part of the cache."""
    row = rows[:, None]
    return session.replace(
        ids=jnp.where(row, 0, session.ids),
        length=jnp.where(rows, 0, session.length),
        turn=jnp.where(row, -1, session.turn),
        logprob=jnp.where(row, 0, session.logprob),
        turns=jnp.where(rows, 0, session.turns),
        overflow=session.overflow & ~rows)


def last_id(session: Session) -> jax.Array:
    """Return the pending token, i32[B]; -1 where a conversation is empty."""
    at = jnp.maximum(session.length - 1, 0)
    last = jnp.take_along_axis(session.ids, at[:, None], axis=1)[:, 0]
    return jnp.where(session.length > 0, last, -1)


def extend(model: Decoder, params, session: Session, tokens: Tokens, chunk: int = 64) -> Session:
    """Append context. Only the new tokens are run through the model, in as many chunks as the longest row needs.

    Args:
      model: the decoder.
      params: its parameters.
      session: the conversations so far.
      tokens: the new tokens [B, K]; rows of length 0 stay as they are.
      chunk: number of tokens of a row that are run at once; static.

    Returns:
      The longer session. A row that would leave no space for one more token stays as it is and overflows.
    """
    session, added = _append(session, tokens)
    return session.replace(cache=_feed(model, params, session, added, session.length - 1, chunk)[0])


def _append(session: Session, tokens: Tokens) -> tuple[Session, jax.Array]:
    """Write ids, which the cache does not hold yet; return the session and the number of written ids, i32[B]."""
    batch, capacity = session.ids.shape
    fits = (session.length + tokens.length < capacity) | (tokens.length == 0)
    added = jnp.where(fits & ~session.overflow, tokens.length, 0)
    at = jnp.arange(tokens.ids.shape[1])
    at = jnp.where(at < added[:, None], session.length[:, None] + at, capacity)
    return session.replace(
        ids=session.ids.at[jnp.arange(batch)[:, None], at].set(tokens.ids, mode='drop'),
        length=session.length + added,
        overflow=session.overflow | ~fits), added


def _feed(model: Decoder, params, session: Session, added, stop, chunk: int, hidden: Optional[jax.Array] = None):
    """Run tokens through the model.

    Args:
      model, params, session, chunk: see `extend`.
      added: i32[B], number of ids that were just written. The token that was pending before them is run too.
      stop: i32[B], the position before which to stop.
      hidden: [B, W], for rows without any token to run; None if hidden states are not needed.

    Returns:
      The cache, and the hidden state [B, W] of the last token of every row, or None.
    """
    capacity, start = session.ids.shape[1], jnp.maximum(session.length - added - 1, 0)
    steps = (jnp.max(stop - start) + chunk - 1) // chunk

    def step(i, carry):
        cache, last = carry
        first = start + i * chunk
        positions = first[:, None] + jnp.arange(chunk)
        ids = jnp.take_along_axis(session.ids, positions, axis=1, mode='clip')
        positions = jnp.where(positions < stop[:, None], positions, capacity)
        new, cache = model.apply({'params': params}, ids, positions, cache)
        if last is not None:
            end = stop - 1 - first
            found = jnp.take_along_axis(new, end[:, None, None], axis=1, mode='clip')[:, 0]
            last = jnp.where(((end >= 0) & (end < chunk))[:, None], found, last)
        return cache, last

    return jax.lax.fori_loop(0, steps, step, (session.cache, hidden))


def next_logits(model: Decoder, params, session: Session, live=None) -> tuple[Session, jax.Array]:
    """Feed the pending token of every live row; return the session and the logits of the next token.

    Args:
      model, params, session: see `extend`.
      live: bool[B]; None for all rows.

    Returns:
      (session, f32[B, V]).
    """
    capacity = session.ids.shape[1]
    at = jnp.maximum(session.length - 1, 0)
    ids = jnp.take_along_axis(session.ids, at[:, None], axis=1)
    at = at if live is None else jnp.where(live, at, capacity)
    hidden, cache = model.apply({'params': params}, ids, at[:, None], session.cache)
    logits = model.apply({'params': params}, hidden[:, 0], method='logits')
    return session.replace(cache=cache), logits


def peek(model: Decoder, params, session: Session, tokens: Tokens, chunk: int = 64,
         stay=False) -> tuple[Session, jax.Array]:
    """Return the logits of the next token after `tokens`, without keeping these unless `stay` is true.

    Tokens that do not stay are written to the cache behind the end of the conversation, and the session keeps its
    length. What is appended next overwrites them, so the cache is never copied.

    Args:
      model, params, session, chunk: see `extend`.
      tokens: [B, K].
      stay: bool[], whether the tokens become part of the conversation.

    Returns:
      (session, f32[B, V]). The logits of a row that has overflowed are NaN.
    """
    longer, added = _append(session, tokens)
    cache, hidden = _feed(
        model, params, longer, added, longer.length, chunk, jnp.zeros((len(added), model.config.width), model.dtype))
    logits = model.apply({'params': params}, hidden, method='logits')
    kept = jax.tree.map(lambda new, old: jnp.where(stay, new, old), *(s.replace(cache=()) for s in (longer, session)))
    return kept.replace(cache=cache), jnp.where(longer.overflow[:, None], jnp.nan, logits)


def generate(model: Decoder, params, session: Session, keys: jax.Array, live: jax.Array,
             config: SamplingConfig, choices: Optional[Tokens] = None) -> tuple[Session, Tokens]:
    """Sample one message in every live row.

    Args:
      model, params, session: see `extend`.
      keys: key[B]. The token at position p of a row is sampled with fold_in(key, p), so that a message does not depend
        on the other rows.
      live: bool[B], the rows that sample; the others, and rows that have overflowed, stay as they are.
      config: see there.
      choices: Tokens [B, C, K] (lengths i32[B, C]). The message of a row with any choice that is not empty is one of
        them, sampled token by token along their prefix tree. None allows every message. Needs config.max_tokens > K, or
        a choice may be cut off.

    Returns:
      The session, and the messages [B, config.max_tokens] without their stop tokens. In the session, the sampled ids
      with the stop token carry their turn and log-probability. A message that was cut off at max_tokens has no stop
      token; one that was cut off at the capacity overflows.
    """
    batch, capacity = session.ids.shape
    rows = jnp.arange(batch)
    stops, ends = jnp.array(config.stop), jnp.array(config.stop + config.closing)
    live = live & ~session.overflow & (session.length > 0)
    session = session.replace(overflow=session.overflow | (live & (session.length >= capacity)))
    live = live & ~session.overflow
    begin = session.length

    def step(carry):
        session, going, count, possible = carry
        session, logits = next_logits(model, params, session, going)
        barred = jnp.zeros(logits.shape, bool).at[:, ends].set(count < config.min_tokens)
        if config.no_repeat:
            barred |= would_repeat(session, config.no_repeat, logits.shape[-1])
        if choices is not None:
            follow = _follow(choices, possible, count, config.stop[0])
            allowed = jnp.zeros(logits.shape, bool).at[rows[:, None], follow].set(True, mode='drop')
            barred = jnp.where(possible.any(axis=1)[:, None], ~allowed, barred)
        new, logprob = sample(logits, jax.vmap(jax.random.fold_in)(keys, session.length), config, barred)
        at = jnp.where(going, session.length, capacity)
        session = session.replace(
            ids=session.ids.at[rows, at].set(new, mode='drop'),
            turn=session.turn.at[rows, at].set(session.turns, mode='drop'),
            logprob=session.logprob.at[rows, at].set(logprob, mode='drop'),
            length=session.length + going)
        stopped = going & (new[:, None] == ends).any(axis=1)
        if choices is not None:  # a choice may contain ids that would end a free message
            stopped = jnp.where(possible.any(axis=1), going & (new == config.stop[0]), stopped)
        full = going & ~stopped & (session.length >= capacity)
        session = session.replace(overflow=session.overflow | full)
        if choices is not None:
            possible &= follow == new[:, None]
        return session, going & ~stopped & ~full, count + 1, possible

    possible = None if choices is None else choices.length > 0
    session, _, _, _ = jax.lax.while_loop(
        lambda carry: carry[1].any() & (carry[2] < config.max_tokens), step, (session, live, 0, possible))

    last = last_id(session)
    size = session.length - begin - (live & (last[:, None] == stops).any(axis=1))
    session = session.replace(turns=session.turns + live)
    window = jnp.minimum(begin[:, None] + jnp.arange(config.max_tokens), capacity - 1)
    return session, Tokens(jnp.take_along_axis(session.ids, window, axis=1), size)


def _follow(choices: Tokens, possible, count, end: int) -> jax.Array:
    """Return the next id of every choice, i32[B, C].

    Args:
      choices: see `generate`.
      possible: bool[B, C], choices that begin with what was sampled; the others get an id outside any vocabulary.
      count: number of ids sampled so far.
      end: the id after the last one of a choice.
    """
    at = jnp.minimum(count, choices.ids.shape[-1] - 1)
    new = jnp.where(count < choices.length, jax.lax.dynamic_index_in_dim(choices.ids, at, 2, keepdims=False), end)
    return jnp.where(possible & (count <= choices.length), new, jnp.iinfo(jnp.int32).max)


def would_repeat(session: Session, size: int, vocab_size: int) -> jax.Array:
    """Return the tokens that would complete a sequence of `size` ids which a row already contains, bool[B, V]."""
    length, capacity = session.length[:, None], session.ids.shape[1]
    starts = jnp.arange(capacity - size + 1)
    same = starts + size <= length  # sequences within the row
    for i in range(size - 1):
        at = jnp.maximum(length - size + 1 + i, 0)
        same &= session.ids[:, i:i + len(starts)] == jnp.take_along_axis(session.ids, at, axis=1)
    follower = jnp.where(same, session.ids[:, size - 1:], vocab_size)
    rows = jnp.arange(len(session.ids))[:, None]
    return jnp.zeros((len(session.ids), vocab_size), bool).at[rows, follower].set(True, mode='drop')


def sample(logits: jax.Array, keys: jax.Array, config: SamplingConfig,
           barred: Optional[jax.Array] = None) -> tuple[jax.Array, jax.Array]:
    """Sample one token a row, by inverse transform sampling.

    One uniform number a row, compared with the cumulative sum of the weights, costs a fraction of V Gumbel numbers.

    Args:
      logits: f32[B, V].
      keys: key[B]; the sample of a row depends on its own key alone.
      config: see there.
      barred: bool[B, V], tokens that are not sampled.

    Returns:
      (token i32[B], f32[B] its log-probability under the model at temperature 1, without truncation and bars).
    """
    kept = logits if barred is None else jnp.where(barred, -jnp.inf, logits)
    if config.temperature == 0:
        token = jnp.argmax(kept, axis=-1).astype(jnp.int32)
        return token, _logprob(logits, token)
    names: Optional[jax.Array] = None
    if config.top_k:
        kept, names = jax.lax.top_k(kept, min(config.top_k, logits.shape[-1]))
    weights = jnp.exp((kept - kept.max(axis=-1, keepdims=True)) / config.temperature)
    if config.top_p < 1:
        weights = jnp.where(weights >= _nucleus(weights, config.top_p), weights, 0.0)
    total = jnp.cumsum(weights, axis=-1)
    uniform = jax.vmap(lambda key: jax.random.uniform(key))(keys)[:, None]
    # The first index with a weight whose cumulative sum exceeds the draw. XLA does not add in order, so rounding may
    # let the sum grow where there is no weight, and a draw may round up to the total.
    at = jnp.arange(weights.shape[-1])
    place = jnp.min(jnp.where((weights > 0) & (total > uniform * total[:, -1:]), at, at[-1]), axis=-1)
    place = jnp.minimum(place, jnp.max(jnp.where(weights > 0, at, 0), axis=-1))
    token = place if names is None else jnp.take_along_axis(names, place[:, None], axis=1)[:, 0]
    token = token.astype(jnp.int32)
    return token, _logprob(logits, token)


def _nucleus(weights: jax.Array, top_p: float) -> jax.Array:
    """Return the largest threshold [B, 1] such that the weights at or above it hold the share `top_p`.

    It is found by bisection, which costs far less than sorting the vocabulary.
    """
    goal = top_p * weights.sum(axis=-1, keepdims=True)

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        enough = jnp.where(weights >= middle, weights, 0.0).sum(axis=-1, keepdims=True) >= goal
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    bounds = jnp.zeros_like(goal), weights.max(axis=-1, keepdims=True) * 1.0001
    return jax.lax.fori_loop(0, 40, halve, bounds)[0]


def _logprob(logits: jax.Array, token: jax.Array) -> jax.Array:
    """Return log softmax(logits)[token] over the last axis, float32."""
    chosen = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)
