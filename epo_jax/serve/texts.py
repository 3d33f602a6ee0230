"""Sampled ids as a stream of text, cut at stop sequences."""

from typing import Sequence

from transformers import PreTrainedTokenizerBase

from epo_jax.text import tokenizer as text
from epo_jax.text.tokenizer import CONTINUATION, Lead

UNFINISHED = '\ufffd'  # bytes that are not a character yet


class TextStream:
    """Turns ids into text as they come. Text is held back while it could become part of a stop sequence.

    Attributes:
      stopped: whether a stop sequence was found; it is not part of the text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, lead: Lead, stops: Sequence[str] = ()):
        """Begin an empty text.

        Args:
          tokenizer: the tokenizer.
          lead: what precedes the text.
          stops: sequences that end the text.
        """
        self.stopped = False
        self._tokenizer, self._lead, self._stops = tokenizer, lead, tuple(stops)
        self._ids: list[int] = []  # ids whose text is not complete
        self._held = ''

    def push(self, ids: Sequence[int]) -> str:
        """Add ids; return the text that is certain now."""
        self._ids += ids
        new = text.decode(self._tokenizer, self._ids, self._lead)
        if new.endswith(UNFINISHED):
            return ''
        if self._ids:
            self._ids, self._lead = [], CONTINUATION
        return self._cut(new, False)

    def finish(self) -> str:
        """Return the rest of the text; bytes that are no character become U+FFFD."""
        return self._cut(text.decode(self._tokenizer, self._ids, self._lead), True)

    def _cut(self, new: str, last: bool) -> str:
        if self.stopped:
            return ''
        held = self._held + new
        found = [at for at in map(held.find, self._stops) if at >= 0]
        if found:
            self.stopped, self._held = True, ''
            return held[:min(found)]
        longest = 0 if last else max((n for stop in self._stops for n in range(1, len(stop))
                                      if held.endswith(stop[:n])), default=0)
        self._held = held[len(held) - longest:]
        return held[:len(held) - longest]
