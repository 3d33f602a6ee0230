"""Fields of JSON objects with checked types: a wrong type is an error that names the key, wherever the file is from.

A key that is absent or null has its default; a key without a default must be present.
"""

import json
import math
import os
import pathlib
from typing import Any, Mapping, Optional

from epo_jax.runtime.errors import InputError


class FieldError(InputError):
    """A JSON file cannot be read, or a key is missing or has a wrong value. The message names the file or the key."""


def read_object(path: str | os.PathLike) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
      FieldError: the file cannot be read or contains something else.
    """
    try:
        content = json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
    except FileNotFoundError as error:
        raise FieldError(f'{path}: no such file') from error
    except OSError as error:
        raise FieldError(f'{path}: the file cannot be read ({error.strerror})') from error
    except (ValueError, RecursionError) as error:
        raise FieldError(f'{path}: the file is not JSON ({error})') from error
    if not isinstance(content, dict):
        raise FieldError(f'{path}: the content is not a JSON object')
    return content


def size(content: Mapping[str, Any], key: str, default: Optional[int] = None, least: int = 1) -> int:
    """Return a whole number from `least` to 2^31 - 1."""
    value = _value(content, key, default)
    if isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**31:
        return value
    raise FieldError(f'{key} must be a whole number from {least} to 2^31 - 1, not {shown(value)}')


def number(content: Mapping[str, Any], key: str, default: Optional[float] = None, least: float = 0.0) -> float:
    """Return a finite number that is greater than `least`."""
    value = _value(content, key, default)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and least < value < math.inf:
        return float(value)
    raise FieldError(f'{key} must be a finite number greater than {least:g}, not {shown(value)}')


def flag(content: Mapping[str, Any], key: str, default: bool = False) -> bool:
    """Return true or false."""
    value = _value(content, key, default)
    if isinstance(value, bool):
        return value
    raise FieldError(f'{key} must be true or false, not {shown(value)}')


def group(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return a JSON object, by default an empty one."""
    value = _value(content, key, {})
    if isinstance(value, dict):
        return value
    raise FieldError(f'{key} must be a JSON object, not {shown(value)}')


def texts(content: Mapping[str, Any], key: str) -> Optional[list[str]]:
    """Return a list of texts, by default None."""
    value = content.get(key)
    if value is None or isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    raise FieldError(f'{key} must be a list of texts, not {shown(value)}')


def flags(content: Mapping[str, Any], key: str) -> Optional[list[bool]]:
    """Return a list of true and false, which may be written as 1 and 0, by default None."""
    value = content.get(key)
    if value is None:
        return None
    if isinstance(value, list) and all(isinstance(item, int) and item in (0, 1) for item in value):
        return [bool(item) for item in value]
    raise FieldError(f'{key} must be a list of 0 and 1, not {shown(value)}')


def _value(content: Mapping[str, Any], key: str, default: Any) -> Any:
    value = content.get(key)
    if value is None and default is None:
        raise FieldError(f'the key {key!r} is missing')
    return default if value is None else value


def shown(value: Any) -> str:
    """Return a value for a message: the kind of a list or an object, and the beginning of a long text."""
    text = {list: 'a list', dict: 'an object'}.get(type(value)) or repr(value)
    return text if len(text) <= 40 else text[:37] + '...'
