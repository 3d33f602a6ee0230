"""A model's shape, its text side and its parameters, each on its own: whoever needs one need not load the others."""

import json
import pathlib
from typing import Any

import jax
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerFast

from epo_jax import testing
from epo_jax.models import weights
from epo_jax.models.config import ModelConfig
from epo_jax.models.gguf import GGUFFile, config_of
from epo_jax.models.transformer import Transformer
from epo_jax.parallel import param_shardings
from epo_jax.roles import find_model
from epo_jax.text.chat import ChatSegments, chat_segments
from epo_jax.text.tokenizer import load_tokenizer


def read_shape(path: str) -> ModelConfig:
    """The shape of a model: a Hugging Face folder, a GGUF file, 'smollm2' or 'dummy'.

    Raises:
      FileNotFoundError, GGUFError, UnsupportedModelError: it cannot be had.
    """
    if path == 'dummy':
        return testing.dummy_config()
    path = find_model(path)
    if path.endswith('.gguf'):
        return config_of(GGUFFile(path))
    return ModelConfig.from_hf(json.loads((pathlib.Path(path) / 'config.json').read_text(encoding='utf-8')))


def read_text(path: str, template: str = '') -> tuple[PreTrainedTokenizerFast, ChatSegments]:
    """Its tokenizer and its chat template, cut into segments; `template` names another one.

    Raises:
      FileNotFoundError, TokenizerError, ChatTemplateError: it cannot be had.
    """
    tokenizer = testing.byte_tokenizer() if path == 'dummy' else load_tokenizer(find_model(path))
    return tokenizer, chat_segments(tokenizer, template or None)


def read_params(path: str, model: Transformer, dtype, mesh: Mesh) -> Any:
    """Its parameters in the model's layout, sharded over the mesh.

    Raises:
      FileNotFoundError, WeightsError: they cannot be had.
    """
    shardings = param_shardings(model, mesh)
    if path == 'dummy':
        params = testing.dummy_params(model.config, model.stacked)
        return jax.device_put(jax.tree.map(lambda x: x.astype(dtype), params), shardings)
    return weights.load(find_model(path), dtype, model.stacked, lambda _: shardings)[1]
