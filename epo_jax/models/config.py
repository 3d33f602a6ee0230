"""The shape of a decoder, as one frozen dataclass, read from a Hugging Face `config.json`."""

import dataclasses
from typing import Any, Mapping, Optional

from epo_jax.runtime.errors import InputError


class UnsupportedModelError(InputError):
    """The checkpoint needs something that this decoder does not support."""


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's scaling of the rotary frequencies (`rope_type: llama3`).

    Wavelengths longer than `original_positions / low_freq_factor` are stretched by `factor`, those
    shorter than `original_positions / high_freq_factor` are kept, and those between are blended.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_positions: int


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """One decoder of the Llama family: Llama, SmolLM2, Mistral, Qwen2, Qwen3.

    Attributes:
      vocab_size: rows of the embedding table.
      width: size of the residual stream.
      num_layers: decoder blocks.
      num_heads, num_kv_heads: query heads and key/value heads; the first is a multiple of the second.
      head_dim: size of one head.
      mlp_width: hidden size of the gated MLP.
      rope_theta: base of the rotary frequencies.
      rope_scaling: Llama 3.1's frequency scaling, or None.
      norm_eps: epsilon of every RMS norm.
      sliding_window: a query sees its own and the `sliding_window - 1` positions before it; None: all.
      qkv_bias: biases on the query, key and value projections (Qwen2).
      qk_norm: RMS norm of every query and key head (Qwen3).
      tied: the output projection is the embedding table.
      max_positions: longest context the checkpoint was made for.
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
                f'{self.num_heads} query heads cannot share {self.num_kv_heads} key/value heads evenly')
        if self.head_dim % 2:
            raise UnsupportedModelError(f'rotary embedding needs an even head size, not {self.head_dim}')

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
        """Read the dictionary of a Hugging Face `config.json`.

        Raises:
          UnsupportedModelError: another architecture, activation, rotary variant or bias.
        """
        kind = hf.get('model_type')
        if kind not in ('llama', 'mistral', 'qwen2', 'qwen3'):
            raise UnsupportedModelError(
                f'model_type {kind!r} is not supported; supported are llama, mistral, qwen2 and qwen3')
        if hf.get('hidden_act', 'silu') != 'silu':
            raise UnsupportedModelError(f"hidden_act {hf['hidden_act']!r} is not supported, only 'silu'")
        if hf.get('mlp_bias') or (hf.get('attention_bias') and kind != 'qwen2'):
            raise UnsupportedModelError('biases other than those of Qwen2 (q, k, v) are not supported')
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
    """Return base and scaling from `rope_parameters`, or from `rope_theta` and `rope_scaling`."""
    rope = dict(hf.get('rope_scaling') or {})
    rope.update(hf.get('rope_parameters') or {})
    theta = float(rope.get('rope_theta') or hf.get('rope_theta') or 10000.0)
    kind = rope.get('rope_type', rope.get('type', 'default'))
    if kind == 'default':
        return theta, None
    if kind != 'llama3':
        raise UnsupportedModelError(f"rope type {kind!r} is not supported; supported are 'default' and 'llama3'")
    return theta, RopeScaling(
        factor=float(rope['factor']),
        low_freq_factor=float(rope['low_freq_factor']),
        high_freq_factor=float(rope['high_freq_factor']),
        original_positions=int(rope['original_max_position_embeddings']))


def _window(hf: Mapping[str, Any], kind: str) -> Optional[int]:
    """Return the sliding window that all layers share, or None."""
    window = hf.get('sliding_window')
    if window is None or (kind.startswith('qwen') and not hf.get('use_sliding_window', False)):
        return None
    if 'full_attention' in (hf.get('layer_types') or ()):
        raise UnsupportedModelError('layers of different attention kinds in one model are not supported')
    if kind.startswith('qwen') and hf.get('max_window_layers', 0) > 0:
        raise UnsupportedModelError('max_window_layers > 0 (a window on some layers only) is not supported')
    return int(window)


# Shapes of known models by the beginning of their names, for planning without their files.
SHAPES = {
    'Meta-Llama-3-8B': ModelConfig(128256, 4096, 32, 32, 8, 128, 14336, rope_theta=5e5, max_positions=8192),
    'Meta-Llama-3-70B': ModelConfig(128256, 8192, 80, 64, 8, 128, 28672, rope_theta=5e5, max_positions=8192),
    'smollm2': ModelConfig(49152, 576, 30, 9, 3, 64, 1536, rope_theta=1e5, tied=True, max_positions=8192),
}
