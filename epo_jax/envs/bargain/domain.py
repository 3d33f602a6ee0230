"""The bargaining domains: one seat against a fixed family of opponents, and two seats; in array code and in words."""

import pathlib
from typing import Any, Callable, Sequence

from ml_collections import ConfigDict

from epo_jax.config import Key, Range
from epo_jax.envs.bargain import language, opponents, scenarios
from epo_jax.envs.bargain.dialogue import WordBargain
from epo_jax.envs.bargain.game import Bargain
from epo_jax.envs.bargain.tokens import TokenBargain
from epo_jax.envs.base import Domain
from epo_jax.runtime.errors import InputError

DATA = pathlib.Path(__file__).parent / 'data'
ROUNDS = 3  # in words


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

    kinds = {'opponents': Key(opponents.NAMES, 'kinds of opponents to bargain with', opponents.NAMES)}
    return Domain(
        seats=seats, scenarios=loader(opponent), check=check,
        text_environment=lambda options: WordBargain(game(options), options.constrained),
        device_environment=lambda options, tokenizer, width: TokenBargain(
            game(options), tokenizer, width, options.constrained),
        options={
            'rounds': Key(ROUNDS, 'largest number of actions of each side', Range(1, language.MAX_ROUNDS)),
            'constrained': Key(True, "restrict the actor's replies to the legal moves; else its replies are read"),
            **(kinds if opponent == 'family' else {})},
        variant=variant, judged=False, repeats=True, panels=panels(opponent))


def variant(options: ConfigDict) -> str:
    """See Domain.variant; every option that is not at its default adds a suffix."""
    kinds = tuple(options.get('opponents', opponents.NAMES))
    suffixes = [f'{options.rounds}-rounds'] * (options.rounds != ROUNDS) + ['free'] * (not options.constrained) + (
        [] if set(kinds) == set(opponents.NAMES) else sorted(set(kinds)))
    return '+'.join([options.name, *suffixes])


def panels(opponent: str) -> dict[str, pathlib.Path]:
    """Return the fixed panels of the family: 98 pairs of valuations, each kind of opponent in turn, or one in all."""
    names = ('held_out_98', 'eager_98') if opponent == 'family' else ()
    return {name: DATA / f'{name}.txt' for name in names}


def loader(opponent: str) -> Callable[[str, ConfigDict], list[scenarios.Scenario]]:
    """Return a function that loads the scenarios, see Domain.scenarios."""
    def load(path: str, options: ConfigDict) -> list[scenarios.Scenario]:
        if path:
            raise InputError(f"scenarios={path!r}: bargain generates its own scenarios; set scenarios to ''")
        kinds = (*options.get('opponents', opponents.NAMES), None)
        return [scenario for scenario in scenarios.every_scenario(opponent) if scenario.opponent in kinds]

    return load


def check(options: ConfigDict) -> list[str]:
    """See Domain.check."""
    return [] if options.get('opponents', True) else ['environment.opponents must name at least one kind of opponent']


def scratch_model() -> Sequence[Any]:
    """See Domain.scratch_model."""
    return language.model(), language.tokenizer(), language.chat()


DOMAIN = domain('family', 1)
SELFPLAY = domain('seat', 2)
WORDS = domain_in_words('family', 1)
WORDS_SELFPLAY = domain_in_words('seat', 2)
