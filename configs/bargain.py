"""EPO on bargaining: a small transformer learns from scratch to bargain, in one compiled program.

    python -m epo_jax.main --config=configs/bargain.py --workdir=runs/bargain

Presets, after the colon:
  family    one seat against the fixed family of opponents; the default
  selfplay  two seats, one of which plays earlier snapshots
  tiny      a few episodes; checks within seconds that everything runs
  words     against the family in English: an adapter of SmolLM2-135M advises SmolLM2-135M
  words_quick  the same against eager opponents only, in a few iterations
"""

from epo_jax.defaults import default_config


def get_config(preset='family'):
    """Return the configuration of a preset."""
    presets = {'family': family, 'selfplay': selfplay, 'tiny': tiny, 'words': words,
               'words_quick': words_quick}
    if preset not in presets:
        raise ValueError(f'unknown preset {preset!r}; choose one of {", ".join(presets)}')
    return presets[preset]()


def base(environment):
    """Return what all presets share: an intent a turn, repeated by the actor, and the reward of the environment."""
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
    """Play against the fixed family of opponents."""
    config = base('bargain')
    config.iterations = 900
    config.checkpoint.every = 300
    return config


def selfplay():
    """Play two seats, one of them with a random snapshot of the training so far."""
    config = base('bargain_selfplay')
    config.seats, config.pool_size, config.pool_every = ('policy', 'pool'), 8, 75
    # The second side reads an observation before its first action, so its conversation is longer.
    config.strategist.capacity = config.learner.length_bucket = 40
    config.iterations = 600
    config.evaluation.update(partner='pool', conditions=('pool', 'policy'))
    config.checkpoint.every = 50
    return config


def tiny():
    """Play eight episodes an iteration."""
    config = base('bargain')
    config.iterations = 2
    config.rollout.update(episodes=8, group=2, batch=4, record_every=1)
    config.learner.update(batch=8, micro_batch=8)
    config.evaluation.episodes = 8
    return config


def words():
    """Bargain in English with one base model in both roles; the actor can only say the legal moves."""
    config = default_config('bargain_words')
    config.iterations = 30
    config.mesh = (1, 1, 1)
    config.model.update(chat_template='chatml', remat='none')
    config.lora.update(rank=16, alpha=32.0)
    # A strategist's conversation has at most 192 tokens, and every token of its capacity costs time.
    config.strategist.update(capacity=192, temperature=1.0, top_k=8, max_tokens=10)
    config.actor.update(capacity=192, temperature=0.3, max_tokens=8, chat_template='chatml')
    config.judge.capacity = 128
    config.rollout.update(episodes=64, group=8, batch=64, view_tokens=80, chunk=16, compiled=True)
    config.reward.update(outcome='environment', process='none')
    config.credit.update(gamma=1.0, baseline='group', normalise='batch')
    config.learner.update(learning_rate=4e-4, schedule='constant', batch=64, micro_batch=8, length_bucket=16)
    config.evaluation.update(set='held_out_98', conditions=('prompted', 'none', 'policy'))
    config.checkpoint.update(every=5, keep=1)
    return config


def words_quick():
    """Bargain with eager opponents only: with a single lesson to learn, few games show it."""
    config = words()
    config.iterations = 6
    config.environment.opponents = ('eager',)
    config.rollout.update(episodes=32, batch=32)
    config.learner.batch = 32
    config.evaluation.set = 'eager_98'
    return config
