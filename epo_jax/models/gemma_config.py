"""The shape of a Gemma 3 decoder, and its reader and writer for Hugging Face's `config.json`."""

import dataclasses
from typing import Any, ClassVar, Mapping, Optional

from epo_jax.models import fields
from epo_jax.models.config import AttentionKind, ModelConfig, UnsupportedModelError, all_but_every_nth, read_scaling

SLIDING, FULL = 'sliding_attention', 'full_attention'


@dataclasses.dataclass(frozen=True)
class GemmaConfig(ModelConfig):
    """The shape of a Gemma 3 decoder.

    Most layers are local: they have the window `sliding_window` and rotary frequencies of their own. `rope_theta` and
    `rope_scaling` are those of the global layers.

    Attributes:
      local_layers: for each layer whether it is local.
      local_rope_theta: base of the rotary frequencies of the local layers.
      query_scale: attention scores are divided by its square root.
      logit_cap: logits are limited to this size by tanh; None means no limit.
    """

    qk_norm: bool = True
    local_layers: tuple[bool, ...] = ()
    local_rope_theta: float = 10000.0
    query_scale: float = 256.0
    logit_cap: Optional[float] = None

    norm_offset: ClassVar[float] = 1.0

    def __post_init__(self):
        super().__post_init__()
        if len(self.local_layers) != self.num_layers:
            raise UnsupportedModelError(
                f'layer_types has {len(self.local_layers)} entries for {self.num_layers} layers')
        if any(self.local_layers) and self.sliding_window is None:
            raise UnsupportedModelError('layers with sliding attention need a sliding_window')

    @property
    def num_params(self) -> int:
        """Return the number of scalar parameters."""
        return super().num_params + 2 * self.num_layers * self.width

    @property
    def attention_scale(self) -> float:
        """Return the factor of attention scores."""
        return self.query_scale ** -0.5

    @property
    def attention_kinds(self) -> tuple[AttentionKind, ...]:
        """Return the kind of attention of every layer."""
        everywhere = AttentionKind(self.rope_theta, self.rope_scaling, None)
        local = AttentionKind(self.local_rope_theta, None, self.sliding_window)
        return tuple(local if is_local else everywhere for is_local in self.local_layers)

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> 'GemmaConfig':
        """Read the content of a Hugging Face `config.json`. Absent keys have the defaults of the family.

        Raises:
          UnsupportedModelError: the activation, rotary embedding or attention is not supported.
          FieldError: a key has a wrong value.
        """
        if (activation := hf.get('hidden_activation', 'gelu_pytorch_tanh')) != 'gelu_pytorch_tanh':
            raise UnsupportedModelError(f'hidden_activation {fields.shown(activation)} is not supported, only '
                                        "'gelu_pytorch_tanh'")
        for key in ('attention_bias', 'attn_logit_softcapping', 'use_bidirectional_attention'):
            if hf.get(key):
                raise UnsupportedModelError(f'{key} is not supported for Gemma 3')
        layers = fields.size(hf, 'num_hidden_layers', 26)
        max_positions = fields.size(hf, 'max_position_embeddings', 131072)
        # transformers 5 writes the rotary embedding of both kinds of layers as groups of `rope_parameters`.
        rope = fields.group(hf, 'rope_parameters')
        if unknown := set(rope) - {SLIDING, FULL}:
            raise UnsupportedModelError(f'rope_parameters of Gemma 3 must be the groups {FULL} and {SLIDING}, but '
                                        f'there is {min(unknown)!r}')
        everywhere, local = fields.group(rope, FULL) | fields.group(hf, 'rope_scaling'), fields.group(rope, SLIDING)
        if read_scaling(local, hf, max_positions) is not None:
            raise UnsupportedModelError(f'a scaling of the rotary frequencies in {SLIDING} is not supported')
        return cls(
            vocab_size=fields.size(hf, 'vocab_size', 262208),
            width=fields.size(hf, 'hidden_size', 2304),
            num_layers=layers,
            num_heads=fields.size(hf, 'num_attention_heads', 8),
            num_kv_heads=fields.size(hf, 'num_key_value_heads', 4),
            head_dim=fields.size(hf, 'head_dim', 256),
            mlp_width=fields.size(hf, 'intermediate_size', 9216),
            rope_theta=fields.number(everywhere, 'rope_theta', fields.number(hf, 'rope_theta', 1e6)),
            rope_scaling=read_scaling(everywhere, hf, max_positions),
            norm_eps=fields.number(hf, 'rms_norm_eps', 1e-6),
            # Only an absent key has the default; null means no window.
            sliding_window=None if hf.get('sliding_window', 4096) is None else fields.size(hf, 'sliding_window', 4096),
            tied=fields.flag(hf, 'tie_word_embeddings', True),
            max_positions=max_positions,
            local_layers=_local_layers(hf, layers),
            local_rope_theta=fields.number(local, 'rope_theta', fields.number(hf, 'rope_local_base_freq', 1e4)),
            query_scale=fields.number(hf, 'query_pre_attn_scalar', 256.0),
            logit_cap=None if hf.get('final_logit_softcapping') is None else fields.number(
                hf, 'final_logit_softcapping'),
        )

    def to_hf(self) -> dict[str, Any]:
        """Return the content of the Hugging Face `config.json`, the inverse of `from_hf`."""
        # A whole number, as transformers demands.
        scale = int(self.query_scale) if self.query_scale == int(self.query_scale) else self.query_scale
        hf = {
            'architectures': ['Gemma3ForCausalLM'], 'model_type': 'gemma3_text', 'vocab_size': self.vocab_size,
            'hidden_size': self.width, 'num_hidden_layers': self.num_layers, 'head_dim': self.head_dim,
            'num_attention_heads': self.num_heads, 'num_key_value_heads': self.num_kv_heads,
            'intermediate_size': self.mlp_width, 'hidden_activation': 'gelu_pytorch_tanh',
            'rms_norm_eps': self.norm_eps, 'rope_theta': self.rope_theta, 'rope_local_base_freq': self.local_rope_theta,
            'sliding_window': self.sliding_window, 'query_pre_attn_scalar': scale,
            'layer_types': [SLIDING if is_local else FULL for is_local in self.local_layers],
            'final_logit_softcapping': self.logit_cap, 'tie_word_embeddings': self.tied,
            'max_position_embeddings': self.max_positions,
        }
        return hf if self.rope_scaling is None else hf | {'rope_scaling': self.rope_scaling.to_hf()}


def _local_layers(hf: Mapping[str, Any], layers: int) -> tuple[bool, ...]:
    """Return for each layer whether it is local: by `layer_types`, or all except every n-th one."""
    types = fields.texts(hf, 'layer_types')
    if types is None:
        return all_but_every_nth(layers, fields.size(hf, 'sliding_window_pattern', 6))
    if not set(types) <= {SLIDING, FULL}:
        raise UnsupportedModelError(f"layer_types must name '{FULL}' or '{SLIDING}' for every layer")
    return tuple(kind == SLIDING for kind in types)
