"""The bargaining domains: against a fixed family of opponents, and between two seats."""

from typing import Any, Sequence

from ml_collections import ConfigDict

from epo_jax.config import Key
from epo_jax.envs.bargain import language, scenarios
from epo_jax.envs.bargain.game import Bargain
from epo_jax.envs.base import Domain
from epo_jax.runtime.errors import InputError


def domain(opponent: str, seats: int) -> Domain:
    """Build the domain against 'family' or 'seat', see `game.Bargain`."""
    def load(path: str, options: ConfigDict) -> list[scenarios.Scenario]:
        if path:
            raise InputError(f"scenarios={path!r}: bargain generates its own scenarios; leave it ''")
        return scenarios.every_scenario(opponent)

    def environment(options: ConfigDict, tokenizer: Any, width: int) -> Bargain:
        if tokenizer.get_vocab() != language.IDS:
            raise InputError("bargain has a vocabulary of its own: every model must be 'scratch', or use that vocabulary")
        if width < language.OPENING_WIDTH:
            raise InputError(f'rollout.view_tokens is {width}; an opening needs {language.OPENING_WIDTH} tokens')
        return Bargain(opponent, options.rounds)

    return Domain(
        seats=seats, scenarios=load, device_environment=environment, options={'rounds': Key(4, 'largest number of actions of each side')}, check=check, judged=False,
        scratch_model=scratch_model)


def check(options: ConfigDict) -> list[str]:
    """See Domain.check."""
    if not 1 <= options.rounds <= language.MAX_ROUNDS:
        return [f'environment.rounds must be 1 to {language.MAX_ROUNDS}; it is {options.rounds}']
    return []


def scratch_model() -> Sequence[Any]:
    """See Domain.scratch_model."""
    return language.model(), language.tokenizer(), language.chat()


DOMAIN = domain('family', 1)
SELFPLAY = domain('seat', 2)
