"""Text episodes as tokens: what is dealt, what may be chosen, and what is told in the end."""

import numpy as np
import pytest
from tables import CASES, WIDTH, Case, Script, host_seats, tokenizer

from epo_jax.envs.host import HostEnvironment
from epo_jax.text.tokenizer import decode, encode
from epo_jax.text.tokens import TooLongError, pack


def environment(env=Script(), **changes):
    return HostEnvironment(env, host_seats(), WIDTH, **changes)


def texts(tokens):
    return [decode(tokenizer(), row) for row in tokens.rows()]


def deal(env, episode, rows, state=None):
    rows = np.array(rows)
    state = env.start(len(rows)) if state is None else state
    return env.reset(state, env.encode(CASES), np.array(episode), rows)


def act(env, state, seat, *messages, live):
    return env.step(state, seat, pack([encode(tokenizer(), m) for m in messages]), np.array(live))


def test_only_the_rows_that_start_are_dealt_and_read_an_opening():
    env = environment()
    state, openings = deal(env, [2, 9, 0], [True, False, True])
    assert [texts(part) for view in openings for part in view] == [
        [f'five {role}{seat}.', '', f'one {role}{seat}.'] for seat in (0, 1) for role in 'SA']
    assert state.episodes.tolist() == [(CASES[2], ()), None, (CASES[0], ())]
    state, seen = act(env, state, 0, 'Hi', '', 'Oh', live=[True, False, True])
    assert seen.done.tolist() == [False, False, True] and np.nan_to_num(seen.reward, nan=-1).tolist() == [[1, 0], [-1, -1], [1, 0]]
    again, openings = deal(env, [2, 1, 3], [False, True, True], state)
    assert texts(openings[0].actor) == ['', 'two A0.', 'six A0.']
    assert again.episodes[0] == state.episodes[0] == (CASES[2], ('Hi',)) and again.episodes[2] == (CASES[3], ())
    assert again.events.tolist() == [('event0',), (), ()] and state.episodes[2] == (CASES[0], ('Oh',))


def test_choices_have_one_shape_or_are_none():
    env = environment(Script(orders=('up', 'down')), choice_shape=(3, 5))
    state, _ = deal(env, [3, 3, 0], [True, True, False])
    assert env.choices(state, 0) is None
    for n in range(3):
        state, _ = act(env, state, n % 2, 'a', 'b', 'c', live=[True, n < 2, False])
    choices = env.choices(state, 1)
    assert choices.ids.shape == (3, 3, 5) and choices.length.tolist() == [[2, 4, 0], [0] * 3, [0] * 3]
    assert [decode(tokenizer(), choices.ids[0, c, :n].tolist()) for c, n in enumerate((2, 4))] == ['up', 'down']


@pytest.mark.parametrize('orders, reason', [(('a', 'b', 'c', 'd'), '4 replies.*3'), (('abcdef',), '6 tokens.*5')])
def test_choices_that_do_not_fit_stop_the_run(orders, reason):
    env = environment(Script(orders=orders), choice_shape=(3, 5))
    state, _ = deal(env, [3], [True])
    for n in range(3):
        state, _ = act(env, state, n % 2, 'a', live=[True])
    with pytest.raises(TooLongError, match=reason):
        env.choices(state, 1)


def test_accounts_tell_what_happened_and_why_it_broke():
    env, cases = environment(), [CASES[1], Case('bad', 5, 'raise', at=1)]
    state, _ = env.reset(env.start(2), cases, np.arange(2), np.ones(2, bool))
    for seat in (0, 1):
        state, seen = act(env, state, seat, 'Hi', 'Ho', live=[True, True])
    assert seen.failed.tolist() == [False, True]
    sound, broken = env.texts(cases, state)
    assert sound.lines == ((0, '0:Hi;'), (1, '1:Hi;')) and sound.failure is None
    assert sound.judge_prompts == ['two 0', 'two 1']
    assert sound.facts['scenario'] == 'two' and sound.events == ('event0', 'event1')
    assert broken.lines == ((0, '0:Ho;'),) and broken.failure == 'RuntimeError: the script says so'
