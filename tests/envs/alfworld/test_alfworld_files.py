"""Reading games, the index, the replay command and the experts: which inputs they accept and which they reject."""

import json
import random
import shutil
import subprocess
import sys

from alfworld_games import FOLDER, GOLDEN, game, rows, small_rows
import pytest

from epo_jax.envs.alfworld import engine, index, problem, source, text
from epo_jax.envs.alfworld.engine import GameError
from epo_jax.envs.alfworld.replay import replay, run_command
from epo_jax.runtime.files import write_jsonl
from epo_jax.tools import alfworld_expert as expert
from epo_jax.tools.alfworld_replay import read_commands, replay_all

V4 = text.VERSIONS['0.4']
ROW = small_rows()[0]
here = pytest.mark.skipif(not FOLDER.exists(), reason='the games are not there')


# Problems


@pytest.mark.parametrize('old, new, message', [
    (')', '', 'malformed PDDL'),
    ('(:init', '(:start', 'malformed PDDL'),
    ('(:domain alfred)', '(:domain blocks)', 'malformed PDDL'),
    ('(atLocation agent1 loc_bar_0)', '', 'one agent'),
    ('(atLocation agent1 loc_bar_0)', '(atLocation agent1)', 'takes 2 arguments'),
    ('(pickupable', '(edible', "unknown predicate 'edible'"),
    ('(receptacleAtLocation Desk_bar_1 loc_bar_3)', '', 'without location'),
    ('(receptacleAtLocation', '(receptacleAtLocation Desk_bar_1 loc_bar_1) (receptacleAtLocation', 'more than one'),
    ('(inReceptacle ?o ?r)', '(holds ?r ?o)', 'its goal is none'),
    ('(receptacleType ?r ShelfType)', '(receptacleType ?r SafeType)', 'unsolvable, there is no safetype'),
    ('(objectType ?o MugType)', '(objectType ?o VaseType)', 'unsolvable, 1 of vasetype'),
])
def test_malformed_problems_and_goals_out_of_reach_are_refused(old, new, message):
    row = next(row for row in small_rows() if row['id'].startswith('pick_and_place_simple-Mug'))
    text_of = row['pddl_problem']
    assert old in text_of
    with pytest.raises(GameError, match=message) as error:
        game(row, pddl_problem=text_of.replace(old, new, 1))
    assert row['id'] in str(error.value)


def test_case_comments_and_order_of_facts_do_not_matter():
    row = rows(GOLDEN)[0]
    head, init, goal = row['pddl_problem'].replace('(:init', '\0').replace('(:goal', '\0').split('\0')
    facts = init.strip().removesuffix(')').split('\n')
    random.Random(0).shuffle(facts)
    changed = f'{head}(:init {"".join(f"{fact} ; a comment )))" + chr(10) for fact in facts)})\n(:goal{goal}'
    read = lambda changed: problem.read_problem(row['id'], 'train', row['task'], changed, row['walkthrough'])
    assert read(row['pddl_problem']) == read(changed) == read(row['pddl_problem'].upper())


def test_names_are_numbered_from_the_end_and_basins_keep_their_name():
    ids = {'apple_bar_1', 'apple_bar_2', 'sink_bar_1_bar_sinkbasin', 'sink_bar_1', 'mugtype'}
    assert problem._names(ids) == {'apple_bar_1': 'apple 2', 'apple_bar_2': 'apple 1', 'sink_bar_1': 'sink 1',
                                   'sink_bar_1_bar_sinkbasin': 'sinkbasin 1', 'mugtype': 'mugtype '}


# Sources


def write_rows(folder, name='train.jsonl', *, games=None):
    write_jsonl(folder / name, games or small_rows()[:3])
    for file in ('alfred.pddl', 'alfred.twl2.template'):
        shutil.copy(FOLDER / file, folder / file)
    return folder


@here
def test_the_release_is_known_by_domain_and_grammar(tmp_path):
    domain, grammar = ((FOLDER / name).read_text() for name in ('alfred.pddl', 'alfred.twl2.template'))
    assert problem.version_of(domain, grammar, 'x') is V4
    assert problem.version_of(f'; comment\n{domain}', grammar.replace('@@TASK@@', 'A task.'), 'x') is V4
    with pytest.raises(GameError, match='not those of an ALFWorld release'):
        problem.version_of(domain, grammar.replace('You move the', 'You lay the'), 'x')
    folder = write_rows(tmp_path)
    (folder / 'alfred.pddl').write_text(domain.replace('(isHot ?o)', ''))
    with pytest.raises(GameError, match='not those of an ALFWorld release'):
        list(replay_all(folder))
    assert all(row['won'] for row in replay_all(folder, variant='alfworld-0.4-unseen'))


@here
def test_alfworlds_own_folders_are_read(tmp_path):
    domain, grammar = ((FOLDER / name).read_text() for name in ('alfred.pddl', 'alfred.twl2.template'))
    for i, row in enumerate(small_rows()[:4]):
        folder = tmp_path / 'json_2.1.1' / ('train' if i else 'valid_seen') / row['id']
        folder.mkdir(parents=True)
        (folder / 'game.tw-pddl').write_text(json.dumps({
            'pddl_domain': domain, 'grammar': grammar.replace('@@TASK@@', row['task']), 'solvable': i != 3,
            'pddl_problem': row['pddl_problem'], 'walkthrough': row['walkthrough']}))
    version, records = source.read(source.find(tmp_path / 'json_2.1.1'))
    found = [*records]
    assert version is V4 and found.count(None) == 1  # the one that is not solvable
    assert {(r['id'], r['split'], r['task']) for r in found if r} == {
        (row['id'], 'train' if i else 'seen', row['task']) for i, row in enumerate(small_rows()[:3])}


@here
def test_any_folder_of_alfworlds_own_and_a_single_game_are_read(tmp_path):
    domain, grammar = ((FOLDER / name).read_text() for name in ('alfred.pddl', 'alfred.twl2.template'))
    root = tmp_path / 'train' / 'json_2.1.1'  # a folder further up does not name the split
    splits = ('train', 'valid_seen', 'valid_unseen')
    for name, row in zip((*splits, 'valid_train'), small_rows()):
        folder = root / name / row['id']
        folder.mkdir(parents=True)
        (folder / 'game.tw-pddl').write_text(json.dumps({
            'pddl_domain': domain, 'grammar': grammar.replace('@@TASK@@', row['task']), 'solvable': True,
            'pddl_problem': row['pddl_problem'], 'walkthrough': row['walkthrough']}), 'utf-8-sig')

    def found(path):
        return [(record['id'], record['split']) for record in source.read(source.find(path))[1]]

    expected = [(row['id'], source.SPLITS[name]) for name, row in zip(splits, small_rows())]
    assert found(root) == found(root.parent) == found(tmp_path) == expected
    for name, game_ in zip(splits, expected):
        assert found(root / name) == [game_]
        file, = (root / name).rglob('game.tw-pddl')
        for path in (file, file.parent, file.parent.parent):
            assert found(path) == [game_]
    assert [row['id'] for row in replay_all(str(file))] == [expected[-1][0]]
    movable = root / 'train' / 'pick_and_place_with_movable_recep-Mug-None-Desk-1' / 'trial_1' / 'game.tw-pddl'
    movable.parent.mkdir(parents=True)
    shutil.copy(file, movable)
    assert [*source.read(source.find(movable))[1]] == [None]


def test_the_error_names_the_folder_to_give(tmp_path):
    (tmp_path / 'games').mkdir()
    write_jsonl(tmp_path / 'games' / 'train.jsonl', small_rows()[:1])
    with pytest.raises(GameError, match=f'{tmp_path} has no games: .*; name {tmp_path / "games"} instead'):
        source.find(tmp_path)


def test_the_games_of_the_package_can_be_replayed_by_their_path():
    everything = [row['id'] for row in replay_all('')]
    assert len(everything) == 12 and everything == [row['id'] for row in replay_all(str(source.PACKAGED))]
    assert [row['won'] for row in replay_all(str(source.PACKAGED / 'train.jsonl'))] == [True] * 6


@pytest.mark.parametrize('line, message', [
    ('{', 'not JSON'), pytest.param('[' * 100_000, 'not JSON', id='nested'), ('[]', 'expected an object'), ('{"id": "a"}', "'task' is missing"),
    ('{"id": 3, "task": ""}', "'id' is missing")])
@here
def test_bad_rows_are_named(tmp_path, line, message):
    folder = write_rows(tmp_path)
    with open(folder / 'train.jsonl', 'a') as file:
        file.write(line + '\n')
    with pytest.raises(GameError, match=f'train.jsonl, row 4: .*{message}'):
        list(replay_all(folder / 'train.jsonl'))


def test_places_without_games_are_refused(tmp_path):
    with pytest.raises(GameError, match='does not exist'):
        source.find(tmp_path / 'nothing')
    with pytest.raises(GameError, match='has no games'):
        source.find(tmp_path)


# Index


def test_an_index_gives_back_every_game(tmp_path):
    index.build(source.find(), tmp_path / 'i')
    games = index.load(tmp_path / 'i')
    assert len(games) == 12 and games.version == '0.4' and games.left_out == 0
    by_id = {row['id']: row for row in small_rows()}
    for n, name in enumerate(games.ids):
        ours, direct = games.game(n), game(by_id[name], games.splits[n])
        assert vars(ours) == vars(direct) and ours.category == games.categories[n]
    held_out = [s for s in games.scenarios('unseen') if s.split == 'held_out']
    assert len(held_out) == 6 and all(s.game.id == s.id and s.game.split == 'unseen' for s in held_out)


@here
def test_the_test_order_is_kept(tmp_path):
    games = rows(FOLDER / 'valid_unseen.jsonl.xz')[:8]
    write_rows(tmp_path, 'valid_unseen.jsonl', games=games)
    order = [row['id'] for row in games[4:1:-1]]
    (tmp_path / source.TEST_ORDER).write_text('\n'.join(order))
    index.build(source.find(tmp_path), tmp_path / 'i')
    ids = [s.id for s in index.load(tmp_path / 'i').scenarios('unseen')]
    assert ids[:3] == order and sorted(ids) == sorted(row['id'] for row in games)
    (tmp_path / source.TEST_ORDER).write_text('somewhere/else')
    with pytest.raises(GameError, match='somewhere/else'):
        index.build(source.find(tmp_path), tmp_path / 'i')


def test_damaged_indexes_and_double_ids_are_refused(tmp_path, monkeypatch):
    index.build(source.find(), tmp_path / 'i')
    data = (tmp_path / 'i').read_bytes()
    for damaged in (b'', b'something else', data[:200], data[:-1], data + b'x'):
        (tmp_path / 'j').write_bytes(damaged)
        with pytest.raises(GameError, match=str(tmp_path / 'j')):
            index.load(tmp_path / 'j')
    files = source.find()._replace(files=source.find().files * 2)
    with pytest.raises(GameError, match='two games'):
        index.build(files, tmp_path / 'k')
    assert not (tmp_path / 'k').exists()


def test_the_index_is_built_once_and_anew_when_the_files_change(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    built = []
    monkeypatch.setattr(index, 'build', lambda *args, build=index.build: built.append(args) or build(*args))
    first = index.open_games()
    assert index.open_games().ids == first.ids and len(built) == 1
    assert index.open_games(first.path).ids == first.ids and len(built) == 1  # an index may be named itself
    if FOLDER.exists():
        (tmp_path / 'games').mkdir()
        folder = write_rows(tmp_path / 'games')
        assert len(index.open_games(folder)) == 3
        write_rows(folder, games=small_rows()[:2])
        assert len(index.open_games(folder)) == 2 and len(built) == 3


# Replay


@here
def test_the_command_writes_a_row_a_game(tmp_path):
    folder, out = write_rows(tmp_path), tmp_path / 'out.jsonl'
    write_jsonl(tmp_path / 'commands.jsonl', [{'id': ROW['id'], 'commands': ['look', 'fly', 'inventory']}])
    run = lambda *more: subprocess.run(
        [sys.executable, '-m', 'epo_jax.tools.alfworld_replay', f'--games={folder / "train.jsonl"}', f'--out={out}',
         *more], capture_output=True, text=True)
    assert run().returncode == 0
    played = rows(out)
    assert [set(row) for row in played] == [{'id', 'observations', 'admissible', 'won', 'seconds'}] * 3
    for row, given in zip(played, small_rows()):
        assert row['id'] == given['id'] and row['won'] is True and row['seconds'] > 0
        assert len(row['observations']) == len(row['admissible']) == len(given['walkthrough']) + 1
    assert run(f'--commands={tmp_path / "commands.jsonl"}', '--variant=alfworld-0.3-unseen').returncode == 0
    first, second, _ = rows(out)
    assert first['observations'][2:] == ['Nothing happens.', 'You are not carrying anything.'] and not first['won']
    assert second['won'] and not any('help' in commands for commands in second['admissible'])
    failed = run('--variant=alfworld-0.9-unseen')
    assert failed.returncode == 1 and 'alfworld-0.4-unseen' in failed.stderr and 'Traceback' not in failed.stderr


def test_commands_play_on_after_a_win():
    played = game(ROW)
    row = replay(played, V4, [*ROW['walkthrough'], 'look'])
    assert row['won'] and row['observations'][-1].startswith('You are facing')


@pytest.mark.parametrize('given, message', [
    ([{'id': 'a'}], 'row 1: expected'), ([{'id': 'a', 'commands': [1]}], 'row 1: expected'),
    ([{'id': 'a', 'commands': []}] * 2, 'row 2: an earlier row already has commands')])
def test_bad_commands_are_refused(tmp_path, given, message):
    write_jsonl(tmp_path / 'c', given)
    with pytest.raises(GameError, match=message):
        read_commands(tmp_path / 'c')


def test_commands_for_a_game_that_is_not_there_are_refused():
    with pytest.raises(GameError, match='nowhere'):
        list(replay_all('', {'nowhere': []}))


# Experts


@pytest.mark.parametrize('row', [*small_rows(), *rows(GOLDEN)], ids=lambda row: row['id'][:70])
def test_the_search_expert_wins_from_anywhere(row):
    played, rng = game(row), random.Random(row['id'])
    state = played.initial
    for _ in range(6):
        plan = expert.plan(played, state)
        after = state
        for action in plan:
            assert engine.allowed(played, after, action) and not engine.won(played, after)
            after = engine.apply(played, after, action)
        assert engine.won(played, after) and len(plan) <= 20
        for _ in range(10):
            action = rng.choice([*engine.actions(played, state)])
            if action.verb == 'take' and not any(fits >> action.first & 1 for fits in played.fits):
                continue  # it would never leave the hands
            state = engine.apply(played, state, action)


def test_the_search_expert_is_as_short_as_the_walkthrough():
    for row in small_rows():
        assert len(expert.plan(game(row), game(row).initial)) == len(row['walkthrough'])


def test_one_command_at_a_time_wins_too():
    played = game(ROW)
    state = played.initial
    for _ in range(len(ROW['walkthrough'])):
        state, _ = run_command(played, V4, state, expert.next_command(played, V4, state))
    assert engine.won(played, state) and expert.next_command(played, V4, state) == 'look'


def test_dead_ends_are_errors():
    played = game(ROW)
    closed = played.initial._replace(contents=(0,) * len(played.receptacles))
    with pytest.raises(GameError, match='cannot be reached'):
        expert.plan(played, closed)
