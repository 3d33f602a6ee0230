"""What can sit in a seat: anything that reads content and replies.

An agent is a frozen description; what it remembers of its conversations is a value that is passed in and
returned. A strategist and an actor are the same kind of thing: one replies with a strategy, one with an action.
"""

import dataclasses
from typing import Any, Optional, Protocol, Sequence

import jax

from epo_jax.text.tokens import Tokens


class Agent(Protocol):
    """The interface of every strategist and actor; B conversations are held at once."""

    def start(self, batch: int) -> Any:
        """The memory of `batch` conversations in which nothing was said."""

    def respond(self, params: Any, memory: Any, content: Sequence[Tokens], cue: Tokens, keys: jax.Array, who: int,
                live) -> tuple[Any, Tokens]:
        """Reads one user message and replies to it.

        Args:
          params: weights, or None for an agent without any.
          memory: what `start` or the last `respond` returned; not to be used again afterwards.
          content: parts of the message, each Tokens [B, K]; they are read one after the other.
          cue: [B, K] how the reply begins; the agent goes on from there.
          keys: key[B], one an episode; randomness depends on (key, who, position) alone.
          who: number of this agent at the table.
          live: bool[B] rows that take part; the others stay as they are.

        Returns:
          (memory, reply Tokens [B, K'] without its stop token).
        """

    def failed(self, memory: Any):
        """bool[B] conversations that cannot go on (context full, endpoint down); they end their episode."""


@dataclasses.dataclass(frozen=True)
class Player:
    """An agent with its weights and the tokenizer of its messages."""

    agent: Agent
    params: Any
    tokenizer: Any


@dataclasses.dataclass(frozen=True)
class Seat:
    """One side of the table.

    Attributes:
      actor: who acts.
      strategist: who advises the actor before every turn; None: nobody.
      trained: the strategist's conversation becomes a training row.
    """

    actor: Player
    strategist: Optional[Player] = None
    trained: bool = False
