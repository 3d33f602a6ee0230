"""Measure the speed of the ALFWorld engine on one core, and of the original if it is installed (extra `alfworld`).

    python -m benchmarks.alfworld [--games=../shared/data/alfworld] [--original=PYTHON]

The benchmark prints the steps per second of random play on the unseen games, where a step includes the observation, all
admissible commands and whether the game is won; the games loaded per second from the index; and the memory of the index
when every game has been read. The original plays some of the same games, in alternation with ours; --original names a
Python interpreter that has it if this one does not. All times are processor times, so other load hardly affects them.
"""

import json
import pathlib
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from absl import app, flags

from epo_jax.envs.alfworld import engine, index, source, text
from epo_jax.envs.alfworld.replay import run_command

REPEATS = 5
ORIGINAL_GAMES, ORIGINAL_STEPS = 2, 20  # of one sample: it is slow
_GAMES = flags.DEFINE_string('games', '', 'Folder of games; empty for the packaged ones.')
_ORIGINAL = flags.DEFINE_string('original', sys.executable, 'Python interpreter that has alfworld and textworld.')

# Plays random commands in the original; prints the seconds of loading a game, and of a step.
_PLAYER = """
import json, random, sys, time
sys.path.insert(0, sys.argv[1])
from alfworld_original import Original
domain, grammar, rows, steps = json.load(sys.stdin)
for row in rows:
    start = time.process_time()
    game = Original(row, domain, grammar)
    loaded, rng = time.process_time(), random.Random(0)
    for _ in range(steps):
        game.step(rng.choice(game.seen()[1]))
    print(json.dumps([loaded - start, (time.process_time() - loaded) / steps]))
"""

_MEMORY = """
import sys
from epo_jax.envs.alfworld import index
resident = lambda: next(1024 * int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmRSS'))
before = resident()
games = index.load(sys.argv[1])
for number in range(len(games)):
    games.game(number)
print(resident() - before)
"""


def steps_per_second(games, steps: int, seed: int) -> float:
    """Measure random play."""
    version, rng = text.VERSIONS['0.4'], random.Random(seed)
    start = time.process_time()
    for game in games:
        state = game.initial
        admissible = text.admissible(game, version, state)
        for _ in range(steps):
            state, _ = run_command(game, version, state, rng.choice(admissible))
            admissible = text.admissible(game, version, state)
            engine.won(game, state)
    return len(games) * steps / (time.process_time() - start)


def games_per_second(games: index.Index) -> float:
    """Measure loading, over at most 2,000 games."""
    count = min(len(games), 2000)
    start = time.process_time()
    for number in range(count):
        games.game(number)
    return count / (time.process_time() - start)


def index_bytes(path: str) -> int:
    """Return the memory of an index in a new process that read every game once, including the mapped file."""
    done = subprocess.run([sys.executable, '-c', _MEMORY, path], text=True, capture_output=True, check=True)
    return int(done.stdout)


def original(rows, domain: str, grammar: str) -> list[list[float]]:
    """Return [seconds of loading, seconds of a step] of every game in the original.

    Raises:
      RuntimeError: it is not installed, or it failed; the message says how.
    """
    if shutil.which(_ORIGINAL.value) is None:
        raise RuntimeError(f'there is no {_ORIGINAL.value}')
    tests = pathlib.Path(__file__).resolve().parents[1] / 'tests/envs/alfworld'
    done = subprocess.run([_ORIGINAL.value, '-c', _PLAYER, str(tests)], text=True, capture_output=True,
                          input=json.dumps([domain, grammar, rows, ORIGINAL_STEPS]))
    if done.returncode:  # for example, the interpreter lacks alfworld
        raise RuntimeError(done.stderr.strip().rpartition('\n')[2])
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('[')]


def show(name: str, values, form: str) -> None:
    print(f'{name}: {statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})')


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f'unexpected arguments: {" ".join(argv[1:])}')
    found = source.find(_GAMES.value)
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        count = index.build(found, f'{folder}/index')
        built = time.process_time() - start
        games = index.load(f'{folder}/index')
        loads = [games_per_second(games) for _ in range(REPEATS)]
        print(f'{count} games; medians of {REPEATS}. Index: {built:.1f} s to build, '
              f'{pathlib.Path(games.path).stat().st_size / 2**20:.1f} MiB on disk, '
              f'{index_bytes(games.path) / 2**20:.1f} MiB in memory with all games read once')
    show('games loaded a second', loads, ',.0f')
    played = [games.game(n) for n, split in enumerate(games.splits) if split == 'unseen']
    ours, theirs = [], []
    files = [found.files[0][1].parent / name for name in ('alfred.pddl', 'alfred.twl2.template')]
    rows = [row for _, split, row in source.rows_of(found) if split == 'unseen'] if files[0].exists() else []
    for repeat in range(REPEATS):
        ours.append(steps_per_second(played, 40, repeat))
        if rows:
            try:
                chosen = [rows[(repeat * 31 + k * 17) % len(rows)] for k in range(ORIGINAL_GAMES)]
                theirs += original(chosen, *(file.read_text('utf-8') for file in files))
            except RuntimeError as error:
                print(f'the original is left out: {error}')
                rows = []
    show('steps a second', ours, ',.0f')
    if theirs:
        show('original, steps a second', [1 / seconds for _, seconds in theirs], '.1f')
        show('original, games loaded a second', [1 / seconds for seconds, _ in theirs], '.2f')


if __name__ == '__main__':
    app.run(main)
