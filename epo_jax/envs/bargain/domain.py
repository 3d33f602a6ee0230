"""The bargaining domains: one seat against a fixed family of opponents, and two seats; in array code and in words."""

import pathlib
from typing import Any, Callable, Sequence

from ml_collections import ConfigDict

from epo_jax.config import Key, Range
from epo_jax.envs.bargain import language, scenarios
from epo_jax.envs.bargain.dialogue import WordBargain
from epo_jax.envs.bargain.game import Bargain
from epo_jax.envs.bargain.tokens import TokenBargain
from epo_jax.envs.base import Domain
from epo_jax.runtime.errors import InputError

DATA = pathlib.Path(__file__).parent / 'data'


def domain(opponent: str, seats: int) -> Domain:
    """Return a domain.

    Args:
      opponent: 'family' or 'seat', see game.Bargain.
      seats: number of seats.
    """
    def environment(options: ConfigDict, tokenizer: Any, width: int) -> Bargain:
        if tokenizer.get_vocab() != language.IDS:
            raise InputError("bargain has its own vocabulary: set every model to 'scratch', or to one with the same "
                             'vocabulary')
        if width < language.OPENING_WIDTH:
            raise InputError(f'rollout.view_tokens is {width}; the first observation needs {language.OPENING_WIDTH} '
                             'tokens')
        return Bargain(opponent, options.rounds)

    return Domain(
        seats=seats, scenarios=loader(opponent), device_environment=environment,
        options={'rounds': Key(4, 'largest number of actions of each side', Range(1, language.MAX_ROUNDS))},
        judged=False, repeats=True, scratch_model=scratch_model, panels=panels(opponent))


def domain_in_words(opponent: str, seats: int) -> Domain:
    """Return a domain in English; arguments as in `domain`."""
    def game(options: ConfigDict) -> Bargain:
        return Bargain(opponent, options.rounds)

    return Domain(
        seats=seats, scenarios=loader(opponent),
        text_environment=lambda options: WordBargain(game(options), options.constrained),
        device_environment=lambda options, tokenizer, width: TokenBargain(
            game(options), tokenizer, width, options.constrained),
        options={
            'rounds': Key(3, 'largest number of actions of each side', Range(1, language.MAX_ROUNDS)),
            'constrained': Key(True, "restrict the actor's replies to the legal moves; else its replies are read")},
        judged=False, repeats=True, panels=panels(opponent))


def panels(opponent: str) -> dict[str, pathlib.Path]:
    """Return the fixed panels of the family: 98 pairs of valuations, 14 with each kind of opponent."""
    return {'held_out_98': DATA / 'held_out_98.txt'} if opponent == 'family' else {}


def loader(opponent: str) -> Callable[[str, ConfigDict], list[scenarios.Scenario]]:
    """Return a function that loads the scenarios, see Domain.scenarios."""
    def load(path: str, options: ConfigDict) -> list[scenarios.Scenario]:
        if path:
            raise InputError(f"scenarios={path!r}: bargain generates its own scenarios; set scenarios to ''")
        return scenarios.every_scenario(opponent)

    return load


def scratch_model() -> Sequence[Any]:
    """See Domain.scratch_model."""
    return language.model(), language.tokenizer(), language.chat()


DOMAIN = domain('family', 1)
SELFPLAY = domain('seat', 2)
WORDS = domain_in_words('family', 1)
WORDS_SELFPLAY = domain_in_words('seat', 2)
