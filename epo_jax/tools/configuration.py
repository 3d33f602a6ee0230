"""Write docs/configuration.md: every key of a configuration with its type, default and meaning.

    python -m epo_jax.tools.configuration > docs/configuration.md
"""

from typing import Any, Iterator, Mapping

from epo_jax import defaults, offline
from epo_jax.config import Key
from epo_jax.envs.base import DOMAINS, load_domain

HEAD = """\
# Configuration

Every key of a configuration, with the defaults of `epo_jax.default_config('sotopia')`. A flag such as
`--config.learner.learning_rate=1e-5` overrides a key; an unknown key is an error that names the nearest known one. The
configuration of a run is saved in its `config.json`.

This page is generated: `python -m epo_jax.tools.configuration > docs/configuration.md`.
"""
COLUMNS = '| key | type | default | allowed | meaning |\n| --- | --- | --- | --- | --- |\n'


def page() -> str:
    """Return the text of docs/configuration.md."""
    domain = load_domain('sotopia')
    parts = [HEAD, '\n## Online runs\n\n', COLUMNS]
    groups = dict(defaults.keys(domain, 'sotopia'))
    groups['environment'] = {name: key for name, key in groups['environment'].items() if name not in domain.options}
    parts += rows(groups, '')
    for name in DOMAINS:
        parts += [f'\n## Options of {name}\n\n', COLUMNS, *rows(load_domain(name).options, 'environment.')]
    parts += ['\n## Offline runs\n\n', COLUMNS, *rows(offline.keys(), '')]
    return ''.join(parts)


def rows(keys: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """Yield a row of a table for each key, groups included."""
    for name, key in keys.items():
        if isinstance(key, Mapping):
            yield from rows(key, f'{prefix}{name}.')
            continue
        key = key if isinstance(key, Key) else Key(key, '')
        yield (f'| `{prefix}{name}` | {type(key.default).__name__} | `{key.default!r}` | {key.describe()} | '
               f'{key.meaning} |\n')


if __name__ == '__main__':
    print(page(), end='')
