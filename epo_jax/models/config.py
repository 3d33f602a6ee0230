"""The shape of a decoder as a frozen dataclass, and its reader for Hugging Face's `config.json`."""

import dataclasses
import math
from typing import Any, Mapping, Optional

from epo_jax.models import fields
from epo_jax.runtime.errors import InputError


class UnsupportedModelError(InputError):
    """A checkpoint requires a feature that the decoder does not support."""


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's scaling of the rotary frequencies (`rope_type: llama3`).

    Wavelengths above `original_positions / low_freq_factor` are multiplied by `factor`, wavelengths below
    `original_positions / high_freq_factor` do not change, and wavelengths in between are interpolated.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_positions: int


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The shape of a decoder of the Llama family: Llama, SmolLM2, Mistral, Qwen2 or Qwen3.

    Attributes:
      vocab_size: number of rows of the embedding table.
      width: width of the residual stream.
      num_layers: number of layers.
      num_heads: number of query heads, a multiple of `num_kv_heads`.
      num_kv_heads: number of key/value heads.
      head_dim: size of a head.
      mlp_width: hidden width of the gated MLP.
      rope_theta: base of the rotary frequencies.
      rope_scaling: Llama 3.1's frequency scaling, or None.
      norm_eps: epsilon of all RMS norms.
      sliding_window: a query attends to its own position and the previous `sliding_window` - 1; None means all.
      qkv_bias: whether the query, key and value projections have biases (Qwen2).
      qk_norm: whether every query and key head is RMS-normalized (Qwen3).
      tied: whether the embedding table is also the output projection.
      max_positions: maximum context length of the checkpoint, in tokens.
    """

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_width: int
    rope_theta: float = 10000.0
    rope_scaling: Optional[RopeScaling] = None
    norm_eps: float = 1e-5
    sliding_window: Optional[int] = None
    qkv_bias: bool = False
    qk_norm: bool = False
    tied: bool = False
    max_positions: int = 2048

    def __post_init__(self):
        if not (math.isfinite(self.rope_theta) and self.rope_theta > 0):
            raise UnsupportedModelError(f'the base of the rotary frequencies must be positive, not {self.rope_theta}')
        if self.num_heads % self.num_kv_heads:
            raise UnsupportedModelError(
                f'{self.num_heads} query heads cannot share {self.num_kv_heads} key/value heads evenly: '
                'the number of query heads must be a multiple of the number of key/value heads')
        if self.head_dim % 2:
            raise UnsupportedModelError(f'rotary embeddings need an even head size, but it is {self.head_dim}')

    @property
    def num_params(self) -> int:
        """Return the number of scalar parameters."""
        attention = 2 * self.width * self.head_dim * (self.num_heads + self.num_kv_heads)
        attention += self.head_dim * (self.num_heads + 2 * self.num_kv_heads) * self.qkv_bias
        attention += 2 * self.head_dim * self.qk_norm
        layer = attention + 3 * self.width * self.mlp_width + 2 * self.width
        tables = self.vocab_size * self.width * (1 if self.tied else 2)
        return self.num_layers * layer + tables + self.width

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> 'ModelConfig':
        """Read the content of a Hugging Face `config.json`. Absent keys have the defaults of their family.

        Raises:
          UnsupportedModelError: the architecture, activation, rotary embedding, bias or quantization is not supported.
          FieldError: a required key is missing, or a key has a wrong value.
        """
        kind = hf.get('model_type')
        if kind not in ('llama', 'mistral', 'qwen2', 'qwen3'):
            raise UnsupportedModelError(
                f'model_type {fields.shown(kind)} is not supported; '
                'supported types are llama, mistral, qwen2 and qwen3')
        for key in ('quantization_config', 'quantization', 'compression_config'):
            if hf.get(key):
                method = isinstance(hf[key], dict) and hf[key].get('quant_method')
                method = f' with quant_method {fields.shown(method)}' if method else ''
                raise UnsupportedModelError(
                    f'the weights are quantized ({key}{method}), which is not supported; take the original checkpoint, '
                    'or a GGUF file')
        if hf.get('hidden_act', 'silu') != 'silu':
            raise UnsupportedModelError(f"hidden_act {fields.shown(hf['hidden_act'])} is not supported, only 'silu'")
        if hf.get('mlp_bias') or (hf.get('attention_bias') and kind != 'qwen2'):
            raise UnsupportedModelError('biases are only supported on the q, k and v projections of Qwen2')
        width, heads = fields.size(hf, 'hidden_size'), fields.size(hf, 'num_attention_heads')
        layers = fields.size(hf, 'num_hidden_layers')
        # Only an absent key has the default of the family; null means one key/value head for every query head.
        kv_heads = heads if 'num_key_value_heads' in hf else {'mistral': 8, 'qwen2': 32, 'qwen3': 32}.get(kind, heads)
        max_positions = fields.size(hf, 'max_position_embeddings', {'llama': 2048, 'mistral': 131072}.get(kind, 32768))
        theta, scaling = _rope(hf, max_positions)
        return cls(
            vocab_size=fields.size(hf, 'vocab_size'),
            width=width,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=fields.size(hf, 'num_key_value_heads', kv_heads),
            head_dim=fields.size(hf, 'head_dim', 128 if kind == 'qwen3' else width // heads),
            mlp_width=fields.size(hf, 'intermediate_size'),
            rope_theta=theta,
            rope_scaling=scaling,
            norm_eps=fields.number(hf, 'rms_norm_eps', 1e-6),
            sliding_window=_window(hf, kind, layers),
            qkv_bias=kind == 'qwen2',
            qk_norm=kind == 'qwen3',
            tied=fields.flag(hf, 'tie_word_embeddings'),
            max_positions=max_positions,
        )


def _rope(hf: Mapping[str, Any], max_positions: int) -> tuple[float, Optional[RopeScaling]]:
    """Return the rotary base and scaling from `rope_parameters`, or from `rope_theta` and `rope_scaling`."""
    rope = fields.group(hf, 'rope_scaling') or fields.group(hf, 'rope_parameters')
    theta = fields.number(rope, 'rope_theta', fields.number(hf, 'rope_theta', 10000.0))
    kind = rope.get('rope_type') or rope.get('type') or 'default'
    if any(isinstance(value, dict) for value in rope.values()):
        raise UnsupportedModelError('rotary embeddings that differ between layers are not supported')
    if fields.number({**hf, **rope}, 'partial_rotary_factor', 1.0) != 1.0:
        raise UnsupportedModelError('a partial_rotary_factor other than 1 is not supported')
    if kind == 'default':
        return theta, None
    if kind != 'llama3':
        raise UnsupportedModelError(
            f"rope type {fields.shown(kind)} is not supported; supported types are 'default' and 'llama3'")
    low = fields.number(rope, 'low_freq_factor')
    return theta, RopeScaling(
        factor=fields.number(rope, 'factor'),
        low_freq_factor=low,
        high_freq_factor=fields.number(rope, 'high_freq_factor', least=low),
        original_positions=fields.size({**rope, **hf}, 'original_max_position_embeddings', max_positions))


def _window(hf: Mapping[str, Any], kind: str, layers: int) -> Optional[int]:
    """Return the sliding window of all layers, or None."""
    if kind == 'llama' or (kind.startswith('qwen') and not fields.flag(hf, 'use_sliding_window')):
        return None
    # Only an absent key has the default of the family; null means no window.
    window = None if hf.get('sliding_window', 4096) is None else fields.size(hf, 'sliding_window', 4096)
    types = fields.texts(hf, 'layer_types')
    if types is not None:
        sliding, full = 'sliding_attention' in types, 'full_attention' in types
        if len(types) != layers or not set(types) <= {'sliding_attention', 'full_attention'}:
            raise UnsupportedModelError("layer_types must name 'full_attention' or 'sliding_attention' for every layer")
    else:
        first = 0 if kind == 'mistral' else fields.size(hf, 'max_window_layers', 28, least=0)
        sliding, full = window is not None and first < layers, window is None or first > 0
    if sliding and (full or window is None) or kind == 'mistral' and window is not None and full:
        raise UnsupportedModelError(
            'a sliding window in some layers only (layer_types, max_window_layers) is not supported')
    return window if sliding else None


# Shapes of known models by the prefix of their names, for planning without a checkpoint.
SHAPES = {
    'Meta-Llama-3-8B': ModelConfig(128256, 4096, 32, 32, 8, 128, 14336, rope_theta=5e5, max_positions=8192),
    'Meta-Llama-3-70B': ModelConfig(128256, 8192, 80, 64, 8, 128, 28672, rope_theta=5e5, max_positions=8192),
    'smollm2': ModelConfig(49152, 576, 30, 9, 3, 64, 1536, rope_theta=1e5, tied=True, max_positions=8192),
}
