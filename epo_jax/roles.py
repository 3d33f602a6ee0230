"""Build the players and judges of a run from its configuration. Every role takes a local or a remote model."""

import dataclasses
from typing import Any, Iterator, Mapping, Optional, Sequence

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from epo_jax.agents.address import Address, parse_address
from epo_jax.agents.base import Player
from epo_jax.agents.host import HostAgent, Replies
from epo_jax.agents.local import LocalAgent
from epo_jax.agents.remote import Remote, Request
from epo_jax.agents.scripted import Echo
from epo_jax.envs.base import Domain
from epo_jax.language import Language, activation_dtype, capacity_warnings, find_model, load_language, pinned
from epo_jax.models import hub, peft
from epo_jax.models.lora import LoRA
from epo_jax.models.sampling import SamplingConfig
from epo_jax.rewards.judge import Judge
from epo_jax.rewards.remote_judge import RemoteJudge
from epo_jax.rl.selfplay import KINDS
from epo_jax.runtime.errors import InputError
from epo_jax.runtime.hostcalls import Failure
from epo_jax.runtime.parallel import param_shardings
from epo_jax.text import tokenizer as text

# A reply of an endpoint may take this many tokens of the local tokenizer for every token of its own.
TOKENS_PER_TOKEN = 4


@dataclasses.dataclass(frozen=True)
class Roles:
    """The players and judges of a run. Roles that use the same local model share its weights.

    Attributes:
      strategist: the model that is trained.
      strategist_agent: how it takes part in an episode.
      actor: who acts beside the strategist that is trained or tested.
      partner: who acts in the other seats.
      advisors: the other models that play as strategists, by the name that the configuration gives them.
      reasoner: a second conversation of the actor's model, for its own reasoning; None where no seat needs it.
      judge: rates outcomes; None where nothing is judged.
      process_judge: gives process rewards; the same object as `judge` where both are the same model.
      adapter: the adapter from which training starts; None for a new one, or where the whole model is trained.
      warnings: one line for every role whose conversations may get longer than its model supports.
    """

    strategist: Language
    strategist_agent: LocalAgent
    actor: Player
    partner: Player
    advisors: Mapping[str, Player]
    reasoner: Optional[Player]
    judge: Judge | RemoteJudge
    process_judge: Judge | RemoteJudge
    adapter: Any = None
    warnings: Sequence[str] = ()


@dataclasses.dataclass
class _Builder:
    """Loads every model once, under its name and chat template."""

    config: ConfigDict
    mesh: Mesh
    domain: Domain
    remote: Optional[Remote]
    languages: dict[tuple[str, str], Language] = dataclasses.field(default_factory=dict)
    capacities: dict[str, tuple[int, Any]] = dataclasses.field(default_factory=dict)

    @property
    def strategist(self) -> Language:
        return self.languages[self.config.model.path, self.config.model.chat_template]

    def load(self, path: str, template: str, stacked: bool = False) -> Language:
        """Return the model of a name; '' is the model of the strategist with its chat template."""
        model = self.config.model
        path, template = path or model.path, template or ('' if path else model.chat_template)
        if (path, template) not in self.languages:
            self.languages[path, template] = load_language(
                path, template, activation_dtype(model.dtype), self.mesh, self.domain, stacked
                ).with_params(seed=self.config.seed)
        return self.languages[path, template]

    def player(self, role: str, model: str, template: str, settings: ConfigDict, prefixes: Sequence[str] = (),
               closing: str = '') -> Player:
        """Return a player.

        Args:
          role: its role, for costs and messages.
          model: the name of its model, see `language.load_language`, or NAME@URL.
          template: its chat template.
          settings: its group of keys for sampling.
          prefixes: how its replies may begin, see `LocalAgent.prefixes`.
          closing: see `TextEnvironment.closing`.
        """
        if address := parse_address(model):
            return remote_player(self.remote, address, role, settings, self.strategist.tokenizer, closing)
        language = self.load(model, template)
        self.capacities.setdefault(f'{role}.capacity', (settings.capacity, language.config))
        return Player(local_agent(language, settings, self.config.rollout.chunk, prefixes, closing), language.params,
                      language.tokenizer)

    def judge(self, role: str, settings: ConfigDict) -> Judge | RemoteJudge:
        """Return the judge of a role, 'judge' or 'process'."""
        if address := parse_address(settings.model):
            return RemoteJudge(self.remote, address, role, self.domain.rubric)
        language = self.load(settings.model, settings.chat_template)
        self.capacities[f'{role}.capacity'] = settings.capacity, language.config
        return Judge(language.sampler(), language.params, language.tokenizer, language.chat, settings.capacity,
                     self.domain.seats * self.config.rollout.batch, self.config.rollout.chunk)


def build_roles(config: ConfigDict, mesh: Mesh, domain: Domain, remote: Optional[Remote] = None) -> Roles:
    """Load every local model that the configuration names, each once.

    Args:
      config: configuration of the run.
      mesh: over which parameters are sharded.
      domain: the environment.
      remote: the client of remote models; None if the configuration names none.

    Raises:
      InputError: actor.choose_action is set, but the environment has no kinds of action.
      ModelNotFoundError, HubError, WeightsError, TokenizerError, ChatTemplateError: a model cannot be used.
    """
    build = _Builder(config, mesh, domain, remote)
    strategist = build.load('', '', config.lora.rank > 0)
    strategist_player = build.player('strategist', '', '', config.strategist)
    env = domain.text_environment and domain.text_environment(config.environment)
    if config.actor.choose_action and not (env and env.prefixes):
        raise InputError(f'actor.choose_action: {config.environment.name} has no kinds of action to choose from')
    prefixes, closing = env.prefixes if env and config.actor.choose_action else (), env.closing if env else ''

    def actor(role: str, settings: ConfigDict) -> Player:
        if settings.model == 'echo':
            return Player(Echo(config.actor.max_tokens), None, strategist.tokenizer)
        return build.player(role, settings.model, settings.chat_template, config.actor, prefixes, closing)

    advisors = {name: build.player('strategist', name, '', config.strategist)
                for name in strategists(config) if name not in KINDS}
    reasoner = None
    if 'react' in strategists(config):
        settings = config.strategist.copy_and_resolve_references()
        settings.capacity = config.actor.capacity  # it reads what the actor reads
        reasoner = build.player('actor', config.actor.model, config.actor.chat_template, settings)
    player = actor('actor', config.actor)
    judge = build.judge('judge', config.judge)
    roles = Roles(
        strategist, strategist_player.agent, player,
        actor('partner', config.partner) if config.partner.model else player, advisors, reasoner, judge,
        build.judge('process', config.process) if config.process.model else judge,
        _initial_adapter(config, strategist), capacity_warnings(build.capacities))
    asked = [roles.judge] * (config.reward.outcome == 'judge') + [roles.process_judge] * (
        config.reward.process != 'none')
    for local in (model for model in asked if isinstance(model, Judge)):
        local.check()
    for model in build.languages.values() if config.rollout.compiled else ():
        if (model.chat.user_lead, model.chat.reply_lead) != (text.CONTINUATION, text.CONTINUATION):
            raise InputError(f'rollout.compiled: the chat template of {model.path} puts a space before messages, which '
                             'only a host loop joins to their first token; choose another chat_template, or set '
                             'rollout.compiled=False')
    return roles


def strategists(config: ConfigDict) -> tuple[str, ...]:
    """Return the strategists that a configuration names, in training and in evaluation, each once."""
    c = config.evaluation
    evaluated = (*c.conditions, *((c.partner,) if c.partner not in ('', 'self') else ())) if c.episodes else ()
    return tuple(dict.fromkeys((*config.seats, *evaluated)))


def model_names(config: ConfigDict) -> Iterator[tuple[str, str]]:
    """Yield every model that a configuration names, as (key, name); '' stands for another role's model."""
    yield 'model.path', config.model.path
    for role in ('actor', 'partner', 'judge', 'process'):
        yield f'{role}.model', config[role].model
    for name in strategists(config):
        if name not in KINDS:
            yield 'seats' if name in config.seats else 'evaluation.conditions', name


def addresses(config: ConfigDict) -> list[Address]:
    """Return the endpoints that a configuration names."""
    return [address for _, name in model_names(config) if (address := parse_address(name))]


def remote_player(remote: Remote, address: Address, role: str, settings: ConfigDict, tokenizer: Any,
                  closing: str = '') -> Player:
    """Return a player whose messages an endpoint writes.

    Args:
      remote: the client.
      address: the endpoint and its model.
      role: its role, for costs.
      settings: its group of keys for sampling, of which temperature, max_tokens and one_line count.
      tokenizer: the tokenizer in which its messages are exchanged.
      closing: see `TextEnvironment.closing`.
    """
    agent = HostAgent(remote_replies(remote, address, role, settings.temperature, settings.max_tokens), tokenizer,
                      TOKENS_PER_TOKEN * settings.max_tokens, settings.one_line, closing)
    return Player(agent, None, tokenizer)


def remote_replies(remote: Remote, address: Address, role: str, temperature: float, max_tokens: int) -> Replies:
    """Return the replies of an endpoint. A conversation that it does not continue fails, and its episode ends."""
    def replies(histories, seeds):
        answers = remote.complete([
            Request(address, role, tuple(history), temperature, max_tokens, seed)
            for history, seed in zip(histories, seeds, strict=True)])
        return [answer if isinstance(answer, Failure) else
                Failure(f'{address}: {answer.problem}') if answer.text is None else answer.text for answer in answers]

    return replies


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
    groups = (config.actor, 'model'), (config.partner, 'model'), (config.judge, 'model'), (config.process, 'model')
    for group, key in ((config.model, 'path'), (config.lora, 'init'), *groups):
        group[key] = pinned(group[key])
    pin = lambda names: tuple(name if name in KINDS else pinned(name) for name in names)
    config.seats, config.evaluation.conditions = pin(config.seats), pin(config.evaluation.conditions)
    if config.evaluation.partner not in ('', 'self'):
        config.evaluation.partner, = pin([config.evaluation.partner])
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
