"""Sessions (conversations with a model as values) and sampling from them.

A `Session` holds every token id that was fed to a model or sampled from it in B conversations, and the key/value cache
of all ids except the last one. The last id is *pending*: the model reads it when the next token is needed. Thus no
forward pass of the sampling loop is wasted, and nothing except ids, lengths and cache is carried from turn to turn.

All functions are pure: they take a session and return a new one. If they are compiled with a donated session, XLA
updates the cache in place.

Axis letters: B conversations, L capacity in tokens, K tokens of one message, C choices, V vocabulary, W residual width.
"""

import dataclasses
from typing import Optional

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Key

from epo_jax.models.decoder import Decoder, KVCache
from epo_jax.runtime.parallel import constrain
from epo_jax.text.tokens import Array, Tokens


@struct.dataclass
class Session:
    """B conversations with a model.

    Attributes:
      ids: token ids, exactly as fed or sampled.
      length: number of ids; the cache holds one less.
      turn: t for ids that the model sampled in its message t = 0, 1, ...; -1 for context.
      logprob: log-probability of each sampled id under the model at temperature 1, without truncation; 0 for context.
      turns: number of messages that the model has generated.
      overflow: whether some tokens did not fit into the capacity. Such a row is frozen.
      broken: whether the logits of a sampled token were not finite, so that the token means nothing.
      cache: keys and values of the first `length` - 1 ids.
    """

    ids: Int[Array, 'B L']
    length: Int[Array, ' B']
    turn: Int[Array, 'B L']
    logprob: Float[Array, 'B L']
    turns: Int[Array, ' B']
    overflow: Bool[Array, ' B']
    broken: Bool[Array, ' B']
    cache: KVCache


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """Sampling settings. They are static: different settings are compiled separately.

    Attributes:
      max_tokens: maximum number of tokens of a message, including its stop token.
      stop: ids that end a message and are not part of it, such as the end-of-turn token.
      closing: ids that end a message and are part of it, such as those that contain a closing quotation mark.
      banned: ids that are never sampled, such as control tokens; `stop` and `closing` must not be among them.
      temperature: sampling temperature; 0 selects the most probable token.
      top_k: sample from the k most probable tokens; 0 means all tokens.
      top_p: sample from the smallest set of most probable tokens with at least this total probability; 1 means all.
      min_tokens: minimum number of tokens of a message.
      no_repeat: size of token sequences that must not occur twice in a conversation; 0 allows repetition.
    """

    max_tokens: int
    stop: tuple[int, ...]
    closing: tuple[int, ...] = ()
    banned: tuple[int, ...] = ()
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_tokens: int = 0
    no_repeat: int = 0

    def __post_init__(self):
        smallest = min(self.min_tokens, self.no_repeat, self.top_k, self.temperature)
        if self.max_tokens < 1 or smallest < 0 or not 0 < self.top_p <= 1:
            raise ValueError('invalid sampling settings: max_tokens must be positive, min_tokens, no_repeat, top_k and '
                             f'temperature must not be negative, and top_p must be in (0, 1], but got {self}')
        if not self.stop:
            raise ValueError('sampling needs at least one stop id')
        if set(self.banned) & set(self.stop + self.closing):
            raise ValueError('ids that end a message must not be banned')


def open_session(model: Decoder, batch: int, capacity: int) -> Session:
    """Return a session of `batch` empty conversations that hold at most `capacity` tokens each."""
    rows = lambda value, dtype, *shape: constrain(model.mesh, jnp.full((batch, *shape), value, dtype), 'rows')
    return Session(
        ids=rows(0, jnp.int32, capacity),
        length=rows(0, jnp.int32),
        turn=rows(-1, jnp.int32, capacity),
        logprob=rows(0, jnp.float32, capacity),
        turns=rows(0, jnp.int32),
        overflow=rows(False, bool),
        broken=rows(False, bool),
        cache=model.init_cache(batch, capacity))


def clear(session: Session, rows: Bool[Array, ' B']) -> Session:
    """Empty the conversations of the selected rows. New tokens will overwrite their entries of the cache."""
    row = rows[:, None]
    return session.replace(
        ids=jnp.where(row, 0, session.ids),
        length=jnp.where(rows, 0, session.length),
        turn=jnp.where(row, -1, session.turn),
        logprob=jnp.where(row, 0, session.logprob),
        turns=jnp.where(rows, 0, session.turns),
        overflow=session.overflow & ~rows,
        broken=session.broken & ~rows)


def last_id(session: Session) -> Int[Array, ' B']:
    """Return the last id of each row, which is pending, or -1 for an empty conversation."""
    at = jnp.maximum(session.length - 1, 0)
    last = jnp.take_along_axis(session.ids, at[:, None], axis=1)[:, 0]
    return jnp.where(session.length > 0, last, -1)


def extend(model: Decoder, params, session: Session, tokens: Tokens, chunk: int = 64) -> Session:
    """Append context and prefill its tokens, in as many chunks as the longest row needs.

    Args:
      model: the decoder.
      params: its parameters.
      session: the conversations so far.
      tokens: the tokens to append, [B, K]; rows of length 0 do not change.
      chunk: number of tokens per row in one forward pass; static.

    Returns:
      The new session. If a row would have no space left for another token, nothing is appended to it and its `overflow`
      is set.
    """
    session, added = _append(session, tokens)
    return session.replace(cache=_prefill(model, params, session, added, session.length - 1, chunk)[0])


def _append(session: Session, tokens: Tokens) -> tuple[Session, Int[Array, ' B']]:
    """Write ids without updating the cache; return the session and the number of ids written to each row."""
    batch, capacity = session.ids.shape
    fits = (session.length + tokens.length < capacity) | (tokens.length == 0)
    added = jnp.where(fits & ~session.overflow, tokens.length, 0)
    at = jnp.arange(tokens.ids.shape[1])
    at = jnp.where(at < added[:, None], session.length[:, None] + at, capacity)
    return session.replace(
        ids=session.ids.at[jnp.arange(batch)[:, None], at].set(tokens.ids, mode='drop'),
        length=session.length + added,
        overflow=session.overflow | ~fits), added


def _prefill(model: Decoder, params, session: Session, added: Int[Array, ' B'], stop: Int[Array, ' B'], chunk: int,
             hidden: Optional[Float[Array, 'B W']] = None):
    """Run the pending token and the new tokens of every row through the model.

    Args:
      model, params, session, chunk: see `extend`.
      added: number of ids that were just written.
      stop: position of the first token that is not run.
      hidden: result for rows that have no token to run; None if hidden states are not needed.

    Returns:
      The new cache, and the hidden states [B, W] of the last token that was run in every row, or None.
    """
    capacity, start = session.ids.shape[1], jnp.maximum(session.length - added - 1, 0)
    steps = (jnp.max(stop - start) + chunk - 1) // chunk

    def run_chunk(i, carry):
        cache, last = carry
        first = start + i * chunk
        positions = first[:, None] + jnp.arange(chunk)
        ids = jnp.take_along_axis(session.ids, positions, axis=1, mode='clip')
        positions = jnp.where(positions < stop[:, None], positions, capacity)
        new, cache = model.apply({'params': params}, ids, positions, cache)
        if last is not None:
            end = stop - 1 - first
            at_end = jnp.take_along_axis(new, end[:, None, None], axis=1, mode='clip')[:, 0]
            last = jnp.where(((end >= 0) & (end < chunk))[:, None], at_end, last)
        return cache, last

    return jax.lax.fori_loop(0, steps, run_chunk, (session.cache, hidden))


def next_logits(model: Decoder, params, session: Session,
                live: Optional[Bool[Array, ' B']] = None) -> tuple[Session, Float[Array, 'B V']]:
    """Run the pending token of every live row through the model.

    Args:
      model, params, session: see `extend`.
      live: rows to run; None for all rows.

    Returns:
      The session with an updated cache, and the logits of the next token. Logits of rows that are not live have no
      meaning.
    """
    capacity = session.ids.shape[1]
    at = jnp.maximum(session.length - 1, 0)
    ids = jnp.take_along_axis(session.ids, at[:, None], axis=1)
    at = at if live is None else jnp.where(live, at, capacity)
    hidden, cache = model.apply({'params': params}, ids, at[:, None], session.cache)
    logits = model.apply({'params': params}, hidden[:, 0], method='logits')
    return session.replace(cache=cache), logits


def peek(model: Decoder, params, session: Session, tokens: Tokens, chunk: int = 64,
         stay: Bool[Array, ''] | bool = False) -> tuple[Session, Float[Array, 'B V']]:
    """Return the logits of the token after `tokens`, and append `tokens` to the conversation only if `stay` is true.

    The keys and values of tokens that do not stay lie in the cache after the end of the conversation, where the next
    tokens will overwrite them. Therefore the cache is never copied.

    Args:
      model, params, session, chunk: see `extend`.
      tokens: the tokens, [B, K].
      stay: whether the tokens become part of the conversation.

    Returns:
      The session and the logits; NaN for rows that have overflowed.
    """
    extended, added = _append(session, tokens)
    cache, hidden = _prefill(
        model, params, extended, added, extended.length, chunk,
        jnp.zeros((len(added), model.config.width), model.dtype))
    logits = model.apply({'params': params}, hidden, method='logits')
    result = jax.tree.map(
        lambda new, old: jnp.where(stay, new, old), *(s.replace(cache=()) for s in (extended, session)))
    return result.replace(cache=cache), jnp.where(extended.overflow[:, None], jnp.nan, logits)


def generate(model: Decoder, params, session: Session, keys: Key[Array, ' B'], live: Bool[Array, ' B'],
             config: SamplingConfig, choices: Optional[Tokens] = None) -> tuple[Session, Tokens]:
    """Sample one message in every live row.

    Args:
      model, params, session: see `extend`.
      keys: random keys. The token at position p of a row is sampled with fold_in(key, p), so a message does not depend
        on the other rows.
      live: rows that sample; the other rows, and rows that have overflowed, do not change.
      config: the sampling settings.
      choices: allowed messages, ids [B, C, K] and lengths [B, C]. A row that has a non-empty choice samples one of its
        choices, token by token along their prefix tree; other rows sample freely. None lets all rows sample freely.
        Requires config.max_tokens > K, because a choice may be cut off otherwise.

    Returns:
      The session, and the messages [B, config.max_tokens] without their stop tokens. In the session, the sampled ids,
      including stop tokens, carry their turn and log-probability. A message that reaches max_tokens has no stop token;
      a message that reaches the capacity sets `overflow`, and one whose logits are not finite sets `broken`.
    """
    batch, capacity = session.ids.shape
    rows = jnp.arange(batch)
    stops, ends = jnp.array(config.stop), jnp.array(config.stop + config.closing)
    live = live & ~session.overflow & (session.length > 0)
    session = session.replace(overflow=session.overflow | (live & (session.length >= capacity)))
    live = live & ~session.overflow
    start = session.length

    def step(carry):
        session, going, count, possible = carry
        session, logits = next_logits(model, params, session, going)
        never = jnp.zeros(logits.shape[-1], bool).at[jnp.array(config.banned, jnp.int32)].set(True)
        banned = jnp.zeros(logits.shape, bool).at[:, ends].set(count < config.min_tokens) | never
        if config.no_repeat:
            banned |= would_repeat(session, config.no_repeat, logits.shape[-1])
        if choices is not None:
            next_ids = _next_ids(choices, possible, count, config.stop[0])
            allowed = jnp.zeros(logits.shape, bool).at[rows[:, None], next_ids].set(True, mode='drop')
            banned = jnp.where(possible.any(axis=1)[:, None], ~allowed, banned)
        # Where nothing is left to say, the message ends.
        banned = banned.at[:, config.stop[0]].set(banned[:, config.stop[0]] & ~banned.all(axis=1))
        new, logprob = sample(logits, jax.vmap(jax.random.fold_in)(keys, session.length), config, banned)
        at = jnp.where(going, session.length, capacity)
        session = session.replace(
            ids=session.ids.at[rows, at].set(new, mode='drop'),
            turn=session.turn.at[rows, at].set(session.turns, mode='drop'),
            logprob=session.logprob.at[rows, at].set(logprob, mode='drop'),
            length=session.length + going,
            broken=session.broken | (going & ~jnp.isfinite(logprob)))
        stopped = going & (new[:, None] == ends).any(axis=1)
        if choices is not None:  # a choice may contain ids that would end other messages
            stopped = jnp.where(possible.any(axis=1), going & (new == config.stop[0]), stopped)
        full = going & ~stopped & (session.length >= capacity)
        session = session.replace(overflow=session.overflow | full)
        if choices is not None:
            possible &= next_ids == new[:, None]
        return session, going & ~stopped & ~full, count + 1, possible

    possible = None if choices is None else choices.length > 0
    session, _, _, _ = jax.lax.while_loop(
        lambda carry: carry[1].any() & (carry[2] < config.max_tokens), step, (session, live, 0, possible))

    last = last_id(session)
    size = session.length - start - (live & (last[:, None] == stops).any(axis=1))
    session = session.replace(turns=session.turns + live)
    positions = jnp.minimum(start[:, None] + jnp.arange(config.max_tokens), capacity - 1)
    return session, Tokens(jnp.take_along_axis(session.ids, positions, axis=1), size)


def _next_ids(choices: Tokens, possible: Bool[Array, 'B C'], count: Int[Array, ''], end: int) -> Int[Array, 'B C']:
    """Return the next id of every choice.

    Args:
      choices: see `generate`.
      possible: choices that begin with the ids sampled so far. The next id of all others is outside any vocabulary.
      count: number of ids sampled so far.
      end: the id that follows a complete choice.
    """
    at = jnp.minimum(count, choices.ids.shape[-1] - 1)
    new = jnp.where(count < choices.length, jax.lax.dynamic_index_in_dim(choices.ids, at, 2, keepdims=False), end)
    return jnp.where(possible & (count <= choices.length), new, jnp.iinfo(jnp.int32).max)


def would_repeat(session: Session, size: int, vocab_size: int) -> Bool[Array, 'B V']:
    """Return which tokens would complete a sequence of `size` ids that already occurs in the row."""
    length, capacity = session.length[:, None], session.ids.shape[1]
    starts = jnp.arange(capacity - size + 1)
    same = starts + size <= length  # sequences within the row
    for i in range(size - 1):
        at = jnp.maximum(length - size + 1 + i, 0)
        same &= session.ids[:, i:i + len(starts)] == jnp.take_along_axis(session.ids, at, axis=1)
    follower = jnp.where(same, session.ids[:, size - 1:], vocab_size)
    rows = jnp.arange(len(session.ids))[:, None]
    return jnp.zeros((len(session.ids), vocab_size), bool).at[rows, follower].set(True, mode='drop')


def sample(logits: Float[Array, 'B V'], keys: Key[Array, ' B'], config: SamplingConfig,
           banned: Optional[Bool[Array, 'B V']] = None) -> tuple[Int[Array, ' B'], Float[Array, ' B']]:
    """Sample one token per row by inverse transform sampling.

    Comparing one uniform number per row with the cumulative weights is much cheaper than drawing V Gumbel numbers.

    Args:
      logits: float32 logits.
      keys: random keys. The token of a row depends on no other key.
      config: the sampling settings.
      banned: tokens that must not be sampled.

    Returns:
      The tokens, and their log-probabilities under the model at temperature 1, without truncation or banned tokens.
    """
    masked = logits if banned is None else jnp.where(banned, -jnp.inf, logits)
    if config.temperature == 0:
        token = jnp.argmax(masked, axis=-1).astype(jnp.int32)
        return token, logprob_of(logits, token)
    top_ids: Optional[jax.Array] = None
    if config.top_k:
        masked, top_ids = jax.lax.top_k(masked, min(config.top_k, logits.shape[-1]))
    weights = jnp.exp((masked - masked.max(axis=-1, keepdims=True)) / config.temperature)
    if config.top_p < 1:
        weights = jnp.where(weights >= nucleus(weights, config.top_p), weights, 0.0)
    index = draw(weights, keys)
    token = index if top_ids is None else jnp.take_along_axis(top_ids, index[:, None], axis=1)[:, 0]
    token = token.astype(jnp.int32)
    return token, logprob_of(logits, token)


def draw(weights: Float[Array, 'B V'], keys: Key[Array, ' B']) -> Int[Array, ' B']:
    """Draw one index per row with probabilities in proportion to the weights; the draw of a row uses its own key."""
    total = jnp.cumsum(weights, axis=-1)
    uniform = jax.vmap(lambda key: jax.random.uniform(key))(keys)[:, None]
    # Take the first index with a positive weight whose cumulative sum exceeds the draw. Both conditions are necessary:
    # XLA does not add in order, so due to rounding the sum may grow where the weight is 0, and the draw may round up to
    # the total.
    indices = jnp.arange(weights.shape[-1])
    index = jnp.min(jnp.where((weights > 0) & (total > uniform * total[:, -1:]), indices, indices[-1]), axis=-1)
    return jnp.minimum(index, jnp.max(jnp.where(weights > 0, indices, 0), axis=-1))


def nucleus(weights: Float[Array, 'B V'], top_p: float | Float[Array, 'B 1']) -> Float[Array, 'B 1']:
    """Return the largest threshold [B, 1] such that the weights at or above it are the fraction `top_p` of the sum.

    Bisection is much cheaper than sorting the vocabulary.
    """
    goal = top_p * weights.sum(axis=-1, keepdims=True)

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        enough = jnp.where(weights >= middle, weights, 0.0).sum(axis=-1, keepdims=True) >= goal
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    bounds = jnp.zeros_like(goal), weights.max(axis=-1, keepdims=True) * 1.0001
    return jax.lax.fori_loop(0, 40, halve, bounds)[0]


def logprob_of(logits: jax.Array, token: jax.Array) -> jax.Array:
    """Return log softmax(logits)[token] over the last axis, float32."""
    chosen = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)
