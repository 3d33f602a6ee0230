"""The shape of a decoder as a frozen dataclass, and its reader for Hugging Face's `config.json`."""

import dataclasses
from typing import Any, Mapping, Optional

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
        """Read the content of a Hugging Face `config.json`.

        Raises:
          UnsupportedModelError: the architecture, activation, rotary embedding or bias is not supported.
          KeyError: a required key is missing.
        """
        kind = hf.get('model_type')
        if kind not in ('llama', 'mistral', 'qwen2', 'qwen3'):
            raise UnsupportedModelError(
                f'model_type {kind!r} is not supported; supported types are llama, mistral, qwen2 and qwen3')
        if hf.get('hidden_act', 'silu') != 'silu':
            raise UnsupportedModelError(f"hidden_act {hf['hidden_act']!r} is not supported, only 'silu'")
        if hf.get('mlp_bias') or (hf.get('attention_bias') and kind != 'qwen2'):
            raise UnsupportedModelError('biases are only supported on the q, k and v projections of Qwen2')
        heads = hf['num_attention_heads']
        theta, scaling = _rope(hf)
        return cls(
            vocab_size=hf['vocab_size'],
            width=hf['hidden_size'],
            num_layers=hf['num_hidden_layers'],
            num_heads=heads,
            num_kv_heads=hf.get('num_key_value_heads') or heads,
            head_dim=hf.get('head_dim') or hf['hidden_size'] // heads,
            mlp_width=hf['intermediate_size'],
            rope_theta=theta,
            rope_scaling=scaling,
            norm_eps=hf.get('rms_norm_eps', 1e-6),
            sliding_window=_window(hf, kind),
            qkv_bias=kind == 'qwen2',
            qk_norm=kind == 'qwen3',
            tied=bool(hf.get('tie_word_embeddings', False)),
            max_positions=hf.get('max_position_embeddings', 2048),
        )


def _rope(hf: Mapping[str, Any]) -> tuple[float, Optional[RopeScaling]]:
    """Return the rotary base and scaling from `rope_parameters`, or from `rope_theta` and `rope_scaling`."""
    rope = dict(hf.get('rope_scaling') or {})
    rope.update(hf.get('rope_parameters') or {})
    theta = float(rope.get('rope_theta') or hf.get('rope_theta') or 10000.0)
    kind = rope.get('rope_type', rope.get('type', 'default'))
    if kind == 'default':
        return theta, None
    if kind != 'llama3':
        raise UnsupportedModelError(f"rope type {kind!r} is not supported; supported types are 'default' and 'llama3'")
    return theta, RopeScaling(
        factor=float(rope['factor']),
        low_freq_factor=float(rope['low_freq_factor']),
        high_freq_factor=float(rope['high_freq_factor']),
        original_positions=int(rope['original_max_position_embeddings']))


def _window(hf: Mapping[str, Any], kind: str) -> Optional[int]:
    """Return the sliding window of all layers, or None."""
    window = hf.get('sliding_window')
    if window is None or (kind.startswith('qwen') and not hf.get('use_sliding_window', False)):
        return None
    if 'full_attention' in (hf.get('layer_types') or ()):
        raise UnsupportedModelError('layer_types that mix full and sliding-window attention are not supported')
    if kind.startswith('qwen') and hf.get('max_window_layers', 0) > 0:
        raise UnsupportedModelError('max_window_layers > 0 (a sliding window in some layers only) is not supported')
    return int(window)


# Shapes of known models by the prefix of their names, for planning without a checkpoint.
SHAPES = {
    'Meta-Llama-3-8B': ModelConfig(128256, 4096, 32, 32, 8, 128, 14336, rope_theta=5e5, max_positions=8192),
    'Meta-Llama-3-70B': ModelConfig(128256, 8192, 80, 64, 8, 128, 28672, rope_theta=5e5, max_positions=8192),
    'smollm2': ModelConfig(49152, 576, 30, 9, 3, 64, 1536, rope_theta=1e5, tied=True, max_positions=8192),
}
