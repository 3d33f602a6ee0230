"""Agents on the device that are no language models."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from epo_jax.text.tokens import Tokens, concat


@dataclasses.dataclass(frozen=True)
class Echo:
    """An actor that says what it is advised to, token for token; what the tokens do is the environment's affair.

    Attributes:
      width: longest message; advice is cut there.
    """

    width: int
    on_device = True

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def start(self, batch: int) -> jax.Array:
        """It remembers nothing but how many there are."""
        return jnp.zeros((batch,), bool)

    def begin(self, params, memory, opening, rows, group):
        """See Agent.begin."""
        return memory

    @functools.partial(jax.jit, static_argnums=0)
    def respond(self, params, memory, content, cue, choices, keys, who, live):
        """See Agent.respond; the first part of the content is news, what comes after it is advice."""
        advice = concat(content[1:], self.width) if len(content) > 1 else Tokens(
            jnp.zeros((len(live), self.width), jnp.int32), jnp.zeros((len(live),), jnp.int32))
        return memory, Tokens(advice.ids, jnp.minimum(advice.length, self.width) * live)

    def failed(self, memory):
        """Never."""
        return memory

    def reasons(self, memory):
        """None."""
        return [''] * len(memory)
