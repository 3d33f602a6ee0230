"""The engine against transcripts that were recorded from the original (alfworld 0.4.2, textworld 1.6.2)."""

import collections

from alfworld_games import GOLDEN, game, rows
import pytest

from epo_jax.envs.alfworld import engine, text
from epo_jax.envs.alfworld.replay import replay, run_command

RECORDED = rows(GOLDEN)


@pytest.mark.parametrize('row', RECORDED, ids=lambda row: f'{row["version"]}-{row["id"][:60]}')
def test_everything_that_is_said_equals_the_original(row):
    version, played = text.VERSIONS[row['version']], game(row)
    ours = replay(played, version, row['commands'])
    assert ours['observations'] == row['observations']
    assert ours['admissible'] == row['admissible']
    state, won = played.initial, [engine.won(played, played.initial)]
    for command in row['commands']:
        state, _ = run_command(played, version, state, command)
        won.append(engine.won(played, state))
    assert won == row['won'] and ours['won'] == row['won'][-1]


def test_the_recording_covers_what_can_be_said():
    assert sum(row['version'] == '0.4' for row in RECORDED) >= 24
    assert len({(row['id'].split('-')[0]) for row in RECORDED}) == len(engine.KINDS)
    said = collections.Counter(
        beginning for row in RECORDED for observation in row['observations'] for beginning in (
            'Nothing happens.', 'You arrive at', 'You open', 'You close', 'You pick up', 'You move', 'You put',
            'You clean', 'You heat', 'You cool', 'You turn on', 'You sliced', 'You are carrying',
            'You are not carrying', 'You are facing', 'You are in the middle', 'This is a normal', 'This is a hot',
            'This is a clean', "There's nothing special", 'Available commands', 'This is a sliced', 'This is a cool')
        if beginning in observation)
    assert len(said) == 23 and min(said.values()) >= 1, said
    assert any('Next to it, you see a' in observation for row in RECORDED for observation in row['observations'])
