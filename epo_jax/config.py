"""Configurations: check keys and types, save them with a run, and compare them when the run resumes."""

import difflib
import json
import math
from pathlib import Path
from typing import Any, Collection, Iterator, Mapping, NamedTuple, Optional, Union

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, RequiredValueError

from epo_jax.runtime.errors import InputError
from epo_jax.runtime.files import write_atomically
from epo_jax.runtime.secrets import redact

CONFIG_FILE = 'config.json'
_UNSET = object()  # what `_get` returns for a required placeholder that is not filled in


class ConfigError(InputError):
    """A configuration that cannot be run; the message names every invalid key and says what to do."""


class Range(NamedTuple):
    """The finite numbers that a key may have; `above` and `below` exclude the ends."""

    low: float
    high: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value: Any) -> bool:
        """Return whether a number lies in the range."""
        if not isinstance(value, (int, float)) or isinstance(value, float) and not math.isfinite(value):
            return False
        return (self.low < value if self.above else self.low <= value) and (
            value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        low = f'{"above" if self.above else "at least"} {self.low}'
        return low if self.high == math.inf else f'{low} and {"below" if self.below else "at most"} {self.high}'


LARGEST = 2**31 - 1
COUNT = Range(0, LARGEST)
POSITIVE = Range(1, LARGEST)
SEEDS = Range(0, 2**32 - 1)  # jax.random.key takes no larger ones
DEVICES = Range(-1, LARGEST)


class Key(NamedTuple):
    """A key of a configuration.

    Attributes:
      default: its default, whose type the values have.
      meaning: one line.
      allowed: a Range, or the options; None allows every value. If the values are tuples, it is about their elements.
    """

    default: Any
    meaning: str
    allowed: Optional[Collection[Any]] = None

    def allows(self, value: Any) -> bool:
        """Return whether a value of the right type is allowed."""
        values = value if isinstance(value, (tuple, list)) else (value,)
        return self.allowed is None or all(element in self.allowed for element in values)

    def describe(self) -> str:
        """Return what is allowed, such as 'at least 1' or 'one of sum, official'."""
        if isinstance(self.allowed, Range):
            return str(self.allowed)
        return '' if self.allowed is None else 'one of ' + ', '.join(map(str, self.allowed))


def defaults_of(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested defaults of a tree whose values are Keys, groups of keys, or plain defaults."""
    return {name: key.default if isinstance(key, Key) else defaults_of(key) if isinstance(key, Mapping) else key
            for name, key in keys.items()}


def validate_keys(config: ConfigDict, defaults: ConfigDict) -> None:
    """Check that `config` has exactly the keys of `defaults`, at every depth, with values of the same kind.

    An integer passes for a float, and tuples and lists pass for each other; a boolean does not pass for a number. None
    passes where the default is None or a placeholder. A default of None allows any value, and a typed placeholder
    allows its type.

    Raises:
      ConfigError: there are unknown keys, missing keys or values of the wrong kind; the message lists them all, with
        the nearest known key of each unknown key.
    """
    problems = list(_problems(config, defaults, '', dict(_names(defaults, ''))))
    if problems:
        raise ConfigError('the configuration is not valid:\n  ' + '\n  '.join(problems))


def value_problems(config: ConfigDict, keys: Mapping[str, Any], prefix: str = '') -> Iterator[str]:
    """Yield a line for each value that its Key does not allow.

    Args:
      config: a configuration that has passed `validate_keys`.
      keys: a tree of Keys, as in `defaults_of`.
      prefix: of the names in the lines.
    """
    for name, key in keys.items():
        if isinstance(key, Mapping):
            yield from value_problems(config[name], key, f'{prefix}{name}.')
        elif isinstance(key, Key) and not key.allows(value := config[name]):
            each = 'each element of ' if isinstance(value, (tuple, list)) else ''
            yield f'{each}{prefix}{name} must be {key.describe()}; it is {value!r}'


def to_json(config: Union[ConfigDict, Mapping[str, Any]]) -> str:
    """Return the configuration as sorted and indented JSON; equal configurations give equal text.

    Raises:
      ConfigError: JSON cannot represent a value, such as a function, NaN or an infinity; the message names its key.
    """
    return json.dumps(_plain(config, ''), indent=2, sort_keys=True, ensure_ascii=False) + '\n'


def from_json(text: str) -> dict[str, Any]:
    """Return the nested dict in the output of `to_json`, with lists instead of tuples.

    Raises:
      ConfigError: the text is not a JSON object.
    """
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f'the text is not JSON: {error}') from error
    if not isinstance(tree, dict):
        raise ConfigError(f'expected a JSON object, found {type(tree).__name__}')
    return tree


def has_results(workdir: Union[str, Path]) -> bool:
    """Return whether a directory holds metrics or checkpoints of a run."""
    metrics, checkpoints = Path(workdir) / 'metrics.jsonl', Path(workdir) / 'checkpoints'
    return (metrics.exists() and metrics.stat().st_size > 0
            or checkpoints.is_dir() and any(path.name.isdecimal() for path in checkpoints.iterdir()))


def check_workdir(workdir: Union[str, Path], config: ConfigDict, may_differ: tuple[str, ...] = ()) -> bool:
    """Compare a configuration with that of the run in a directory, if there is one; nothing is written.

    Args:
      workdir: the directory of the run, which need not exist.
      config: the validated configuration.
      may_differ: dotted keys, or groups of keys, that a resumed run may change, such as its length.

    Returns:
      Whether config.json is missing or has other values, so that it has to be written.

    Raises:
      ConfigError: config.json is damaged, or it is missing beside the results of a run, or other keys differ.
    """
    path = Path(workdir) / CONFIG_FILE
    if not path.exists():
        if has_results(workdir):
            raise ConfigError(f'{workdir} holds results of a run, but its {CONFIG_FILE} is missing, so the '
                              'configuration of this run is unknown; restore the file, or start in a new --workdir')
        return True
    try:
        saved = from_json(path.read_text(encoding='utf-8'))
    except (ConfigError, UnicodeDecodeError) as error:
        raise ConfigError(f'{path} is damaged ({error}), so the configuration of this run is unknown; restore the '
                          'file, or start in a new --workdir') from error
    changed = _differences(saved, from_json(_saved_text(config)))
    refused = [line for name, line in changed.items()
               if not any(name == free or name.startswith(free + '.') for free in may_differ)]
    if refused:
        raise ConfigError(f'{workdir} contains a run with another configuration:\n  ' + '\n  '.join(refused)
                          + '\npass the saved values to resume it, or another --workdir to start a new run')
    return bool(changed)


def open_workdir(workdir: Union[str, Path], config: ConfigDict, may_differ: tuple[str, ...] = ()) -> bool:
    """Save the configuration in the directory of a new run, or compare it with that of an existing run.

    The directory is created, with its parents, if it does not exist. If keys differ that may differ, config.json is
    rewritten with the new values. Passwords and keys in URLs are left out.

    Args:
      workdir, config, may_differ: as in `check_workdir`.

    Returns:
      False if the run is new; True if config.json exists, so that the run resumes.

    Raises:
      ConfigError: as in `check_workdir`; the file stays as it is.
    """
    path = Path(workdir) / CONFIG_FILE
    exists = path.exists()
    if check_workdir(workdir, config, may_differ):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, _saved_text(config))
    return exists


def _saved_text(config: ConfigDict) -> str:
    return redact(to_json(config))


def _names(tree: ConfigDict, prefix: str) -> Iterator[tuple[str, bool]]:
    """Yield every dotted name in a tree, and whether it is a group of keys."""
    for key in tree:
        is_group = isinstance(_get(tree, key), ConfigDict)
        yield prefix + key, is_group
        if is_group:
            yield from _names(tree[key], f'{prefix}{key}.')


def _problems(config: ConfigDict, defaults: ConfigDict, prefix: str, known: dict[str, bool]) -> Iterator[str]:
    for key in sorted(set(config) | set(defaults)):
        name = prefix + key
        if key not in defaults:
            yield f'{name}: unknown key{_nearest(name, isinstance(_get(config, key), ConfigDict), known)}'
            continue
        if key not in config:
            yield f'{name}: missing'
            continue
        value, default = _get(config, key), _get(defaults, key)
        if isinstance(default, ConfigDict) and isinstance(value, ConfigDict):
            yield from _problems(value, default, name + '.', known)
        elif isinstance(default, ConfigDict):
            yield f'{name}: expected a group of keys, got {type(value).__name__} {value!r}'
        elif value is _UNSET:
            yield f'{name}: a value must be given'
        else:
            kind = _kind(defaults, key)
            if not _fits(value, kind, default):
                expected = kind.__name__ + (' or None' if default is None else '')
                yield f'{name}: expected {expected}, got {type(value).__name__} {value!r}'
            elif isinstance(value, (tuple, list)) and default and not all(
                    any(_fits(element, type(known), known) for known in default) for element in value):
                yield f'{name}: expected elements of type {type(default[0]).__name__}, got {value!r}'
            elif isinstance(value, str) and not _is_text(value):
                yield f'{name}: expected text, got {value!r}'


def _get(tree: ConfigDict, key: str) -> Any:
    try:
        return tree[key]
    except RequiredValueError:
        return _UNSET


def _kind(tree: ConfigDict, key: str) -> type:
    """Return the type of the value of a key; a placeholder has a type even without a value."""
    field = dict(tree.items(preserve_field_references=True))[key]
    return field.get_type() if isinstance(field, FieldReference) else type(field)


def _fits(value: Any, kind: type, default: Any) -> bool:
    if value is None:
        return default is None
    if kind is type(None):
        return True
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    if kind in (tuple, list):
        return isinstance(value, (tuple, list))
    return isinstance(value, kind)


def _is_text(value: str) -> bool:
    """Return whether a string can be the name of a file and be written to one."""
    return '\0' not in value and not any('\ud800' <= character <= '\udfff' for character in value)


def _nearest(name: str, is_group: bool, known: dict[str, bool]) -> str:
    """Return '; the nearest known key is ...', which is a group for a group and a single key for a single key."""
    def similarity(candidate: str) -> float:
        full = difflib.SequenceMatcher(None, name, candidate).ratio()
        # The last part of the name also counts alone, so that a key in the wrong group finds the right group.
        last = difflib.SequenceMatcher(None, name.rpartition('.')[2], candidate.rpartition('.')[2]).ratio()
        return full + last

    candidates = [other for other, group in known.items() if group == is_group] or list(known)
    return f'; the nearest known key is {max(candidates, key=similarity)}' if candidates else ''


def _plain(value: Any, name: str) -> Any:
    """Return a value, whose dotted key is `name`, as dicts, lists and scalars of JSON."""
    if isinstance(value, (ConfigDict, Mapping)):
        return {key: _plain(_get(value, key), f'{name}.{key}' if name else key) for key in value}
    if isinstance(value, (tuple, list)):
        return [_plain(item, f'{name}[{i}]') for i, item in enumerate(value)]
    if value is _UNSET:
        raise ConfigError(f'{name}: a value must be given')
    if value is None or isinstance(value, (bool, int, str)) or isinstance(value, float) and math.isfinite(value):
        return value
    raise ConfigError(f'{name}: {value!r} cannot be saved as JSON; use None, a name or a finite number')


def flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """Return the values of nested dicts by dotted name; `prefix` is that of the names."""
    flat = {}
    for key, value in tree.items():
        # An empty group has no keys, so it is kept as a value.
        flat.update(flatten(value, f'{prefix}{key}.') if isinstance(value, dict) and value
                    else {prefix + key: value})
    return flat


def _differences(saved: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, str]:
    """Return, by dotted key, a line for each key that differs between the saved and the given configuration."""
    saved, given = flatten(_plain(saved, '')), flatten(_plain(given, ''))

    def differ(name: str) -> bool:
        if name not in saved or name not in given:
            return True
        a, b = saved[name], given[name]
        return a != b or isinstance(a, bool) != isinstance(b, bool)

    def show(flat: dict[str, Any], name: str) -> str:
        return repr(flat[name]) if name in flat else 'absent'

    return {name: f'{name}: {show(saved, name)} (saved) != {show(given, name)} (given)'
            for name in sorted(saved.keys() | given.keys()) if differ(name)}
