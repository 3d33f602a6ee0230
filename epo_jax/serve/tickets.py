"""What is asked of the engine, and what it delivers."""

import dataclasses
from typing import Callable, Iterable, NamedTuple, Optional, Sequence

from epo_jax.runtime.errors import InputError

Guide = Callable[[Sequence[int]], Iterable[int]]  # from the ids sampled so far to those that may follow


class Busy(Exception):
    """Too many requests wait already."""


class RequestError(InputError):
    """A request that the engine cannot serve; the message says why."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a message is sampled.

    Attributes:
      max_tokens: maximum number of tokens, including the one that ends the message.
      ends: ids that end a message; they are delivered, too.
      banned: ids that are never sampled.
      temperature, top_p, top_k, min_tokens: as in `models.sampling.SamplingConfig`.
      no_repeat: whether sequences of the engine's `no_repeat` tokens must not occur twice in the conversation.
      key: data of the random key; a token at position p is sampled with fold_in(key, p).
      top: whether the most probable tokens are wanted.
      guide: says which ids may be sampled; None allows all. It is called after every token, in the engine's thread,
        and must not fail.
      room: tokens of the message that must fit.
    """

    max_tokens: int
    ends: frozenset[int]
    banned: frozenset[int] = frozenset()
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_tokens: int = 0
    no_repeat: bool = False
    key: tuple[int, int] = (0, 0)
    top: bool = False
    guide: Optional[Guide] = None
    room: int = 1


class Piece(NamedTuple):
    """Tokens that were sampled for a request.

    Attributes:
      ids, logprobs: the tokens and their log-probabilities at temperature 1.
      tops: for each token, the most probable tokens as (id, log-probability), where they are wanted.
      finish: None, or why the message ended: 'stop', 'length', or 'error'.
      error: what went wrong.
    """

    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    tops: tuple[tuple[tuple[int, float], ...], ...] = ()
    finish: Optional[str] = None
    error: str = ''


@dataclasses.dataclass
class Ticket:
    """A request in the engine.

    Attributes:
      ids: the prompt.
      sampling: how to sample.
      deliver: called in the engine's thread with every Piece; it must return at once.
      cancelled: whether nobody waits for the answer any longer.
      reused, read: tokens of the prompt that were found in a slot, and that were read.
      said: ids sampled so far.
    """

    ids: list[int]
    sampling: Sampling
    deliver: Callable[[Piece], None]
    cancelled: bool = False
    reused: int = 0
    read: int = 0
    said: list[int] = dataclasses.field(default_factory=list)

    def cancel(self) -> None:
        """Free the slot of this request at the next opportunity; nothing more is delivered."""
        self.cancelled = True
