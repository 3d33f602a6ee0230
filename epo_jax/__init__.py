"""Explicit policy optimization (EPO) in JAX: multi-turn reinforcement learning of a strategist beside a frozen agent.

    import epo_jax
    config = epo_jax.load_config('sotopia:tiny')
    epo_jax.run(config, 'runs/tiny')
"""

import importlib
from importlib import metadata
import os
from typing import Any

# Only tokenizers are taken from transformers, which otherwise warns that PyTorch is not installed.
os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')

# Public names and their modules. They are imported when they are first used, since JAX takes seconds to import.
_PUBLIC = {
    'Domain': 'epo_jax.envs.base',
    'Observation': 'epo_jax.envs.base',
    'Scenario': 'epo_jax.envs.base',
    'Strategist': 'epo_jax.serve.strategist',
    'TextEnvironment': 'epo_jax.envs.base',
    'TextStep': 'epo_jax.envs.base',
    'default_config': 'epo_jax.defaults',
    'load_config': 'epo_jax.presets',
    'load_domain': 'epo_jax.envs.base',
    'run': 'epo_jax.experiment',
    'validate': 'epo_jax.defaults',
}

try:
    __version__ = metadata.version('epo_jax')
except metadata.PackageNotFoundError:  # a checkout that is not installed
    __version__ = '0+unknown'

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _PUBLIC:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return [*__all__, '__version__']
