"""All games in one compressed file, which is built once, memory-mapped, and shared by all processes of a machine.

`open_games` builds it at first use. The file consists of a line that names the format, the length of the header (8
bytes), the header (compressed JSON: ids and sizes of the games), and the records of the games, each compressed on its
own with a common dictionary.
"""

import dataclasses
import hashlib
import json
import mmap
import os
import pathlib
import zlib

from epo_jax.envs.alfworld import source
from epo_jax.envs.alfworld.engine import KINDS, Game, GameError
from epo_jax.envs.alfworld.problem import build_game
from epo_jax.runtime.files import write_atomically

_FORMAT = b'epo_jax alfworld index 1\n'
_DICTIONARY = 32  # number of records that the dictionary is made from


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One game to be played.

    Attributes:
      id, category, task: of the game; category is the task type.
      split: 'train' or 'held_out'.
      index, number: where the game is.
    """

    id: str
    split: str
    category: str
    task: str
    index: 'Index'
    number: int

    @property
    def game(self) -> Game:
        """Return the game, which is read from the file."""
        return self.index.game(self.number)


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """Games in a memory-mapped file.

    Attributes:
      path: of the file.
      version: name of the release whose texts they came with.
      ids, splits, categories, tasks: of the games, by number; splits are 'train', 'seen' or 'unseen'.
      order: numbers of the unseen games in the order in which they are to be played.
      left_out: number of games that ALFWorld itself leaves out.
    """

    path: str
    version: str
    ids: tuple[str, ...]
    splits: tuple[str, ...]
    categories: tuple[str, ...]
    tasks: tuple[str, ...]
    order: tuple[int, ...]
    left_out: int
    _ends: tuple[int, ...]
    _dictionary: bytes
    _data: mmap.mmap

    def __len__(self) -> int:
        return len(self.ids)

    def game(self, number: int) -> Game:
        """Return the game with this number."""
        start = self._ends[number - 1] if number else self._ends[-1]
        record = zlib.decompressobj(zdict=self._dictionary)
        return build_game(json.loads(record.decompress(self._data[start:self._ends[number]])))

    def scenarios(self, held_out: str) -> list[Scenario]:
        """Return the training games, and the games of one split as the held-out ones: 'unseen' or 'seen'."""
        chosen = [n for n, split in enumerate(self.splits) if split == held_out]
        if held_out == 'unseen':
            chosen = [*self.order, *(n for n in chosen if n not in set(self.order))]
        training = [n for n, split in enumerate(self.splits) if split == 'train']
        return [Scenario(self.ids[n], split, self.categories[n], self.tasks[n], self, n)
                for split, numbers in (('train', training), ('held_out', chosen)) for n in numbers]


def build(games: source.Source, path) -> int:
    """Write the index of some games atomically, and return their number.

    Raises:
      GameError: a game is malformed or cannot be solved, two games share an id, or a game of the test order is missing.
    """
    version, records = source.read(games)
    read = [*records]
    kept = [record for record in read if record is not None]
    if not kept:
        raise GameError(f'{games.root} has only games that ALFWorld leaves out ({len(read)} of them)')
    numbers = {record['id']: n for n, record in enumerate(kept)}
    if len(numbers) < len(kept):
        twice = next(record['id'] for n, record in enumerate(kept) if numbers[record['id']] != n)
        raise GameError(f'{games.root}: two games have the id {twice!r}')
    missing = [name for name in games.order if name not in numbers]
    if missing:
        raise GameError(f'{games.root}: {source.TEST_ORDER} names the game {missing[0]!r}, which is missing')
    texts = [json.dumps(record, separators=(',', ':')).encode() for record in kept]
    dictionary = b''.join(text[-4096:] for text in texts[::max(1, len(texts) // _DICTIONARY)])[-32768:]
    blobs = []
    for text in texts:
        packed = zlib.compressobj(9, zdict=dictionary)
        blobs.append(packed.compress(text) + packed.flush())
    head = zlib.compress(json.dumps({
        'version': version.name, 'left_out': len(read) - len(kept), 'dictionary': dictionary.decode('latin-1'),
        'order': [numbers[name] for name in games.order], 'sizes': [len(blob) for blob in blobs],
        'games': [[r['id'], r['split'], r['goal'][0], r['task']] for r in kept]}).encode())
    write_atomically(path, b''.join((_FORMAT, len(head).to_bytes(8, 'little'), head, *blobs)))
    return len(kept)


def load(path) -> Index:
    """Open the index of a file.

    Raises:
      GameError: the file is missing, damaged, or not an index of this format.
    """
    try:
        with open(path, 'rb') as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if data[:len(_FORMAT)] != _FORMAT:
            raise GameError(f'{path} is not a game index of this version of epo_jax; remove it to have it built again')
        start = len(_FORMAT) + 8
        end = start + int.from_bytes(data[start - 8:start], 'little')
        head = json.loads(zlib.decompress(data[start:end]))
        ends = [*_running(head['sizes'], end), end]  # the last one is where the first game begins
        if len(data) != (ends[-2] if head['sizes'] else end):
            raise GameError(f'{path} is damaged: it has {len(data)} bytes and needs {ends[-2]}')
        ids, splits, kinds, tasks = zip(*head['games'])
        return Index(str(path), head['version'], ids, splits, tuple(KINDS[kind] for kind in kinds), tasks,
                     tuple(head['order']), head['left_out'], tuple(ends), head['dictionary'].encode('latin-1'), data)
    except (OSError, ValueError, KeyError, zlib.error) as error:
        raise error if isinstance(error, GameError) else GameError(f'{path}: {error}') from None


def open_games(path: str = '') -> Index:
    """Return the index of the games at a path ('': those of the package); a path may itself be an index.

    It is built in the user's cache folder at first use, and again when the files have changed.

    Raises:
      GameError: see build and load.
    """
    if path and pathlib.Path(path).is_file() and pathlib.Path(path).read_bytes()[:len(_FORMAT)] == _FORMAT:
        return load(path)
    games = source.find(path)
    beside = [games.files[0][1].parent / name for name in ('alfred.pddl', 'alfred.twl2.template', source.TEST_ORDER)]
    stats = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns)
             for f in (*(f for _, f in games.files), *beside) if f.exists()]
    name = hashlib.sha256(json.dumps([_FORMAT.decode(), stats]).encode()).hexdigest()[:16]
    folder = pathlib.Path(os.environ.get('XDG_CACHE_HOME', '~/.cache')).expanduser() / 'epo_jax'
    file = folder / f'alfworld-{name}.index'
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        build(games, file)
    return load(file)


def _running(sizes, start: int):
    for size in sizes:
        start += size
        yield start
