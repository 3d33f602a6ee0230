"""EPO on bargaining: a small transformer learns from scratch to bargain, the whole iteration one program.

    python -m epo_jax.main --config=configs/bargain.py --workdir=runs/bargain

Presets, after the colon:
  family    against the fixed family of opponents, whose kind shows only in what they offer
  selfplay  two seats, against earlier iterations
  tiny      a few episodes, in seconds; for trying the machinery
"""

from epo_jax.defaults import default_config


def get_config(preset='family'):
    """The configuration of one of the presets."""
    presets = {'family': family, 'selfplay': selfplay, 'tiny': tiny}
    if preset not in presets:
        raise ValueError(f'unknown preset {preset!r}; there are {", ".join(presets)}')
    return presets[preset]()


def base(environment):
    """One intent a turn, echoed by the actor; the environment's own reward and nothing else."""
    config = default_config(environment)
    config.model.update(path='scratch', remat='none')
    config.actor.update(model='echo', capacity=32, max_tokens=1)
    config.strategist.update(capacity=32, temperature=1.0, max_tokens=1, one_line=False)
    config.judge.capacity = 64
    config.rollout.update(episodes=2048, group=8, batch=1024, view_tokens=6, chunk=8, compiled=True, record_every=100)
    config.reward.update(outcome='environment', process='none')
    config.credit.update(gamma=1.0, baseline='group', normalise='batch')
    config.learner.update(learning_rate=2e-3, b2=0.99, schedule='cosine', entropy=0.03, batch=2048,
                          micro_batch=256, chunk=4096, length_bucket=32)
    config.evaluation.update(episodes=980, conditions=('policy',))
    return config


def family():
    """Against the fixed family."""
    config = base('bargain')
    config.iterations = 900
    config.checkpoint.every = 300
    return config


def selfplay():
    """Against snapshots of itself, drawn from all of its training so far."""
    config = base('epo_jax.envs.bargain.selfplay')
    config.seats, config.pool_size, config.pool_every = ('policy', 'pool'), 8, 75
    config.strategist.capacity = config.learner.length_bucket = 40  # the second side has news to read before it opens
    config.iterations = 600
    config.evaluation.update(partner='pool', conditions=('pool', 'policy'))
    config.checkpoint.every = 50
    return config


def tiny():
    """Eight episodes an iteration."""
    config = base('bargain')
    config.iterations = 2
    config.rollout.update(episodes=8, group=2, batch=4, record_every=1)
    config.learner.update(batch=8, micro_batch=8)
    config.evaluation.episodes = 8
    return config
