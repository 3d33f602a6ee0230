"""Build the models of a run from its configuration: strategist, actor and judge."""

import dataclasses
from typing import Any, Optional

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from epo_jax.agents.base import Agent
from epo_jax.agents.local import LocalAgent
from epo_jax.agents.scripted import Echo
from epo_jax.envs.base import Domain
from epo_jax.language import Language, activation_dtype, capacity_warnings, find_model, load_language, pinned
from epo_jax.models import hub, peft
from epo_jax.models.lora import LoRA
from epo_jax.models.sampling import SamplingConfig
from epo_jax.rewards.judge import Judge
from epo_jax.runtime.errors import InputError
from epo_jax.runtime.parallel import param_shardings
from epo_jax.text import tokenizer as text


@dataclasses.dataclass(frozen=True)
class Roles:
    """The models of a run. Roles that use the same model share its weights.

    Attributes:
      strategist, actor: the language models.
      strategist_agent, actor_agent: how they take part in an episode.
      judge: the judge.
      adapter: the adapter from which training starts; None for a new one, or where the whole model is trained.
    """

    strategist: Language
    strategist_agent: LocalAgent
    actor: Language
    actor_agent: Agent
    judge: Judge
    adapter: Any = None

    def capacity_warnings(self, config: ConfigDict) -> list[str]:
        """Return one line for every role whose conversations may get longer than its model supports."""
        actor = {} if self.actor.params is None else {
            'actor.capacity': (config.actor.capacity, self.actor.config)}
        return capacity_warnings({'strategist.capacity': (config.strategist.capacity, self.strategist.config), **actor,
                                  'judge.capacity': (config.judge.capacity, self.judge.model.config)})


def build_roles(config: ConfigDict, mesh: Mesh, domain: Domain) -> Roles:
    """Load every model that the configuration names, each once.

    Args:
      config: configuration of the run.
      mesh: over which parameters are sharded.
      domain: the environment.

    Raises:
      InputError: actor.choose_action is set, but the environment has no kinds of action.
      ModelNotFoundError, HubError, WeightsError, TokenizerError, ChatTemplateError: a model cannot be used.
    """
    dtype = activation_dtype(config.model.dtype)
    load = lambda path, template, stacked=False: load_language(
        path, template, dtype, mesh, domain, stacked).with_params(seed=config.seed)
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
        actor, actor_agent = dataclasses.replace(strategist, params=None), Echo(config.actor.max_tokens)
    else:
        env = domain.text_environment and domain.text_environment(config.environment)
        actor = language(config.actor)
        if config.actor.choose_action and not (env and env.prefixes):
            raise InputError(f'actor.choose_action: {config.environment.name} has no kinds of action to choose from')
        prefixes = env.prefixes if env and config.actor.choose_action else ()
        actor_agent = local_agent(actor, config.actor, chunk, prefixes, env.closing if env else '')
    roles = Roles(
        strategist, local_agent(strategist, config.strategist, chunk), actor, actor_agent,
        Judge(judge.sampler(), judge.params, judge.tokenizer, judge.chat, config.judge.capacity,
              domain.seats * config.rollout.batch, chunk),
        _initial_adapter(config, strategist))
    if config.reward.outcome == 'judge' or config.reward.process != 'none':
        roles.judge.check()
    for model in (strategist, actor, judge) if config.rollout.compiled else ():
        if (model.chat.user_lead, model.chat.reply_lead) != (text.CONTINUATION, text.CONTINUATION):
            raise InputError(f'rollout.compiled: the chat template of {model.path} puts a space before messages, which '
                             'only a host loop joins to their first token; choose another chat_template, or set '
                             'rollout.compiled=False')
    return roles


def local_agent(language: Language, role: ConfigDict, chunk: int, prefixes=(), closing: str = '') -> LocalAgent:
    """Return a language model as an agent.

    Args:
      language: the model, with parameters or without.
      role: its keys of the configuration, `defaults.SAMPLING_KEYS`.
      chunk: number of tokens that it reads at once.
      prefixes: see `TextEnvironment`.
      closing: see `TextEnvironment`.
    """
    tokenizer, chat = language.tokenizer, language.chat
    stop = chat.stop + (text.ids_containing(tokenizer, '\n') if role.one_line else ())
    closes = text.ids_containing(tokenizer, closing) if closing else ()
    ends = {chat.end, *stop, *closes}
    sampling = SamplingConfig(
        role.max_tokens, tuple(dict.fromkeys((chat.end, *sorted(set(stop))))),
        tuple(sorted(set(closes) - set(stop))), tuple(sorted(unspeakable_ids(language) - ends)), role.temperature,
        role.top_k, role.top_p, role.min_tokens, role.no_repeat)
    encode = lambda part: tuple(text.encode(tokenizer, part, chat.reply_lead))
    return LocalAgent(language.sampler(), chat, sampling, role.capacity, tuple(map(encode, prefixes)), chunk)


def unspeakable_ids(language: Language) -> set[int]:
    """Return the ids that no message may contain: control tokens, and rows of the embedding without a token.

    Messages go from one model to another as ids. In the prompt of a partner or a judge, a control token would end the
    speaker's turn and begin text in somebody else's name.
    """
    tokens = set(language.tokenizer.get_vocab().values())
    return (set(range(language.config.vocab_size)) - tokens) | text.special_ids(language.tokenizer)


def pin_models(config: ConfigDict) -> ConfigDict:
    """Return the configuration with a commit in every name of a repository, see `language.pinned`.

    Raises:
      HubError: a repository cannot be read.
    """
    config = config.copy_and_resolve_references()
    for group, key in ((config.model, 'path'), (config.actor, 'model'), (config.judge, 'model'), (config.lora, 'init')):
        group[key] = pinned(group[key])
    return config


def with_adapter_shape(config: ConfigDict) -> ConfigDict:
    """Return the configuration with the rank, alpha and targets of the adapter that lora.init names, if it names one.

    Raises:
      InputError: the adapter cannot be read, or lora.rank is set and the adapter has another shape.
    """
    if not config.lora.init:
        return config
    found = peft.load_shape(find_model(config.lora.init, hub.ADAPTER_FILES))
    config = config.copy_and_resolve_references()
    if config.lora.rank == 0:
        config.lora.update(rank=found.rank, alpha=found.alpha, targets=found.targets)
    elif (given := adapter(config)) != dataclasses.replace(found, targets=given.targets) or (
            set(given.targets) != set(found.targets)):
        raise InputError(
            f'lora.init: the adapter {config.lora.init} has rank {found.rank}, alpha {found.alpha:g} and the targets '
            f'{", ".join(found.targets)}, but lora.rank, lora.alpha and lora.targets ask for {given.rank}, '
            f'{given.alpha:g} and {", ".join(given.targets)}; lora.rank=0 takes the shape of the adapter')
    return config


def _initial_adapter(config: ConfigDict, strategist: Language) -> Any:
    """Return the adapter that lora.init names, on its devices; None if it names none."""
    if not config.lora.init:
        return None
    lora, params = peft.load(find_model(config.lora.init, hub.ADAPTER_FILES), strategist.config)
    return jax.device_put(params, param_shardings(strategist.sampler(), strategist.mesh, lora))


def adapter(config: ConfigDict) -> Optional[LoRA]:
    """Return the adapter that a configuration trains; None if it trains the whole model."""
    c = config.lora
    return LoRA(c.rank, c.alpha, tuple(c.targets)) if c.rank else None
