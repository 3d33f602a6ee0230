"""Failures of environments and agents: they end their own episode, the others go on, and the record says why."""

import functools

import numpy as np
import pytest
from tables import (
    BOTH,
    CASES,
    WIDTH,
    WRONG_RESULTS,
    Case,
    host,
    host_seats,
    local_seats,
    make_keys,
    make_table,
    never,
    perform,
    plan,
    talk,
)

from epo_jax.agents.base import Seat
from epo_jax.envs.host import HostEnvironment
from epo_jax.envs.sotopia.dialogue import Sotopia
from epo_jax.envs.sotopia.profiles import load_scenarios
from epo_jax.records import episode_records, failure, failure_reason
from epo_jax.rewards.process import Verdict
from epo_jax.rewards.prompts import judge_prompts, strategy_texts
from epo_jax.rl.selfplay import Match
from epo_jax.rl.trajectory import trajectories
from epo_jax.rollout import ENVIRONMENT, OBSERVATION, Table, agent_number, rollout_on_host


@functools.cache
def intact_game():
    """Return the game without failures."""
    return perform(local_seats(), CASES)


def everything(game, b):
    """Return all that is known of an episode of host agents."""
    state = game.state
    return (state.env.episodes[b][1], state.env.events[b], state.reward[b].tolist(), int(state.cause[b]),
            int(state.actions[b]), [m.histories[b] for m in (*state.strategists, *state.actors)])


def failures(game):
    """Return, for every episode, why it was cut off, as in its record."""
    return [failure(cause, episode, game.reasons.get(e))
            for e, (cause, episode) in enumerate(zip(game.episodes.cause, game.texts()))]


def failing(reply, trouble):
    """Return a reply function that fails in the second turn of the episode named 'bad'."""
    def answer(history, seed):
        if history[0][1].startswith('bad') and len(history) == 3:
            if trouble == 'raise':
                raise ConnectionError('endpoint down')
            if trouble == 'stall':
                never.wait(5)
            return None
        return reply(history, seed)
    return answer


@pytest.mark.parametrize('trouble, reason', [
    ('raise', 'RuntimeError: the script says so'), ('stall', 'no answer within 1 s'), ('long', '121 tokens'),
    ('exit', 'SystemExit: goodbye'), *((name, 'StepError: Script.step') for name in WRONG_RESULTS),
    ('nothing', 'Script.step must return (state, TextStep), not None'), ('done as text', "must be a bool, not 'no'"),
    ('observations of three seats', 'must return one Observation for each of 2 seats, not 4')])
def test_an_environment_that_fails_ends_its_own_episode_only(trouble, reason):
    timeout = 1.0 if trouble == 'stall' else None
    cases = list(CASES)
    cases[2] = Case('five', 5, trouble, at=2)
    intact, failed = perform(host_seats(), CASES), perform(host_seats(), cases, timeout=timeout)
    for b in (0, 1, 3):
        assert everything(failed, b) == everything(intact, b)
    assert failed.episodes.cause.tolist() == [0, 0, ENVIRONMENT, 0] and failed.episodes.actions.tolist() == [1, 2, 3, 6]
    reasons = failures(failed)
    assert reasons[:2] == [None, None] and reason in reasons[2] and reasons[3] is None


@pytest.mark.parametrize('name, number, turns', [
    ('strategist', agent_number(0, False), 3), ('actor', agent_number(0, True), 3),
    ('second actor', agent_number(1, True), 4)])
@pytest.mark.parametrize('trouble, reason', [
    ('raise', 'ConnectionError: endpoint down'), ('stall', 'no answer within 1 s'), ('nothing', 'TypeError')])
def test_an_agent_that_fails_ends_its_own_episode_only(name, number, turns, trouble, reason):
    timeout = 1.0 if trouble == 'stall' else None
    bad = lambda reply, role: host(failing(reply, trouble) if role == name else reply, timeout=timeout)
    seats = (Seat(bad(talk, 'actor'), bad(plan, 'strategist')), Seat(bad(talk, 'second actor'), host(plan)))
    cases = [CASES[0], Case('bad', 6), *CASES[2:]]
    intact, failed = perform(host_seats(), cases), perform(seats, cases)
    for b in (0, 2, 3):
        assert everything(failed, b) == everything(intact, b)
    assert failed.episodes.cause.tolist() == [0, 1 + number, 0, 0]
    assert failed.episodes.actions.tolist() == [1, turns, 5, 6]
    assert len(failed.state.env.episodes[1][1]) == turns - 1  # the environment did not step after the failure
    role = f'{name.split()[-1]} of seat {number // 2}'
    assert list(failed.reasons) == [1]
    assert reason in failures(failed)[1] and failures(failed)[1].startswith(role)


@pytest.mark.parametrize('trouble, cause, reason', [
    ('raise', ENVIRONMENT, 'the script says so'), ('flood', None, 'does not fit its capacity of 320 tokens'),
    ('long', ENVIRONMENT, '121 tokens'), ('observation', OBSERVATION, 'rollout.view_tokens')])
def test_a_failed_episode_does_not_change_the_other_conversations_of_a_model(trouble, cause, reason):
    cases = list(CASES)
    cases[3] = Case('six', 9, trouble, at=1)
    intact, failed = intact_game(), perform(local_seats(), cases)
    assert not failed.episodes.cause[:3].any()
    for memories, others in zip((*intact.state.strategists, *intact.state.actors),
                                (*failed.state.strategists, *failed.state.actors)):
        for name in ('ids', 'turn', 'logprob', 'length', 'turns', 'overflow'):
            np.testing.assert_array_equal(*(np.asarray(getattr(m, name))[:3] for m in (memories, others)))
    assert failed.state.env.episodes[:3].tolist() == intact.state.env.episodes[:3].tolist()
    if cause is None:
        memories = (*failed.state.strategists, *failed.state.actors)
        assert np.array([memory.overflow for memory in memories]).any(axis=0).tolist() == [False] * 3 + [True]
        assert failed.episodes.cause[3] > 0 and list(failed.reasons) == [3]
    else:
        assert failed.episodes.cause[3] == cause and not failed.reasons
    assert failures(failed)[:3] == [None] * 3 and reason in failures(failed)[3]
    rows = trajectories(failed.table, failed.episodes, np.arange(4), 1)
    assert rows.truncated.tolist() == [False, False, False, True] * 2
    prompts = judge_prompts(failed.table, failed.episodes, failed.texts())
    assert [prompt.complete for prompt in prompts] == [True, True, True, False] * 2


def test_a_slot_is_usable_after_its_episode_failed():
    """One slot plays a failing agent, a failing environment, an observation that is too long, and an intact episode."""
    cases = [Case('bad', 6), Case('one', 1, 'raise'), Case('six', 6, 'observation'), Case('five', 5)]
    seats = (Seat(host(failing(talk, 'raise')), host(plan)), Seat(host(talk), host(plan)))
    table = make_table(seats)
    episodes, reasons = rollout_on_host(table, cases, make_keys(4), 1)
    assert episodes.cause.tolist() == [1 + agent_number(0, True), ENVIRONMENT, OBSERVATION, 0] and list(reasons) == [0]
    assert [episode.failure for episode in table.env.texts(cases, episodes.env)] == [
        None, 'RuntimeError: the script says so', None, None]
    assert episodes.env.events[3] == tuple(f'event{n}' for n in range(5)) and episodes.reward[3].tolist() == [5, 10]


def test_an_opening_that_does_not_fit_stops_the_run_and_names_the_option():
    with pytest.raises(ValueError, match='rollout.view_tokens'):
        perform(tuple(Seat(host(talk)) for _ in BOTH), [Case('x' * WIDTH, 2)])


@pytest.mark.parametrize('where', ['environment', 'strategist', 'actor'])
def test_the_record_of_a_failed_episode_says_why(where):
    def down(history, seed):
        raise ConnectionError('endpoint down')

    class Failing(Sotopia):
        def step(self, state, seat, message):
            raise RuntimeError('endpoint down')

    pick = lambda name, reply: host(down if where == name else reply)
    hello = lambda history, seed: 'Hello.'
    seats = tuple(Seat(pick('actor', hello), pick('strategist', hello)) for _ in BOTH)
    env = (Failing if where == 'environment' else Sotopia)(max_turns=2, short=True)
    table, scenarios = Table(HostEnvironment(env, seats, 4000), seats), load_scenarios()[:2]
    episodes, reasons = rollout_on_host(table, scenarios, make_keys(2), 2)
    no = np.zeros(4, bool)
    verdict = Verdict(np.zeros((4, 1)), no[:, None], np.zeros(4), no, no, no[:, None])
    saved = episode_records(Match(('policy', 'policy'), (0, 1)), episodes, table.env.texts(scenarios, episodes.env),
                            reasons, strategy_texts(table, episodes), verdict)
    assert [record['truncated'] for record in saved] == [True, True]
    assert [record['scenario'] for record in saved] == [scenario.id for scenario in scenarios]
    assert all('endpoint down' in record['failure'] for record in saved)
    assert all(where == 'environment' or f'{where} of seat 0: ' in record['failure'] for record in saved)
    assert 'endpoint down' in failure_reason(saved)
    assert all(seat['outcome'] is None for record in saved for seat in record['seats'])
