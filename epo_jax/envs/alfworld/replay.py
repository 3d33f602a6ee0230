"""Play a game by commands."""

from typing import Any, Sequence

from epo_jax.envs.alfworld import engine, text
from epo_jax.envs.alfworld.engine import Game, State
from epo_jax.envs.alfworld.text import Version


def run_command(game: Game, version: Version, state: State, command: str) -> tuple[State, str]:
    """Return the state after a command, and the observation; a command that is not possible changes nothing."""
    action = text.read_command(game, version, command.strip())
    if action is None or not engine.allowed(game, state, action):
        return state, text.NOTHING_HAPPENS
    state = engine.apply(game, state, action)
    return state, text.describe(game, version, state, action)


def replay(game: Game, version: Version, commands: Sequence[str]) -> dict[str, Any]:
    """Play a game by commands; return {'id', 'observations', 'admissible', 'won'}."""
    state = game.initial
    observations, admissible = [text.opening(game, version)], [text.admissible(game, version, state)]
    for command in commands:
        state, said = run_command(game, version, state, command)
        observations.append(said)
        admissible.append(text.admissible(game, version, state))
    return {'id': game.id, 'observations': observations, 'admissible': admissible, 'won': engine.won(game, state)}
