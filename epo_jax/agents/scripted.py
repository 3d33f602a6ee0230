"""Agents on the device that are not language models."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from epo_jax.text.tokens import Tokens, concat


@dataclasses.dataclass(frozen=True)
class Echo:
    """An actor that repeats its strategy token for token.

    Attributes:
      width: longest message; longer strategies are cut to it.
    """

    width: int
    on_device = True

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def start(self, batch: int) -> jax.Array:
        """See Agent.start; the memory holds nothing but the number of slots."""
        return jnp.zeros((batch,), bool)

    def begin(self, params, memory, opening, rows, group):
        """See Agent.begin."""
        return memory

    @functools.partial(jax.jit, static_argnums=0)
    def respond(self, params, memory, content, cue, choices, keys, who, live):
        """See Agent.respond; the first part of the content is the observation, and the rest is the strategy."""
        advice = concat(content[1:], self.width) if len(content) > 1 else Tokens(
            jnp.zeros((len(live), self.width), jnp.int32), jnp.zeros((len(live),), jnp.int32))
        return memory, Tokens(advice.ids, jnp.minimum(advice.length, self.width) * live)

    def failed(self, memory):
        """See Agent.failed: it never fails."""
        return memory

    def reasons(self, memory):
        """See Agent.reasons."""
        return [''] * len(memory)
