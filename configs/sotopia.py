"""EPO on SOTOPIA: two characters with private goals talk; a strategist advises them before every turn.

    python -m epo_jax.main --config=configs/sotopia.py:quickstart --workdir=runs/quickstart

Presets, after the colon:
  quickstart       SmolLM2-135M in every role; takes minutes on a CPU
  tiny             a dummy model; checks within seconds that everything runs
  llama3_8b        the paper's setting, for TPU v5p:2x2x2 or eight large GPUs
  llama3_8b_lora   the same with an adapter, for TPU v5e:4x4
  llama3_70b_lora  an adapter of Llama-3-70B, for TPU v5p:2x2x4
  selfplay         the paper's setting with GPT-4o as actor and judge, and a strategist on both sides
  partner          the same against GPT-4o without a strategist, in both orders of speaking

Pass the weights of Llama by `--config.model.path=`. `python -m epo_jax.plan` estimates the memory and time that a
preset needs on other machines.
"""

from epo_jax.defaults import default_config

GPT = 'gpt-4o-2024-08-06@https://api.openai.com/v1'


def get_config(preset='quickstart'):
    """Return the configuration of a preset."""
    config = default_config('sotopia')
    presets = {'quickstart': quickstart, 'tiny': tiny, 'llama3_8b': llama3_8b, 'llama3_8b_lora': llama3_8b_lora,
               'llama3_70b_lora': llama3_70b_lora, 'selfplay': selfplay, 'partner': partner}
    if preset not in presets:
        raise ValueError(f'unknown preset {preset!r}; choose one of {", ".join(presets)}')
    presets[preset](config)
    return config


def quickstart(config):
    """Short dialogues of a small model, with prompts and replies cut down to what it can use."""
    config.iterations = 2
    config.mesh = (1, 1, 1)
    config.model.remat = 'dots'
    config.environment.update(max_turns=6, allowed=('speak',), short=True, begun=True)
    config.strategist.update(capacity=704, max_tokens=20, min_tokens=3, top_k=50, top_p=0.9, no_repeat=6)
    config.actor.update(capacity=704, max_tokens=36, min_tokens=3, top_k=50, top_p=0.9, no_repeat=6)
    config.judge.capacity = 1024
    config.rollout.update(episodes=6, batch=6, view_tokens=480, chunk=32)
    config.learner.update(learning_rate=5e-6, batch=6, micro_batch=3, length_bucket=512)
    config.evaluation.episodes = 6
    config.checkpoint.keep = 1


def tiny(config):
    """A dummy model with a byte tokenizer."""
    config.iterations = 4
    config.model.path = 'dummy'
    config.environment.max_turns = 4
    config.environment.update(allowed=('speak',), short=True)
    config.strategist.update(capacity=1536, max_tokens=12)
    config.actor.update(capacity=1536, max_tokens=12)
    config.judge.capacity = 1536
    config.rollout.update(episodes=4, batch=4, view_tokens=1280, chunk=256)
    config.learner.update(learning_rate=1e-3, batch=8, micro_batch=2, length_bucket=512)
    config.evaluation.episodes = 4


def llama3_8b(config):
    """Liu et al. (2025): critical turns, official credit, full fine-tuning at 4,096 tokens, batch size 32."""
    config.model.path = 'meta-llama/Meta-Llama-3-8B-Instruct'
    config.strategist.update(capacity=4096, max_tokens=128)
    config.actor.update(capacity=4096, max_tokens=256)
    config.judge.capacity = 8192
    config.rollout.update(episodes=64, batch=64, view_tokens=2048)
    config.reward.update(process='critical', combine='official')
    config.credit.update(baseline='none', normalise='trajectory')
    config.learner.update(learning_rate=1e-6, batch=32, epochs=3, micro_batch=32, chunk=32768, schedule='official')
    config.evaluation.episodes = 90
    config.mesh = (1, -1, 1)


def llama3_8b_lora(config):
    """The paper's setting with an adapter of rank 16."""
    llama3_8b(config)
    config.lora.update(rank=16, alpha=32.0)
    config.learner.update(learning_rate=1e-4, micro_batch=4, chunk=4096)
    # Eight chips share a layer. Gathering whole layers for every token would take ten times as long as decoding.
    config.mesh = (1, -1, 8)


def llama3_70b_lora(config):
    """The same with an adapter of Llama-3-70B."""
    llama3_8b_lora(config)
    config.model.path = 'meta-llama/Meta-Llama-3-70B-Instruct'


def selfplay(config):
    """A strategist of 8B parameters advises GPT-4o on both sides; GPT-4o also judges."""
    llama3_8b(config)
    for role in (config.actor, config.judge, config.process):
        role.model = GPT
    config.remote.prices = ('gpt-4o-2024-08-06=2.5,10',)
    config.evaluation.conditions = ('none', 'react', 'prompted', 'policy')


def partner(config):
    """The strategist advises one side; the other side is GPT-4o without a strategist."""
    selfplay(config)
    config.seats = ('policy', 'none')
    config.partner.model = GPT
