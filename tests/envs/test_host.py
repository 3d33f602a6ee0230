"""Text environments driven in tokens: openings, choices, finished episodes, and the contract of reset and step."""

import dataclasses

import numpy as np
import pytest
from tables import CASES, WIDTH, WRONG_RESULTS, Case, Script, host_seats, tokenizer

from epo_jax.envs.base import Observation, TextStep
from epo_jax.envs.host import HostEnvironment, StepError, check_observations, check_step
from epo_jax.runtime.errors import InputError
from epo_jax.text.tokenizer import decode, encode
from epo_jax.text.tokens import TooLongError, pack


def environment(env=Script(), **changes):
    return HostEnvironment(env, host_seats(), WIDTH, **changes)


def texts(tokens):
    return [decode(tokenizer(), row) for row in tokens.rows()]


def reset(env, episode, rows, state=None):
    rows = np.array(rows)
    state = env.start(len(rows)) if state is None else state
    return env.reset(state, env.encode(CASES, [True, True]), np.array(episode), rows)


def act(env, state, seat, *messages, live):
    return env.step(state, seat, pack([encode(tokenizer(), message) for message in messages]), np.array(live))


def test_only_the_rows_that_start_are_reset_and_read_an_opening():
    env = environment()
    state, openings = reset(env, [2, 9, 0], [True, False, True])
    assert [texts(part) for opening in openings for part in opening] == [
        [f'five {role}{seat}.', '', f'one {role}{seat}.'] for seat in (0, 1) for role in 'SA']
    assert state.episodes.tolist() == [(CASES[2], ()), None, (CASES[0], ())]
    state, step = act(env, state, 0, 'Hi', '', 'Oh', live=[True, False, True])
    assert step.done.tolist() == [False, False, True]
    assert np.nan_to_num(step.reward, nan=-1).tolist() == [[1, 0], [-1, -1], [1, 0]]
    later, openings = reset(env, [2, 1, 3], [False, True, True], state)
    assert texts(openings[0].actor) == ['', 'two A0.', 'six A0.']
    assert later.episodes[0] == state.episodes[0] == (CASES[2], ('Hi',)) and later.episodes[2] == (CASES[3], ())
    assert later.events.tolist() == [('event0',), (), ()] and state.episodes[2] == (CASES[0], ('Oh',))


def test_choices_have_a_fixed_shape_or_are_none():
    env = environment(Script(orders=('up', 'down')), choice_shape=(3, 5))
    state, _ = reset(env, [3, 3, 0], [True, True, False])
    assert env.choices(state, 0) is None
    for n in range(3):
        state, _ = act(env, state, n % 2, 'a', 'b', 'c', live=[True, n < 2, False])
    choices = env.choices(state, 1)
    assert choices.ids.shape == (3, 3, 5) and choices.length.tolist() == [[2, 4, 0], [0] * 3, [0] * 3]
    assert [decode(tokenizer(), choices.ids[0, c, :n].tolist()) for c, n in enumerate((2, 4))] == ['up', 'down']


@pytest.mark.parametrize('orders, reason', [(('a', 'b', 'c', 'd'), '4 replies.*3'), (('abcdef',), '6 tokens.*5')])
def test_choices_that_do_not_fit_stop_the_run(orders, reason):
    env = environment(Script(orders=orders), choice_shape=(3, 5))
    state, _ = reset(env, [3], [True])
    for n in range(3):
        state, _ = act(env, state, n % 2, 'a', live=[True])
    with pytest.raises(TooLongError, match=reason):
        env.choices(state, 1)


def test_texts_contain_the_transcript_and_the_reason_of_a_failure():
    env, cases = environment(), [CASES[1], Case('bad', 5, 'raise', at=1)]
    state, _ = env.reset(env.start(2), cases, np.arange(2), np.ones(2, bool))
    for seat in (0, 1):
        state, step = act(env, state, seat, 'Hi', 'Ho', live=[True, True])
    assert step.failed.tolist() == [False, True]
    finished, failed = env.texts(cases, state)
    assert finished.lines == ((0, '0:Hi;'), (1, '1:Hi;')) and finished.failure is None
    assert finished.judge_prompts == ['two 0', 'two 1'] and finished.overview == 'two: 0:Hi; 1:Hi;'
    assert finished.facts['scenario'] == 'two' and finished.events == ('event0', 'event1')
    assert failed.lines == ((0, '0:Ho;'),) and failed.failure == 'RuntimeError: the script says so'


# The contract

OBSERVATIONS = (Observation('a', 'b'), Observation('', ''))
STEP = TextStep(OBSERVATIONS, False, (0.5, None), ('event',))


def changed(**changes):
    """Return a correct result of a step, but for some fields of its TextStep."""
    return 'state', STEP._replace(**changes)


@pytest.mark.parametrize('result', [
    ('state', STEP), (None, STEP), changed(observations=list(OBSERVATIONS)), changed(observations=(('a', 'b'),) * 2),
    changed(done=np.bool_(True)), changed(rewards=()), changed(rewards=[None, 1]),
    changed(rewards=(np.float32(1), np.int64(0))), changed(events=()), changed(events=['a', 'a'])], ids=str)
def test_a_correct_step_passes(result):
    check_step(result, 2, 'Env.step')


@pytest.mark.parametrize('result, message', [
    # The pair of state and TextStep
    (None, r'must return \(state, TextStep\), not None'),
    (STEP, r'must return \(state, TextStep\), not TextStep\('),
    (['state', STEP], r'must return \(state, TextStep\), not \['),
    (('state', STEP, {}), r'must return \(state, TextStep\), not \('),
    (('state', tuple(STEP)), r'must return \(state, TextStep\), not \('),
    # Observations
    (changed(observations=()), 'must return one Observation for each of 2 seats, not 0'),
    (changed(observations=OBSERVATIONS[:1]), 'must return one Observation for each of 2 seats, not 1'),
    (changed(observations=OBSERVATIONS * 2), 'must return one Observation for each of 2 seats, not 4'),
    (changed(observations=None), 'must return one Observation for each of 2 seats, not None'),
    (changed(observations='ab'), "must return one Observation for each of 2 seats, not 'ab'"),
    (changed(observations={0: 'a', 1: 'b'}), 'must return one Observation for each of 2 seats, not {'),
    (changed(observations=('a', 'b')), "Observation of seat 0 must be two texts, for strategist and actor, not 'a'"),
    (changed(observations=(OBSERVATIONS[0], None)), 'Observation of seat 1 must be two texts.* not None'),
    (changed(observations=(OBSERVATIONS[0], ('a',))), 'Observation of seat 1 must be two texts'),
    (changed(observations=(OBSERVATIONS[0], ('a', 'b', 'c'))), 'Observation of seat 1 must be two texts'),
    (changed(observations=(Observation('a', None), OBSERVATIONS[1])), 'Observation of seat 0 must be two texts'),
    (changed(observations=(Observation(b'a', 'b'), OBSERVATIONS[1])), 'Observation of seat 0 must be two texts'),
    (changed(observations=(Observation('a', ['b']), OBSERVATIONS[1])), 'Observation of seat 0 must be two texts'),
    # Done
    (changed(done=None), 'done must be a bool, not None'),
    (changed(done=1), 'done must be a bool, not 1'),
    (changed(done='no'), "done must be a bool, not 'no'"),
    (changed(done=np.array([True, False])), 'done must be a bool, not array'),
    # Rewards
    (changed(rewards=(0.5,)), r'rewards must be one finite number or None for each of 2 seats, or \(\); not \(0.5,\)'),
    (changed(rewards=(0.5, 0.5, 0.5)), 'rewards must be one finite number or None for each of 2 seats'),
    (changed(rewards=0.5), 'rewards must be one finite number or None for each of 2 seats.* not 0.5'),
    (changed(rewards=None), 'rewards must be one finite number or None for each of 2 seats.* not None'),
    (changed(rewards=(float('nan'), None)), r'rewards must be one finite number.* not \(nan, None\)'),
    (changed(rewards=(None, float('inf'))), r'rewards must be one finite number.* not \(None, inf\)'),
    (changed(rewards=('1', None)), 'rewards must be one finite number'),
    (changed(rewards='12'), "rewards must be one finite number.* not '12'"),
    (changed(rewards=((1, 0), None)), 'rewards must be one finite number'),
    # Events
    (changed(events='action/speak'), "events must be a sequence of names, not 'action/speak'"),
    (changed(events=('action/speak', 1)), 'events must be a sequence of names'),
    (changed(events=(None,)), 'events must be a sequence of names'),
    (changed(events=None), 'events must be a sequence of names'),
    pytest.param(changed(events=(name for name in ('event',))), 'events must be a sequence of names', id='generator'),
], ids=str)
def test_a_wrong_step_is_refused_and_the_message_names_what_is_wrong(result, message):
    with pytest.raises(StepError, match=f'^Env.step(: the|:)? {message}'):
        check_step(result, 2, 'Env.step')


def test_a_message_about_a_wrong_step_is_short():
    with pytest.raises(StepError) as error:
        check_step('x' * 10_000, 1, 'Env.step')
    assert len(str(error.value)) < 160


@pytest.mark.parametrize('seats', [1, 3])
def test_the_number_of_observations_is_that_of_the_seats(seats):
    check_observations(OBSERVATIONS[:1] * seats, seats, 'Env.reset')
    for count in {0, 1, 2, 3, 4} - {seats}:
        with pytest.raises(StepError, match=f'^Env.reset must return one .* each of {seats} seats, not {count}$'):
            check_observations(OBSERVATIONS[:1] * count, seats, 'Env.reset')


@pytest.mark.parametrize('result, message', [
    (None, r'must return \(state, observations\), not None'),
    (OBSERVATIONS[0], r'must return one Observation for each of 2 seats'),
    (('state', *OBSERVATIONS), r'must return \(state, observations\), not \('),
    (['state', OBSERVATIONS], r'must return \(state, observations\), not \['),
    (('state', OBSERVATIONS[:1]), 'must return one Observation for each of 2 seats, not 1'),
    (('state', OBSERVATIONS * 2), 'must return one Observation for each of 2 seats, not 4'),
    (('state', STEP), 'must return one Observation for each of 2 seats, not 4'),
    (('state', (OBSERVATIONS[0], ('a', 1))), 'Observation of seat 1 must be two texts'),
], ids=str)
def test_a_wrong_reset_stops_the_run(result, message):
    @dataclasses.dataclass(frozen=True)
    class Wrong(Script):
        def reset(self, case, advised):
            return result

    with pytest.raises(StepError, match=f'^Wrong.reset.* {message}'):
        reset(environment(Wrong()), [0, 1], [True, False])


@pytest.mark.parametrize('method, value, message', [
    ('cues', 'Action:', 'Wrong.cues for seat 0 must be two texts'),
    ('cues', None, 'Wrong.cues for seat 0 must be two texts'),
    ('choices', 'ab', 'Wrong.choices must return a tuple of texts that are not empty, not .ab.'),
    ('choices', None, 'Wrong.choices must return a tuple of texts'),
    ('choices', ('a', ''), 'Wrong.choices must return a tuple of texts'),
    ('choices', (1, 2), 'Wrong.choices must return a tuple of texts'),
    ('describe', None, 'Wrong.describe must return a dict of JSON values'),
    ('describe', {'reward': float('nan')}, 'Wrong.describe must return a dict of JSON values'),
    ('describe', {'page': np.zeros(2)}, 'Wrong.describe must return a dict of JSON values'),
    ('transcript', ('a', 'b'), 'Wrong.transcript must return pairs of a seat and a text'),
    ('transcript', ((5, 'a'),), 'Wrong.transcript must return pairs of a seat and a text'),
    ('transcript', None, 'Wrong.transcript must return pairs of a seat and a text'),
    ('judge_prompt', None, 'Wrong.judge_prompt must return a text, not None'),
    ('overview', 3, 'Wrong.overview must return a text, not 3')], ids=str)
def test_wrong_texts_of_an_environment_stop_the_run_in_one_line(method, value, message):
    env = environment(type('Wrong', (Script,), {method: lambda self, *arguments: value})())
    state, _ = reset(env, [0, 1], [True, True])
    with pytest.raises(StepError, match=f'^{message}') as error:
        if method in ('cues', 'choices'):
            getattr(env, method)(state, 0)
        else:
            env.texts(CASES[:2], state)
    assert isinstance(error.value, InputError)


@pytest.mark.parametrize('trouble', WRONG_RESULTS)
def test_a_wrong_step_fails_its_own_row_and_leaves_its_state_as_it_was(trouble):
    env, cases = environment(), [CASES[2], Case('bad', 5, trouble, at=1), CASES[2]]
    state, _ = env.reset(env.start(3), cases, np.arange(3), np.ones(3, bool))
    state, step = act(env, state, 0, 'a', 'b', 'c', live=[True] * 3)
    assert not step.failed.any()
    state, step = act(env, state, 1, 'd', 'e', 'f', live=[True] * 3)
    assert step.failed.tolist() == [False, True, False] and not step.done.any()
    assert np.nan_to_num(step.reward, nan=-1).tolist() == [[1, 1], [-1, -1], [1, 1]]
    assert texts(step.observations[0].actor) == ['1:d;', '', '1:f;']
    assert state.episodes[1] == (cases[1], ('b',)) and state.messages[1] == ((0, 'b'),)
    episodes = env.texts(cases, state)
    assert [episode.events for episode in episodes] == [('event0', 'event1'), ('event0',), ('event0', 'event1')]
    assert [episode.failure is None for episode in episodes] == [True, False, True]
    assert episodes[1].failure.startswith('StepError: Script.step')
