"""ALFWorld as an experiment meets it."""

from typing import Sequence

from ml_collections import ConfigDict

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
    if options.max_turns < 1 or options.max_idle < 0:
        wrong.append('environment.max_turns must be positive and environment.max_idle not negative')
    return wrong


def scenarios(path: str, options: ConfigDict) -> Sequence[Scenario]:
    """See Domain.scenarios: all training games, and those of the variant's split as the held-out ones.

    Raises:
      GameError: the games are malformed, or there are none to hold out.
    """
    _, split = text.read_variant(options.variant)
    games = open_games(path).scenarios(split)
    if not any(game.split == 'held_out' for game in games):
        raise GameError(f'{path or "the package"} has no games of the split {split!r} for {options.variant}')
    return games


def environment(options: ConfigDict) -> Alfworld:
    """See Domain.environment."""
    version, _ = text.read_variant(options.variant)
    return Alfworld(version, variant(options), prompts.examples(version), options.max_turns, options.max_idle,
                    options.share, options.constrained, options.short, options.begun)


def variant(options: ConfigDict) -> str:
    """See Domain.variant: whatever changes results besides the games is named, too, as in
    alfworld-0.4-unseen+10steps+constrained."""
    changed = [f'{options.max_turns}steps'] * (options.max_turns != STEPS)
    changed += [name for name in ('constrained', 'begun', 'short', 'share') if options[name]]
    return '+'.join([options.variant, *changed])


DOMAIN = Domain(
    seats=1,
    options=dict(
        variant='alfworld-0.4-unseen',  # release whose words are used, and the split that is held out
        max_turns=STEPS,      # actions
        max_idle=0,           # more actions in a row than this that do nothing end the episode; 0: never
        share=False,          # an episode that is not won counts by the share of its goal's conditions
        constrained=False,    # the actor may give admissible commands only
        short=False,          # short prompts, for small models
        begun=False),         # replies are begun for the models: 'Thought:', 'Action:'
    check=check, scenarios=scenarios, environment=environment, variant=variant)
