"""Turns: who reads what, what is recorded, and what becomes a training row."""

import functools

import jax
import numpy as np
import pytest
from tables import (
    BOTH,
    CASES,
    TURNS,
    Script,
    episode_numbers,
    host,
    host_seats,
    local,
    local_seats,
    make_table,
    other_tokenizer,
    perform,
    plan,
    talk,
    tokenizer,
)

from epo_jax.agents.base import Seat
from epo_jax.rewards.prompts import judge_prompts
from epo_jax.rl.trajectory import trajectories
from epo_jax.rollout import episode_keys, rollout_on_host
from epo_jax.text.tokenizer import decode, encode


@functools.cache
def local_game():
    return perform(local_seats(), CASES)


def messages(game, b):
    """What the environment got in an episode."""
    return game.state.env.episodes[b][1]


def conversations(game, who, seat):
    """Every row of a session as (ids, turn, logprob), cut to its length."""
    session = getattr(game.state, who)[seat]
    ids, turn, logprob = (np.asarray(getattr(session, name)) for name in ('ids', 'turn', 'logprob'))
    return [(ids[b, :n], turn[b, :n], logprob[b, :n]) for b, n in enumerate(np.asarray(session.length))]


def as_chat(ids, turn):
    """A conversation as if the end of a turn were the only token that ends a message."""
    chat, stop = local().agent.chat, local().agent.sampling.stop
    ids = [i for i, t in zip(ids.tolist(), turn) if t < 0 or i not in stop or i == chat.end]
    return ids if not ids or ids[-1] == chat.end else [*ids, chat.end]


# What is recorded


def test_episodes_of_unequal_length_are_kept_apart():
    game = local_game()
    lived = np.array([turn.live for turn in game.turns])
    assert [turn.seat for turn in game.turns] == [0, 1, 0, 1, 0, 1]
    assert lived.sum(axis=0).tolist() == game.episodes.actions.tolist() == [1, 2, 5, 6]
    assert [len(messages(game, b)) for b in range(4)] == [1, 2, 5, 6]
    assert not game.episodes.cause.any() and not game.reasons
    rows = trajectories(game.table, game.episodes, [8, 9, 10, 12], 2)
    assert rows.episode.tolist() == [8, 9, 10, 12] * 2 and rows.seat.tolist() == [0] * 4 + [1] * 4
    assert rows.turn_mask.shape == (8, 3)
    assert rows.turn_mask.sum(axis=1).tolist() == [1, 1, 3, 3, 0, 1, 2, 3]
    assert rows.group.tolist() == [8, 8, 10, 12, 9, 9, 11, 13]
    assert not rows.truncated.any()


def test_rewards_and_events_of_the_environment_add_up():
    game = local_game()
    assert game.episodes.reward.tolist() == [[1, 0], [2, 1], [5, 10], [6, 15]]
    assert [account.events for account in game.texts()][2] == tuple(f'event{n}' for n in range(5))


def test_what_was_written_is_archived_action_by_action():
    game = local_game()
    for b in range(4):
        for n in range(TURNS):
            turn = game.turns[n]
            for record, said in ((game.episodes.strategies, turn.strategy), (game.episodes.messages, turn.message)):
                assert record.ids[b, n, :record.length[b, n]].tolist() == (said.rows()[b] if turn.live[b] else [])
    spoken = [account.lines for account in game.texts()]
    assert spoken == [tuple((n % 2, f'{n}:{m[:4]};') for n, m in enumerate(messages(game, b))) for b in range(4)]
    told = judge_prompts(game.table, game.episodes, game.texts())
    assert [(r.prompt, r.seat, r.turns) for r in told[2::4]] == [('five 0', 0, 3), ('five 1', 1, 2)]
    assert told[6].strategies == tuple(
        decode(tokenizer(), game.turns[n].strategy.rows()[2]).strip() for n in (1, 3))


def test_trained_ids_are_the_sampled_ids_that_reached_actor_and_environment():
    game = local_game()
    rows = trajectories(game.table, game.episodes, np.arange(4), 1)
    stop = local().agent.sampling.stop
    taken = np.zeros(len(rows.ids), int)
    lengths = set()
    for t, turn in enumerate(game.turns):
        for b in np.flatnonzero(turn.live):
            n = turn.seat * 4 + b
            ids = rows.ids[n][rows.turn[n] == taken[n]].tolist()
            strategy = turn.strategy.rows()[b]
            assert ids[:len(strategy)] == strategy and len(ids) <= local().agent.sampling.max_tokens
            assert len(ids) == len(strategy) or (len(ids) == len(strategy) + 1 and ids[-1] in stop)
            assert (rows.logprob[n][rows.turn[n] == taken[n]] < 0).all()
            taken[n] += 1
            lengths.add(len(strategy))
            # The actor's conversation has it between the marks of advice.
            context, marks, _ = conversations(game, 'actors', turn.seat)[b]
            text = ' '.join(map(str, context[marks < 0]))
            assert ' '.join(map(str, [*encode(tokenizer(), '['), *strategy, *encode(tokenizer(), ']')])) in text
            # What the environment got is the text of what the actor sampled.
            assert messages(game, b)[t] == decode(tokenizer(), turn.message.rows()[b])
    assert taken.tolist() == rows.turn_mask.sum(axis=1).tolist()
    assert len(lengths) > 2  # stopped early and cut off
    for n, mask in enumerate(rows.turn):
        assert (mask[rows.length[n]:] == -1).all() and not rows.logprob[n][mask == -1].any()


def test_every_conversation_is_the_chat_of_what_was_read_and_said_token_for_token():
    game = local_game()
    encoded = lambda text: encode(tokenizer(), text)
    turns = {(b, n): (turn.strategy.rows()[b], turn.message.rows()[b]) for b in range(4)
             for n, turn in enumerate(game.turns) if turn.live[b]}
    for b, case in enumerate(CASES):
        said = messages(game, b)
        line = [encoded(f'{n}:{message[:4]};') for n, message in enumerate(said)]
        for seat in BOTH:
            own = [n for n in range(len(said)) if n % 2 == seat]
            advised, acted = [], []
            for n in own:
                start = n < 2
                news = line[max(n - 2, 0):n]
                strategy, message = turns[b, n]
                opening = encoded(f'{case.name} S{seat}.') if start else []
                advised += [sum(news, opening), strategy]
                opening = encoded(f'{case.name} A{seat}.') if start else []
                heard = line[n - 1] if n else []
                acted += [[*opening, *heard, *encoded('['), *strategy, *encoded(']')], message]
            for who, parts in (('strategists', advised), ('actors', acted)):
                ids, turn, _ = conversations(game, who, seat)[b]
                chat = local().agent.chat
                if parts:
                    assert as_chat(ids, turn) == chat.join(parts)
                else:  # never asked: it has read no more than its opening
                    assert ids.tolist() == [*chat.open, *encoded(f'{case.name} {who[0].upper()}{seat}.')]


def test_cues_stand_before_what_is_sampled_and_are_not_trained():
    game = perform(local_seats(), CASES, Script(cue='Go: '))
    rows = trajectories(game.table, game.episodes, np.arange(4), 1)
    cue = encode(tokenizer(), 'Go: ')
    for n in range(8):
        starts = np.flatnonzero((rows.turn[n][1:] >= 0) & (rows.turn[n][1:] != rows.turn[n][:-1])) + 1
        assert len(starts) == rows.turn_mask[n].sum()
        for at in starts:
            assert rows.ids[n][at - len(cue):at].tolist() == cue


def test_an_actor_with_choices_takes_one_of_them_and_speaks_freely_where_there_are_none():
    orders = ('go up', 'go down', 'stay')
    game = perform(local_seats(), CASES, Script(orders=orders))
    for b, free in enumerate(local_game().state.env.episodes):
        said = messages(game, b)
        assert said[:3] == free[1][:3]  # the first turns are those of a table without choices
        assert len(said) < 4 or said[3] in orders
        assert not set(said[:3] + said[4:]) & set(orders)
    assert set(encode(tokenizer(), ''.join(orders))) & set(local().agent.sampling.stop)  # which would end free speech
    ids, turn, _ = conversations(game, 'actors', 1)[3]
    assert decode(tokenizer(), ids[turn == 1][:-1].tolist()) == messages(game, 3)[3]
    assert ids[turn == 1][-1] == local().agent.chat.end


def test_a_table_without_a_trained_seat_has_no_trajectory():
    game = perform((Seat(host(talk)), Seat(host(talk), host(plan))), CASES)
    assert game.episodes.conversations == (None, None)
    with pytest.raises(ValueError, match='trained'):
        trajectories(game.table, game.episodes, np.arange(4), 1)


def test_one_trained_seat_gives_one_row_an_episode():
    game = perform((Seat(host(talk)), Seat(local(), local(), trained=True)), CASES)
    rows = trajectories(game.table, game.episodes, np.arange(4), 1)
    assert rows.seat.tolist() == [1] * 4 and rows.group.tolist() == [1, 3, 5, 7]
    assert rows.turn_mask.sum(axis=1).tolist() == [0, 1, 2, 3]


# Who reads what


def test_an_actor_reads_its_own_sides_advice_and_never_the_partners():
    game = perform(host_seats(), CASES)
    for seat in BOTH:
        for b, case in enumerate(CASES):
            acted, advised = (getattr(game.state, who)[seat].histories[b] for who in ('actors', 'strategists'))
            turns = (min(case.turns, TURNS) + 1 - seat) // 2
            assert len(acted) == len(advised) == 2 * turns
            for t in range(turns):
                assert acted[2 * t][1].endswith(f'[plan S{seat} {t}]')
                assert advised[2 * t + 1] == ('assistant', f'plan S{seat} {t}')
                assert acted[2 * t + 1] == ('assistant', f'line A{seat} {t}')
            everything = ''.join(text for _, text in (*acted, *advised))
            assert f'S{1 - seat}' not in everything and f'A{1 - seat}' not in everything
            assert '[' not in ''.join(text for _, text in advised)


def test_what_is_read_is_what_happened_since_the_last_turn():
    game = perform(host_seats(), CASES)
    users = lambda who, seat: [text for _, text in getattr(game.state, who)[seat].histories[3][::2]]
    assert users('strategists', 0) == ['six S0.', '0:line;1:line;', '2:line;3:line;']
    assert users('strategists', 1) == ['six S1.0:line;', '1:line;2:line;', '3:line;4:line;']
    assert users('actors', 0) == ['six A0.[plan S0 0]', '1:line;[plan S0 1]', '3:line;[plan S0 2]']
    assert users('actors', 1) == ['six A1.0:line;[plan S1 0]', '2:line;[plan S1 1]', '4:line;[plan S1 2]']


def test_a_seat_without_strategist_gets_no_advice():
    game = perform((Seat(host(talk)), Seat(host(talk), host(plan))), CASES)
    assert game.state.strategists[0] is None
    assert all('[' not in text for _, text in game.state.actors[0].histories[3])
    assert '[plan S1 0]' in game.state.actors[1].histories[3][0][1]
    assert [turn.strategy is None for turn in game.turns] == [True, False] * 3
    told = judge_prompts(game.table, game.episodes, game.texts())
    assert told[3].strategies == ('', '', '') and told[7].strategies == ('plan S1 0', 'plan S1 1', 'plan S1 2')


# Keys and progress


def test_other_keys_give_other_episodes():
    game = perform(local_seats(), CASES, keys=episode_keys(8, 0, np.arange(4)))
    assert all(messages(game, b) != messages(local_game(), b) for b in (2, 3))


def test_the_key_of_an_episode_depends_on_run_iteration_and_number():
    data = lambda seed, iteration, numbers: jax.random.key_data(
        episode_keys(seed, iteration, np.array(numbers))).tolist()
    assert data(7, 0, [5, 2]) == [data(7, 0, range(6))[n] for n in (5, 2)]
    keys = [tuple(key) for seed in (7, 8) for iteration in (0, 1) for key in data(seed, iteration, range(8))]
    assert len(set(keys)) == len(keys)


def test_progress_is_told_of_every_turn():
    table, seen = make_table(tuple(Seat(host(talk)) for _ in BOTH)), []
    rollout_on_host(table, CASES[:2], episode_numbers(2), 2, on_turn=seen.append)
    assert [turn.seat for turn in seen] == [0, 1]
    assert [turn.live.tolist() for turn in seen] == [[True, True], [False, True]]


# Two tokenizers


def test_advice_crosses_from_one_tokenizer_to_another_as_text():
    own, other = tokenizer(), other_tokenizer()
    thank = lambda history, seed: f'thank them, {len(history) // 2}'
    seats = (Seat(host(talk, other), host(thank, own)), Seat(host(talk, own), host(thank, other)))
    game = perform(seats, CASES)
    for seat in BOTH:
        for t in range(3):
            text = f'thank them, {t}'
            assert f'[{text}]' in game.state.actors[seat].histories[3][2 * t][1]
            turn = game.turns[2 * t + seat]
            assert turn.strategy.rows()[3] == encode((own, other)[seat], text)
            assert turn.message.rows()[3] == encode((other, own)[seat], f'line A{seat} {t}')
    assert encode(own, 'thank') != encode(other, 'thank')
    told = judge_prompts(game.table, game.episodes, game.texts())
    assert told[3].strategies == told[7].strategies == tuple(f'thank them, {t}' for t in range(3))
    assert messages(game, 3) == tuple(f'line A{n % 2} {n // 2}' for n in range(TURNS))


def test_advice_that_grows_in_another_tokenizer_does_not_stop_the_run():
    # Bytes that are no text become U+FFFD, which is three bytes in the actor's tokenizer.
    game = perform(tuple(Seat(host(talk, other_tokenizer()), local(), trained=True) for _ in BOTH), CASES)
    assert not game.episodes.cause.any()
    for seat in BOTH:
        for t, turn in enumerate(game.turns[seat::2]):
            advice = decode(tokenizer(), turn.strategy.rows()[3])
            assert f'[{advice}]' in game.state.actors[seat].histories[3][2 * t][1]


def test_a_table_is_on_the_device_only_if_everybody_is():
    assert not make_table(local_seats()).on_device and not make_table(host_seats()).on_device
    assert [type(player.agent).__name__ for player in make_table((Seat(host(talk), local()),) * 2).players] == [
        'LocalAgent', 'HostAgent'] * 2
