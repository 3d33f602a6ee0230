"""Agents on the host: a Python function, an API model, a scripted bot, a person."""

import dataclasses
from typing import Any, Callable, Optional, Sequence

from flax import struct
import jax
import numpy as np

from epo_jax.runtime import hosts
from epo_jax.runtime.hostcalls import Failure, call_all
from epo_jax.text import tokenizer as text
from epo_jax.text.tokens import Tokens, concat, pack

# (messages so far, each (role, text) with role 'user' or 'assistant'; a seed) -> the reply.
Reply = Callable[[Sequence[tuple[str, str]], int], str]


@struct.dataclass
class Memory:
    """The conversations of a host agent.

    Attributes:
      openings: object[B], text at the beginning of the next user message.
      histories: object[B], tuples of (role, text).
      failures: object[B], why a row failed, or None.
    """

    openings: np.ndarray
    histories: np.ndarray
    failures: np.ndarray


@dataclasses.dataclass(frozen=True)
class HostAgent:
    """Replies with a function, which is called for all rows at the same time.

    With several processes, each one calls it for its own slots (see `epo_jax.runtime.hosts`).

    Attributes:
      reply: the function; an error that it raises ends its own episode only.
      tokenizer: the tokenizer of the table, with which text is decoded and encoded.
      max_tokens: longer replies are cut to this many tokens.
      timeout: seconds that the replies may take; None sets no limit and calls for one row after the other.
    """

    reply: Reply
    tokenizer: Any
    max_tokens: int
    timeout: Optional[float] = None

    on_device = False

    @property
    def width(self) -> int:
        """Return the largest number of tokens of a reply."""
        return self.max_tokens

    def start(self, batch: int) -> Memory:
        """See Agent.start."""
        histories = np.empty(batch, object)
        histories[:] = [()] * batch
        return Memory(np.full(batch, '', object), histories, np.full(batch, None, object))

    def begin(self, params, memory: Memory, opening: Tokens, rows, group: int = 1) -> Memory:
        """See Agent.begin."""
        openings, histories, failures = memory.openings.copy(), memory.histories.copy(), memory.failures.copy()
        ids = opening.rows()
        for b in np.flatnonzero(rows):
            openings[b], histories[b], failures[b] = text.decode(self.tokenizer, ids[b]), (), None
        return Memory(openings, histories, failures)

    def respond(self, params, memory: Memory, content: Sequence[Tokens], cue: Tokens, choices: Optional[Tokens],
                keys: jax.Array, who: int, live) -> tuple[Memory, Tokens]:
        """See Agent.respond; `cue` and `choices` are not used, and the environment refuses what it does not allow."""
        live = np.asarray(live) & ~self.failed(memory)
        texts = [text.decode(self.tokenizer, row) for row in concat(content).rows()]
        seeds = np.asarray(jax.random.key_data(keys))[:, -1]
        openings, histories, failures = memory.openings.copy(), memory.histories.copy(), memory.failures.copy()
        rows = np.flatnonzero(live)
        for b in rows:
            histories[b] += (('user', openings[b] + texts[b]),)
            openings[b] = ''
        mine = np.flatnonzero(live & hosts.local_slots(len(live)))
        calls = [lambda b=b: self._answer(histories[b], int(seeds[b]) + 1000 * who + len(histories[b])) for b in mine]
        answers = hosts.share(mine, dict(zip(mine, call_all(calls, self.timeout))).get)
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
        if not isinstance(answer, str):  # an API may return no text when it refuses
            raise TypeError(f'the reply is a {type(answer).__name__}, not text')
        return answer

    def failed(self, memory: Memory) -> np.ndarray:
        """See Agent.failed: rows whose reply raised an error or took too long."""
        return np.array([reason is not None for reason in memory.failures])

    def reasons(self, memory: Memory) -> Sequence[str]:
        """See Agent.reasons."""
        return memory.failures
