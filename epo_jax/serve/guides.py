"""Guides: which ids may follow those sampled so far."""

import dataclasses
from typing import Sequence


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
