"""Reading GGUF files: metadata, dequantized tensors and the shape of the decoder."""

import dataclasses
import math
import os
import pathlib
import re
from typing import Any, Optional

import gguf
import numpy as np

from epo_jax.models.config import LinearScaling, ModelConfig, RopeScaling, all_but_every_nth
from epo_jax.models.gemma_config import GemmaConfig
from epo_jax.models.gguf_reader import GGUFError, StoredTensor, read_header
from epo_jax.models.rope import rope_frequencies

ARCHITECTURES = ('llama', 'smollm3', 'qwen2', 'qwen3', 'gemma3')


def is_gguf(path: str | os.PathLike) -> bool:
    """Return whether a path names an existing GGUF file."""
    path = pathlib.Path(path)
    return path.suffix.lower() == '.gguf' and path.is_file()


class GGUFFile:
    """A GGUF file, with all its parts if it is split, that reads tensors on demand from a memory map.

    Attributes:
      path: path of the file.
      metadata: maps each key to a number, string, bool or list of these.
      shapes: maps each tensor name to its shape, slowest axis first as in NumPy.
    """

    def __init__(self, path: str | os.PathLike):
        """Open a file. Any part of a split file stands for all of them.

        Raises:
          GGUFError: the file is not GGUF, is truncated, has the wrong byte order, or is a part of a file whose other
            parts are missing.
          OSError: the file cannot be read.
        """
        self.path = path
        self.metadata, self._tensors = read_header(path)
        if self.metadata.get('split.count', 1) not in (0, 1):
            self.metadata, self._tensors = _read_parts(pathlib.Path(path), self.metadata)
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}

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
        try:
            x = gguf.quants.dequantize(tensor.data, tensor.kind)
        except NotImplementedError as error:
            raise GGUFError(f'{self.path}: tensor {name!r} has the unsupported type {tensor.kind.name}') from error
        x = x.astype(np.float32, copy=False).reshape(tensor.shape)
        kind = self.metadata.get('general.architecture')
        if kind == 'gemma3' and name.endswith('norm.weight'):
            x = x - 1  # the file holds 1 + weight
        if kind in ('llama', 'smollm3') and name.endswith(('attn_q.weight', 'attn_k.weight')):
            heads = self.require(f'{kind}.attention.head_count')
            if name.endswith('attn_k.weight'):
                heads = self.metadata.get(f'{kind}.attention.head_count_kv', heads)
            # The two rows of a rotated pair are neighbors in GGUF, but half a head apart at Hugging Face.
            x = x.reshape(heads, -1, 2, x.shape[1]).swapaxes(1, 2).reshape(x.shape)
        return x


def _read_parts(path: pathlib.Path, part: dict[str, Any]) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    """Return the metadata of the first part of a split file, and the tensors of all parts."""
    count = part['split.count']
    if not isinstance(count, int):
        raise GGUFError(f'{path}: split.count must be a whole number, not {count!r:.80}')
    named = re.fullmatch(r'(.+)-\d{5}-of-(\d{5})(\.gguf)', path.name, re.IGNORECASE)
    if not named or int(named[2]) != count:
        raise GGUFError(f'{path}: this is a part of a GGUF file that was split into {count}; name it as llama.cpp '
                        f'does, NAME-00001-of-{count:05d}.gguf, with the other parts beside it')
    metadata, tensors = {}, {}
    for number in range(count):
        other = path.with_name(f'{named[1]}-{number + 1:05d}-of-{count:05d}{named[3]}')
        if not other.is_file():
            raise GGUFError(f'{path}: this GGUF file was split into {count} parts, and {other.name} is missing')
        part, found = read_header(other)
        if (part.get('split.count'), part.get('split.no')) != (count, number):
            raise GGUFError(f'{other}: by its metadata, this is not part {number + 1} of {count}')
        if twice := tensors.keys() & found.keys():
            raise GGUFError(f'{other}: tensor {min(twice)!r} is in another part, too')
        metadata, tensors = metadata or part, tensors | found
    if len(tensors) != metadata.get('split.tensors.count', len(tensors)):
        raise GGUFError(f'{path}: the parts have {len(tensors)} tensors, not {metadata["split.tensors.count"]}')
    return metadata, tensors


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
    require = lambda key, default=None: _positive(file, f'{kind}.{key}', int, default)
    if any(isinstance(get(f'attention.head_count{kv}', None), list) for kv in ('', '_kv')):
        raise GGUFError(f'{file.path}: numbers of heads that differ between layers are not supported')
    width, heads, layers = map(require, ('embedding_length', 'attention.head_count', 'block_count'))
    head_dim = require('attention.key_length', width // heads)
    if not head_dim == get('attention.value_length', head_dim) == get('rope.dimension_count', head_dim):
        raise GGUFError(f'{file.path}: different sizes of keys, values and rotary embeddings are not supported')
    usual = head_dim ** -0.5
    scale = kind != 'gemma3' and get('attention.scale', 0) or usual  # llama.cpp ignores it for Gemma 3
    if not get('attention.causal', True) or get('rope.scaling.attn_factor', 1) not in (0, 1) or not (
            isinstance(scale, (int, float)) and math.isclose(scale, usual, rel_tol=1e-5)):
        raise GGUFError(f'{file.path}: another attention than causal attention with the usual scale is not supported '
                        '(attention.causal, attention.scale, rope.scaling.attn_factor)')
    if get('expert_count', 0):
        raise GGUFError(f'{file.path}: mixtures of experts are not supported')
    # As in llama.cpp: without a type, a factor is linear; it has two names.
    scaling = get('rope.scaling.type', 'linear')
    factor_key = f'{kind}.rope.scaling.factor' if get('rope.scaling.factor', None) else f'{kind}.rope.scale_linear'
    factor = file.metadata.get(factor_key, 1.0)
    linear = scaling == 'linear' and factor not in (0, 1)
    if scaling not in ('none', 'linear') or linear and kind != 'gemma3':
        raise GGUFError(f'{file.path}: rope scaling {scaling!r} by the factor {factor} is not supported')
    if layers > len(file.shapes):
        raise GGUFError(f'{file.path}: the metadata announces {layers} layers, but there are only {len(file.shapes)} '
                        'tensors')
    if 'token_embd.weight' not in file.shapes:
        raise GGUFError(f"{file.path}: tensor 'token_embd.weight' is missing")
    config = ModelConfig(
        vocab_size=file.shapes['token_embd.weight'][0],
        width=width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=require('attention.head_count_kv', heads),
        head_dim=head_dim,
        mlp_width=require('feed_forward_length'),
        rope_theta=_positive(file, f'{kind}.rope.freq_base', float, 10000.0),
        # The value is stored as float32; this yields 1e-5 rather than 9.999999747378752e-06.
        norm_eps=float(str(np.float32(_positive(file, f'{kind}.attention.layer_norm_rms_epsilon', float)))),
        sliding_window=get('attention.sliding_window', 0) and require('attention.sliding_window') or None,
        qkv_bias=kind == 'qwen2',
        qk_norm=kind == 'qwen3',
        tied='output.weight' not in file.shapes,
        max_positions=require('context_length'),
        rope_layers=all_but_every_nth(layers, 4) if kind == 'smollm3' else None,
    )
    if kind == 'gemma3':
        return _gemma_config(file, config, LinearScaling(_positive(file, factor_key, float)) if linear else None)
    return dataclasses.replace(config, rope_scaling=_rope_scaling(file, config))


def _gemma_config(file: GGUFFile, config: ModelConfig, scaling: Optional[LinearScaling]) -> GemmaConfig:
    """Return the shape of a Gemma 3 decoder, with the constants of llama.cpp where the metadata has no key."""
    period = _positive(file, 'gemma3.attention.sliding_window_pattern', int, 6)
    local = all_but_every_nth(config.num_layers, 1 if config.sliding_window is None else period)
    cap_key, of_largest = 'gemma3.final_logit_softcapping', config.num_layers == 62  # 27B
    return GemmaConfig(**vars(config) | dict(
        qk_norm=True, rope_scaling=scaling, local_layers=local,
        logit_cap=_positive(file, cap_key, float) if file.metadata.get(cap_key) else None,
        local_rope_theta=_positive(file, 'gemma3.rope.freq_base_swa', float, 10000.0),
        query_scale=config.width / config.num_heads if of_largest else config.head_dim))


def _positive(file: GGUFFile, key: str, kind: type, default: Any = None) -> Any:
    """Return a positive int or float of the metadata; raise GGUFError if it is missing or something else."""
    value = file.require(key) if default is None else file.metadata.get(key, default)
    if not isinstance(value, (int, kind)) or isinstance(value, bool) or not 0 < value < float('inf'):
        raise GGUFError(f'{file.path}: {key} must be a positive {kind.__name__}, not {value!r:.80}')
    return value


def _rope_scaling(file: GGUFFile, config: ModelConfig) -> Optional[RopeScaling]:
    """Return Llama 3.1's scaling, or None. GGUF stores only its result: the divisor of each rotary frequency.

    Three of the four parameters are the same in all published checkpoints, and the fourth is the largest divisor. If
    these parameters do not reproduce the stored divisors, the right ones cannot be determined.
    """
    if 'rope_freqs.weight' not in file.shapes:
        return None
    divisors = file.read('rope_freqs.weight')
    sound = divisors.shape == (config.head_dim // 2,) and bool((np.isfinite(divisors) & (divisors > 0)).all())
    scaling = RopeScaling(factor=float(divisors.max()) if sound else 1.0, low_freq_factor=1.0, high_freq_factor=4.0,
                          original_positions=8192)
    scaled = rope_frequencies(config.head_dim, config.rope_theta, scaling)
    expected = rope_frequencies(config.head_dim, config.rope_theta) / scaled
    if not sound or not np.allclose(divisors, expected, rtol=1e-5, atol=0):
        raise GGUFError(f"{file.path}: 'rope_freqs.weight' is not the rotary scaling of a published Llama 3; "
                        'load the Hugging Face checkpoint instead')
    return scaling
