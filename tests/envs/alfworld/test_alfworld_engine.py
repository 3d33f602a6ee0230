"""The rules of the game, on games of the package; and all walkthroughs."""

import random

from alfworld_games import FOLDER, game, rows, small, small_rows
import pytest

from epo_jax.envs.alfworld import engine, text
from epo_jax.envs.alfworld.engine import Action, State
from epo_jax.envs.alfworld.replay import replay, run_command
from epo_jax.tools.alfworld_expert import walkthrough

V4, V3 = text.VERSIONS['0.4'], text.VERSIONS['0.3']
GAMES = [game(row) for row in small_rows()]


def play(played, *commands, version=V4):
    """(state, last observation) after some commands, all of which do something."""
    state = played.initial
    for command in commands:
        state, said = run_command(played, version, state, command)
        assert said != text.NOTHING_HAPPENS, command
    return state, said


def test_all_walkthroughs_of_the_package_win_in_both_vocabularies():
    assert {played.category for played in GAMES} == set(engine.KINDS.values())
    for played in GAMES:
        for version in (V4, V3):
            result = replay(played, version, walkthrough(played, version))
            assert result['won'] and text.NOTHING_HAPPENS not in result['observations']
            assert not engine.won(played, played.initial)


@pytest.mark.skipif(not FOLDER.exists(), reason='the games are not there')
@pytest.mark.parametrize('split, count', [
    ('valid_unseen', 134), pytest.param('train', 3553, marks=pytest.mark.slow)])
def test_all_walkthroughs_win(split, count):
    won = 0
    for row in rows(FOLDER / f'{split}.jsonl.xz'):
        played = game(row)
        won += all(replay(played, version, walkthrough(played, version))['won'] for version in (V4, V3))
    assert won == count


@pytest.mark.parametrize('played', GAMES, ids=lambda played: played.id)
def test_admissible_commands_are_exactly_those_that_do_something(played):
    """Every command of the game's vocabulary, at every state of a random walk."""
    things, places = played.objects, played.receptacles
    every = {'look', 'inventory', 'help', *(f'{verb} {place}' for verb in ('go to', 'open', 'close', 'examine')
                                            for place in places),
             *(f'{verb} {thing}' for verb in ('use', 'examine') for thing in things),
             *(f'{verb} {thing} {word} {place}' for verb, word in (
                 ('take', 'from'), ('move', 'to'), ('clean', 'with'), ('heat', 'with'), ('cool', 'with'))
               for thing in things for place in places),
             *(f'slice {thing} with {other}' for thing in things for other in things)}
    state, rng = played.initial, random.Random(played.id)
    for _ in range(25):
        admissible = text.admissible(played, V4, state)
        assert admissible == sorted(set(admissible))
        assert {c for c in every if run_command(played, V4, state, c)[1] != text.NOTHING_HAPPENS} == set(admissible)
        state, _ = run_command(played, V4, state, rng.choice(admissible))


@pytest.mark.parametrize('command', [
    'Look', 'look  around', 'go desk 1', 'go to  desk 1', 'go to desk 9', 'go to mug 1', 'take mug 1',
    'take mug 1 from', 'open', 'examine', 'put mug 1 in/on desk 1', 'take desk 1 from mug 1', '',
    'slice mug 1 with desk 1'])
def test_commands_are_exact(command):
    played = small('pick_and_place_simple-Mug')
    assert run_command(played, V4, played.initial, command) == (played.initial, 'Nothing happens.')


def test_what_is_said_on_the_way():
    played = small('pick_heat_then_place_in_recep-Egg')
    state, said = play(played, 'go to fridge 1')
    assert said == 'You arrive at fridge 1. The fridge 1 is closed.'
    assert 'take egg 1 from fridge 1' not in text.admissible(played, V4, state)
    assert play(played, 'go to fridge 1', 'open fridge 1')[1] == (
        'You open the fridge 1. The fridge 1 is open. In it, you see a egg 1.')
    taken = 'go to fridge 1', 'open fridge 1', 'take egg 1 from fridge 1'
    assert play(played, *taken, 'inventory')[1] == 'You are carrying: a egg 1.'
    assert play(played, *taken, 'look')[1] == 'You are facing the fridge 1. Next to it, you see nothing.'
    heated = *taken, 'go to microwave 1', 'heat egg 1 with microwave 1'
    assert play(played, *heated, 'examine egg 1')[1] == 'This is a hot egg 1.'
    state, _ = play(played, *heated, 'go to fridge 1', 'cool egg 1 with fridge 1')  # warmth is one or the other
    assert not state.hot and state.cool
    assert play(played, *heated, 'go to fridge 1', 'cool egg 1 with fridge 1', 'examine egg 1')[1] == (
        'This is a cold egg 1.')


def test_the_older_release_has_other_words():
    played = small('pick_and_place_simple-Mug')
    way = 'go to desk 1', 'take mug 1 from desk 1', 'go to shelf 2', 'put mug 1 in/on shelf 2'
    assert [play(played, *way[:n], version=V3)[1].partition('.')[0] for n in (1, 4)] == [
        'You arrive at loc 3', 'You put the mug 1 in/on the shelf 2']
    admissible = text.admissible(played, V3, play(played, *way[:3], version=V3)[0])
    assert 'help' not in admissible and not any(command.startswith('move') for command in admissible)
    for command in way:
        assert text.translate(text.translate(command, V4), V3) == command


def test_states_are_small_values():
    played = small('pick_two_obj_and_place-Pillow')
    state, rng, seen = played.initial, random.Random(0), set()
    for _ in range(300):
        before = State(*state)
        action = rng.choice([*engine.actions(played, state)])
        after = engine.apply(played, state, action)
        assert state == before and engine.apply(played, before, action) == after and hash(before) == hash(state)
        assert all(isinstance(part, (int, tuple)) for part in after)
        state = after
        seen.add(state)
    assert 10 < len(seen) < 300  # states that are met again are recognised


def test_opening_and_closing_taking_and_putting_back_undo_each_other():
    played = small('pick_heat_then_place_in_recep-Egg')
    at_fridge, _ = play(played, 'go to fridge 1')
    assert play(played, 'go to fridge 1', 'open fridge 1', 'close fridge 1')[0] == at_fridge
    opened, _ = play(played, 'go to fridge 1', 'open fridge 1')
    way = 'go to fridge 1', 'open fridge 1', 'take egg 1 from fridge 1', 'move egg 1 to fridge 1'
    assert play(played, *way)[0] == opened


@pytest.mark.parametrize('kind, shares', [
    ('pick_and_place_simple-Mug', [0, 0, 0, 0, 1]), ('look_at_obj_in_light-Book', [0, 0, .5, .5, 1]),
    ('pick_clean_then_place_in_recep-Plate', [0, 0, 0, 0, 1 / 3, 1 / 3, 1]),
    ('pick_two_obj_and_place-Pillow', [0, 0, 0, 0, .5, .5, .5, .5, 1])])
def test_progress_is_the_share_of_conditions_that_hold(kind, shares):
    played = small(kind)
    state, found = played.initial, [engine.progress(played, played.initial)]
    for command in played.walkthrough:
        state, _ = run_command(played, V4, state, command)
        found.append(engine.progress(played, state))
    assert found == pytest.approx(shares)
    assert [share == 1 for share in shares][-1] == engine.won(played, state)


def test_placing_an_untreated_object_counts_in_part_only():
    played = small('pick_clean_then_place_in_recep-Plate')
    state, _ = play(played, 'go to countertop 1', 'take plate 1 from countertop 1', 'go to diningtable 1',
                    'move plate 1 to diningtable 1')
    assert engine.conditions(played, state) == (False, True, False) and not engine.won(played, state)


def test_actions_that_are_not_possible_are_not_allowed():
    played = small('pick_and_place_simple-Mug')
    assert engine.allowed(played, played.initial, Action('look'))
    assert not engine.allowed(played, played.initial, Action('take', 0, 0))
