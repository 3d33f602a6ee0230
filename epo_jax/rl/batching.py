"""The order in which gradient steps use the trained conversations.

Axis letters: N conversations, B conversations of one step, L token positions.
"""

from typing import Any

import jax
import numpy as np

from epo_jax.rl.learner import Batch
from epo_jax.runtime import streams
from epo_jax.text.tokens import array_module


def epoch_order(count: int, batch: int, rng: np.random.Generator) -> np.ndarray:
    """Return the shuffled rows of every gradient step of an epoch, i32[steps, B].

    The last step is padded with `count`, which is not the number of any row.
    """
    order = rng.permutation(count)
    return np.concatenate([order, np.full(-count % batch, count)]).reshape(-1, batch).astype(np.int32)


def orders(count: int, batch: int, epochs: int, seed: tuple[int, ...]) -> np.ndarray:
    """Return the orders of several epochs one after the other, i32[epochs * steps, B]; see `epoch_order`."""
    return np.concatenate([
        epoch_order(count, batch, streams.generator('gradient steps', *seed, epoch)) for epoch in range(epochs)])


def take(rows: Batch, at: Any) -> Batch:
    """Return rows at[B] as a batch; a row that does not exist contributes nothing."""
    xp = array_module(rows)
    exists = at < len(rows.ids)

    def pick(x, empty):
        picked = x[xp.minimum(at, len(x) - 1)]
        return xp.where(exists.reshape(-1, *[1] * (x.ndim - 1)), picked, xp.asarray(empty, x.dtype))

    return Batch(pick(rows.ids, 0), pick(rows.turn, -1), pick(rows.logprob, 0), pick(rows.advantage, 0),
                 pick(rows.valid, False), None if rows.reference is None else pick(rows.reference, 0))


def cut_length(rows: Batch, bucket: int) -> Batch:
    """Drop token positions after the last sampled id of all rows, rounded up to a multiple of `bucket`.

    The bucket keeps the number of compiled programs small. A row may be empty; its turn is -1 everywhere.
    """
    sampled = np.flatnonzero((np.asarray(rows.turn) >= 0).any(axis=0))
    longest = sampled[-1] + 1 if len(sampled) else 1
    length = min(-(-longest // bucket) * bucket, rows.ids.shape[1])
    cut = lambda x: None if x is None else x[:, :length]
    return rows.replace(
        ids=cut(rows.ids), turn=cut(rows.turn), logprob=cut(rows.logprob), reference=cut(rows.reference))


def batches(rows: Batch, batch: int, epochs: int, seed: tuple[int, ...], bucket: int) -> list[Batch]:
    """Return the batches of all gradient steps of an iteration (NumPy)."""
    rows = cut_length(rows, bucket)
    return [jax.tree.map(np.asarray, take(rows, at)) for at in orders(len(rows.ids), batch, epochs, seed)]
