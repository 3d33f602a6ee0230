"""The engine beside the original, step by step.

    pip install -e '.[alfworld]'
    python -m pytest -m slow tests/envs/alfworld/test_alfworld_lockstep.py

500 games of all task types and both splits by release 0.4, and 24 by the older one; each is played at random,
including commands that do nothing, and by an expert.
"""

import random

from alfworld_games import FOLDER, game, rows
import pytest

from epo_jax.envs.alfworld import engine, text
from epo_jax.envs.alfworld.replay import run_command
from epo_jax.tools import alfworld_expert as expert

pytestmark = pytest.mark.slow
PART = 20  # games a test


def chosen(split, count):
    """Rows of a split, of all task types in turn."""
    by_type = {}
    for row in rows(FOLDER / f'{split}.jsonl.xz'):
        by_type.setdefault(row['id'].split('-')[0], []).append(row)
    for name, of_type in by_type.items():
        random.Random(name).shuffle(of_type)
    queue = [row for depth in range(max(map(len, by_type.values()))) for of_type in by_type.values()
             for row in of_type[depth:depth + 1]]
    return queue[:count]


def play(row, version, domain, grammar):
    """Plays one game in both engines, at least 30 commands; returns how many."""
    from alfworld_original import Original
    original, ours, rng = Original(row, domain, grammar), game(row), random.Random(row['id'])
    state, said, history = ours.initial, text.opening(ours, version), []
    while True:
        here = said, text.admissible(ours, version, state), engine.won(ours, state)
        assert original.seen() == here, (row['id'], history)
        if len(history) >= 30 and (here[2] or len(history) >= 60):
            return len(history)
        if rng.random() < 0.1:
            command = rng.choice(['', 'fly', 'go to', 'Look', 'take', f'examine {rng.choice(ours.objects)}',
                                  f'take {rng.choice(ours.objects)} from {rng.choice(ours.receptacles)}'])
        elif 8 < len(history) < 16 or len(history) >= 20:
            try:
                command = expert.next_command(ours, version, state)
            except engine.GameError:  # what chance took up may fit nowhere
                command = rng.choice(here[1])
        else:  # travelling would be most of what chance does
            verbs = {command.split()[0]: [] for command in here[1]}
            for command in here[1]:
                verbs[command.split()[0]].append(command)
            command = rng.choice(verbs[rng.choice(sorted(verbs))])
        original.step(command)
        state, said = run_command(ours, version, state, command.strip())
        history.append(command)


@pytest.mark.skipif(not FOLDER.exists(), reason='the games are not there')
@pytest.mark.parametrize('name, split, count, part', [
    *(('0.4', 'valid_unseen', 134, part) for part in range(0, 134, PART)),
    *(('0.4', 'train', 366, part) for part in range(0, 366, PART)),
    ('0.3', 'valid_unseen', 12, 0), ('0.3', 'train', 12, 0)])
def test_everything_that_is_said_equals_the_original(name, split, count, part):
    pytest.importorskip('textworld.envs.pddl')
    pytest.importorskip('alfworld')
    from alfworld_original import older
    domain, grammar = ((FOLDER / file).read_text() for file in ('alfred.pddl', 'alfred.twl2.template'))
    if name == '0.3':
        domain, grammar = older(domain, grammar)
    games = chosen(split, count)[part:part + PART]
    assert all(play(row, text.VERSIONS[name], domain, grammar) >= 30 for row in games)
