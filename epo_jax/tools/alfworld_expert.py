"""Solve ALFWorld games by search and write the solutions, one row per game, in the format of alfworld_replay.

    python -m epo_jax.tools.alfworld_expert --games=GAMES.jsonl.xz --out=demonstrations.jsonl

The search builds plans from four parts (go somewhere, fetch an object, treat it, deliver it), tries every choice of
object, appliance and place, and keeps the shortest plan. It starts from any state of a game; a state may be a dead end,
since some objects fit nowhere once they are picked up.
"""

import argparse
import dataclasses
import sys
from typing import Iterable, Optional

from epo_jax.envs.alfworld import engine, source, text
from epo_jax.envs.alfworld.engine import NOTHING, Action, Game, GameError, State, members
from epo_jax.envs.alfworld.problem import build_game
from epo_jax.envs.alfworld.replay import replay
from epo_jax.envs.alfworld.text import Version
from epo_jax.runtime.files import write_jsonl


@dataclasses.dataclass(frozen=True)
class Plan:
    """Actions, and the state that they lead to."""

    state: State
    actions: tuple[Action, ...] = ()

    def then(self, game: Game, *actions: Action) -> 'Plan':
        """Return this plan with more actions at its end."""
        state = self.state
        for action in actions:
            state = engine.apply(game, state, action)
        return Plan(state, self.actions + actions)


def plan(game: Game, state: State) -> tuple[Action, ...]:
    """Return actions that win the game from a state; () if it is won already.

    Raises:
      GameError: it cannot be won from there.
    """
    start = Plan(state)
    if engine.won(game, state):
        return ()
    kind = game.goal.kind
    if kind == 'look':
        found = _shortest(_light(game, start, o, lamp) for o in members(game.goal.objects)
                          for lamp in members(game.goal.targets))
    else:
        appliances = {'clean': game.sinks, 'heat': game.microwaves, 'cool': game.fridges}.get(kind)
        found = _shortest(_gather(game, start, r, kind, appliances) for r in members(game.goal.targets))
    if found is None or not engine.won(game, found.state):
        raise GameError(f'{game.id}: the goal cannot be reached from this state')
    return found.actions


def next_command(game: Game, version: Version, state: State) -> str:
    """Return the first command of the expert's plan; 'look' if the game is won."""
    actions = plan(game, state)
    return text.command(game, version, actions[0]) if actions else 'look'


def walkthrough(game: Game, version: Version) -> tuple[str, ...]:
    """Return the commands that come with a game, in the words of a release."""
    return tuple(text.translate(command, version) for command in game.walkthrough)


def _shortest(plans: Iterable[Optional[Plan]]) -> Optional[Plan]:
    return min(filter(None, plans), key=lambda p: len(p.actions), default=None)


def _visit(game: Game, before: Plan, r: int, inside: bool) -> Plan:
    """Go to a receptacle, and open it if `inside` matters."""
    after = before
    if after.state.location != game.home[r]:
        after = after.then(game, Action('go', r))
    if inside and not engine.accessible(game, after.state, r):
        after = after.then(game, Action('open', r))
    return after


def _fetch(game: Game, before: Plan, o: int) -> Optional[Plan]:
    """Pick an object up; an object that is held is put down first, wherever it fits."""
    if before.state.held == o:
        return before
    if not game.pickupable >> o & 1:
        return None
    starts = [before]
    if before.state.held != NOTHING:
        starts = [_deliver(game, before, r) for r in range(len(game.receptacles))]
    return _shortest(_visit(game, start, r, True).then(game, Action('take', o, r)) for start in starts if start
                     for r, contents in enumerate(start.state.contents) if contents >> o & 1)


def _deliver(game: Game, before: Plan, r: int) -> Optional[Plan]:
    """Put the held object into or onto a receptacle."""
    if not game.fits[r] >> before.state.held & 1:
        return None
    return _visit(game, before, r, True).then(game, Action('put', before.state.held, r))


def _light(game: Game, before: Plan, o: int, lamp: int) -> Optional[Plan]:
    """Take an object to a lamp and switch the lamp on."""
    held = _fetch(game, before, o)
    if held is None or held.state.held == lamp:
        return None
    near = (_visit(game, held, r, False) for r, contents in enumerate(held.state.contents) if contents >> lamp & 1)
    return _shortest(p if p.state.used >> lamp & 1 else p.then(game, Action('use', lamp)) for p in near)


def _gather(game: Game, before: Plan, target: int, kind: str, appliances: Optional[int]) -> Optional[Plan]:
    """Bring as many treated objects to one place as the goal asks for."""
    after = before
    for _ in range(2 if kind == 'two' else 1):
        if engine.won(game, after.state):
            break
        there = after.state.contents[target] & engine.ready(game, after.state)
        after = _shortest(_bring(game, after, o, target, kind, appliances)
                          for o in members(game.goal.objects & ~there))
        if after is None:
            return None
    return after if engine.won(game, after.state) else None


def _bring(game: Game, before: Plan, o: int, target: int, kind: str, appliances: Optional[int]) -> Optional[Plan]:
    """Bring one object, treated, to a place."""
    held = _fetch(game, before, o)
    if held is None:
        return None
    if appliances is None or engine.ready(game, held.state) >> o & 1:
        return _deliver(game, held, target)
    treated = (_visit(game, held, r, False).then(game, Action(kind, o, r)) for r in members(appliances))
    return _shortest(_deliver(game, p, target) for p in treated)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog='python -m epo_jax.tools.alfworld_expert', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--games', default='', help='file or folder of games (default: those of the package)')
    parser.add_argument('--out', required=True, help='file to write, one row per game')
    parser.add_argument('--variant', default='', help=f'one of {", ".join(text.VARIANTS)}')
    args = parser.parse_args()
    try:
        version = text.read_variant(args.variant)[0] if args.variant else None
        version, records = source.read(source.find(args.games), version)
        rows = []
        for game in (build_game(record) for record in records if record is not None):
            commands = [text.command(game, version, action) for action in plan(game, game.initial)]
            rows.append(replay(game, version, commands) | {'commands': commands})
        write_jsonl(args.out, rows)
    except (GameError, OSError) as error:
        sys.exit(f'error: {error}')
    print(f'{len(rows)} games, {sum(row["won"] for row in rows)} won in '
          f'{sum(len(row["commands"]) for row in rows) / max(1, len(rows)):.2f} commands on average')


if __name__ == '__main__':
    main()
