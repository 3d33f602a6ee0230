"""Agents on the device without a language model."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from epo_jax.text.tokens import Tokens, concat


@dataclasses.dataclass(frozen=True)
class Echo:
    """An actor whose replies are copies of its strategies.

    Attributes:
      width: maximum number of tokens of a reply; longer strategies are truncated.
    """

    width: int
    on_device = True

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def start(self, batch: int) -> jax.Array:
        """See Agent.start. The memory contains only the number of slots."""
        return jnp.zeros((batch,), bool)

    def begin(self, params, memory, opening, rows, group):
        """See Agent.begin."""
        return memory

    @functools.partial(jax.jit, static_argnums=0)
    def respond(self, params, memory, content, cue, choices, keys, who, live):
        """See Agent.respond. The first part of the content is the observation, and the others are the strategy."""
        strategy = concat(content[1:], self.width) if len(content) > 1 else Tokens(
            jnp.zeros((len(live), self.width), jnp.int32), jnp.zeros((len(live),), jnp.int32))
        return memory, Tokens(strategy.ids, jnp.minimum(strategy.length, self.width) * live)

    def failed(self, memory):
        """See Agent.failed. This agent never fails."""
        return memory

    def reasons(self, memory):
        """See Agent.reasons."""
        return [''] * len(memory)
