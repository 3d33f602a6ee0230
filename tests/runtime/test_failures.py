"""What breaks: an episode that does leaves the others alone, and says why."""

import functools

import numpy as np
import pytest
from tables import (
    BOTH,
    CASES,
    WIDTH,
    Case,
    episode_numbers,
    host,
    host_seats,
    local_seats,
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
def sound_game():
    return perform(local_seats(), CASES)


def everything(game, b):
    """All there is of an episode among host agents."""
    state = game.state
    return (state.env.episodes[b][1], state.env.events[b], state.reward[b].tolist(), int(state.cause[b]),
            int(state.actions[b]), [m.histories[b] for m in (*state.strategists, *state.actors)])


def why(game):
    """Of every episode, why it was cut off, as its record says it."""
    return [failure(cause, account, game.reasons.get(e))
            for e, (cause, account) in enumerate(zip(game.episodes.cause, game.texts()))]


def troubled(reply, trouble):
    """A reply function that fails in the episode named 'bad', in its second turn."""
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
    ('exit', 'SystemExit: goodbye'), ('nothing', 'must return (state, TextStep), not None')])
def test_an_environment_that_breaks_ends_its_own_episode_only(trouble, reason):
    timeout = 1.0 if trouble == 'stall' else None
    cases = list(CASES)
    cases[2] = Case('five', 5, trouble, at=2)
    sound, broken = perform(host_seats(), CASES), perform(host_seats(), cases, timeout=timeout)
    for b in (0, 1, 3):
        assert everything(broken, b) == everything(sound, b)
    assert broken.episodes.cause.tolist() == [0, 0, ENVIRONMENT, 0] and broken.episodes.actions.tolist() == [1, 2, 3, 6]
    assert why(broken)[:2] == [None, None] and reason in why(broken)[2] and why(broken)[3] is None


@pytest.mark.parametrize('name, number, turns', [
    ('strategist', agent_number(0, False), 3), ('actor', agent_number(0, True), 3), ('second actor', agent_number(1, True), 4)])
@pytest.mark.parametrize('trouble, reason', [
    ('raise', 'ConnectionError: endpoint down'), ('stall', 'no answer within 1 s'), ('nothing', 'TypeError')])
def test_an_agent_that_breaks_ends_its_own_episode_only(name, number, turns, trouble, reason):
    timeout = 1.0 if trouble == 'stall' else None
    bad = lambda reply, role: host(troubled(reply, trouble) if role == name else reply, timeout=timeout)
    seats = (Seat(bad(talk, 'actor'), bad(plan, 'strategist')), Seat(bad(talk, 'second actor'), host(plan)))
    cases = [CASES[0], Case('bad', 6), *CASES[2:]]
    sound, broken = perform(host_seats(), cases), perform(seats, cases)
    for b in (0, 2, 3):
        assert everything(broken, b) == everything(sound, b)
    assert broken.episodes.cause.tolist() == [0, 1 + number, 0, 0]
    assert broken.episodes.actions.tolist() == [1, turns, 5, 6]
    assert len(broken.state.env.episodes[1][1]) == turns - 1  # the environment was not asked
    role = f'{name.split()[-1]} of seat {number // 2}'
    assert list(broken.reasons) == [1] and reason in why(broken)[1] and why(broken)[1].startswith(role)


@pytest.mark.parametrize('trouble, cause, reason', [
    ('raise', ENVIRONMENT, 'the script says so'), ('flood', None, 'does not fit its capacity of 320 tokens'),
    ('long', ENVIRONMENT, '121 tokens'), ('observation', OBSERVATION, 'rollout.view_tokens')])
def test_an_episode_that_breaks_leaves_the_models_other_conversations_as_they_were(trouble, cause, reason):
    cases = list(CASES)
    cases[3] = Case('six', 9, trouble, at=1)
    sound, broken = sound_game(), perform(local_seats(), cases)
    assert not broken.episodes.cause[:3].any()
    for memories, others in zip((*sound.state.strategists, *sound.state.actors),
                                (*broken.state.strategists, *broken.state.actors)):
        for name in ('ids', 'turn', 'logprob', 'length', 'turns', 'overflow'):
            np.testing.assert_array_equal(*(np.asarray(getattr(m, name))[:3] for m in (memories, others)))
    assert broken.state.env.episodes[:3].tolist() == sound.state.env.episodes[:3].tolist()
    if cause is None:
        memories = (*broken.state.strategists, *broken.state.actors)
        assert np.array([memory.overflow for memory in memories]).any(axis=0).tolist() == [False] * 3 + [True]
        assert broken.episodes.cause[3] > 0 and list(broken.reasons) == [3]
    else:
        assert broken.episodes.cause[3] == cause and not broken.reasons
    assert why(broken)[:3] == [None] * 3 and reason in why(broken)[3]
    rows = trajectories(broken.table, broken.episodes, np.arange(4), 1)
    assert rows.truncated.tolist() == [False, False, False, True] * 2
    told = judge_prompts(broken.table, broken.episodes, broken.texts())
    assert [r.complete for r in told] == [True, True, True, False] * 2


def test_a_slot_whose_episode_broke_is_as_good_as_new():
    """One slot plays: an agent that fails, an environment that fails, a flood, then a sound episode."""
    cases = [Case('bad', 6), Case('one', 1, 'raise'), Case('six', 6, 'observation'), Case('five', 5)]
    seats = (Seat(host(troubled(talk, 'raise')), host(plan)), Seat(host(talk), host(plan)))
    table = make_table(seats)
    episodes, reasons = rollout_on_host(table, cases, episode_numbers(4), 1)
    assert episodes.cause.tolist() == [1 + agent_number(0, True), ENVIRONMENT, OBSERVATION, 0] and list(reasons) == [0]
    assert [account.failure for account in table.env.texts(cases, episodes.env)] == [
        None, 'RuntimeError: the script says so', None, None]
    assert episodes.env.events[3] == tuple(f'event{n}' for n in range(5)) and episodes.reward[3].tolist() == [5, 10]


def test_an_opening_that_does_not_fit_stops_the_run_and_names_the_option():
    with pytest.raises(ValueError, match='rollout.view_tokens'):
        perform(tuple(Seat(host(talk)) for _ in BOTH), [Case('x' * WIDTH, 2)])


@pytest.mark.parametrize('where', ['environment', 'strategist', 'actor'])
def test_the_record_of_a_broken_episode_says_why(where):
    def down(history, seed):
        raise ConnectionError('endpoint down')

    class Broken(Sotopia):
        def step(self, state, seat, message):
            raise RuntimeError('endpoint down')

    pick = lambda name, reply: host(down if where == name else reply)
    hello = lambda history, seed: 'Hello.'
    seats = tuple(Seat(pick('actor', hello), pick('strategist', hello)) for _ in BOTH)
    env = (Broken if where == 'environment' else Sotopia)(max_turns=2, short=True)
    table, scenarios = Table(HostEnvironment(env, seats, 4000), seats), load_scenarios()[:2]
    episodes, reasons = rollout_on_host(table, scenarios, episode_numbers(2), 2)
    nothing = np.zeros(4, bool)
    verdict = Verdict(np.zeros((4, 1)), nothing[:, None], np.zeros(4), nothing, nothing, nothing[:, None])
    saved = episode_records(Match(('policy', 'policy'), (0, 1)), episodes, table.env.texts(scenarios, episodes.env),
                            reasons, strategy_texts(table, episodes), verdict)
    assert [record['truncated'] for record in saved] == [True, True]
    assert [record['scenario'] for record in saved] == [scenario.id for scenario in scenarios]
    assert all('endpoint down' in record['failure'] for record in saved)
    assert all(where == 'environment' or f'{where} of seat 0: ' in record['failure'] for record in saved)
    assert 'endpoint down' in failure_reason(saved)
    assert all(seat['outcome'] is None for record in saved for seat in record['seats'])
