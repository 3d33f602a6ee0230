"""The configuration of a run, what differs from the defaults, and how to run it again."""

import json
from typing import Any, Mapping, NamedTuple, Optional

from ml_collections import ConfigDict

from epo_jax import defaults, offline, runs
from epo_jax.config import ConfigError, flatten, to_json
from epo_jax.report.sources import Source
from epo_jax.runtime.errors import InputError


class Setting(NamedTuple):
    """A key of a configuration: its value and default as JSON; the default is None if it is unknown."""

    name: str
    value: str
    default: Optional[str]

    @property
    def differs(self) -> bool:
        """Return whether the value is not the default."""
        return self.value != self.default


def settings(config: ConfigDict) -> list[Setting]:
    """Return all keys of a configuration with their defaults."""
    known = _defaults(config)
    show = lambda value: json.dumps(value, ensure_ascii=False)
    return [Setting(name, show(value), show(known[name]) if name in known else None)
            for name, value in sorted(flatten(json.loads(to_json(config))).items())]


def _defaults(config: ConfigDict) -> Mapping[str, Any]:
    try:
        default = (offline.default_config() if runs.is_offline(config)
                   else defaults.default_config(config.environment.name))
        return flatten(json.loads(to_json(default)))
    except (InputError, ConfigError, ValueError, AttributeError, KeyError, ImportError):
        return {}  # an environment of the user's that cannot be imported here


def reproduction(source: Source) -> str:
    """Return Python code that does the same as a run, whatever preset it was started with."""
    config = source.config
    changed = [setting for setting in settings(config) if setting.differs]
    if runs.is_offline(config):
        start, run = 'offline.default_config()', 'offline.run'
        imports = 'from epo_jax import offline'
    else:
        start, run = f'epo_jax.default_config({config.environment.name!r})', 'epo_jax.run'
        imports = 'import epo_jax'
    values = json.loads(to_json(config))
    flat = flatten(values)
    lines = [f'    {setting.name!r}: {_literal(flat[setting.name])},' for setting in changed]
    return '\n'.join([imports, '', f'config = {start}', 'config.update_from_flattened_dict({', *lines, '})',
                      f"{run}(config, 'runs/again')"])


def _literal(value: Any) -> str:
    return repr(tuple(value)) if isinstance(value, list) else repr(value)
