"""Functions of a user, by name."""

import importlib
from typing import Any, Callable


def import_function(name: str) -> Callable[..., Any]:
    """Return the function named 'package.module:function'.

    Raises:
      ValueError: there is no such function; the message says why. A user's module may raise anything.
    """
    module, _, attribute = name.partition(':')
    try:
        function = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        raise ValueError(str(error)) from error
    if not callable(function):
        raise ValueError(f'it is a {type(function).__name__}, not a function')
    return function
