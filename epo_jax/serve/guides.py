"""Guides: which ids may follow those sampled so far, for answers from a list and for JSON of a schema."""

import dataclasses
import functools
import json
from typing import Any, Iterable, Mapping, Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from epo_jax.runtime.errors import InputError


class GuideError(InputError):
    """Answers that cannot be guided; the message says why."""


@dataclasses.dataclass(frozen=True)
class Choices:
    """A guide to one of several messages, along their prefix tree.

    Attributes:
      choices: the messages, as ids without an end.
      ends: ids that end a message.
    """

    choices: tuple[tuple[int, ...], ...]
    ends: frozenset[int]

    @property
    def room(self) -> int:
        """Return the tokens of the longest message, its end included."""
        return max(map(len, self.choices)) + 1

    def __call__(self, said: Sequence[int]) -> set[int]:
        """Return the ids that may follow."""
        begun = [choice for choice in self.choices if choice[:len(said)] == tuple(said)]
        allowed = {choice[len(said)] for choice in begun if len(choice) > len(said)}
        return allowed | (self.ends if tuple(said) in begun else set())


class Schemas:
    """Makes guides to JSON, with the optional package llguidance."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: Iterable[int]):
        """Guide messages of a tokenizer that these ids end."""
        self._tokenizer, self._ends = tokenizer, sorted(ends)

    @functools.cached_property
    def _vocabulary(self) -> Any:  # takes seconds, and few clients ask for it
        import llguidance.hf
        return llguidance.hf.from_tokenizer(self._tokenizer, eos_token=self._ends)

    def guide(self, schema: Mapping[str, Any]) -> 'Json':
        """Return a guide for one message.

        Raises:
          GuideError: the package is missing, or it does not know this schema.
        """
        try:
            from llguidance import LLMatcher
        except ImportError:
            raise GuideError('this server needs the package llguidance for this schema (pip install llguidance); '
                             'without it, a schema must be an enum, a const or a boolean') from None
        matcher = LLMatcher(self._vocabulary, LLMatcher.grammar_from_json_schema(
            json.dumps(schema), overrides={'whitespace_flexible': False}), log_level=0)
        if matcher.is_error():
            raise GuideError(f'this schema cannot be followed: {" ".join(matcher.get_error().split())[:300]}')
        return Json(matcher, frozenset(self._ends))


class Json:
    """A guide to JSON of a schema, without blanks between its parts.

    Attributes:
      room: tokens that must fit; a longer answer is cut off, as it is without a guide.
    """

    room = 1

    def __init__(self, matcher: Any, ends: frozenset[int]):
        """Follow a new `llguidance.LLMatcher`."""
        self._matcher, self._ends, self._consumed = matcher, ends, 0

    def __call__(self, said: Sequence[int]) -> Iterable[int]:
        """Return the ids that may follow; only those that end the message once llguidance gives up."""
        self._matcher.consume_tokens(list(said[self._consumed:]))
        self._consumed = len(said)
        if self._matcher.is_error():
            return self._ends
        return np.flatnonzero(np.frombuffer(self._matcher.compute_logit_bias(), np.uint8))
