"""GGUF files: metadata, tensors and the shape of the decoder, by the reader of the `gguf` package."""

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
    """A file that is not GGUF, is damaged, or holds something that is not supported."""


class GGUFFile:
    """An open GGUF file, whose tensors are read from a memory map on demand.

    Attributes:
      metadata: key -> number, string, bool or list of them.
      shapes: tensor name -> shape, slowest axis first (as NumPy has it).
    """

    def __init__(self, path: str | os.PathLike):
        """Open a file; raise GGUFError (not GGUF, or cut short) or OSError."""
        self.path = path
        if os.path.getsize(path) < 24:  # magic, version and two counts
            raise GGUFError(f'{path}: too short to be a GGUF file')
        try:
            reader = gguf.GGUFReader(path)
            self.metadata: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
        except (ValueError, IndexError, KeyError, OverflowError, TypeError) as error:  # raised on truncated files
            raise GGUFError(f'{path}: not a GGUF file, or cut short or damaged ({error})') from error
        if reader.byte_order != 'I':
            raise GGUFError(f'{path}: written for the other byte order')
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.shapes = {name: tuple(int(n) for n in reversed(t.shape)) for name, t in self._tensors.items()}

    def require(self, key: str) -> Any:
        """Return the metadata of a key; raise GGUFError if there is none."""
        if key not in self.metadata:
            raise GGUFError(f'{self.path}: no {key!r} in the metadata')
        return self.metadata[key]

    def read(self, name: str) -> np.ndarray:
        """Return tensor `name`, dequantized, with rows in Hugging Face's order, f32[shapes[name]].

        Raises:
          GGUFError: the tensor is of an unsupported type.
        """
        tensor = self._tensors[name]
        if tensor.tensor_type.name not in TENSOR_TYPES:
            raise GGUFError(f'{self.path}: tensor {name!r} is of type {tensor.tensor_type.name}; '
                            f'supported are {", ".join(TENSOR_TYPES)}')
        x = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        x = x.astype(np.float32, copy=False).reshape(self.shapes[name])
        if self.metadata.get('general.architecture') == 'llama' and name.endswith(('attn_q.weight', 'attn_k.weight')):
            heads = self.require('llama.attention.head_count')
            if name.endswith('attn_k.weight'):
                heads = self.metadata.get('llama.attention.head_count_kv', heads)
            # Here the two rows of a rotated pair are neighbours, there they are half a head apart.
            x = x.reshape(heads, -1, 2, x.shape[1]).swapaxes(1, 2).reshape(x.shape)
        return x


def config_of(file: GGUFFile) -> ModelConfig:
    """Return the decoder's shape from a file's metadata and tensor names.

    Raises:
      GGUFError: another architecture, a missing key, or a variant that this decoder does not compute.
    """
    kind = file.require('general.architecture')
    if kind not in ARCHITECTURES:
        raise GGUFError(f'{file.path}: architecture {kind!r} is not supported; '
                        f'supported are {", ".join(ARCHITECTURES)}')
    get = lambda key, default: file.metadata.get(f'{kind}.{key}', default)
    need = lambda key: file.require(f'{kind}.{key}')
    width, heads = need('embedding_length'), need('attention.head_count')
    kv_heads = get('attention.head_count_kv', heads)
    if isinstance(heads, list) or isinstance(kv_heads, list):
        raise GGUFError(f'{file.path}: head counts that differ between layers are not supported')
    head_dim = get('attention.key_length', width // heads)
    if not head_dim == get('attention.value_length', head_dim) == get('rope.dimension_count', head_dim):
        raise GGUFError(f'{file.path}: keys, values and rotary embedding of different sizes are not supported')
    if get('expert_count', 0):
        raise GGUFError(f'{file.path}: mixtures of experts are not supported')
    if get('rope.scaling.type', 'none') != 'none':
        raise GGUFError(f'{file.path}: rope scaling {get("rope.scaling.type", None)!r} is not supported')
    if 'token_embd.weight' not in file.shapes:
        raise GGUFError(f"{file.path}: tensor 'token_embd.weight' is missing")
    config = ModelConfig(
        vocab_size=file.shapes['token_embd.weight'][0],
        width=width,
        num_layers=need('block_count'),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        mlp_width=need('feed_forward_length'),
        rope_theta=float(get('rope.freq_base', 10000.0)),
        # stored as float32: 1e-5 rather than 9.999999747378752e-06
        norm_eps=float(str(np.float32(need('attention.layer_norm_rms_epsilon')))),
        sliding_window=get('attention.sliding_window', None),
        qkv_bias=kind == 'qwen2',
        qk_norm=kind == 'qwen3',
        tied='output.weight' not in file.shapes,
        max_positions=need('context_length'),
    )
    return dataclasses.replace(config, rope_scaling=_rope_scaling(file, config))


def _rope_scaling(file: GGUFFile, config: ModelConfig) -> Optional[RopeScaling]:
    """Return Llama 3.1's scaling. GGUF keeps only its result, the divisor of every rotary frequency.

    All published checkpoints share three of the four numbers and the fourth is the largest divisor; if
    these reproduce the tensor they are it, and if not there is no telling which others would.
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
