"""SOTOPIA as an experiment meets it."""

from typing import Any, Sequence

from ml_collections import ConfigDict

from epo_jax.envs.base import Domain
from epo_jax.envs.sotopia.actions import KINDS
from epo_jax.envs.sotopia.dialogue import Sotopia
from epo_jax.envs.sotopia.profiles import Scenario, load_scenarios
from epo_jax.envs.sotopia.tokens import TokenSotopia


def check(options: ConfigDict) -> list[str]:
    """See Domain.check."""
    wrong = []
    if not set(options.allowed) <= set(KINDS) or 'speak' not in options.allowed:
        wrong.append(f'environment.allowed must be some of {KINDS}, speak among them')
    if options.max_turns < 1:
        wrong.append(f'environment.max_turns must be positive; it is {options.max_turns}')
    return wrong


def scenarios(path: str, options: ConfigDict) -> Sequence[Scenario]:
    """See Domain.scenarios."""
    return load_scenarios(path)


def environment(options: ConfigDict) -> Sotopia:
    """See Domain.environment."""
    return Sotopia(options.max_turns, options.max_stale, tuple(options.allowed), options.short, options.begun)


def tokens(options: ConfigDict, tokenizer: Any, width: int) -> TokenSotopia:
    """See Domain.tokens."""
    return TokenSotopia(environment(options), tokenizer, width)


DOMAIN = Domain(
    seats=2,
    options=dict(
        max_turns=20,         # actions of both seats together
        max_stale=2,          # more idle actions in a row than this end the episode
        allowed=KINDS,
        short=False,          # short prompts, for small models
        begun=False),         # replies are begun for the models: 'Strategy:', 'NAME said: "'
    check=check, scenarios=scenarios, environment=environment, tokens=tokens)
