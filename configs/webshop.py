"""EPO on WebShop: an actor follows a shopping instruction, and a strategist writes a thought before every action.

    python -m epo_jax.main --config=configs/webshop.py:quickstart --workdir=runs/webshop

Presets, after the colon:
  quickstart  SmolLM2-135M in every role on the packaged catalog; takes minutes on a CPU
  tiny        a dummy model; checks within seconds that everything runs
  llama3_8b   the paper's setting; pass the weights by `--config.model.path=` and the folder of the full catalog by
              `--config.scenarios=`
"""

from epo_jax.defaults import default_config


def get_config(preset='quickstart'):
    """Return the configuration of a preset."""
    config = default_config('webshop')
    presets = {'quickstart': quickstart, 'tiny': tiny, 'llama3_8b': llama3_8b}
    if preset not in presets:
        raise ValueError(f'unknown preset {preset!r}; choose one of {", ".join(presets)}')
    presets[preset](config)
    return config


def quickstart(config):
    """Short visits of a small model, which can only click what the page offers."""
    config.iterations = 2
    config.mesh = (1, 1, 1)
    config.model.remat = 'dots'
    config.environment.update(variant='webshop-small-synth-6', short=True, begun=True, constrained=True)
    config.strategist.update(capacity=3072, max_tokens=20, min_tokens=3, top_k=50, top_p=0.9)
    config.actor.update(capacity=3072, max_tokens=64, top_k=50, top_p=0.9)
    config.judge.capacity = 3072
    config.rollout.update(episodes=4, batch=4, view_tokens=512, chunk=64)
    config.learner.update(learning_rate=5e-6, batch=4, micro_batch=2, length_bucket=256)
    config.evaluation.episodes = 4
    config.checkpoint.keep = 1


def tiny(config):
    """A dummy model with a byte tokenizer."""
    config.iterations = 2
    config.model.path = 'dummy'
    config.environment.update(variant='webshop-small-synth-6', short=True, begun=True)
    config.strategist.update(capacity=6144, max_tokens=12)
    config.actor.update(capacity=6144, max_tokens=24)
    config.judge.capacity = 6144
    config.rollout.update(episodes=4, batch=4, view_tokens=1536, chunk=256)
    config.learner.update(learning_rate=1e-3, batch=4, micro_batch=2, length_bucket=1024)
    config.evaluation.episodes = 4


def llama3_8b(config):
    """Liu et al. (2025): 10 steps, critical turns, official credit, full fine-tuning, batch size 32."""
    config.model.path = 'meta-llama/Meta-Llama-3-8B-Instruct'
    config.environment.update(variant='webshop-full-human-200', tagger='spacy')
    config.strategist.update(capacity=8192, max_tokens=128)
    config.actor.update(capacity=8192, max_tokens=128, temperature=0.0)
    config.judge.capacity = 8192
    config.rollout.update(episodes=64, batch=64, view_tokens=4096)
    config.reward.update(process='critical', combine='official')
    config.credit.update(baseline='none', normalise='trajectory')
    config.learner.update(learning_rate=1e-6, batch=32, epochs=3, schedule='official')
    config.evaluation.episodes = 200
    config.mesh = (1, -1, 1)
