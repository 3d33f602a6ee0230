"""A language model on the local devices as an agent: a session, chat segments, and compiled functions."""

import dataclasses
import functools
from typing import Optional, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Int, Key

from epo_jax.models import sampling
from epo_jax.models.decoder import Decoder
from epo_jax.runtime.errors import InputError
from epo_jax.text.chat import ChatSegments
from epo_jax.text.tokens import Array, Tokens, concat, keep, repeat


@dataclasses.dataclass(frozen=True)
class LocalAgent:
    """A chat model that replies to each message with a sampled message.

    Attributes:
      model: the decoder.
      chat: the segments of its chat template.
      sampling: the sampling settings of replies.
      capacity: maximum length of a conversation in tokens.
      prefixes: id sequences, one of which begins every reply unless there are none. The sequence is sampled by the
        model's probabilities of the first ids, which must differ.
      chunk: number of tokens per row that are prefilled in one forward pass.
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
            raise InputError('actor.choose_action: the kinds of action must differ in their first tokens, because the '
                             f'first token is drawn and determines the others; with this tokenizer they are '
                             f'{self.prefixes}')

    @property
    def width(self) -> int:
        """Return the maximum number of tokens of a reply."""
        return self.sampling.max_tokens + max(map(len, self.prefixes), default=0)

    def start(self, batch: int) -> sampling.Session:
        """See Agent.start."""
        return _start(self.model, batch, self.capacity)

    def begin(self, params, memory: sampling.Session, opening: Tokens, rows: Bool[Array, ' B'],
              group: int = 1) -> sampling.Session:
        """See Agent.begin. `memory` is donated. The opening of a group is prefilled only once."""
        return _begin(self.model, self.chat, self.chunk, group, params, memory, opening, rows)

    @functools.partial(jax.jit, static_argnums=0, donate_argnames='memory')
    def respond(self, params, memory: sampling.Session, content: Sequence[Tokens], cue: Tokens,
                choices: Optional[Tokens], keys: Key[Array, ' B'], who: Int[Array, ''] | int,
                live: Bool[Array, ' B']) -> tuple[sampling.Session, Tokens]:
        """See Agent.respond. `memory` is donated."""
        session, batch = memory, live.shape[0]
        first = session.turns == 0
        # End the turn of a reply that was cut off.
        incomplete = ~first & (sampling.last_id(session) != self.chat.end)
        message = [
            keep(repeat((self.chat.end,), batch), incomplete),
            keep(repeat(self.chat.between, batch), ~first),
            *content,
            repeat(self.chat.close, batch),
            cue]
        session = sampling.extend(self.model, params, session, keep(concat(message), live), self.chunk)
        keys = jax.vmap(lambda key: jax.random.fold_in(key, who))(keys)
        if not self.prefixes:
            return sampling.generate(self.model, params, session, keys, live, self.sampling, choices)

        prefix, session = self._sample_prefix(params, session, keys, live)
        session, rest = sampling.generate(self.model, params, session, keys, live, self.sampling)
        return session, concat([prefix, rest])

    def _sample_prefix(self, params, session, keys, live):
        """Sample the prefix of a reply, and append it to the session as context."""
        session, logits = sampling.next_logits(self.model, params, session, live)
        logits = logits[:, jnp.array([c[0] for c in self.prefixes])]
        config = dataclasses.replace(self.sampling, max_tokens=1, top_k=0, top_p=1.0)
        index, _ = sampling.sample(logits, jax.vmap(jax.random.fold_in)(keys, session.length), config)
        width = max(map(len, self.prefixes))
        table = jnp.array([c + (0,) * (width - len(c)) for c in self.prefixes])
        prefix = Tokens(table[index], jnp.array([len(c) for c in self.prefixes])[index])
        prefix = keep(prefix, live)
        return prefix, sampling.extend(self.model, params, session, prefix, self.chunk)

    def failed(self, memory: sampling.Session) -> Bool[Array, ' B']:
        """See Agent.failed. A conversation fails if it does not fit the capacity, or if logits are not finite."""
        return memory.overflow | memory.broken

    def reasons(self, memory: sampling.Session) -> list[str]:
        """See Agent.reasons."""
        full = f'the conversation does not fit its capacity of {self.capacity} tokens'
        broken = 'the logits of the model are not finite; check its weights and model.dtype'
        return [broken if row else full for row in jax.device_get(memory.broken)]


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnames='memory')
def _begin(model, chat, chunk, group, params, memory, opening, rows):
    """Prefill openings. This function is not a method, so that strategist and actor can share its compiled program."""
    opening = keep(concat([repeat(chat.open, len(rows)), opening]), rows)
    if group == 1:
        return sampling.extend(model, params, sampling.clear(memory, rows), opening, chunk)

    def prefill_groups(memory):
        """Prefill the opening of one row per group in a temporary session, and copy it to all rows of the group."""
        first = jax.tree.map(lambda x: x[::group], opening)
        session = sampling.open_session(model, len(first.length), memory.ids.shape[1])
        session = sampling.extend(model, params, session, first, chunk)

        def spread(new, old, axis):
            new = jnp.repeat(new, group, axis=axis)
            return jnp.where(rows.reshape(-1, *[1] * (new.ndim - 1 - axis)), new, old)

        cache = jax.tree.map(functools.partial(spread, axis=int(model.stacked)), session.cache, memory.cache)
        rest = session.replace(cache=None), memory.replace(cache=None)
        return jax.tree.map(functools.partial(spread, axis=0), *rest).replace(cache=cache)

    return jax.lax.cond(jnp.any(rows), prefill_groups, lambda memory: memory, memory)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _start(model, batch, capacity):
    return sampling.open_session(model, batch, capacity)
