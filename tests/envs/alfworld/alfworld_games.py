"""Games for tests: those of the package, those recorded, and the full set beside the repository."""

import functools
import json
import lzma
import pathlib

from epo_jax.envs.alfworld import source
from epo_jax.envs.alfworld.problem import build_game, read_problem

FOLDER = pathlib.Path(__file__).parents[4] / 'shared/data/alfworld'  # whoever has it not skips what needs it
GOLDEN = pathlib.Path(__file__).parent / 'golden.jsonl.xz'


def rows(path):
    """The rows of a file of games, compressed or not."""
    with (lzma.open if path.suffix == '.xz' else open)(path, 'rt', encoding='utf-8') as lines:
        return [json.loads(line) for line in lines]


def game(row, split='train', **changes):
    """The game of a row, with some of its fields changed."""
    row = row | changes
    return build_game(read_problem(row['id'], split, row['task'], row['pddl_problem'], row['walkthrough']))


@functools.cache
def small_rows():
    """Rows of the package's games."""
    return [row for name in ('train', 'valid_unseen', 'examples') for row in rows(source.PACKAGED / f'{name}.jsonl')]


def small(kind):
    """A game of the package whose id begins with a task type."""
    return game(next(row for row in small_rows() if row['id'].startswith(kind)))
