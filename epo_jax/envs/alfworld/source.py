"""Sources of games: files with many games, ALFWorld's own folders, and the games of the package.

Three forms are read. A file SPLIT.jsonl or SPLIT.jsonl.xz has one game a row (`id`, `task`, `pddl_problem`,
`walkthrough`, `solvable`), with alfred.pddl and alfred.twl2.template beside it. A folder may hold such files for
several splits. Or a folder is ALFWorld's own, json_2.1.1: one game.tw-pddl for every game, in folders by split; one
such file, a folder of a split, and a folder around json_2.1.1 will do, too.
"""

import importlib.resources
import json
import lzma
import pathlib
from typing import Any, Iterator, NamedTuple, Optional

from epo_jax.envs.alfworld.engine import GameError
from epo_jax.envs.alfworld.problem import read_problem, task_of, version_of
from epo_jax.envs.alfworld.text import VERSIONS, Version

SPLITS = {'train': 'train', 'valid_seen': 'seen', 'valid_unseen': 'unseen'}  # by the names of files and folders
TEST_ORDER = 'epo_test_order.txt'
PACKAGED = pathlib.Path(str(importlib.resources.files(__package__) / 'data'))
_DOMAIN, _GRAMMAR, _GAME = 'alfred.pddl', 'alfred.twl2.template', 'game.tw-pddl'


class Source(NamedTuple):
    """Files of games.

    Attributes:
      root: the path that was given.
      files: (split, file), in order.
      order: ids of unseen games in the order in which they are to be played first.
      version: the release of the games if no grammar beside them identifies it.
    """

    root: pathlib.Path
    files: tuple[tuple[str, pathlib.Path], ...]
    order: tuple[str, ...] = ()
    version: Optional[Version] = None


def find(path: str = '') -> Source:
    """Return the games at a path ('': those that come with the package).

    Raises:
      GameError: there are no games at the path.
    """
    root = pathlib.Path(path) if path else PACKAGED
    own = VERSIONS['0.4'] if PACKAGED in (root.resolve(), root.resolve().parent) else None
    if not root.exists():
        raise GameError(f'{root} does not exist')
    if root.is_file():
        split = _split_of(root) if root.name == _GAME else SPLITS.get(root.name.split('.')[0])
        return Source(root, ((split or 'train', root),), version=own)
    files = _split_files(root) or _game_files(root)
    if not files:
        near = [folder for folder in sorted(root.glob('*/')) if _split_files(folder)]
        raise GameError(f'{root} has no games: neither {", ".join(SPLITS)} as .jsonl or .jsonl.xz, nor folders of '
                        f'these names with {_GAME} files' + (f'; name {near[0]} instead' if near else ''))
    order = root / TEST_ORDER
    return Source(root, tuple(files), tuple(order.read_text('utf-8-sig').split()) if order.is_file() else (), own)


def _split_files(root: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
    """Return (split, file) of the files of many games in a folder."""
    return [(split, root / f'{name}{suffix}') for name, split in SPLITS.items() for suffix in ('.jsonl', '.jsonl.xz')
            if (root / f'{name}{suffix}').is_file()]


def _game_files(root: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
    """Return (split, file) of ALFWorld's own files anywhere below a folder, by split.

    The folder may be json_2.1.1, one around it, or one inside of it.
    """
    files = [(_split_of(file), file) for file in sorted(root.rglob(_GAME))]
    return [found for split in SPLITS.values() for found in files if found[0] == split]


def _split_of(file: pathlib.Path) -> Optional[str]:
    """Return the split of a file SPLIT/TASK/TRIAL/game.tw-pddl or SPLIT/TRIAL/game.tw-pddl, or None."""
    return next((SPLITS[folder.name] for folder in file.absolute().parents[1:3] if folder.name in SPLITS), None)


def read(source: Source, version: Optional[Version] = None) -> tuple[Version, Iterator[Optional[dict[str, Any]]]]:
    """Return the release of the games and the record of every game, None for one that ALFWorld itself skips.

    ALFWorld skips games that are not marked solvable, and tasks with movable receptacles or sliced objects.

    Args:
      version: the release to play, whatever the games' grammar is; None for that of the grammar.

    Raises:
      GameError: a game is malformed or cannot be solved; the message names it. The iterator may raise this, too.
    """
    rows, version = rows_of(source), version or source.version
    if source.files[0][1].name != _GAME:
        folder = source.files[0][1].parent
        own = version or version_of(_text(folder / _DOMAIN), _text(folder / _GRAMMAR), str(folder))
        return own, (record_of(where, split, row) for where, split, row in rows)
    first = _object(_text(source.files[0][1]), str(source.files[0][1]))
    domain, grammar = (_field(first, name, str, str(source.files[0][1])) for name in ('pddl_domain', 'grammar'))
    own = version or version_of(domain, grammar, str(source.files[0][1]))

    def records():
        for where, split, row in rows:
            if version is None and version_of(row['pddl_domain'], row['grammar'], where) != own:
                raise GameError(f'{where}: this game is of another release than {source.files[0][1]} ({own.name})')
            yield record_of(where, split, row)

    return own, records()


def rows_of(source: Source) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Return (source, split, record) of every game."""
    for split, file in source.files:
        if file.name == _GAME:
            row = _object(_text(file), str(file))
            for name in ('pddl_domain', 'grammar'):
                _field(row, name, str, str(file))
            trial, task = file.absolute().parent, task_of(row['grammar'], str(file))
            yield str(file), split, {'id': f'{trial.parent.name}/{trial.name}', 'task': task, **row}
            continue
        opened = lzma.open if file.suffix == '.xz' else open
        try:
            with opened(file, 'rt', encoding='utf-8-sig') as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        where = f'{file}, row {number}'
                        yield where, split, _object(line, where)
        except (lzma.LZMAError, EOFError, UnicodeDecodeError) as error:
            raise GameError(f'{file} is damaged: {error}') from None


def record_of(where: str, split: str, row: dict[str, Any]) -> Optional[dict[str, Any]]:
    """Return the record of a row, or None if ALFWorld skips the game; raise GameError if it is malformed."""
    name = _field(row, 'id', str, where)
    if not row.get('solvable', True) or 'movable' in name or 'Sliced' in name:
        return None
    try:
        return read_problem(name, split, _field(row, 'task', str, where), _field(row, 'pddl_problem', str, where),
                            _field({'walkthrough': [], **row}, 'walkthrough', list, where))
    except GameError as error:
        raise GameError(str(error) if str(error).startswith(where) else f'{where}: {error}') from None


def _field(row: dict[str, Any], name: str, kind: type, where: str) -> Any:
    if not isinstance(row.get(name), kind):
        raise GameError(f'{where}: {name!r} is missing or not a {kind.__name__}')
    return row[name]


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GameError(f'{where}: not JSON ({error})') from None
    if not isinstance(row, dict):
        raise GameError(f'{where}: expected an object, found {type(row).__name__}')
    return row


def _text(file: pathlib.Path) -> str:
    try:
        return file.read_text('utf-8-sig')
    except (OSError, UnicodeDecodeError) as error:
        raise GameError(f'{file}: {error}') from None
