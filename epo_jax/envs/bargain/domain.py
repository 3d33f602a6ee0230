"""The bargaining domains: one seat against a fixed family of opponents, and two seats."""

from typing import Any, Sequence

from ml_collections import ConfigDict

from epo_jax.config import Key, Range
from epo_jax.envs.bargain import language, scenarios
from epo_jax.envs.bargain.game import Bargain
from epo_jax.envs.base import Domain
from epo_jax.runtime.errors import InputError


def domain(opponent: str, seats: int) -> Domain:
    """Return a domain.

    Args:
      opponent: 'family' or 'seat', see game.Bargain.
      seats: number of seats.
    """
    def load(path: str, options: ConfigDict) -> list[scenarios.Scenario]:
        if path:
            raise InputError(f"scenarios={path!r}: bargain generates its own scenarios; set scenarios to ''")
        return scenarios.every_scenario(opponent)

    def environment(options: ConfigDict, tokenizer: Any, width: int) -> Bargain:
        if tokenizer.get_vocab() != language.IDS:
            raise InputError("bargain has its own vocabulary: set every model to 'scratch', or to one with the same "
                             'vocabulary')
        if width < language.OPENING_WIDTH:
            raise InputError(f'rollout.view_tokens is {width}; the first observation needs {language.OPENING_WIDTH} '
                             'tokens')
        return Bargain(opponent, options.rounds)

    return Domain(
        seats=seats, scenarios=load, device_environment=environment,
        options={'rounds': Key(4, 'largest number of actions of each side', Range(1, language.MAX_ROUNDS))},
        judged=False, repeats=True, scratch_model=scratch_model)


def scratch_model() -> Sequence[Any]:
    """See Domain.scratch_model."""
    return language.model(), language.tokenizer(), language.chat()


DOMAIN = domain('family', 1)
SELFPLAY = domain('seat', 2)
