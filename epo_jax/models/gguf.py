"""Reading GGUF files with the `gguf` package: metadata, tensors and the shape of the decoder."""

import dataclasses
import os
from typing import Any, Optional

import gguf
import numpy as np

from epo_jax.models.config import ModelConfig, RopeScaling
from epo_jax.models.transformer import rope_frequencies
from epo_jax.runtime.errors import InputError

ARCHITECTURES = ('llama', 'qwen2', 'qwen3')
TENSOR_TYPES = ('F32', 'F16', 'BF16', 'Q8_0', 'Q4_0', 'Q4_1')


class GGUFError(InputError):
    """A file is not GGUF, is damaged, or contains something that is not supported."""


class GGUFFile:
    """An open GGUF file that reads tensors on demand from a memory map.

    Attributes:
      path: path of the file.
      metadata: maps each key to a number, string, bool or list of these.
      shapes: maps each tensor name to its shape, slowest axis first as in NumPy.
    """

    def __init__(self, path: str | os.PathLike):
        """Open a file.

        Raises:
          GGUFError: the file is not GGUF, is truncated, or has the wrong byte order.
          OSError: the file cannot be read.
        """
        self.path = path
        if os.path.getsize(path) < 24:  # magic, version and two counts
            raise GGUFError(f'{path}: not a GGUF file, because it has fewer than 24 bytes')
        try:
            reader = gguf.GGUFReader(path)
            self.metadata: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
        except (ValueError, IndexError, KeyError, OverflowError, TypeError) as error:  # raised on truncated files
            raise GGUFError(f'{path}: not a GGUF file, or truncated or damaged ({error})') from error
        if reader.byte_order != 'I':
            raise GGUFError(f'{path}: the byte order of this GGUF file is not that of this machine')
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.shapes = {name: tuple(int(n) for n in reversed(t.shape)) for name, t in self._tensors.items()}

    def require(self, key: str) -> Any:
        """Return the metadata of a key, or raise GGUFError if the key is missing."""
        if key not in self.metadata:
            raise GGUFError(f'{self.path}: the metadata has no key {key!r}')
        return self.metadata[key]

    def read(self, name: str) -> np.ndarray:
        """Return a tensor, dequantized to float32, with its rows in the order of Hugging Face checkpoints.

        Raises:
          GGUFError: the type of the tensor is not supported.
        """
        tensor = self._tensors[name]
        if tensor.tensor_type.name not in TENSOR_TYPES:
            raise GGUFError(f'{self.path}: tensor {name!r} has the unsupported type {tensor.tensor_type.name}; '
                            f'supported types are {", ".join(TENSOR_TYPES)}')
        x = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        x = x.astype(np.float32, copy=False).reshape(self.shapes[name])
        if self.metadata.get('general.architecture') == 'llama' and name.endswith(('attn_q.weight', 'attn_k.weight')):
            heads = self.require('llama.attention.head_count')
            if name.endswith('attn_k.weight'):
                heads = self.metadata.get('llama.attention.head_count_kv', heads)
            # The two rows of a rotated pair are neighbors in GGUF, but half a head apart at Hugging Face.
            x = x.reshape(heads, -1, 2, x.shape[1]).swapaxes(1, 2).reshape(x.shape)
        return x


def read_gguf_config(file: GGUFFile) -> ModelConfig:
    """Return the shape of the decoder according to the metadata and the tensor names of a file.

    Raises:
      GGUFError: the architecture or one of its features is not supported, or a key is missing.
    """
    kind = file.require('general.architecture')
    if kind not in ARCHITECTURES:
        raise GGUFError(f'{file.path}: architecture {kind!r} is not supported; '
                        f'supported architectures are {", ".join(ARCHITECTURES)}')
    get = lambda key, default: file.metadata.get(f'{kind}.{key}', default)
    require = lambda key: file.require(f'{kind}.{key}')
    width, heads = require('embedding_length'), require('attention.head_count')
    kv_heads = get('attention.head_count_kv', heads)
    if isinstance(heads, list) or isinstance(kv_heads, list):
        raise GGUFError(f'{file.path}: numbers of heads that differ between layers are not supported')
    head_dim = get('attention.key_length', width // heads)
    if not head_dim == get('attention.value_length', head_dim) == get('rope.dimension_count', head_dim):
        raise GGUFError(f'{file.path}: different sizes of keys, values and rotary embeddings are not supported')
    if get('expert_count', 0):
        raise GGUFError(f'{file.path}: mixtures of experts are not supported')
    if get('rope.scaling.type', 'none') != 'none':
        raise GGUFError(f'{file.path}: rope scaling {get("rope.scaling.type", None)!r} is not supported')
    if 'token_embd.weight' not in file.shapes:
        raise GGUFError(f"{file.path}: tensor 'token_embd.weight' is missing")
    config = ModelConfig(
        vocab_size=file.shapes['token_embd.weight'][0],
        width=width,
        num_layers=require('block_count'),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        mlp_width=require('feed_forward_length'),
        rope_theta=float(get('rope.freq_base', 10000.0)),
        # The value is stored as float32; this yields 1e-5 rather than 9.999999747378752e-06.
        norm_eps=float(str(np.float32(require('attention.layer_norm_rms_epsilon')))),
        sliding_window=get('attention.sliding_window', None),
        qkv_bias=kind == 'qwen2',
        qk_norm=kind == 'qwen3',
        tied='output.weight' not in file.shapes,
        max_positions=require('context_length'),
    )
    return dataclasses.replace(config, rope_scaling=_rope_scaling(file, config))


def _rope_scaling(file: GGUFFile, config: ModelConfig) -> Optional[RopeScaling]:
    """Return Llama 3.1's scaling, or None. GGUF stores only its result: the divisor of each rotary frequency.

    Three of the four parameters are the same in all published checkpoints, and the fourth is the largest divisor. If
    these parameters do not reproduce the stored divisors, the right ones cannot be determined.
    """
    if 'rope_freqs.weight' not in file.shapes:
        return None
    divisors = file.read('rope_freqs.weight')
    scaling = RopeScaling(factor=float(divisors.max()), low_freq_factor=1.0, high_freq_factor=4.0,
                          original_positions=8192)
    scaled = rope_frequencies(dataclasses.replace(config, rope_scaling=scaling))
    expected = rope_frequencies(config) / scaled
    if divisors.shape != expected.shape or not np.allclose(divisors, expected, rtol=1e-5, atol=0):
        raise GGUFError(f"{file.path}: 'rope_freqs.weight' is not the rotary scaling of a published Llama 3; "
                        'load the Hugging Face checkpoint instead')
    return scaling
