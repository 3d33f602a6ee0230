"""Which episodes are embedded in a report, so that its size is limited."""

import collections
import hashlib
import json
from typing import Any, Sequence

SHARE_OF_TOKENS = 0.25  # of the bytes, for ids and log-probabilities


def sample(episodes: Sequence[dict[str, Any]], size: int) -> list[dict[str, Any]]:
    """Return the episodes to embed, in their order; those beyond the size for tokens lose them.

    Every file, condition and run gets an equal share. The scenarios are taken in the same order everywhere, so that the
    same scenario can be compared between conditions and iterations.

    Args:
      episodes: all episodes in display form, see `report.episodes`.
      size: number of bytes that the embedded episodes may have.
    """
    groups = collections.defaultdict(list)
    for n, episode in enumerate(episodes):
        groups[episode['run'], episode['file'], episode['condition']].append(n)
    place = {}
    for members in groups.values():
        members.sort(key=lambda n: (_shuffled(episodes[n]['scenario']), str(episodes[n]['episode'])))
        place |= {n: rank for rank, n in enumerate(members)}
    tokens, rest, kept = int(SHARE_OF_TOKENS * size), size, {}
    for n in sorted(place, key=lambda n: (place[n], n)):
        episode, whole = episodes[n], _size(episodes[n])
        light = episode | {'turns': [{name: value for name, value in turn.items() if name != 'tokens'}
                                     for turn in episode['turns']]}
        small = _size(light)
        if small > rest:
            break
        if whole - small <= tokens and whole <= rest:
            tokens -= whole - small
            kept[n] = episode
            rest -= whole
        else:
            kept[n] = light
            rest -= small
    return [kept[n] for n in sorted(kept)]


def _shuffled(scenario: Any) -> bytes:
    """Return a number by which scenarios are sorted at random, the same for every group and report."""
    return hashlib.sha256(repr(scenario).encode('utf-8', 'backslashreplace')).digest()


def _size(episode: dict[str, Any]) -> int:
    return len(json.dumps(episode, ensure_ascii=False).encode('utf-8', 'replace')) + 1
