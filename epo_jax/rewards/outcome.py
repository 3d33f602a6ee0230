"""Outcomes computed by a user's function."""

import dataclasses
from typing import Callable, Sequence

from epo_jax.rewards.prompts import JudgePrompt
from epo_jax.runtime.errors import InputError
from epo_jax.runtime.functions import import_function

# Finished episodes, one JudgePrompt per seat -> the outcome of each, in [0, 1].
Outcome = Callable[[Sequence[JudgePrompt]], Sequence[float]]


def load_outcome(name: str) -> Outcome:
    """Return the function named 'package.module:function'.

    Raises:
      InputError: there is no such function.
    """
    try:
        return import_function(name)
    except ValueError as error:
        raise InputError(f"there is no outcome function {name!r} ({error}); reward.outcome must be 'judge', "
                         "'environment' or 'package.module:function'") from None


def with_outcome(prompts: Sequence[JudgePrompt], outcome: Outcome) -> list[JudgePrompt]:
    """Return the prompts with their reward set by `outcome`.

    Raises:
      InputError: the function did not return one number in [0, 1] for each prompt.
    """
    returned = outcome(prompts)
    try:
        values = [float(value) for value in returned]
    except (TypeError, ValueError, OverflowError):
        values = []
    if len(values) != len(prompts) or not all(0 <= value <= 1 for value in values):
        raise InputError(f'an outcome function must return one number in [0, 1] for each of {len(prompts)} '
                         f'conversations, not {returned!r:.200}')
    return [dataclasses.replace(prompt, reward=value) for prompt, value in zip(prompts, values, strict=True)]
