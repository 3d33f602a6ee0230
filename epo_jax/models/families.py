"""The model families: configuration, decoder, and names of tensors in checkpoints."""

import dataclasses
from typing import Any, Mapping, Optional

import jax.numpy as jnp
from jax.sharding import Mesh

from epo_jax.models import fields
from epo_jax.models.base import LayeredDecoder
from epo_jax.models.config import ModelConfig, UnsupportedModelError
from epo_jax.models.gemma import Gemma
from epo_jax.models.gemma_config import GemmaConfig
from epo_jax.models.transformer import Transformer

# Name in the decoder -> (name in Hugging Face checkpoints, name in GGUF files).
LAYER_MODULES = {
    'attn_norm': ('input_layernorm', 'attn_norm'),
    'q': ('self_attn.q_proj', 'attn_q'),
    'k': ('self_attn.k_proj', 'attn_k'),
    'v': ('self_attn.v_proj', 'attn_v'),
    'o': ('self_attn.o_proj', 'attn_output'),
    'q_norm': ('self_attn.q_norm', 'attn_q_norm'),
    'k_norm': ('self_attn.k_norm', 'attn_k_norm'),
    'mlp_norm': ('post_attention_layernorm', 'ffn_norm'),
    'gate': ('mlp.gate_proj', 'ffn_gate'),
    'up': ('mlp.up_proj', 'ffn_up'),
    'down': ('mlp.down_proj', 'ffn_down'),
}
GEMMA_MODULES = LAYER_MODULES | {
    'attn_post_norm': ('post_attention_layernorm', 'post_attention_norm'),
    'mlp_norm': ('pre_feedforward_layernorm', 'ffn_norm'),
    'mlp_post_norm': ('post_feedforward_layernorm', 'post_ffw_norm'),
}


@dataclasses.dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
      types: its values of `model_type` in config.json.
      config: class of its configurations.
      decoder: class of its decoders.
      modules: names of the modules of its layers in checkpoints.
    """

    types: tuple[str, ...]
    config: type[ModelConfig]
    decoder: type[LayeredDecoder]
    modules: Mapping[str, tuple[str, str]]


FAMILIES = (
    Family(('llama', 'mistral', 'qwen2', 'qwen3', 'smollm3'), ModelConfig, Transformer, LAYER_MODULES),
    Family(('gemma3_text',), GemmaConfig, Gemma, GEMMA_MODULES),
)


def family_of(config: ModelConfig) -> Family:
    """Return the family of a configuration."""
    return next(family for family in FAMILIES if type(config) is family.config)


def decoder(config: ModelConfig, dtype: Any = jnp.float32, stacked: bool = False, remat: str = 'full',
            mesh: Optional[Mesh] = None) -> LayeredDecoder:
    """Return the decoder of a configuration; see LayeredDecoder for the arguments."""
    return family_of(config).decoder(config, dtype, stacked, remat, mesh)


def config_from_hf(hf: Mapping[str, Any]) -> ModelConfig:
    """Read the content of a Hugging Face `config.json`. Absent keys have the defaults of their family.

    Raises:
      UnsupportedModelError: the architecture, one of its features or the quantization is not supported.
      FieldError: a required key is missing, or a key has a wrong value.
    """
    kind = hf.get('model_type')
    family = next((family for family in FAMILIES if kind in family.types), None)
    if kind == 'gemma3':
        raise UnsupportedModelError("model_type 'gemma3' is not supported, because it also reads images; take a text "
                                    "model (model_type 'gemma3_text'), such as google/gemma-3-1b-it, or a GGUF file")
    if family is None:
        types = ', '.join(kind for family in FAMILIES for kind in family.types)
        raise UnsupportedModelError(
            f'model_type {fields.shown(kind)} is not supported; supported types are {types}')
    for key in ('quantization_config', 'quantization', 'compression_config'):
        if hf.get(key):
            method = isinstance(hf[key], dict) and hf[key].get('quant_method')
            method = f' with quant_method {fields.shown(method)}' if method else ''
            raise UnsupportedModelError(
                f'the weights are quantized ({key}{method}), which is not supported; take the original checkpoint, '
                'or a GGUF file')
    return family.config.from_hf(hf)
