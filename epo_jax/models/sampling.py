"""Sessions: a conversation with a model as a value, and sampling from it.

A `Session` holds every id that was fed to or sampled by a model for B conversations, and the key/value cache of
all but the last one. That last token is the *pending* one: it is fed when the next token is wanted. So appending
text is "write the ids, then let the cache catch up", every forward pass of the sampling loop yields a token that
is used, and nothing besides ids, lengths and cache needs to be carried from turn to turn.

All functions are pure: they take a session and return a new one. Compile them with the session donated, and the
cache is updated in place.

Axis letters: B conversations, L capacity in tokens, K new tokens, V vocabulary.
"""

import dataclasses
from typing import Optional

from flax import struct
import jax
import jax.numpy as jnp

from epo_jax.models.transformer import KVCache, Transformer
from epo_jax.runtime.parallel import constrain
from epo_jax.text.tokens import Tokens


@struct.dataclass
class Session:
    """One model's live view of B conversations.

    Attributes:
      ids: i32[B, L] every id, exactly as fed or sampled.
      length: i32[B] how many of them there are; the cache holds one fewer.
      turn: i32[B, L] -1 for context, t >= 0 for ids sampled by the model in its t-th message.
      logprob: f32[B, L] log-probability of a sampled id under the model at temperature 1 and without truncation;
        0 for context.
      turns: i32[B] messages generated so far.
      overflow: bool[B] something did not fit; the row is frozen from then on.
      cache: keys and values.
    """

    ids: jax.Array
    length: jax.Array
    turn: jax.Array
    logprob: jax.Array
    turns: jax.Array
    overflow: jax.Array
    cache: KVCache


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How a message is drawn. Static: a different value is a different program.

    Attributes:
      max_tokens: longest message, its stop token included.
      stop: ids that end a message and are no part of it, such as the end-of-turn token.
      closing: ids that end a message as its last token, such as those with a closing quotation mark.
      temperature: 0 takes the most probable token.
      top_k: draw among the k most probable tokens; 0: among all.
      top_p: draw among the fewest most probable tokens that hold this mass; 1: among all.
      min_tokens: a message does not end before it has so many.
      no_repeat: no sequence of so many tokens occurs twice in a conversation; 0: no such rule.
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
            raise ValueError(f'impossible sampling settings: {self}')
        if not self.stop:
            raise ValueError('a message needs at least one stop id')


def open_session(model: Transformer, batch: int, capacity: int) -> Session:
    """A session of `batch` empty conversations with room for `capacity` tokens each."""
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
    """Empties the conversations of rows bool[B]; their part of the cache is written over later."""
    row = rows[:, None]
    return session.replace(
        ids=jnp.where(row, 0, session.ids),
        length=jnp.where(rows, 0, session.length),
        turn=jnp.where(row, -1, session.turn),
        logprob=jnp.where(row, 0, session.logprob),
        turns=jnp.where(rows, 0, session.turns),
        overflow=session.overflow & ~rows)


def last_id(session: Session) -> jax.Array:
    """i32[B] the pending token; -1 where a conversation is still empty."""
    at = jnp.maximum(session.length - 1, 0)
    last = jnp.take_along_axis(session.ids, at[:, None], axis=1)[:, 0]
    return jnp.where(session.length > 0, last, -1)


def extend(model: Transformer, params, session: Session, tokens: Tokens, chunk: int = 64) -> Session:
    """Appends context; only the new tokens are run through the model, in as many chunks as the longest row needs.

    Args:
      model, params: the decoder and its (unstacked) parameters.
      session: what came before.
      tokens: [B, K] the new tokens; rows of length 0 stay as they are.
      chunk: tokens of a row that are run at once; static.

    Returns:
      The longer session. A row that would leave no room for even one more token is left unchanged and flagged
      in `overflow`.
    """
    session, added = _append(session, tokens)
    return session.replace(cache=_feed(model, params, session, added, session.length - 1, chunk)[0])


def _append(session: Session, tokens: Tokens) -> tuple[Session, jax.Array]:
    """Writes ids; the cache does not have them yet: (session, i32[B] how many were written)."""
    batch, capacity = session.ids.shape
    fits = (session.length + tokens.length < capacity) | (tokens.length == 0)
    added = jnp.where(fits & ~session.overflow, tokens.length, 0)
    at = jnp.arange(tokens.ids.shape[1])
    at = jnp.where(at < added[:, None], session.length[:, None] + at, capacity)
    return session.replace(
        ids=session.ids.at[jnp.arange(batch)[:, None], at].set(tokens.ids, mode='drop'),
        length=session.length + added,
        overflow=session.overflow | ~fits), added


def _feed(model: Transformer, params, session: Session, added, stop, chunk: int, hidden: Optional[jax.Array] = None):
    """Runs what was pending before added[B] ids came, and what follows up to position stop[B], through the model:
    (cache, hidden [B, W] of the last token run).

    `hidden`: for rows without any; where it is None, so is the result.
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


def next_logits(model: Transformer, params, session: Session, live=None) -> tuple[Session, jax.Array]:
    """Feeds the pending token of every row where live[B] (default: all): (session, float32 logits [B, V])."""
    capacity = session.ids.shape[1]
    at = jnp.maximum(session.length - 1, 0)
    ids = jnp.take_along_axis(session.ids, at[:, None], axis=1)
    at = at if live is None else jnp.where(live, at, capacity)
    hidden, cache = model.apply({'params': params}, ids, at[:, None], session.cache)
    logits = model.apply({'params': params}, hidden[:, 0], method='logits')
    return session.replace(cache=cache), logits


def peek(model: Transformer, params, session: Session, tokens: Tokens, chunk: int = 64,
         stay=False) -> tuple[Session, jax.Array]:
    """What the model would say next if `tokens` came now; where stay, bool[], they do come.

    If they do not, the cache is written beyond the conversation's end all the same and the session keeps its length:
    whatever is appended next overwrites it, so no copy of the cache is made.

    Returns:
      (session, f32[B, V] logits). Where the tokens do not fit, or something before them did not, the logits are NaN.
    """
    longer, added = _append(session, tokens)
    cache, hidden = _feed(
        model, params, longer, added, longer.length, chunk, jnp.zeros((len(added), model.config.width), model.dtype))
    logits = model.apply({'params': params}, hidden, method='logits')
    kept = jax.tree.map(lambda new, old: jnp.where(stay, new, old), *(s.replace(cache=()) for s in (longer, session)))
    return kept.replace(cache=cache), jnp.where(longer.overflow[:, None], jnp.nan, logits)


def generate(model: Transformer, params, session: Session, keys: jax.Array, live: jax.Array,
             config: SamplingConfig, choices: Optional[Tokens] = None) -> tuple[Session, Tokens]:
    """Samples one message in every live row.

    Args:
      keys: key[B]; the token at position p of a row is drawn with fold_in(key, p), so that a row's message does
        not depend on its neighbours.
      live: bool[B] rows that speak; the others, and rows that have overflowed, stay as they are.
      config: see SamplingConfig.
      choices: Tokens [B, C, K] (lengths i32[B, C]); where a row has any that are not empty, its message is one of
        them, drawn token by token along the tree that they form. None: all messages are allowed. Needs
        config.max_tokens > K, or a choice may be cut off.

    Returns:
      (session, message): the message [B, config.max_tokens] is what was sampled before the stop token. In the
      session the sampled ids, stop token included, carry their turn and log-probability. A message cut off at
      max_tokens has no stop token; one cut off at the capacity is also flagged in `overflow`.
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
        if choices is not None:  # a choice may hold ids that end a free message
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
    """i32[B, C] the id with which each choice goes on behind its first `count`; `end` after its last, and an id
    outside any vocabulary for those no longer possible (bool[B, C])."""
    at = jnp.minimum(count, choices.ids.shape[-1] - 1)
    new = jnp.where(count < choices.length, jax.lax.dynamic_index_in_dim(choices.ids, at, 2, keepdims=False), end)
    return jnp.where(possible & (count <= choices.length), new, jnp.iinfo(jnp.int32).max)


def would_repeat(session: Session, size: int, vocab_size: int) -> jax.Array:
    """bool[B, V] tokens that would complete, at the end of a row, `size` ids that stand in it already."""
    length, capacity = session.length[:, None], session.ids.shape[1]
    starts = jnp.arange(capacity - size + 1)
    same = starts + size <= length  # what stands already lies within the row
    for i in range(size - 1):
        at = jnp.maximum(length - size + 1 + i, 0)
        same &= session.ids[:, i:i + len(starts)] == jnp.take_along_axis(session.ids, at, axis=1)
    follower = jnp.where(same, session.ids[:, size - 1:], vocab_size)
    rows = jnp.arange(len(session.ids))[:, None]
    return jnp.zeros((len(session.ids), vocab_size), bool).at[rows, follower].set(True, mode='drop')


def sample(logits: jax.Array, keys: jax.Array, config: SamplingConfig,
           barred: Optional[jax.Array] = None) -> tuple[jax.Array, jax.Array]:
    """Draws one token a row: logits f32[B, V], keys key[B] -> (i32[B], its log-probability at temperature 1).

    Tokens of `barred` bool[B, V] are not drawn; the log-probability is that of the model without any such rule.

    Inverse transform sampling: one uniform number a row, against the running sum of the weights. It costs a
    fraction of drawing V Gumbel numbers, and the draw of a row depends on its own key alone.
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
    # The first place with a weight whose running sum exceeds the draw. The sum is not added up in order, so by a
    # rounding error it may grow where there is no weight; and a draw may round up to the total.
    at = jnp.arange(weights.shape[-1])
    place = jnp.min(jnp.where((weights > 0) & (total > uniform * total[:, -1:]), at, at[-1]), axis=-1)
    place = jnp.minimum(place, jnp.max(jnp.where(weights > 0, at, 0), axis=-1))
    token = place if names is None else jnp.take_along_axis(names, place[:, None], axis=1)[:, 0]
    token = token.astype(jnp.int32)
    return token, _logprob(logits, token)


def _nucleus(weights: jax.Array, top_p: float) -> jax.Array:
    """The largest threshold[B, 1] such that the weights at or above it hold `top_p` of the mass.

    Found by bisection: a sort of the vocabulary costs many times more.
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
    """log softmax(logits)[token] over the last axis, float32."""
    chosen = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)
