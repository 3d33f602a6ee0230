"""EPO on conversations from a file, either made by `epo_jax.label` and `epo_jax.prepare` or published by EPO.

    python -m epo_jax.main --config=configs/offline.py --config.data=prepared.json --workdir=runs/offline

Presets, after the colon:
  official    The released recipe (default); set the weights with `--config.model.path=`.
  smollm2     The released recipe with SmolLM2-135M at 1024 tokens, on a CPU.
  tiny        A dummy model that trains in seconds, to try out the commands.
"""

from epo_jax.offline import default_config


def get_config(preset='official'):
    """Return the configuration of a preset."""
    config = default_config()
    presets = {'official': official, 'smollm2': smollm2, 'tiny': tiny}
    if preset not in presets:
        raise ValueError(f'unknown preset {preset!r}; choose one of {", ".join(presets)}')
    presets[preset](config)
    return config


def official(config):
    """Full fine-tuning: 3 epochs, batch 32, learning rate 1e-6, cosine schedule, warm-up 0.03, 4096 tokens."""
    config.learner.schedule = 'official'
    config.mesh = (1, -1, 1)


def smollm2(config):
    """SmolLM2-135M on a CPU with two cores."""
    config.model.remat = 'dots'
    config.capacity = 1024
    config.learner.update(batch=8, learning_rate=5e-6, length_bucket=128)


def tiny(config):
    """A dummy model that reads bytes."""
    config.model.path = 'dummy'
    config.capacity = 2048
    config.learner.update(batch=8, learning_rate=1e-3, length_bucket=512, micro_batch=2)
