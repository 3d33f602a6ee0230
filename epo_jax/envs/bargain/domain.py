"""Bargaining as an experiment meets it: against the fixed family of opponents."""

from typing import Any, Sequence

from ml_collections import ConfigDict

from epo_jax.envs.bargain import language, scenarios
from epo_jax.envs.bargain.game import Bargain
from epo_jax.envs.base import Domain
from epo_jax.runtime.errors import InputError


def domain(opponent: str, seats: int) -> Domain:
    """Bargaining against one of 'family' and 'seat', as in `game.Bargain`."""
    def check(environment: ConfigDict) -> list[str]:
        wrong = []
        if environment.opponent != opponent:
            wrong.append(f'environment.opponent is {opponent!r} here; for the other kind, name another environment: '
                         f"'bargain' (family) or 'epo_jax.envs.bargain.selfplay' (seat)")
        if not 1 <= environment.rounds <= language.MAX_ROUNDS:
            wrong.append(f'environment.rounds must be 1 to {language.MAX_ROUNDS}; it is {environment.rounds}')
        return wrong

    return Domain(
        seats=seats, options=dict(opponent=opponent, rounds=4), check=check, scenarios=load, tokens=tokens,
        language=own_language)


def load(path: str, environment: ConfigDict) -> list[scenarios.Scenario]:
    """All scenarios there are.

    Raises:
      ValueError: a path; there is nothing to be read.
    """
    if path:
        raise InputError(f"scenarios={path!r}: bargain makes its own, leave it ''")
    return scenarios.every_scenario(environment.opponent)


def tokens(environment: ConfigDict, tokenizer: Any, width: int) -> Bargain:
    """The environment.

    Raises:
      ValueError: models that speak another language, or views that are too short for an opening.
    """
    if tokenizer.get_vocab() != language.IDS:
        raise InputError("bargain has a language of its own: every model at the table must be 'scratch' or speak it")
    if width < language.OPENING_WIDTH:
        raise InputError(f'rollout.view_tokens is {width}; an opening has {language.OPENING_WIDTH} tokens')
    return Bargain(environment.opponent, environment.rounds)


def own_language() -> Sequence[Any]:
    """(model, tokenizer, chat segments)."""
    return language.model(), language.tokenizer(), language.chat()


DOMAIN = domain('family', 1)
