"""The SOTOPIA domain: options, scenarios and both forms of the environment."""

from typing import Any, Sequence

from ml_collections import ConfigDict

from epo_jax.config import COUNT, POSITIVE, Key
from epo_jax.envs.base import Domain
from epo_jax.envs.sotopia.actions import KINDS
from epo_jax.envs.sotopia.dialogue import Sotopia
from epo_jax.envs.sotopia.profiles import Scenario, load_scenarios
from epo_jax.envs.sotopia.rubric import RUBRIC
from epo_jax.envs.sotopia.tokens import TokenSotopia


def check(options: ConfigDict) -> list[str]:
    """See Domain.check."""
    wrong = []
    if not set(options.allowed) <= set(KINDS) or 'speak' not in options.allowed:
        wrong.append(f'environment.allowed must be some of {KINDS}, including speak; it is {tuple(options.allowed)}')
    return wrong


def scenarios(path: str, options: ConfigDict) -> Sequence[Scenario]:
    """See Domain.scenarios."""
    return load_scenarios(path)


def text_environment(options: ConfigDict) -> Sotopia:
    """See Domain.text_environment."""
    return Sotopia(options.max_turns, options.max_stale, tuple(options.allowed), options.short, options.begun)


def device_environment(options: ConfigDict, tokenizer: Any, width: int) -> TokenSotopia:
    """See Domain.device_environment."""
    return TokenSotopia(text_environment(options), tokenizer, width)


DOMAIN = Domain(
    seats=2,
    options={
        'max_turns': Key(20, 'largest number of actions of both seats together', POSITIVE),
        'max_stale': Key(2, 'the episode ends when more than this many actions in a row do nothing', COUNT),
        'allowed': Key(KINDS, 'kinds of action that agents may choose'),
        'short': Key(False, 'short prompts, for small models'),
        'begun': Key(False, 'prefill the replies of the models with \'Strategy:\' and \'NAME said: "\'')},
    check=check, scenarios=scenarios, text_environment=text_environment, device_environment=device_environment,
    rewarded=False, situation=lambda scenario: scenario.environment, rubric=RUBRIC)
