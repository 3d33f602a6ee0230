"""Replay commands in ALFWorld games and write every observation, to compare this engine with another one.

    python -m epo_jax.tools.alfworld_replay --out=OUT.jsonl [--games=FILE.jsonl.xz]
        [--commands=CMDS.jsonl] [--variant=alfworld-0.4-unseen]

For each game, the command plays the walkthrough, or the commands in the row {"id", "commands"} of CMDS.jsonl, to the
end, even after the game is won. It writes one row per game, {"id", "observations", "admissible", "won", "seconds"}: the
observations and the admissible commands at the beginning and after each command, whether the game is won at the end,
and the time to read and play it. The domain and the grammar are those beside the games; a variant such as
alfworld-0.3-unseen chooses those of another release.
"""

import argparse
import sys
import time
from typing import Mapping, Optional, Sequence

from epo_jax.envs.alfworld import source, text
from epo_jax.envs.alfworld.engine import GameError
from epo_jax.envs.alfworld.problem import build_game
from epo_jax.envs.alfworld.replay import replay
from epo_jax.runtime.files import read_jsonl, write_jsonl


def read_commands(path: str) -> dict[str, list[str]]:
    """Read the commands for every game in a file.

    Raises:
      GameError: a row is malformed; the message names the file and the row.
    """
    commands = {}
    try:
        rows = read_jsonl(path)
    except (OSError, ValueError) as error:
        raise GameError(str(error)) from None
    for number, row in enumerate(rows, 1):
        given = row.get('commands')
        if not isinstance(row.get('id'), str) or not isinstance(given, list) \
                or not all(isinstance(command, str) for command in given):
            raise GameError(f'{path}, row {number}: expected {{"id": text, "commands": [text, ...]}}')
        if row['id'] in commands:
            raise GameError(f'{path}, row {number}: an earlier row already has commands for {row["id"]!r}')
        commands[row['id']] = given
    return commands


def replay_all(games: str, commands: Optional[Mapping[str, Sequence[str]]] = None, variant: str = ''):
    """Play every game of a file or folder; yield the rows described above, None for a game that is skipped.

    Raises:
      GameError: a game is malformed, the variant is unknown, or commands are given for a game that is not there.
    """
    version, records = source.read(source.find(games), text.read_variant(variant)[0] if variant else None)
    left = dict(commands or {})
    start = time.perf_counter()
    for record in records:
        if record is None:
            yield None
        else:
            game = build_game(record)
            chosen = left.pop(game.id, None)
            if chosen is None:
                chosen = [text.translate(command, version) for command in game.walkthrough]
            yield replay(game, version, chosen) | {'seconds': time.perf_counter() - start}
        start = time.perf_counter()
    if left:
        raise GameError(f'{games or "the package"} has no game {next(iter(left))!r}, for which commands are given')


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog='python -m epo_jax.tools.alfworld_replay', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--games', default='', help='file or folder of games (default: those of the package)')
    parser.add_argument('--out', required=True, help='file to write, one row per game')
    parser.add_argument('--commands', help='file of rows {"id", "commands"}')
    parser.add_argument('--variant', default='', help=f'one of {", ".join(text.VARIANTS)}')
    args = parser.parse_args()
    try:
        played = [*replay_all(args.games, args.commands and read_commands(args.commands), args.variant)]
        rows = [row for row in played if row is not None]
        write_jsonl(args.out, rows)
    except (GameError, OSError) as error:
        sys.exit(f'error: {error}')
    print(f'{len(rows)} games, {sum(row["won"] for row in rows)} won, '
          f'{sum(len(row["observations"]) - 1 for row in rows)} commands; {len(played) - len(rows)} games left out')


if __name__ == '__main__':
    main()
