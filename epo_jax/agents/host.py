"""Agents on the host, such as a Python function, a model behind an API, a script or a person."""

import dataclasses
from typing import Any, Callable, Optional, Sequence

from flax import struct
import jax
from jaxtyping import Bool, Key
import numpy as np

from epo_jax.runtime import hosts
from epo_jax.runtime.hostcalls import Failure, call_all
from epo_jax.text import tokenizer as text
from epo_jax.text.tokens import Array, Tokens, concat, pack

# Maps the messages so far, as (role, text) with role 'user' or 'assistant', and a seed to the reply.
Reply = Callable[[Sequence[tuple[str, str]], int], str]


@struct.dataclass
class Memory:
    """The conversations of a host agent.

    Attributes:
      openings: text at the beginning of the next user message, object[B].
      histories: the messages so far as tuples of (role, text), object[B].
      failures: the reason why a row failed, or None, object[B].
    """

    openings: np.ndarray
    histories: np.ndarray
    failures: np.ndarray


@dataclasses.dataclass(frozen=True)
class HostAgent:
    """An agent whose replies are the results of a function, which is called for all rows in parallel.

    With several processes, each process calls the function for its own slots (see `epo_jax.runtime.hosts`).

    Attributes:
      reply: the function. If it raises an error, only the episode of this row ends.
      tokenizer: the tokenizer that all agents of the episode share.
      max_tokens: maximum number of tokens of a reply; longer replies are truncated.
      timeout: maximum time for all replies in seconds. None means no limit, and the function is called for one row
        after the other.
    """

    reply: Reply
    tokenizer: Any
    max_tokens: int
    timeout: Optional[float] = None

    on_device = False

    @property
    def width(self) -> int:
        """Return the maximum number of tokens of a reply."""
        return self.max_tokens

    def start(self, batch: int) -> Memory:
        """See Agent.start."""
        histories = np.empty(batch, object)
        histories[:] = [()] * batch
        return Memory(np.full(batch, '', object), histories, np.full(batch, None, object))

    def begin(self, params, memory: Memory, opening: Tokens, rows: Bool[Array, ' B'], group: int = 1) -> Memory:
        """See Agent.begin."""
        openings, histories, failures = memory.openings.copy(), memory.histories.copy(), memory.failures.copy()
        ids = opening.rows()
        for b in np.flatnonzero(rows):
            openings[b], histories[b], failures[b] = text.decode(self.tokenizer, ids[b]), (), None
        return Memory(openings, histories, failures)

    def respond(self, params, memory: Memory, content: Sequence[Tokens], cue: Tokens, choices: Optional[Tokens],
                keys: Key[Array, ' B'], who: int, live: Bool[Array, ' B']) -> tuple[Memory, Tokens]:
        """See Agent.respond. This agent ignores `cue` and `choices`; the environment rejects invalid actions."""
        live = np.asarray(live) & ~self.failed(memory)
        texts = [text.decode(self.tokenizer, row) for row in concat(content).rows()]
        seeds = np.asarray(jax.random.key_data(keys))[:, -1]
        openings, histories, failures = memory.openings.copy(), memory.histories.copy(), memory.failures.copy()
        rows = np.flatnonzero(live)
        for b in rows:
            histories[b] += (('user', openings[b] + texts[b]),)
            openings[b] = ''
        local = np.flatnonzero(live & hosts.local_slots(len(live)))
        calls = [lambda b=b: self._answer(histories[b], int(seeds[b]) + 1000 * who + len(histories[b])) for b in local]
        answers = hosts.share(local, dict(zip(local, call_all(calls, self.timeout))).get)
        replies = [()] * len(live)
        for b in rows:
            answer = answers[b]
            if isinstance(answer, Failure):
                failures[b] = answer.reason
                continue
            histories[b] += (('assistant', answer),)
            replies[b] = text.encode(self.tokenizer, answer)[:self.max_tokens]
        return Memory(openings, histories, failures), pack(replies, self.max_tokens)

    def _answer(self, history, seed: int) -> str:
        answer = self.reply(history, seed)
        if not isinstance(answer, str):  # an API that declines to answer may return None
            raise TypeError(f'the reply must be a string, not {type(answer).__name__}')
        return answer

    def failed(self, memory: Memory) -> np.ndarray:
        """See Agent.failed. A row fails if its reply raises an error or takes too long."""
        return np.array([reason is not None for reason in memory.failures])

    def reasons(self, memory: Memory) -> Sequence[Optional[str]]:
        """See Agent.reasons."""
        return memory.failures
