"""An agent outside the device: a Python function, an API model, a scripted bot, a person."""

import dataclasses
from typing import Any, Callable, Optional, Sequence

import jax
import numpy as np

from epo_jax.hostcalls import Failure, call_all
from epo_jax.text import tokenizer as text
from epo_jax.text.tokens import Tokens, concat, pack

# (role, text) messages so far, roles 'user' and 'assistant', oldest first; and a seed -> the reply.
Reply = Callable[[Sequence[tuple[str, str]], int], str]


@dataclasses.dataclass(frozen=True)
class Memory:
    """The conversations of a host agent: histories by row, and which rows have failed and why."""

    histories: tuple[tuple[tuple[str, str], ...], ...]
    failures: tuple[Optional[str], ...]


@dataclasses.dataclass(frozen=True)
class HostAgent:
    """Replies with `reply(history, seed)`, called for all rows at the same time.

    Attributes:
      reply: the function; whatever it raises ends its own episode only.
      tokenizer: the tokenizer of the table, by which text enters and leaves.
      max_tokens: a longer reply is cut there.
      timeout: seconds a reply may take; None: unlimited, and rows are served one after the other.
    """

    reply: Reply
    tokenizer: Any
    max_tokens: int
    timeout: Optional[float] = None

    def start(self, batch: int) -> Memory:
        """Empty histories."""
        return Memory(((),) * batch, (None,) * batch)

    def respond(self, params, memory: Memory, content: Sequence[Tokens], cue: Tokens,
                keys: jax.Array, who: int, live) -> tuple[Memory, Tokens]:
        """See Agent.respond; the cue is not used: what replies here needs no help to begin."""
        live = np.asarray(live) & ~self.failed(memory)
        texts = [text.decode(self.tokenizer, row) for row in concat(content).rows()]
        seeds = np.asarray(jax.random.key_data(keys))[:, -1]
        histories, failures = list(memory.histories), list(memory.failures)
        rows = np.flatnonzero(live)
        for b in rows:
            histories[b] += (('user', texts[b]),)
        calls = [lambda b=b: self._answer(histories[b], int(seeds[b]) + 1000 * who + len(histories[b])) for b in rows]
        replies = [()] * len(live)
        for b, answer in zip(rows, call_all(calls, self.timeout)):
            if isinstance(answer, Failure):
                failures[b] = answer.reason
                continue
            histories[b] += (('assistant', answer),)
            replies[b] = text.encode(self.tokenizer, answer)[:self.max_tokens]
        return Memory(tuple(histories), tuple(failures)), pack(replies, self.max_tokens)

    def _answer(self, history, seed: int) -> str:
        answer = self.reply(history, seed)
        if not isinstance(answer, str):  # an API that refuses may answer with nothing
            raise TypeError(f'the reply is {type(answer).__name__}, not text')
        return answer

    def failed(self, memory: Memory) -> np.ndarray:
        """Rows whose reply raised or took too long."""
        return np.array([reason is not None for reason in memory.failures])
