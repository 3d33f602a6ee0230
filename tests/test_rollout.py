"""Turns: who reads what, what is recorded, and what becomes a trained conversation."""

import functools

import jax
import numpy as np
import pytest
from tables import (
    BOTH,
    CASES,
    TURNS,
    Script,
    host,
    host_seats,
    local,
    local_seats,
    make_keys,
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
    """Return the messages that the environment received in an episode."""
    return game.state.env.episodes[b][1]


def conversations(game, role, seat):
    """Return every row of a session as (ids, turn, logprob), cut to its length; role is 'strategists' or 'actors'."""
    session = getattr(game.state, role)[seat]
    ids, turn, logprob = (np.asarray(getattr(session, name)) for name in ('ids', 'turn', 'logprob'))
    return [(ids[b, :n], turn[b, :n], logprob[b, :n]) for b, n in enumerate(np.asarray(session.length))]


def as_chat(ids, turn):
    """Return the ids of a conversation without the stop tokens of the dummy model, except the end of a turn."""
    chat, stop = local().agent.chat, local().agent.sampling.stop
    ids = [i for i, t in zip(ids.tolist(), turn) if t < 0 or i not in stop or i == chat.end]
    return ids if not ids or ids[-1] == chat.end else [*ids, chat.end]


# Records


def test_episodes_of_different_length_are_independent():
    game = local_game()
    live = np.array([turn.live for turn in game.turns])
    assert [turn.seat for turn in game.turns] == [0, 1, 0, 1, 0, 1]
    assert live.sum(axis=0).tolist() == game.episodes.actions.tolist() == [1, 2, 5, 6]
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
    assert [episode.events for episode in game.texts()][2] == tuple(f'event{n}' for n in range(5))


def test_strategies_and_messages_are_stored_by_action():
    game = local_game()
    for b in range(4):
        for n in range(TURNS):
            turn = game.turns[n]
            for stored, written in ((game.episodes.strategies, turn.strategy), (game.episodes.messages, turn.message)):
                assert stored.ids[b, n, :stored.length[b, n]].tolist() == (written.rows()[b] if turn.live[b] else [])
    lines = [episode.lines for episode in game.texts()]
    assert lines == [tuple((n % 2, f'{n}:{m[:4]};') for n, m in enumerate(messages(game, b))) for b in range(4)]
    prompts = judge_prompts(game.table, game.episodes, game.texts())
    assert [(prompt.prompt, prompt.seat, prompt.turns) for prompt in prompts[2::4]] == [
        ('five 0', 0, 3), ('five 1', 1, 2)]
    assert prompts[6].strategies == tuple(
        decode(tokenizer(), game.turns[n].strategy.rows()[2]).strip() for n in (1, 3))


def test_trained_ids_are_the_sampled_ids_that_the_actor_read():
    game = local_game()
    rows = trajectories(game.table, game.episodes, np.arange(4), 1)
    stop = local().agent.sampling.stop
    turns = np.zeros(len(rows.ids), int)
    lengths = set()
    for t, turn in enumerate(game.turns):
        for b in np.flatnonzero(turn.live):
            n = turn.seat * 4 + b
            ids = rows.ids[n][rows.turn[n] == turns[n]].tolist()
            strategy = turn.strategy.rows()[b]
            assert ids[:len(strategy)] == strategy and len(ids) <= local().agent.sampling.max_tokens
            assert len(ids) == len(strategy) or (len(ids) == len(strategy) + 1 and ids[-1] in stop)
            assert (rows.logprob[n][rows.turn[n] == turns[n]] < 0).all()
            turns[n] += 1
            lengths.add(len(strategy))
            # The actor's conversation contains it between the advice brackets.
            context, turn_of_token, _ = conversations(game, 'actors', turn.seat)[b]
            text = ' '.join(map(str, context[turn_of_token < 0]))
            assert ' '.join(map(str, [*encode(tokenizer(), '['), *strategy, *encode(tokenizer(), ']')])) in text
            # The environment received the text of what the actor sampled.
            assert messages(game, b)[t] == decode(tokenizer(), turn.message.rows()[b])
    assert turns.tolist() == rows.turn_mask.sum(axis=1).tolist()
    assert len(lengths) > 2  # some strategies stopped early, others were cut off
    for n, turn in enumerate(rows.turn):
        assert (turn[rows.length[n]:] == -1).all() and not rows.logprob[n][turn == -1].any()


def test_every_conversation_is_the_chat_of_observations_and_replies_id_for_id():
    game = local_game()
    encoded = lambda text: encode(tokenizer(), text)
    turns = {(b, n): (turn.strategy.rows()[b], turn.message.rows()[b]) for b in range(4)
             for n, turn in enumerate(game.turns) if turn.live[b]}
    for b, case in enumerate(CASES):
        count = len(messages(game, b))
        line = [encoded(f'{n}:{message[:4]};') for n, message in enumerate(messages(game, b))]
        for seat in BOTH:
            strategist_parts, actor_parts = [], []  # what was read and what was written, in turn
            for n in range(seat, count, 2):
                first = n < 2
                strategy, message = turns[b, n]
                opening = encoded(f'{case.name} S{seat}.') if first else []
                strategist_parts += [sum(line[max(n - 2, 0):n], opening), strategy]
                opening = encoded(f'{case.name} A{seat}.') if first else []
                last_line = line[n - 1] if n else []
                actor_parts += [[*opening, *last_line, *encoded('['), *strategy, *encoded(']')], message]
            for role, parts in (('strategists', strategist_parts), ('actors', actor_parts)):
                ids, turn, _ = conversations(game, role, seat)[b]
                chat = local().agent.chat
                if parts:
                    assert as_chat(ids, turn) == chat.join(parts)
                else:  # without a turn, an agent reads only its opening
                    assert ids.tolist() == [*chat.open, *encoded(f'{case.name} {role[0].upper()}{seat}.')]


def test_cues_precede_the_sampled_tokens_and_are_not_trained():
    game = perform(local_seats(), CASES, Script(cue='Go: '))
    rows = trajectories(game.table, game.episodes, np.arange(4), 1)
    cue = encode(tokenizer(), 'Go: ')
    for n in range(8):
        starts = np.flatnonzero((rows.turn[n][1:] >= 0) & (rows.turn[n][1:] != rows.turn[n][:-1])) + 1
        assert len(starts) == rows.turn_mask[n].sum()
        for at in starts:
            assert rows.ids[n][at - len(cue):at].tolist() == cue


def test_an_actor_with_choices_takes_one_of_them_and_writes_freely_otherwise():
    orders = ('go up', 'go down', 'stay')
    game = perform(local_seats(), CASES, Script(orders=orders))
    for b, free in enumerate(local_game().state.env.episodes):
        restricted = messages(game, b)
        assert restricted[:3] == free[1][:3]  # the first turns are those of a table without choices
        assert len(restricted) < 4 or restricted[3] in orders
        assert not set(restricted[:3] + restricted[4:]) & set(orders)
    # The choices contain tokens that would end a free reply.
    assert set(encode(tokenizer(), ''.join(orders))) & set(local().agent.sampling.stop)
    ids, turn, _ = conversations(game, 'actors', 1)[3]
    assert decode(tokenizer(), ids[turn == 1][:-1].tolist()) == messages(game, 3)[3]
    assert ids[turn == 1][-1] == local().agent.chat.end


def test_a_table_without_a_trained_seat_has_no_trajectory():
    game = perform((Seat(host(talk)), Seat(host(talk), host(plan))), CASES)
    assert game.episodes.conversations == (None, None)
    with pytest.raises(ValueError, match='trained'):
        trajectories(game.table, game.episodes, np.arange(4), 1)


def test_one_trained_seat_gives_one_row_per_episode():
    game = perform((Seat(host(talk)), Seat(local(), local(), trained=True)), CASES)
    rows = trajectories(game.table, game.episodes, np.arange(4), 1)
    assert rows.seat.tolist() == [1] * 4 and rows.group.tolist() == [1, 3, 5, 7]
    assert rows.turn_mask.sum(axis=1).tolist() == [0, 1, 2, 3]


# Observations


def test_an_actor_reads_the_strategies_of_its_own_side_only():
    game = perform(host_seats(), CASES)
    for seat in BOTH:
        for b, case in enumerate(CASES):
            actor, strategist = (getattr(game.state, role)[seat].histories[b] for role in ('actors', 'strategists'))
            turns = (min(case.turns, TURNS) + 1 - seat) // 2
            assert len(actor) == len(strategist) == 2 * turns
            for t in range(turns):
                assert actor[2 * t][1].endswith(f'[plan S{seat} {t}]')
                assert strategist[2 * t + 1] == ('assistant', f'plan S{seat} {t}')
                assert actor[2 * t + 1] == ('assistant', f'line A{seat} {t}')
            text = ''.join(part for _, part in (*actor, *strategist))
            assert f'S{1 - seat}' not in text and f'A{1 - seat}' not in text
            assert '[' not in ''.join(part for _, part in strategist)


def test_an_observation_contains_what_happened_since_the_last_turn():
    game = perform(host_seats(), CASES)
    users = lambda role, seat: [text for _, text in getattr(game.state, role)[seat].histories[3][::2]]
    assert users('strategists', 0) == ['six S0.', '0:line;1:line;', '2:line;3:line;']
    assert users('strategists', 1) == ['six S1.0:line;', '1:line;2:line;', '3:line;4:line;']
    assert users('actors', 0) == ['six A0.[plan S0 0]', '1:line;[plan S0 1]', '3:line;[plan S0 2]']
    assert users('actors', 1) == ['six A1.0:line;[plan S1 0]', '2:line;[plan S1 1]', '4:line;[plan S1 2]']


def test_an_actor_without_a_strategist_gets_no_advice():
    game = perform((Seat(host(talk)), Seat(host(talk), host(plan))), CASES)
    assert game.state.strategists[0] is None
    assert all('[' not in text for _, text in game.state.actors[0].histories[3])
    assert '[plan S1 0]' in game.state.actors[1].histories[3][0][1]
    assert [turn.strategy is None for turn in game.turns] == [True, False] * 3
    prompts = judge_prompts(game.table, game.episodes, game.texts())
    assert prompts[3].strategies == ('', '', '') and prompts[7].strategies == ('plan S1 0', 'plan S1 1', 'plan S1 2')


# Random keys and progress


def test_different_keys_give_different_episodes():
    game = perform(local_seats(), CASES, keys=episode_keys(8, 0, np.arange(4)))
    assert all(messages(game, b) != messages(local_game(), b) for b in (2, 3))


def test_the_key_of_an_episode_depends_on_run_iteration_and_number():
    data = lambda seed, iteration, numbers: jax.random.key_data(
        episode_keys(seed, iteration, np.array(numbers))).tolist()
    assert data(7, 0, [5, 2]) == [data(7, 0, range(6))[n] for n in (5, 2)]
    keys = [tuple(key) for seed in (7, 8) for iteration in (0, 1) for key in data(seed, iteration, range(8))]
    assert len(set(keys)) == len(keys)


def test_on_turn_is_called_after_every_turn():
    table, turns = make_table(tuple(Seat(host(talk)) for _ in BOTH)), []
    rollout_on_host(table, CASES[:2], make_keys(2), 2, on_turn=turns.append)
    assert [turn.seat for turn in turns] == [0, 1]
    assert [turn.live.tolist() for turn in turns] == [[True, True], [False, True]]


# Two tokenizers


def test_strategies_are_translated_as_text_between_tokenizers():
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
    prompts = judge_prompts(game.table, game.episodes, game.texts())
    assert prompts[3].strategies == prompts[7].strategies == tuple(f'thank them, {t}' for t in range(3))
    assert messages(game, 3) == tuple(f'line A{n % 2} {n // 2}' for n in range(TURNS))


def test_a_strategy_that_is_longer_in_the_other_tokenizer_does_not_stop_the_run():
    # Bytes that are not valid text become U+FFFD, which is three bytes in the actor's tokenizer.
    game = perform(tuple(Seat(host(talk, other_tokenizer()), local(), trained=True) for _ in BOTH), CASES)
    assert not game.episodes.cause.any()
    for seat in BOTH:
        for t, turn in enumerate(game.turns[seat::2]):
            advice = decode(tokenizer(), turn.strategy.rows()[3])
            assert f'[{advice}]' in game.state.actors[seat].histories[3][2 * t][1]


def test_a_table_is_on_the_device_only_if_environment_and_agents_are():
    assert not make_table(local_seats()).on_device and not make_table(host_seats()).on_device
    assert [type(player.agent).__name__ for player in make_table((Seat(host(talk), local()),) * 2).players] == [
        'LocalAgent', 'HostAgent'] * 2
