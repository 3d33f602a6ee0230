"""The ALFWorld domain: options, scenarios and environment."""

from typing import Sequence

from ml_collections import ConfigDict

from epo_jax.config import COUNT, POSITIVE, Key
from epo_jax.envs.alfworld import prompts, text
from epo_jax.envs.alfworld.dialogue import Alfworld
from epo_jax.envs.alfworld.engine import GameError
from epo_jax.envs.alfworld.index import Scenario, open_games
from epo_jax.envs.base import Domain

STEPS = 40  # of the official evaluation


def check(options: ConfigDict) -> list[str]:
    """See Domain.check."""
    wrong = []
    if options.variant not in text.VARIANTS:
        wrong.append(f'environment.variant must be one of {", ".join(text.VARIANTS)}; it is {options.variant!r}')
    return wrong


def scenarios(path: str, options: ConfigDict) -> Sequence[Scenario]:
    """See Domain.scenarios; the held-out games are those of the variant's split.

    Raises:
      GameError: the games are malformed, or none is held out.
    """
    _, split = text.read_variant(options.variant)
    games = open_games(path).scenarios(split)
    if not any(game.split == 'held_out' for game in games):
        raise GameError(f'{path or "the package"} has no games of the split {split!r} for {options.variant}')
    return games


def text_environment(options: ConfigDict) -> Alfworld:
    """See Domain.text_environment."""
    version, _ = text.read_variant(options.variant)
    return Alfworld(version, variant(options), prompts.examples(version), options.max_turns, options.max_idle,
                    options.share, options.constrained, options.short, options.begun)


def variant(options: ConfigDict) -> str:
    """See Domain.variant; it names all options that change results, as in alfworld-0.4-unseen+10steps+constrained."""
    changed = [f'{options.max_turns}steps'] * (options.max_turns != STEPS)
    changed += [name for name in ('constrained', 'begun', 'short', 'share') if options[name]]
    return '+'.join([options.variant, *changed])


DOMAIN = Domain(
    seats=1,
    options={
        'variant': Key('alfworld-0.4-unseen', 'the release whose words are used, and the split that is held out'),
        'max_turns': Key(STEPS, 'largest number of actions', POSITIVE),
        'max_idle': Key(0, 'the episode ends when more than this many actions in a row do nothing; 0 disables this',
                        COUNT),
        'share': Key(False, "partial credit: an episode that is not won earns the share of the goal's conditions that "
                            'hold'),
        'constrained': Key(False, 'the actor can only write admissible commands'),
        'short': Key(False, 'short prompts, for small models'),
        'begun': Key(False, "prefill the replies of the models with 'Thought:' and 'Action:'")},
    check=check, scenarios=scenarios, text_environment=text_environment, variant=variant,
    repeats=True)
