"""Play games in threads, so that local models work on one of them while the others wait for endpoints.

What an episode samples depends neither on its slot nor on other episodes, so the episodes are those of one loop.
"""

from concurrent import futures
import dataclasses
import threading
from typing import Any, Callable, Sequence

import jax
import numpy as np

from epo_jax.rollout import Episodes, Table, Turn, encode, rollout_on_host


@dataclasses.dataclass(frozen=True)
class Game:
    """Episodes at one table.

    Attributes:
      table: who plays what.
      scenarios: of E episodes; see `rollout.encode`.
      keys: key[E].
    """

    table: Table
    scenarios: Sequence[Any]
    keys: jax.Array


def play(games: Sequence[Game], batch: int, parts: int,
         on_turn: Callable[[Turn], None]) -> list[tuple[Episodes, dict[int, str]]]:
    """Play games, all of them at the same time if there are several parts.

    Args:
      games: what is played; their tables have groups of the same size.
      batch: number of slots of all games together, a multiple of the tables' group.
      parts: number of host loops that share the slots, at least; 1 plays one game after the other, each in all slots.
        A part has at least one group of slots and one group of episodes.
      on_turn: called after every turn of a part, by one thread at a time.

    Returns:
      As `rollout_on_host`, for every game.
    """
    group, lock = games[0].table.group, threading.Lock()
    places = batch // group
    each = min(-(-parts // len(games)), places)
    threads = min(each * len(games), places) if parts > 1 else 1
    shares = [(game, share.ravel()) for game in games for share in np.array_split(
        np.arange(len(game.scenarios)).reshape(-1, group), min(each, len(game.scenarios) // group))]
    slots = places // min(threads, len(shares)) * group

    def report(turn: Turn) -> None:
        with lock:
            on_turn(turn)

    def part(share: tuple[Game, np.ndarray]) -> tuple[Episodes, dict[int, str]]:
        game, numbers = share
        return rollout_on_host(game.table, encode(game.table, [game.scenarios[e] for e in numbers]),
                               game.keys[numbers], slots, report)

    played = list(concurrently(part, shares, threads))
    return [_join([(numbers, found) for (of, numbers), found in zip(shares, played, strict=True) if of is game])
            for game in games]


def concurrently(function: Callable[[Any], Any], items: Sequence[Any], threads: int) -> list[Any]:
    """Return function(item) of all items, computed in some threads; in this one if the number is 1."""
    if threads == 1:
        return list(map(function, items))
    with futures.ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, items))


def _join(parts: Sequence[tuple[np.ndarray, tuple[Episodes, dict[int, str]]]]) -> tuple[Episodes, dict[int, str]]:
    """Return the parts of a game, given with the numbers of their episodes, as one."""
    if len(parts) == 1:
        return parts[0][1]
    episodes = jax.tree.map(lambda *xs: np.concatenate([np.asarray(x) for x in xs]), *[found[0] for _, found in parts])
    return episodes, {int(numbers[e]): reason for numbers, (_, reasons) in parts for e, reason in reasons.items()}
