"""Ragged batches of tokens, in which models and environments exchange messages.

The functions accept NumPy and JAX arrays and return the same kind, so that the same code runs in a host loop and in a
traced program.

Axis letters: B rows, K token positions.
"""

from typing import Optional, Sequence

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Int
import numpy as np

from epo_jax.runtime.errors import InputError

# Fields may hold arrays of either library.
Array = jax.Array | np.ndarray


@struct.dataclass
class Tokens:
    """A right-padded batch. Row b is ids[b, :length[b]]; the ids after it have no meaning.

    Attributes:
      ids: token ids.
      length: number of tokens in each row.
    """

    ids: Int[Array, 'B K']
    length: Int[Array, ' B']

    def rows(self) -> list[list[int]]:
        """Return the rows as Python lists. This copies device arrays to the host."""
        ids, length = np.asarray(self.ids), np.asarray(self.length)
        return [ids[b, :n].tolist() for b, n in enumerate(length)]


class TooLongError(InputError):
    """A row is longer than the width of its batch."""


def array_module(*trees):
    """Return `jax.numpy` if any leaf is a JAX array or a tracer, else `numpy`."""
    return jnp if any(isinstance(x, jax.Array) for x in jax.tree.leaves(trees)) else np


def pack(rows: Sequence[Sequence[int]], width: Optional[int] = None) -> Tokens:
    """Pack lists of ids into Tokens with NumPy arrays.

    Args:
      rows: the ids of each row.
      width: the width K; None means the length of the longest row.

    Raises:
      TooLongError: a row is longer than `width`.
    """
    longest = max(map(len, rows), default=0)
    width = longest if width is None else width
    if longest > width:
        raise TooLongError(f'a text of {longest} tokens does not fit into {width} tokens')
    ids = np.zeros((len(rows), width), np.int32)
    for b, row in enumerate(rows):
        ids[b, :len(row)] = row
    return Tokens(ids, np.array([len(row) for row in rows], np.int32))


def repeat(ids: Sequence[int], batch: int) -> Tokens:
    """Return Tokens (NumPy) with the same ids in each of `batch` rows."""
    return pack([ids] * batch, len(ids))


def concat(parts: Sequence[Tokens], width: Optional[int] = None) -> Tokens:
    """Concatenate each row of several batches: [B, K1], [B, K2], ... to [B, width or K1 + K2 + ...].

    Args:
      parts: batches with the same number of rows.
      width: width of the result; None means K1 + K2 + ... Longer rows are truncated, but `length` does not change, so
        that the caller can detect it.
    """
    xp = array_module(*parts)
    ids = xp.concatenate([p.ids for p in parts], axis=1)
    valid = xp.concatenate([xp.arange(p.ids.shape[1]) < p.length[:, None] for p in parts], axis=1)
    order = xp.argsort(~valid, axis=1, stable=True)  # tokens in their order, then padding
    ids = xp.take_along_axis(ids, order, axis=1)
    if width is not None:
        ids = xp.pad(ids, ((0, 0), (0, max(0, width - ids.shape[1]))))[:, :width]
    return Tokens(ids, sum(p.length for p in parts))


def keep(tokens: Tokens, mask: Bool[Array, ' B'] | bool) -> Tokens:
    """Empty the rows where the mask is False."""
    return tokens.replace(length=tokens.length * mask)
