"""The configurations that come with the package, by name: 'sotopia', 'sotopia:tiny', 'offline:official', ..."""

import importlib.resources
import importlib.util
import pathlib
from typing import Any

from epo_jax.runtime.errors import InputError


class PresetError(InputError):
    """A configuration that does not exist; the message names those that do."""


def folder() -> pathlib.Path:
    """Return the folder of the packaged configurations: `configs` in a checkout, epo_jax/configs in a wheel."""
    checkout = pathlib.Path(__file__).parents[1] / 'configs'
    if checkout.is_dir():
        return checkout
    return pathlib.Path(str(importlib.resources.files('epo_jax') / 'configs'))


def names() -> list[str]:
    """Return the names of the packaged configurations."""
    return sorted(file.stem for file in folder().glob('[!_]*.py'))


def resolve(name: str) -> str:
    """Return 'PATH' or 'PATH:PRESET' for a configuration file, or for the name of a packaged one.

    Args:
      name: for example 'configs/sotopia.py:tiny', or 'sotopia:tiny'.

    Raises:
      PresetError: there is no such file and no packaged configuration of this name.
    """
    file, colon, preset = name.partition(':')
    if pathlib.Path(file).is_file():
        return name
    if file in names():
        return f'{folder() / file}.py{colon}{preset}'
    raise PresetError(f'there is no configuration {file!r}; give the path of a configuration file, or one of '
                      f'{", ".join(names())}')


def load_config(name: str) -> Any:
    """Return a configuration, as a ConfigDict.

    Args:
      name: as in `resolve`.

    Raises:
      PresetError: there is no such configuration.
      ValueError: it has no such preset.
    """
    path, _, preset = resolve(name).rpartition('.py')
    spec = importlib.util.spec_from_file_location('epo_jax_config', f'{path}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*([preset.removeprefix(':')] if preset else []))
