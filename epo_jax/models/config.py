"""The shape of a decoder as a frozen dataclass, and its reader and writer for Hugging Face's `config.json`."""

import dataclasses
import math
from typing import Any, ClassVar, Mapping, Optional

from epo_jax.models import fields
from epo_jax.runtime.errors import InputError

MAX_LAYERS = 10_000  # more are a mistake, and would fill the memory
WINDOWS_DIFFER = 'a sliding window in some layers only (layer_types, max_window_layers) is not supported'


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

    def to_hf(self) -> dict[str, Any]:
        """Return the value of `rope_scaling` in `config.json`."""
        content = dataclasses.asdict(self)
        content['original_max_position_embeddings'] = content.pop('original_positions')
        return {'rope_type': 'llama3', **content}


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """Linear scaling of the rotary frequencies (`rope_type: linear`): all wavelengths are multiplied by `factor`."""

    factor: float

    def to_hf(self) -> dict[str, Any]:
        """Return the value of `rope_scaling` in `config.json`."""
        return {'rope_type': 'linear', 'factor': self.factor}


@dataclasses.dataclass(frozen=True)
class AttentionKind:
    """What may differ between the attention of different layers.

    Attributes:
      rope_theta: base of the rotary frequencies; None for a layer without rotary embedding.
      rope_scaling: scaling of the rotary frequencies, or None.
      window: a query attends to its own position and the previous `window` - 1; None means all.
    """

    rope_theta: Optional[float]
    rope_scaling: Optional[RopeScaling | LinearScaling]
    window: Optional[int]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The shape of a decoder of the Llama family: Llama, SmolLM2, SmolLM3, Mistral, Qwen2 or Qwen3.

    The configurations of other families are subclasses.

    Attributes:
      vocab_size: number of rows of the embedding table.
      width: width of the residual stream.
      num_layers: number of layers.
      num_heads: number of query heads, a multiple of `num_kv_heads`.
      num_kv_heads: number of key/value heads.
      head_dim: size of a head.
      mlp_width: hidden width of the gated MLP.
      rope_theta: base of the rotary frequencies.
      rope_scaling: scaling of the rotary frequencies, or None.
      norm_eps: epsilon of all RMS norms.
      sliding_window: a query attends to its own position and the previous `sliding_window` - 1; None means all.
      qkv_bias: whether the query, key and value projections have biases (Qwen2).
      qk_norm: whether every query and key head is RMS-normalized (Qwen3).
      tied: whether the embedding table is also the output projection.
      max_positions: maximum context length of the checkpoint, in tokens.
      rope_layers: for each layer whether it has a rotary embedding (SmolLM3); None means all.
    """

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_width: int
    rope_theta: float = 10000.0
    rope_scaling: Optional[RopeScaling | LinearScaling] = None
    norm_eps: float = 1e-5
    sliding_window: Optional[int] = None
    qkv_bias: bool = False
    qk_norm: bool = False
    tied: bool = False
    max_positions: int = 2048
    rope_layers: Optional[tuple[bool, ...]] = None

    norm_offset: ClassVar[float] = 0.0  # is added to the scales of all RMS norms

    def __post_init__(self):
        if not (math.isfinite(self.rope_theta) and self.rope_theta > 0):
            raise UnsupportedModelError(f'the base of the rotary frequencies must be positive, not {self.rope_theta}')
        if self.num_heads % self.num_kv_heads:
            raise UnsupportedModelError(
                f'{self.num_heads} query heads cannot share {self.num_kv_heads} key/value heads evenly: '
                'the number of query heads must be a multiple of the number of key/value heads')
        if self.head_dim % 2:
            raise UnsupportedModelError(f'rotary embeddings need an even head size, but it is {self.head_dim}')
        if self.rope_layers is not None and len(self.rope_layers) != self.num_layers:
            raise UnsupportedModelError(f'rope_layers has {len(self.rope_layers)} entries for {self.num_layers} layers')

    @property
    def num_params(self) -> int:
        """Return the number of scalar parameters."""
        attention = 2 * self.width * self.head_dim * (self.num_heads + self.num_kv_heads)
        attention += self.head_dim * (self.num_heads + 2 * self.num_kv_heads) * self.qkv_bias
        attention += 2 * self.head_dim * self.qk_norm
        layer = attention + 3 * self.width * self.mlp_width + 2 * self.width
        tables = self.vocab_size * self.width * (1 if self.tied else 2)
        return self.num_layers * layer + tables + self.width

    @property
    def attention_scale(self) -> float:
        """Return the factor of attention scores."""
        return self.head_dim ** -0.5

    @property
    def attention_kinds(self) -> tuple[AttentionKind, ...]:
        """Return the kind of attention of every layer."""
        kind = AttentionKind(self.rope_theta, self.rope_scaling, self.sliding_window)
        without = dataclasses.replace(kind, rope_theta=None, rope_scaling=None)
        return tuple(kind if rotates else without for rotates in self.rope_layers or (True,) * self.num_layers)

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> 'ModelConfig':
        """Read the content of a Hugging Face `config.json`. Absent keys have the defaults of their family.

        Raises:
          UnsupportedModelError: the activation, rotary embedding, bias or sliding window is not supported.
          FieldError: a required key is missing, or a key has a wrong value.
        """
        kind = hf['model_type']
        if hf.get('hidden_act', 'silu') != 'silu':
            raise UnsupportedModelError(f"hidden_act {fields.shown(hf['hidden_act'])} is not supported, only 'silu'")
        if hf.get('mlp_bias') or (hf.get('attention_bias') and kind != 'qwen2'):
            raise UnsupportedModelError('biases are only supported on the q, k and v projections of Qwen2')
        width, heads = fields.size(hf, 'hidden_size'), fields.size(hf, 'num_attention_heads')
        layers = fields.size(hf, 'num_hidden_layers')
        # Only an absent key has the default of the family; null means one key/value head for every query head.
        default_kv_heads = {'mistral': 8, 'qwen2': 32, 'qwen3': 32, 'smollm3': 4}
        kv_heads = heads if 'num_key_value_heads' in hf else default_kv_heads.get(kind, heads)
        max_positions = fields.size(hf, 'max_position_embeddings', {'llama': 2048, 'mistral': 131072}.get(kind, 32768))
        rope = fields.group(hf, 'rope_scaling') or fields.group(hf, 'rope_parameters')
        if any(isinstance(value, dict) for value in rope.values()):
            raise UnsupportedModelError('rotary embeddings that differ between layers are not supported')
        theta = fields.number(hf, 'rope_theta', 2000000.0 if kind == 'smollm3' else 10000.0)
        return cls(
            vocab_size=fields.size(hf, 'vocab_size'),
            width=width,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=fields.size(hf, 'num_key_value_heads', kv_heads),
            head_dim=fields.size(hf, 'head_dim', 128 if kind == 'qwen3' else width // heads),
            mlp_width=fields.size(hf, 'intermediate_size'),
            rope_theta=fields.number(rope, 'rope_theta', theta),
            rope_scaling=read_scaling(rope, hf, max_positions),
            norm_eps=fields.number(hf, 'rms_norm_eps', 1e-6),
            sliding_window=_window(hf, kind, layers),
            qkv_bias=kind == 'qwen2',
            qk_norm=kind == 'qwen3',
            tied=fields.flag(hf, 'tie_word_embeddings', kind == 'smollm3'),
            max_positions=max_positions,
            rope_layers=_rope_layers(hf, layers) if kind == 'smollm3' else None,
        )

    def to_hf(self) -> dict[str, Any]:
        """Return the content of the Hugging Face `config.json`, the inverse of `from_hf`.

        Raises:
          UnsupportedModelError: no supported architecture has this combination of features.
        """
        names = {'qkv_bias': 'Qwen2', 'qk_norm': 'Qwen3', 'rope_layers': 'SmolLM3'}
        window, used = self.sliding_window, [feature for feature in names if getattr(self, feature)]
        if used == ['rope_layers'] and window is not None:
            used.append('sliding_window')
        if len(used) > 1:
            raise UnsupportedModelError(f'no supported architecture has both {used[0]} and {used[1]}')
        name = names[used[0]] if used else 'Llama' if window is None else 'Mistral'
        hf = {
            'architectures': [f'{name}ForCausalLM'], 'model_type': name.lower(), 'vocab_size': self.vocab_size,
            'hidden_size': self.width, 'num_hidden_layers': self.num_layers, 'head_dim': self.head_dim,
            'num_attention_heads': self.num_heads, 'num_key_value_heads': self.num_kv_heads,
            'intermediate_size': self.mlp_width, 'hidden_act': 'silu', 'rms_norm_eps': self.norm_eps,
            'rope_theta': self.rope_theta, 'tie_word_embeddings': self.tied,
            'max_position_embeddings': self.max_positions,
        }
        if window is not None:
            hf['sliding_window'] = window
            hf |= {'use_sliding_window': True, 'max_window_layers': 0} if name.startswith('Qwen') else {}
        if self.rope_scaling is not None:
            hf['rope_scaling'] = self.rope_scaling.to_hf()
        if self.rope_layers is not None:
            hf |= {'no_rope_layers': [int(rotates) for rotates in self.rope_layers], 'pad_token_id': None}
        return hf


def read_scaling(rope: Mapping[str, Any], hf: Mapping[str, Any],
                 max_positions: int) -> Optional[RopeScaling | LinearScaling]:
    """Return the scaling of the rotary frequencies.

    Args:
      rope: the value of `rope_scaling` or `rope_parameters`.
      hf: the whole `config.json`.
      max_positions: maximum context length.

    Raises:
      UnsupportedModelError: this kind of rotary embedding is not supported.
    """
    kind = rope.get('rope_type') or rope.get('type') or 'default'
    if fields.number({**hf, **rope}, 'partial_rotary_factor', 1.0) != 1.0:
        raise UnsupportedModelError('a partial_rotary_factor other than 1 is not supported')
    if kind == 'default':
        return None
    if kind == 'linear':
        return LinearScaling(fields.number(rope, 'factor'))
    if kind != 'llama3':
        raise UnsupportedModelError(f"rope type {fields.shown(kind)} is not supported; supported types are 'default', "
                                    "'linear' and 'llama3'")
    low = fields.number(rope, 'low_freq_factor')
    return RopeScaling(
        factor=fields.number(rope, 'factor'),
        low_freq_factor=low,
        high_freq_factor=fields.number(rope, 'high_freq_factor', least=low),
        original_positions=fields.size({**rope, **hf}, 'original_max_position_embeddings', max_positions))


def all_but_every_nth(layers: int, n: int) -> tuple[bool, ...]:
    """Return False for every n-th layer and True for the others."""
    if layers > MAX_LAYERS:
        raise UnsupportedModelError(f'{layers} layers are not supported, at most {MAX_LAYERS}')
    return tuple((i + 1) % n != 0 for i in range(layers))


def _rope_layers(hf: Mapping[str, Any], layers: int) -> tuple[bool, ...]:
    """Return for each layer of SmolLM3 whether it has a rotary embedding, by default all but every fourth."""
    rotates = fields.flags(hf, 'no_rope_layers')  # despite its name, 1 means that the layer rotates
    if rotates is None:
        return all_but_every_nth(layers, fields.size(hf, 'no_rope_layer_interval', 4))
    if len(rotates) < layers:
        raise UnsupportedModelError(f'no_rope_layers has {len(rotates)} entries for {layers} layers')
    return tuple(rotates[:layers])


def _window(hf: Mapping[str, Any], kind: str, layers: int) -> Optional[int]:
    """Return the sliding window of all layers, or None."""
    if kind == 'llama' or (kind.startswith('qwen') and not fields.flag(hf, 'use_sliding_window')):
        return None
    if kind == 'smollm3':  # may have windows only in the layers without rotary embedding
        used = fields.flag(hf, 'use_sliding_window') and hf.get('sliding_window') is not None
        types = fields.texts(hf, 'layer_types') or ['sliding_attention' if used else 'full_attention']
        if set(types) != {'full_attention'}:
            raise UnsupportedModelError(WINDOWS_DIFFER)
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
        raise UnsupportedModelError(WINDOWS_DIFFER)
    return window if sliding else None


# Shapes of known models by the prefix of their names, for planning without a checkpoint.
SHAPES = {
    'Meta-Llama-3-8B': ModelConfig(128256, 4096, 32, 32, 8, 128, 14336, rope_theta=5e5, max_positions=8192),
    'Meta-Llama-3-70B': ModelConfig(128256, 8192, 80, 64, 8, 128, 28672, rope_theta=5e5, max_positions=8192),
    'smollm2': ModelConfig(49152, 576, 30, 9, 3, 64, 1536, rope_theta=1e5, tied=True, max_positions=8192),
}
