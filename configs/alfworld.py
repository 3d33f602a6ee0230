"""EPO on ALFWorld: household tasks as text games; a strategist writes thoughts, and an actor gives commands.

    python -m epo_jax.main --config=configs/alfworld.py:quickstart --workdir=runs/alfworld

Presets, after the colon:
  quickstart  SmolLM2-135M in every role on the packaged games, with admissible commands only; takes minutes on a CPU
  tiny        a dummy model; checks within seconds that everything runs
  llama3_8b   the paper's setting; pass the weights by `--config.model.path=` and the games by `--config.scenarios=`
"""

from epo_jax.defaults import default_config


def get_config(preset='quickstart'):
    """Return the configuration of a preset."""
    config = default_config('alfworld')
    presets = {'quickstart': quickstart, 'tiny': tiny, 'llama3_8b': llama3_8b}
    if preset not in presets:
        raise ValueError(f'unknown preset {preset!r}; choose one of {", ".join(presets)}')
    presets[preset](config)
    return config


def quickstart(config):
    """Small games and a small model, for a CPU with two cores."""
    config.iterations = 2
    config.mesh = (1, 1, 1)
    config.model.remat = 'dots'
    config.environment.update(max_turns=8, constrained=True, share=True, short=True, begun=True)
    config.strategist.update(capacity=1024, max_tokens=24, min_tokens=3, top_k=50, top_p=0.9, no_repeat=6)
    config.actor.update(capacity=1024, max_tokens=24)
    config.judge.capacity = 1024
    config.rollout.update(episodes=6, batch=6, view_tokens=320, chunk=32)
    config.reward.outcome = 'environment'
    config.learner.update(learning_rate=5e-6, batch=6, micro_batch=3, length_bucket=64)
    config.evaluation.episodes = 6
    config.checkpoint.keep = 1


def tiny(config):
    """A dummy model with a byte tokenizer."""
    config.iterations = 2
    config.model.path = 'dummy'
    config.environment.update(max_turns=4, share=True, short=True, begun=True)
    config.strategist.update(capacity=2048, max_tokens=12)
    config.actor.update(capacity=2048, max_tokens=12)
    config.judge.capacity = 2048
    config.rollout.update(episodes=4, batch=4, view_tokens=1024, chunk=256)
    config.reward.outcome = 'environment'
    config.learner.update(learning_rate=1e-3, batch=4, micro_batch=2, length_bucket=512)
    config.evaluation.episodes = 4


def llama3_8b(config):
    """Liu et al. 2025: critical turns, official credit, full fine-tuning at 4096 tokens, batch 32."""
    config.model.path = 'meta-llama/Meta-Llama-3-8B-Instruct'
    config.strategist.update(capacity=4096, max_tokens=128)
    config.actor.update(capacity=8192, max_tokens=64, temperature=0.0)
    config.judge.capacity = 8192
    config.rollout.update(episodes=64, batch=64, view_tokens=2048)
    config.reward.update(outcome='environment', process='critical', combine='official')
    config.credit.update(baseline='none', normalise='trajectory')
    config.learner.update(learning_rate=1e-6, batch=32, epochs=3, schedule='official')
    config.evaluation.episodes = 134
    config.mesh = (1, -1, 1)
