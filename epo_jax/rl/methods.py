"""Methods by name: functions whose parameters say what they need.

A credit rule or a loss is a function. Each of its parameters is either an input, an array that the package computes
(such as `reward` or `logprob`), or an option, a key of the configuration group that the method belongs to (such as
`gamma`). Inputs that nobody asks for are not computed.
"""

import dataclasses
import inspect
import re
from typing import Any, Callable, Mapping

from epo_jax.runtime.errors import InputError
from epo_jax.runtime.functions import import_function


@dataclasses.dataclass(frozen=True)
class Method:
    """A function with the values of its options; static.

    Attributes:
      function: what is called.
      inputs: names of the parameters that are inputs.
      options: names and values of the others.
    """

    function: Callable[..., Any]
    inputs: tuple[str, ...]
    options: tuple[tuple[str, Any], ...] = ()

    def __call__(self, inputs: Mapping[str, Any]) -> Any:
        """Call the function with its inputs, which are taken from `inputs` by name, and its options."""
        return self.function(**{name: inputs[name] for name in self.inputs}, **dict(self.options))


def bind(name: str, table: Mapping[str, Callable[..., Any]], inputs: Mapping[str, str],
         options: Mapping[str, Any], what: str) -> Method:
    """Return a method with its options.

    Args:
      name: a key of `table`, or 'package.module:function'.
      table: the methods that come with the package.
      inputs: meanings of the arrays that a method may ask for, by name.
      options: values of the configuration group by key; a method gets those that its parameters name.
      what: what the method is, for error messages, such as 'credit.name'.

    Raises:
      InputError: there is no such method, or it has a parameter that is neither an input nor an option.
    """
    function = find(name, table, what)
    found, chosen = [], []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in inputs:
            found.append(parameter.name)
        elif parameter.name in options:
            chosen.append((parameter.name, options[parameter.name]))
        elif parameter.default is parameter.empty or parameter.kind in (
                parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise InputError(
                f'{what}={name}: {parameter.name!r} is neither an input ({", ".join(inputs)}) nor a key of the '
                f'configuration ({", ".join(options)}); rename the parameter, or give it a default')
    return Method(function, tuple(found), tuple(chosen))


def find(name: str, table: Mapping[str, Callable[..., Any]], what: str) -> Callable[..., Any]:
    """Return a function from a table, or the one that 'package.module:function' names.

    Raises:
      InputError: there is no such function.
    """
    if name in table:
        return table[name]
    choices = f"choose one of {', '.join(table)}, or give 'package.module:function'"
    if ':' not in name:
        raise InputError(f'{what}: there is no method {name!r}; {choices}')
    try:
        return import_function(name)
    except ValueError as error:
        raise InputError(f'{what}: there is no function {name!r} ({error}); {choices}') from None


def describe(table: Mapping[str, Callable[..., Any]]) -> list[tuple[str, str, str]]:
    """Return (name, one line, source) of every method in a table, from their docstrings.

    The source stands in the docstring's paragraph 'Source: ...'.
    """
    rows = []
    for name, function in table.items():
        text = inspect.getdoc(function) or ''
        source = re.search(r'^Source: (.*(?:\n[ \t]*\S.*)*)', text, re.MULTILINE)
        rows.append((name, text.partition('\n')[0], ' '.join(source[1].split()) if source else ''))
    return rows
