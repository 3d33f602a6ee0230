"""Play parts of a rollout in threads, so that local models work on one part while another waits for endpoints.

What an episode samples does not depend on its slot, so the episodes are the same as those of one loop.
"""

from concurrent import futures
import threading
from typing import Any, Callable, Sequence

import jax
import numpy as np

from epo_jax.rollout import Episodes, Table, Turn, encode, rollout_on_host


def play(table: Table, scenarios: Sequence[Any], keys: jax.Array, batch: int, parts: int,
         on_turn: Callable[[Turn], None]) -> tuple[Episodes, dict[int, str]]:
    """Play episodes in some parts at the same time, each in a host loop of its own.

    Args:
      table: who plays what.
      scenarios: of E episodes; see `rollout.encode`.
      keys: key[E].
      batch: number of slots of all parts together, a multiple of the table's group.
      parts: number of parts, at most; a part has at least one group of slots and one group of episodes.
      on_turn: called after every turn of a part, by one thread at a time.

    Returns:
      As `rollout_on_host`.
    """
    group, count = table.group, len(scenarios)
    parts = max(1, min(parts, batch // group, count // group))
    if parts == 1:
        return rollout_on_host(table, encode(table, scenarios), keys, batch, on_turn)
    shares = [share.ravel() for share in np.array_split(np.arange(count).reshape(-1, group), parts)]
    slots = batch // group // parts * group
    lock = threading.Lock()

    def report(turn: Turn) -> None:
        with lock:
            on_turn(turn)

    def part(share):
        return rollout_on_host(table, encode(table, [scenarios[e] for e in share]), keys[share], slots, report)

    with futures.ThreadPoolExecutor(parts) as pool:
        played = list(pool.map(part, shares))
    episodes = jax.tree.map(lambda *xs: np.concatenate([np.asarray(x) for x in xs]), *[e for e, _ in played])
    reasons = {int(share[e]): reason for share, (_, found) in zip(shares, played, strict=True)
               for e, reason in found.items()}
    return episodes, reasons
