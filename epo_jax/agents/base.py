"""Agents: everything that reads messages and replies to them.

An agent is a frozen description. Its memory of the conversations is a value that is passed in and returned. Strategists
and actors have the same interface: one replies with a strategy, the other with an action.

Axis letters: B slots, each with one conversation at a time; K tokens; C choices.
"""

from typing import Any, Optional, Protocol, Sequence

from flax import struct
import jax

from epo_jax.text.tokens import Tokens


class Agent(Protocol):
    """A strategist or an actor, with B conversations at once.

    Attributes:
      width: largest number of tokens of a reply.
      on_device: whether the methods are array code that JAX can trace.
    """

    width: int
    on_device: bool

    def start(self, batch: int) -> Any:
        """Return the memory of `batch` empty slots."""

    def begin(self, params: Any, memory: Any, opening: Tokens, rows, group: int) -> Any:
        """Forget the conversations of some rows and start new ones.

        Args:
          params, memory: as in `respond`.
          opening: Tokens [B, K], the beginning of the first user message.
          rows: bool[B], the rows that start.
          group: this many neighboring rows start together with the same opening; static.
        """

    def respond(self, params: Any, memory: Any, content: Sequence[Tokens], cue: Tokens, choices: Optional[Tokens],
                keys: jax.Array, who: int, live) -> tuple[Any, Tokens]:
        """Read one user message (or what follows the opening in the first) and reply to it.

        Args:
          params: weights, or None for an agent without weights.
          memory: what was returned last; it must not be used again.
          content: parts of the message, each Tokens [B, K], which are read one after the other.
          cue: Tokens [B, K], the beginning of the reply, from which the agent continues.
          choices: Tokens [B, C, K], the only replies allowed. None, or a row without any of positive length, allows
            all.
          keys: key[B], one an episode; what is sampled depends on (key, who, position) alone.
          who: number of this agent at the table.
          live: bool[B], rows that take part; the others stay as they are.

        Returns:
          The memory, and the replies, Tokens [B, width], without their stop tokens.
        """

    def failed(self, memory: Any):
        """Return the conversations that cannot continue (context full, endpoint down), bool[B]; their episodes end."""

    def reasons(self, memory: Any) -> Sequence[str]:
        """Return why every conversation failed, in words (host)."""


@struct.dataclass
class Player:
    """An agent with its weights and the tokenizer of its messages; a pytree of the weights."""

    agent: Agent = struct.field(pytree_node=False)
    params: Any
    tokenizer: Any = struct.field(pytree_node=False)


@struct.dataclass
class Seat:
    """One side of the table; a pytree of weights.

    Attributes:
      actor: the player that acts.
      strategist: the player that advises the actor before every turn, or None.
      trained: whether the strategist's conversation is trained on.
    """

    actor: Player
    strategist: Optional[Player] = None
    trained: bool = struct.field(pytree_node=False, default=False)
