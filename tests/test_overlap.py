"""Parts of a rollout that are played at the same time: the same episodes, and shorter waiting."""

import threading

import numpy as np
import pytest
from tables import BOTH, Case, host, local, make_keys, make_table, plan, talk
from test_refill import CASES, contents

from epo_jax.agents.base import Reasoning, Seat
from epo_jax.overlap import Game, play
from epo_jax.rollout import rollout_on_host
from epo_jax.text.tokenizer import encode


@pytest.mark.parametrize('seats, group, batch, parts', [
    ('local', 1, 4, 2), ('host', 1, 7, 3), ('host', 2, 4, 2), ('host', 2, 4, 9), ('host', 4, 4, 2)])
def test_parts_play_the_same_episodes(seats, group, batch, parts):
    cases = [case for case in CASES[:16 // group] for _ in range(group)]
    seats = tuple({'local': Seat(local(), host(plan)), 'host': Seat(host(talk), host(plan))}[seats] for _ in BOTH)
    table, turns = make_table(seats, group=group), []
    whole, _ = rollout_on_host(table, cases, make_keys(16), batch)
    (in_parts, reasons), = play([Game(table, cases, make_keys(16))], batch, parts, turns.append)
    assert contents(in_parts) == contents(whole) and not reasons
    assert in_parts.env.episodes.tolist() == whole.env.episodes.tolist()
    assert sum(int(turn.live.sum()) for turn in turns) == whole.actions.sum()


@pytest.mark.parametrize('batch, parts', [(4, 1), (6, 2), (2, 4), (1, 2), (16, 9)])
def test_games_are_played_as_each_of_them_alone(batch, parts):
    counts, keys = (5, 1, 3), make_keys(9)
    tables = [make_table((Seat(host(talk), host(plan)),) * 2) for _ in counts]
    games = [Game(table, CASES[first:first + count], keys[first:first + count])
             for table, first, count in zip(tables, (0, 5, 6), counts, strict=True)]
    for game, (episodes, reasons) in zip(games, play(games, batch, parts, lambda turn: None), strict=True):
        assert contents(episodes) == contents(rollout_on_host(game.table, game.scenarios, game.keys, 2)[0])
        assert not reasons


def test_reasons_keep_the_numbers_of_their_episodes():
    def talk_or_fail(history, seed):
        if 'case9' in history[0][1]:
            raise ConnectionError('down')
        return 'hello'

    table = make_table((Seat(host(talk_or_fail)), Seat(host(talk_or_fail))))
    cases = [Case(f'case{n}', 2) for n in range(12)]
    (_, reasons), = play([Game(table, cases, make_keys(12))], 6, 3, lambda turn: None)
    assert reasons == {9: 'actor of seat 0: ConnectionError: down'}


def test_one_part_plays_while_another_waits():
    """Each of two calls waits for the other, which never comes in a loop over a single part."""
    meeting = threading.Barrier(2, timeout=20)

    def reply(history, seed):
        meeting.wait()
        return 'hello'

    table = make_table((Seat(host(reply)), Seat(host(talk))))
    two = [Case('one', 1), Case('two', 1)]
    (episodes, reasons), = play([Game(table, two, make_keys(2))], 2, 2, lambda turn: None)
    assert not reasons and episodes.actions.tolist() == [1, 1]
    alone = make_table((Seat(host(lambda history, seed: threading.Barrier(2, timeout=0.05).wait() or '')),) * 2)
    (_, reasons), = play([Game(alone, two, make_keys(2))], 2, 1, lambda turn: None)
    assert sorted(reasons) == [0, 1]
    games = [Game(table, two[:1], make_keys(1)), Game(table, two[1:], make_keys(1))]
    assert [not reasons for _, reasons in play(games, 2, 2, lambda turn: None)] == [True, True]


def test_an_actor_that_reasons_reads_its_observation_and_its_thought():
    thought = lambda history, seed: f'thought {len(history) // 2}'
    heard = []

    def act(history, seed):
        heard.append(history[-1][1])
        return talk(history, seed)

    asked = []

    def think(history, seed):
        asked.append(history[-1][1])
        return thought(history, seed)

    tokens = host(act).tokenizer
    reasoning = Reasoning(*(tuple(encode(tokens, part)) for part in ('\nThink.', '\nYou thought: ', '\nAct.')))
    table = make_table((Seat(host(act), host(think), reasoning=reasoning), Seat(host(talk))))
    _, reasons = rollout_on_host(table, [Case('one', 3)], make_keys(1), 1)
    assert not reasons and len(asked) == len(heard) == 2
    for t in range(2):
        assert asked[t].endswith('\nThink.')
        assert heard[t] == asked[t].removesuffix('\nThink.') + f'\nYou thought: thought {t}\nAct.'
    assert not table.seats[0].advised
    assert np.all([seat.advised is False for seat in table.seats])
