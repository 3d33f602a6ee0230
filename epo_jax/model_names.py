"""What names a model in a configuration."""

import pathlib

from epo_jax.agents.address import parse_address

# Models that have a name of their own.
WORDS = ('smollm2', 'dummy', 'scratch')


def names_model(name: str) -> bool:
    """Return whether a text names a model: NAME@URL, a path, a repository of the Hub, or a word that stands for one."""
    return bool(parse_address(name)) or name in WORDS or '/' in name or pathlib.Path(name).exists()
