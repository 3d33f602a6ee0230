"""Parsing the header of a GGUF file: its metadata, and where its tensors are.

Every announced length is compared with the size of the file before anything is allocated for it, so that a damaged file
is refused at once.
"""

import dataclasses
import math
import os
import struct
from typing import Any

import gguf
import numpy as np

from epo_jax.runtime.errors import InputError

MAGIC = b'GGUF'
VERSIONS = (2, 3)
MAX_AXES = 4
STRING, ARRAY = gguf.GGUFValueType.STRING, gguf.GGUFValueType.ARRAY
NUMBERS = {
    gguf.GGUFValueType.UINT8: '<u1', gguf.GGUFValueType.INT8: '<i1', gguf.GGUFValueType.BOOL: '?',
    gguf.GGUFValueType.UINT16: '<u2', gguf.GGUFValueType.INT16: '<i2', gguf.GGUFValueType.UINT32: '<u4',
    gguf.GGUFValueType.INT32: '<i4', gguf.GGUFValueType.FLOAT32: '<f4', gguf.GGUFValueType.UINT64: '<u8',
    gguf.GGUFValueType.INT64: '<i8', gguf.GGUFValueType.FLOAT64: '<f8'}


class GGUFError(InputError):
    """A file is not GGUF, is damaged, or contains something that is not supported."""


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor as it is stored.

    Attributes:
      kind: the type of its numbers or blocks.
      shape: its shape, slowest axis first as in NumPy.
      data: its bytes, one row of blocks after the other.
    """

    kind: gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    data: np.ndarray


def read_header(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    """Return the metadata of a file, and its tensors by name. The tensors are memory maps.

    Raises:
      GGUFError: the file is not GGUF, is truncated or damaged, or has the wrong byte order.
      OSError: the file cannot be read.
    """
    if os.path.getsize(path) < 24:  # magic, version and two counts
        raise GGUFError(f'{path}: not a GGUF file, because it has fewer than 24 bytes')
    cursor = _Cursor(np.memmap(path, np.uint8, 'r'))
    try:
        if cursor.take(4).tobytes() != MAGIC:
            raise ValueError('it does not begin with GGUF')
        version = cursor.number('<I')
        if version in {v << 24 for v in VERSIONS}:
            raise GGUFError(f'{path}: the byte order of this GGUF file is not that of this machine')
        if version not in VERSIONS:
            raise ValueError(f'version {version} is not one of {VERSIONS}')
        tensors, keys = cursor.count(24, 'tensors'), cursor.count(13, 'keys')
        metadata = {}
        for _ in range(keys):
            key = cursor.string()
            if key in metadata:
                raise ValueError(f'the key {key!r} occurs twice')
            metadata[key] = cursor.value(cursor.number('<I'))
        places = [cursor.tensor() for _ in range(tensors)]
        alignment = metadata.get('general.alignment', gguf.GGUF_DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f'general.alignment is {alignment!r}')
        start = -(-cursor.at // alignment) * alignment
        found = {name: _tensor(cursor, name, shape, kind, start + offset) for name, shape, kind, offset in places}
        if len(found) < tensors:
            raise ValueError('two tensors have the same name')
        return metadata, found
    except GGUFError:
        raise
    except ValueError as error:
        raise GGUFError(f'{path}: not a GGUF file, or truncated or damaged ({error})') from error


class _Cursor:
    """A position in the bytes of a file that moves as values are read; ValueError where the file ends too early."""

    def __init__(self, data: np.ndarray):
        self.data, self.at = memoryview(data), 0

    def take(self, size: int) -> memoryview:
        """Return the next bytes."""
        if size > len(self.data) - self.at:
            raise ValueError(f'{size} bytes are announced at byte {self.at} of {len(self.data)}')
        self.at += size
        return self.data[self.at - size:self.at]

    def number(self, kind: str) -> int:
        """Return the next number of a `struct` format."""
        return struct.unpack(kind, self.take(struct.calcsize(kind)))[0]

    def count(self, size: int, what: str) -> int:
        """Return the next number of things, each of which takes at least `size` bytes."""
        count = self.number('<Q')
        if count * size > len(self.data) - self.at:
            raise ValueError(f'{count} {what} are announced at byte {self.at} of {len(self.data)}')
        return count

    def string(self) -> str:
        """Return the next string."""
        return str(self.take(self.number('<Q')), 'utf-8')

    def value(self, kind: int) -> Any:
        """Return the next value of a type of metadata."""
        kind = gguf.GGUFValueType(kind)
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.numbers(kind, 1)[0]
        item = gguf.GGUFValueType(self.number('<I'))
        if item == ARRAY:
            raise ValueError('arrays of arrays are not supported')
        if item == STRING:
            return [self.string() for _ in range(self.count(8, 'strings'))]
        return self.numbers(item, self.count(np.dtype(NUMBERS[item]).itemsize, 'numbers'))

    def numbers(self, kind: gguf.GGUFValueType, count: int) -> list:
        """Return the next numbers of a type."""
        dtype = np.dtype(NUMBERS[kind])
        return np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Return name, shape (slowest axis first), type and offset of the next tensor."""
        name, axes = self.string(), self.number('<I')
        if axes > MAX_AXES:
            raise ValueError(f'tensor {name!r} has {axes} axes, more than {MAX_AXES}')
        shape = tuple(self.number('<Q') for _ in range(axes))[::-1]
        return name, shape, self.number('<I'), self.number('<Q')


def _tensor(cursor: _Cursor, name: str, shape: tuple[int, ...], kind: int, offset: int) -> StoredTensor:
    try:
        kind = gguf.GGMLQuantizationType(kind)
    except ValueError as error:
        raise ValueError(f'tensor {name!r} has the unknown type {kind}') from error
    block, size = gguf.GGML_QUANT_SIZES[kind]
    if math.prod(shape[-1:]) % block:
        raise ValueError(f'the rows of tensor {name!r} have {shape[-1]} numbers, but {kind.name} needs a multiple of '
                         f'{block}')
    cursor.at = offset
    if offset > len(cursor.data):
        raise ValueError(f'tensor {name!r} begins at byte {offset} of {len(cursor.data)}')
    rows, row = math.prod(shape[:-1]), math.prod(shape[-1:]) // block * size
    return StoredTensor(kind, shape, np.frombuffer(cursor.take(rows * row), np.uint8).reshape(rows, row))
