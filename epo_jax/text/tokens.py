"""Ragged batches of tokens: the only form in which messages travel between models and environments.

The functions take NumPy and JAX arrays alike and answer in kind, so that the same code serves a host loop and a traced
program.

Axis letters: B rows, K token positions.
"""

from typing import Optional, Sequence

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Int
import numpy as np

from epo_jax.runtime.errors import InputError

Array = jax.Array | np.ndarray


@struct.dataclass
class Tokens:
    """A right-padded batch: row b is ids[b, :length[b]]; the ids after it have no meaning.

    Attributes:
      ids: token ids.
      length: number of tokens of every row.
    """

    ids: Int[Array, 'B K']
    length: Int[Array, ' B']

    def rows(self) -> list[list[int]]:
        """Return the rows as Python lists; device arrays are read back."""
        ids, length = np.asarray(self.ids), np.asarray(self.length)
        return [ids[b, :n].tolist() for b, n in enumerate(length)]


class TooLongError(InputError):
    """A row is longer than the width it must be packed into."""


def array_module(*trees):
    """Return `jax.numpy` if any leaf is a JAX array (traced ones included), else `numpy`."""
    return jnp if any(isinstance(x, jax.Array) for x in jax.tree.leaves(trees)) else np


def pack(rows: Sequence[Sequence[int]], width: Optional[int] = None) -> Tokens:
    """Pack lists of ids into NumPy Tokens.

    Args:
      rows: B lists.
      width: K; None takes the length of the longest row.

    Raises:
      TooLongError: a row is longer than `width`.
    """
    longest = max(map(len, rows), default=0)
    width = longest if width is None else width
    if longest > width:
        raise TooLongError(f'a text of {longest} tokens does not fit into {width}')
    ids = np.zeros((len(rows), width), np.int32)
    for b, row in enumerate(rows):
        ids[b, :len(row)] = row
    return Tokens(ids, np.array([len(row) for row in rows], np.int32))


def repeat(ids: Sequence[int], batch: int) -> Tokens:
    """Return the same ids in each of `batch` rows (NumPy)."""
    return pack([ids] * batch, len(ids))


def concat(parts: Sequence[Tokens], width: Optional[int] = None) -> Tokens:
    """Join Tokens row by row, [B, K1], [B, K2], ... into [B, width or K1 + K2 + ...].

    Args:
      parts: batches of the same B.
      width: width of the result. The caller makes sure that every joined row fits, or checks `length`.
    """
    xp = array_module(*parts)
    ids = xp.concatenate([p.ids for p in parts], axis=1)
    valid = xp.concatenate([xp.arange(p.ids.shape[1]) < p.length[:, None] for p in parts], axis=1)
    order = xp.argsort(~valid, axis=1, stable=True)  # the tokens in their order, then the padding
    ids = xp.take_along_axis(ids, order, axis=1)
    if width is not None:
        ids = xp.pad(ids, ((0, 0), (0, max(0, width - ids.shape[1]))))[:, :width]
    return Tokens(ids, sum(p.length for p in parts))


def keep(tokens: Tokens, mask) -> Tokens:
    """Empty the rows where mask[B] is False."""
    return tokens.replace(length=tokens.length * mask)
