"""The interface of agents, which read messages and reply to them.

An agent is a frozen description. Its memory of the conversations is a value that its methods take and return.
Strategists and actors have the same interface: a strategist replies with a strategy, an actor with an action.

Axis letters: B slots (each has one conversation at a time), K tokens of one message, C choices.
"""

from typing import Any, NamedTuple, Optional, Protocol, Sequence

from flax import struct
from jaxtyping import Bool, Key

from epo_jax.text.tokenizer import CONTINUATION, Lead
from epo_jax.text.tokens import Array, Tokens


class Agent(Protocol):
    """A strategist or an actor that has B conversations in parallel.

    Attributes:
      width: maximum number of tokens of a reply.
      on_device: whether JAX can trace the methods.
    """

    width: int
    on_device: bool

    def start(self, batch: int) -> Any:
        """Return the memory of `batch` empty slots."""

    def begin(self, params: Any, memory: Any, opening: Tokens, rows: Bool[Array, ' B'], group: int) -> Any:
        """Start new conversations in some rows, and forget the previous ones.

        Args:
          params, memory: see `respond`.
          opening: beginning of the first user message, [B, K].
          rows: rows that start a new conversation.
          group: number of neighboring rows that start together with the same opening; static.

        Returns:
          The new memory.
        """

    def respond(self, params: Any, memory: Any, content: Sequence[Tokens], cue: Tokens, choices: Optional[Tokens],
                keys: Key[Array, ' B'], who: int, live: Bool[Array, ' B']) -> tuple[Any, Tokens]:
        """Read a user message and reply to it. In a new conversation, the message continues the opening.

        Args:
          params: parameters of the model; None for an agent without parameters.
          memory: the memory that the previous call returned. It may be donated, so the caller must not use it again.
          content: parts of the message, each [B, K], in the order in which they are read.
          cue: beginning of the reply, [B, K], which the agent continues.
          choices: allowed replies, [B, C, K]. All replies are allowed if it is None, and in rows whose choices are all
            empty.
          keys: random keys, one per episode. A sampled token depends only on key, `who` and position.
          who: index of this agent among the agents of the episode.
          live: rows that read and reply; the others do not change.

        Returns:
          The new memory, and the replies [B, width] without their stop tokens.
        """

    def failed(self, memory: Any) -> Bool[Array, ' B']:
        """Return which conversations cannot continue, for example because the context is full; their episodes end."""

    def reasons(self, memory: Any) -> Sequence[Optional[str]]:
        """Return, for each row, why its conversation failed. Entries of rows that have not failed have no meaning."""


@struct.dataclass
class Player:
    """An agent with its parameters and the tokenizer of its messages; a pytree of the parameters."""

    agent: Agent = struct.field(pytree_node=False)
    params: Any
    tokenizer: Any = struct.field(pytree_node=False)

    @property
    def leads(self) -> tuple[Lead, Lead]:
        """Return what its chat template, if it has one, puts before a message that it reads and before its reply."""
        chat = getattr(self.agent, 'chat', None)
        return (chat.user_lead, chat.reply_lead) if chat else (CONTINUATION, CONTINUATION)


class Reasoning(NamedTuple):
    """How an actor reasons before it acts, as ids of its tokenizer.

    Attributes:
      request: what is put after an observation, to ask for the reasoning.
      before, after: what surrounds the reasoning in what the actor reads before it acts.
    """

    request: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]


@struct.dataclass
class Seat:
    """One participant of an episode; a pytree of parameters.

    Attributes:
      actor: the player that acts.
      strategist: the player that gives the actor a strategy before every action, or None.
      trained: whether the strategist is trained on its conversation.
      reasoning: if it is set, the strategist is a second conversation of the actor's own model, which reads what the
        actor reads and writes its reasoning in place of a strategy.
    """

    actor: Player
    strategist: Optional[Player] = None
    trained: bool = struct.field(pytree_node=False, default=False)
    reasoning: Optional[Reasoning] = struct.field(pytree_node=False, default=None)

    @property
    def advised(self) -> bool:
        """Return whether the actor is told of a strategist."""
        return self.strategist is not None and self.reasoning is None
