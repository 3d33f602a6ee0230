"""Agents on the host, such as a Python function, a model behind an API, a script or a person."""

import dataclasses
import re
from typing import Any, Callable, Optional, Sequence

from flax import struct
import jax
from jaxtyping import Bool, Key
import numpy as np

from epo_jax.runtime import hosts
from epo_jax.runtime.hostcalls import Failure, call_all
from epo_jax.text import tokenizer as text
from epo_jax.text.tokens import Array, Tokens, concat, pack

# The messages of a conversation so far, as (role, text) with role 'user' or 'assistant'.
History = Sequence[tuple[str, str]]
# Maps conversations and a seed for each to the replies, or to a Failure with the reason why there is none.
Replies = Callable[[Sequence[History], Sequence[int]], Sequence[str | Failure]]

# What a model reads that cannot continue a cue by itself, or that must choose one of several replies.
CONTINUE = '\n\nYour reply continues the line below. Write only what comes after it.\n'
CHOOSE = '\n\nYour reply must be exactly one of these:\n'


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


def each(reply: Callable[[History, int], str], timeout: Optional[float] = None) -> Replies:
    """Return the `Replies` of a function that answers one conversation.

    Args:
      reply: the function. If it raises an error, only the episode of this conversation ends.
      timeout: maximum time for all replies in seconds. None means no limit, and the function is called for one
        conversation after the other; otherwise it is called for all of them in parallel.
    """
    def answer(history: History, seed: int) -> str:
        result = reply(history, seed)
        if not isinstance(result, str):
            raise TypeError(f'the reply must be a string, not {type(result).__name__}')
        return result

    return lambda histories, seeds: call_all(
        [lambda h=history, s=seed: answer(h, s) for history, seed in zip(histories, seeds, strict=True)], timeout)


@dataclasses.dataclass(frozen=True)
class HostAgent:
    """An agent whose replies are the results of a function of texts.

    With several processes, each process calls the function for its own slots (see `epo_jax.runtime.hosts`).

    Attributes:
      replies: the function. A Failure ends only the episode of its row; an error ends the run.
      tokenizer: the tokenizer in which messages are exchanged with the other agents and the environment.
      max_tokens: maximum number of tokens of a reply in this tokenizer; longer replies are truncated.
      one_line: whether line breaks in replies become spaces.
      closing: see `TextEnvironment.closing`.
    """

    replies: Replies
    tokenizer: Any
    max_tokens: int
    one_line: bool = False
    closing: str = ''

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
        """See Agent.respond. The message says in words how the reply begins and what it may be."""
        live = np.asarray(live) & ~self.failed(memory)
        texts = [text.decode(self.tokenizer, row) for row in concat(content).rows()]
        cues = [text.decode(self.tokenizer, row) for row in cue.rows()]
        allowed = [()] * len(texts) if choices is None else self._decode_choices(choices)
        seeds = np.asarray(jax.random.key_data(keys))[:, -1]
        openings, histories, failures = memory.openings.copy(), memory.histories.copy(), memory.failures.copy()
        rows = np.flatnonzero(live)
        for b in rows:
            request = (CONTINUE + cues[b] if cues[b] else '') + (
                CHOOSE + '\n'.join(choice.strip() for choice in allowed[b]) if allowed[b] else '')
            histories[b] += (('user', openings[b] + texts[b] + request),)
            openings[b] = ''
        local = np.flatnonzero(live & hosts.local_slots(len(live)))

        def ask():
            answers = self.replies([histories[b] for b in local],
                                   [int(seeds[b]) + 1000 * who + len(histories[b]) for b in local])
            return dict(zip(local, answers, strict=True))

        answers = hosts.share_all(ask)
        replies = [()] * len(live)
        for b in rows:
            answer = answers[b]
            if isinstance(answer, Failure):
                failures[b] = answer.reason
                continue
            histories[b] += (('assistant', answer),)
            said = continuation(answer, cues[b], self.closing)
            if self.one_line:
                said = ' '.join(said.split())
            replies[b] = text.encode(self.tokenizer, said)[:self.max_tokens]
        return Memory(openings, histories, failures), pack(replies, self.max_tokens)

    def _decode_choices(self, choices: Tokens) -> list[list[str]]:
        """Return the texts of the choices of every row."""
        ids, length = np.asarray(choices.ids), np.asarray(choices.length)
        return [[text.decode(self.tokenizer, row[:n]) for row, n in zip(*part) if n]
                for part in zip(ids, length, strict=True)]

    def failed(self, memory: Memory) -> np.ndarray:
        """See Agent.failed. A row fails if there is no reply to it."""
        return np.array([reason is not None for reason in memory.failures])

    def reasons(self, memory: Memory) -> Sequence[Optional[str]]:
        """See Agent.reasons."""
        return memory.failures


def continuation(reply: str, cue: str, closing: str = '') -> str:
    """Return what a reply adds to its cue.

    Chat models repeat the cue, or its end, although they are asked not to: after the cue 'Ann said: "', replies are
    'Ann said: "Hello."', 'said: Hello.' or '"Hello."'. All of these become 'Hello.'.

    Args:
      reply: the reply.
      cue: how the reply was to begin; '' for none.
      closing: a character that the cue opened and that ends the reply; '' for none.
    """
    said = reply.strip()
    if not cue.strip():
        return said
    opened = bool(closing) and cue.rstrip().endswith(closing)
    words = cue.strip().removesuffix(closing).rstrip() if opened else cue.strip()
    for start in (match.start() for match in re.finditer(r'\S+', words)):  # the longest end of the cue first
        if said.lower().startswith(words[start:].lower()):
            said = said[len(words) - start:].lstrip()
            break
    if opened and said.startswith(closing):
        said = said[1:].lstrip()
        said = said[:said.rindex(closing)] if closing in said else said
    return said.rstrip() if not opened else said.rstrip().removesuffix(closing)
