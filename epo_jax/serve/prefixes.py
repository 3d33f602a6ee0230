"""Which slot a prompt gets: the one whose conversation it continues, or one whose conversation is forgotten."""

import dataclasses
from typing import NamedTuple, Optional, Sequence

from epo_jax.serve.tickets import Ticket

WORTH_COPYING = 16  # shared tokens for which a row is copied instead of read again


@dataclasses.dataclass
class Slot:
    """What the host knows of a slot: the ids in its conversation, who uses it, and when it was last used."""

    number: int
    ids: list[int] = dataclasses.field(default_factory=list)
    ticket: Optional[Ticket] = None
    used: float = 0.0

    @property
    def reading(self) -> bool:
        """Return whether a part of the prompt is unread."""
        return self.ticket is not None and len(self.ids) < len(self.ticket.ids)


class Place(NamedTuple):
    """Where a prompt goes.

    Attributes:
      slot: the slot that it gets.
      source: the slot whose conversation begins like it; its row is copied unless it is the same slot.
      shared: ids of the prompt that need not be read.
      lost: ids that are forgotten.
    """

    slot: Slot
    source: Slot
    shared: int
    lost: int


def find_place(slots: Sequence[Slot], ids: Sequence[int]) -> Optional[Place]:
    """Return where a prompt goes; None while all slots are in use, or while another request reads the same ids."""
    free = [slot for slot in slots if slot.ticket is None]
    if not free:
        return None
    shared = [common(slot.ids, ids) for slot in slots]
    lost = lambda slot: len(slot.ids) - shared[slot.number]
    source = max(slots, key=lambda slot: (shared[slot.number], slot.ticket is None, -lost(slot), -slot.used))
    if any(slot.reading and common(slot.ticket.ids, ids) >= shared[source.number] + WORTH_COPYING for slot in slots):
        return None
    oldest = min(free, key=lambda slot: (bool(slot.ids), slot.used))
    worth = shared[source.number] >= WORTH_COPYING
    # A prompt that leaves a conversation in the middle (a question that is asked again, say) forgets the end of it, if
    # keeping both would forget more.
    if source.ticket is None and (lost(source) == 0 or worth and lost(source) < lost(oldest)):
        slot = source
    else:
        slot, source = oldest, source if worth else oldest
    return Place(slot, source, shared[source.number], lost(slot))


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the length of the longest common prefix."""
    length, start, size = min(len(a), len(b)), 0, 64
    while start < length and a[start:start + size] == b[start:start + size]:  # comparing slices is fast
        start += size
    return next((i for i in range(start, length) if a[i] != b[i]), length)
