"""EPO on conversations from a file: `epo_jax.label` and `epo_jax.prepare` make it, or EPO's own is taken.

    python -m epo_jax.main --config=configs/offline.py --config.data=prepared.json --workdir=runs/offline

Presets, after the colon:
  official    the released recipe, the default; `--config.model.path=` names the weights
  smollm2     the same with SmolLM2-135M at 1024 tokens, on a CPU
  tiny        a dummy model, in seconds; for trying the machinery
"""

from epo_jax.offline import default_config


def get_config(preset='official'):
    """The configuration of one of the presets."""
    config = default_config()
    presets = {'official': official, 'smollm2': smollm2, 'tiny': tiny}
    if preset not in presets:
        raise ValueError(f'unknown preset {preset!r}; there are {", ".join(presets)}')
    presets[preset](config)
    return config


def official(config):
    """Full fine-tuning: 3 epochs, batch 32, learning rate 1e-6, cosine, warm-up 0.03, 4096 tokens."""
    config.mesh = (1, -1, 1)


def smollm2(config):
    """A small model on two cores."""
    config.model.remat = 'dots'
    config.capacity = 1024
    config.learner.update(batch=8, learning_rate=5e-6, length_bucket=128)


def tiny(config):
    """A dummy model of bytes."""
    config.model.path = 'dummy'
    config.capacity = 2048
    config.learner.update(batch=8, learning_rate=1e-3, length_bucket=512, micro_batch=2)
