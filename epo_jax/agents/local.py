"""A language model of our own in a seat: a session, chat segments, and one compiled function."""

import dataclasses
import functools
from typing import Sequence

import jax
import jax.numpy as jnp

from epo_jax import sampling
from epo_jax.models.transformer import Transformer
from epo_jax.text.chat import ChatSegments
from epo_jax.text.tokens import Tokens, concat, keep, repeat


@dataclasses.dataclass(frozen=True)
class LocalAgent:
    """A chat model that replies to each message with one sampled message.

    Attributes:
      model: the decoder, unstacked layout.
      chat: its chat template, cut into segments.
      sampling: how replies are drawn.
      capacity: longest conversation, in tokens.
      choices: where given, the reply must begin with one of these id sequences, drawn by the model's probability
        of their first ids (which must differ); the rest of the sequence, and nothing else, is then given.
      chunk: tokens of a row run at once when text is read.
    """

    model: Transformer
    chat: ChatSegments
    sampling: sampling.SamplingConfig
    capacity: int
    choices: tuple[tuple[int, ...], ...] = ()
    chunk: int = 64

    def __post_init__(self):
        if len({c[0] for c in self.choices}) != len(self.choices):
            raise ValueError('the choices a reply may begin with must differ in their first token')

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def start(self, batch: int) -> sampling.Session:
        """Empty sessions."""
        return sampling.open_session(self.model, batch, self.capacity)

    @functools.partial(jax.jit, static_argnums=0, donate_argnames='memory')
    def respond(self, params, memory: sampling.Session, content: Sequence[Tokens], cue: Tokens,
                keys: jax.Array, who, live) -> tuple[sampling.Session, Tokens]:
        """See Agent.respond; `memory` is donated."""
        session, batch = memory, live.shape[0]
        first = session.length == 0
        unended = ~first & (sampling.last_id(session) != self.chat.end)  # the last reply was cut off: end it now
        parts = [
            keep(repeat((self.chat.end,), batch), unended),
            keep(repeat(self.chat.between, batch), ~first),
            keep(repeat(self.chat.open, batch), first),
            *content,
            repeat(self.chat.close, batch),
            cue]
        session = sampling.extend(self.model, params, session, keep(concat(parts), live), self.chunk)
        keys = jax.vmap(lambda key: jax.random.fold_in(key, who))(keys)
        if not self.choices:
            return sampling.generate(self.model, params, session, keys, live, self.sampling)

        begin, session = self._choose(params, session, keys, live)
        session, rest = sampling.generate(self.model, params, session, keys, live, self.sampling)
        return session, concat([begin, rest])

    def _choose(self, params, session, keys, live):
        """Draws which of `choices` a reply begins with, and appends it as context."""
        session, logits = sampling.next_logits(self.model, params, session, live)
        logits = logits[:, jnp.array([c[0] for c in self.choices])]
        one = dataclasses.replace(self.sampling, max_tokens=1, top_k=0, top_p=1.0)
        chosen, _ = sampling.sample(logits, jax.vmap(jax.random.fold_in)(keys, session.length), one)
        width = max(map(len, self.choices))
        table = jnp.array([c + (0,) * (width - len(c)) for c in self.choices])
        begin = Tokens(table[chosen], jnp.array([len(c) for c in self.choices])[chosen])
        begin = keep(begin, live)
        return begin, sampling.extend(self.model, params, session, begin, self.chunk)

    def failed(self, memory: sampling.Session) -> jax.Array:
        """Conversations that outgrew the capacity."""
        return memory.overflow
