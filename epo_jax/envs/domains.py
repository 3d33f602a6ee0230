"""The environments by name."""

import importlib

from epo_jax.envs.base import Domain

NAMES = ('alfworld', 'bargain', 'sotopia', 'webshop')


def load_domain(name: str) -> Domain:
    """The DOMAIN of a named environment, or of a module of one's own, 'package.module'.

    Raises:
      ValueError: there is none; the message names those that there are.
    """
    module = f'epo_jax.envs.{name}.domain' if name in NAMES else name
    try:
        return importlib.import_module(module).DOMAIN
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f'no environment {name!r}: {", ".join(NAMES)}, or a module with a DOMAIN ({error})') from None
