"""A local language model as an agent: a session, chat segments, and two compiled functions."""

import dataclasses
import functools
from typing import Optional, Sequence

import jax
import jax.numpy as jnp

from epo_jax.models import sampling
from epo_jax.models.decoder import Decoder
from epo_jax.text.chat import ChatSegments
from epo_jax.text.tokens import Tokens, concat, keep, repeat


@dataclasses.dataclass(frozen=True)
class LocalAgent:
    """A chat model that replies to each message with one sampled message.

    Attributes:
      model: the decoder.
      chat: its chat template, cut into segments.
      sampling: how replies are sampled.
      capacity: longest conversation, in tokens.
      prefixes: if there are any, a reply begins with one of these id sequences. It is sampled by the model's
        probabilities of their first ids, which must differ; the other ids of the sequence are then fixed.
      chunk: number of tokens of a row that are prefilled at once.
    """

    model: Decoder
    chat: ChatSegments
    sampling: sampling.SamplingConfig
    capacity: int
    prefixes: tuple[tuple[int, ...], ...] = ()
    chunk: int = 64

    on_device = True

    def __post_init__(self):
        if len({c[0] for c in self.prefixes}) != len(self.prefixes):
            raise ValueError('the prefixes of replies must differ in their first tokens')

    @property
    def width(self) -> int:
        """Return the largest number of tokens of a reply."""
        return self.sampling.max_tokens + max(map(len, self.prefixes), default=0)

    def start(self, batch: int) -> sampling.Session:
        """See Agent.start."""
        return _start(self.model, batch, self.capacity)

    def begin(self, params, memory: sampling.Session, opening: Tokens, rows, group: int = 1) -> sampling.Session:
        """See Agent.begin; `memory` is donated. The opening of a group is prefilled once."""
        return _begin(self.model, self.chat, self.chunk, group, params, memory, opening, rows)

    @functools.partial(jax.jit, static_argnums=0, donate_argnames='memory')
    def respond(self, params, memory: sampling.Session, content: Sequence[Tokens], cue: Tokens,
                choices: Optional[Tokens], keys: jax.Array, who, live) -> tuple[sampling.Session, Tokens]:
        """See Agent.respond; `memory` is donated."""
        session, batch = memory, live.shape[0]
        first = session.turns == 0
        unended = ~first & (sampling.last_id(session) != self.chat.end)  # the last reply was cut off; end its turn
        parts = [
            keep(repeat((self.chat.end,), batch), unended),
            keep(repeat(self.chat.between, batch), ~first),
            *content,
            repeat(self.chat.close, batch),
            cue]
        session = sampling.extend(self.model, params, session, keep(concat(parts), live), self.chunk)
        keys = jax.vmap(lambda key: jax.random.fold_in(key, who))(keys)
        if not self.prefixes:
            return sampling.generate(self.model, params, session, keys, live, self.sampling, choices)

        begun, session = self._choose(params, session, keys, live)
        session, rest = sampling.generate(self.model, params, session, keys, live, self.sampling)
        return session, concat([begun, rest])

    def _choose(self, params, session, keys, live):
        """Sample the prefix that a reply begins with, and append it as context."""
        session, logits = sampling.next_logits(self.model, params, session, live)
        logits = logits[:, jnp.array([c[0] for c in self.prefixes])]
        one = dataclasses.replace(self.sampling, max_tokens=1, top_k=0, top_p=1.0)
        chosen, _ = sampling.sample(logits, jax.vmap(jax.random.fold_in)(keys, session.length), one)
        width = max(map(len, self.prefixes))
        table = jnp.array([c + (0,) * (width - len(c)) for c in self.prefixes])
        begun = Tokens(table[chosen], jnp.array([len(c) for c in self.prefixes])[chosen])
        begun = keep(begun, live)
        return begun, sampling.extend(self.model, params, session, begun, self.chunk)

    def failed(self, memory: sampling.Session) -> jax.Array:
        """See Agent.failed: conversations that do not fit the capacity."""
        return memory.overflow

    def reasons(self, memory: sampling.Session) -> list[str]:
        """See Agent.reasons."""
        return [f'the conversation does not fit its capacity of {self.capacity} tokens'] * len(memory.overflow)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnames='memory')
def _begin(model, chat, chunk, group, params, memory, opening, rows):
    """Prefill openings. Nothing here differs between a strategist and an actor, so one program serves both."""
    opening = keep(concat([repeat(chat.open, len(rows)), opening]), rows)
    if group == 1:
        return sampling.extend(model, params, sampling.clear(memory, rows), opening, chunk)

    def together(memory):
        """Prefill the opening of one row of every group in a session of its own, and copy it to the other rows."""
        first = jax.tree.map(lambda x: x[::group], opening)
        session = sampling.open_session(model, len(first.length), memory.ids.shape[1])
        session = sampling.extend(model, params, session, first, chunk)

        def spread(new, old, axis):
            new = jnp.repeat(new, group, axis=axis)
            return jnp.where(rows.reshape(-1, *[1] * (new.ndim - 1 - axis)), new, old)

        cache = jax.tree.map(functools.partial(spread, axis=int(model.stacked)), session.cache, memory.cache)
        rest = session.replace(cache=None), memory.replace(cache=None)
        return jax.tree.map(functools.partial(spread, axis=0), *rest).replace(cache=cache)

    return jax.lax.cond(jnp.any(rows), together, lambda memory: memory, memory)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _start(model, batch, capacity):
    return sampling.open_session(model, batch, capacity)
