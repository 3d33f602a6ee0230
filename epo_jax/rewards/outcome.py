"""Outcomes by a function of one's own."""

import dataclasses
import importlib
from typing import Callable, Sequence

from epo_jax.rewards.reading import Reading

# Finished episodes, one Reading a seat -> for each an outcome in [0, 1].
Outcome = Callable[[Sequence[Reading]], Sequence[float]]


def load_outcome(name: str) -> Outcome:
    """The function named 'package.module:function'.

    Raises:
      ValueError: there is no such function.
    """
    module, _, function = name.partition(':')
    try:
        found = getattr(importlib.import_module(module), function)
        if not callable(found):
            raise ValueError('it is no function')
        return found
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"no outcome function {name!r} ('judge' or 'package.module:function'): {error}") from None


def scored(readings: Sequence[Reading], outcome: Outcome) -> list[Reading]:
    """The readings with their score (0 to 10) set by `outcome`.

    Raises:
      ValueError: the function returned something other than a number in [0, 1] for each.
    """
    returned = outcome(readings)
    try:
        values = [float(value) for value in returned]
    except (TypeError, ValueError):
        values = []
    if len(values) != len(readings) or not all(0 <= value <= 1 for value in values):
        raise ValueError(f'an outcome function returns one number in [0, 1] for each of {len(readings)} readings, '
                         f'not {returned!r:.200}')
    return [dataclasses.replace(reading, score=10 * value) for reading, value in zip(readings, values)]
