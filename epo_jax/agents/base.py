"""What can sit in a seat: anything that reads content and replies.

An agent is a frozen description; what it remembers of its conversations is a value that is passed in and
returned. A strategist and an actor are the same kind of thing: one replies with a strategy, one with an action.

Axis letters: B slots, each with one conversation at a time; K tokens; C choices.
"""

from typing import Any, Optional, Protocol, Sequence

from flax import struct
import jax

from epo_jax.text.tokens import Tokens


class Agent(Protocol):
    """The interface of every strategist and actor; B conversations are held at once.

    Attributes:
      width: tokens of a reply, at most.
      on_device: the methods are array code that can be traced.
    """

    width: int
    on_device: bool

    def start(self, batch: int) -> Any:
        """The memory of `batch` slots in which nothing was said."""

    def begin(self, params: Any, memory: Any, opening: Tokens, rows, group: int) -> Any:
        """Forgets the conversations of rows bool[B] and starts new ones.

        Args:
          params, memory: as in `respond`.
          opening: [B, K], the beginning of the first user message.
          rows: bool[B].
          group: so many neighbouring rows start together, and with the same opening; static.
        """

    def respond(self, params: Any, memory: Any, content: Sequence[Tokens], cue: Tokens, choices: Optional[Tokens],
                keys: jax.Array, who: int, live) -> tuple[Any, Tokens]:
        """Reads one user message (or what follows the opening in the first) and replies to it.

        Args:
          params: weights, or None for an agent without any.
          memory: what was returned last; not to be used again afterwards.
          content: parts of the message, each Tokens [B, K]; they are read one after the other.
          cue: [B, K] how the reply begins; the agent goes on from there.
          choices: Tokens [B, C, K], the only replies allowed; None, or a row with none of any length: all are.
          keys: key[B], one an episode; randomness depends on (key, who, position) alone.
          who: number of this agent at the table.
          live: bool[B] rows that take part; the others stay as they are.

        Returns:
          (memory, reply Tokens [B, width] without its stop token).
        """

    def failed(self, memory: Any):
        """bool[B] conversations that cannot go on (context full, endpoint down); they end their episode."""

    def reasons(self, memory: Any) -> Sequence[str]:
        """Of every conversation, in words, why it failed (host)."""


@struct.dataclass
class Player:
    """An agent with its weights and the tokenizer of its messages. A pytree of its weights."""

    agent: Agent = struct.field(pytree_node=False)
    params: Any
    tokenizer: Any = struct.field(pytree_node=False)


@struct.dataclass
class Seat:
    """One side of the table. A pytree of weights.

    Attributes:
      actor: who acts.
      strategist: who advises the actor before every turn; None: nobody.
      trained: the strategist's conversation becomes a training row.
    """

    actor: Player
    strategist: Optional[Player] = None
    trained: bool = struct.field(pytree_node=False, default=False)
