"""ALFWorld as a TextEnvironment: what the models read, which events are counted, and when an episode ends."""

import dataclasses
import json

from alfworld_games import small_rows
import pytest

from configs.alfworld import get_config
from epo_jax.config import ConfigError
from epo_jax.defaults import validate
from epo_jax.envs.alfworld import engine, prompts, text
from epo_jax.envs.alfworld.dialogue import read_reply
from epo_jax.envs.alfworld.domain import DOMAIN
from epo_jax.envs.base import Observation

V4 = text.VERSIONS['0.4']


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))


def table(**options):
    """(environment, its scenarios)."""
    config = get_config('llama3_8b')
    config.environment.update(options)
    validate(config)
    return DOMAIN.text_environment(config.environment), DOMAIN.scenarios('', config.environment)


def play(env, scenario, *messages, advised=True):
    state, steps = env.reset(scenario, (advised,))[0], []
    for message in messages:
        state, step = env.step(state, 0, message)
        steps.append(step)
    return state, steps


@pytest.mark.parametrize('options', [{}, {'begun': True}, {'short': True, 'begun': True}, {'constrained': True},
                                     {'variant': 'alfworld-0.3-unseen'}])
def test_the_walkthrough_is_worth_everything(options):
    env, scenarios = table(**options)
    for scenario in scenarios:
        walk = [text.translate(command, env.version) for command in scenario.game.walkthrough]
        state, steps = play(env, scenario, *(f'Action: {command}' for command in walk))
        assert [step.done for step in steps] == [False] * (len(walk) - 1) + [True]
        assert [step.rewards for step in steps] == [(0.0,)] * (len(walk) - 1) + [(1.0,)]
        assert steps[-1].events[-1] == 'episode/won'


def test_actor_and_strategist_read_the_same_answers_and_the_strategist_also_the_command():
    env, scenarios = table()
    state, (step,) = play(env, scenarios[0], 'Action: look')
    said = step.observations[0].actor.removeprefix('Observation: ')
    assert step.observations == (Observation(f'Action: look\nObservation: {said}', f'Observation: {said}'),)
    assert env.transcript(state, ()) == ((0, f'Action: look\nObservation: {said}'),)
    assert said.startswith('You are in the middle of a room.')


@pytest.mark.parametrize('short', [False, True])
def test_openings_tell_room_and_task_once_and_only_the_advised_hear_of_a_strategist(short):
    env, scenarios = table(short=short)
    for scenario in scenarios:
        (opening,), (alone,) = (env.reset(scenario, (advised,))[1] for advised in (True, False))
        room = prompts.situation(scenario.game, V4)
        for part in (*opening, alone.actor):
            assert part.endswith(room) != (short and part == opening.strategist) and part.count(room) == 1
            assert part.count(scenario.task) == 1 and text.WELCOME not in part
            assert (prompts.OBSERVATION in part) != short  # the worked example
        assert alone.strategist == '' and 'strategist' in opening.actor and 'strategist' not in alone.actor


@pytest.mark.parametrize('version', text.VERSIONS.values(), ids=lambda version: version.name)
def test_there_is_one_worked_example_of_every_task_type_in_the_words_of_the_release(version):
    worked = prompts.examples(version)
    assert set(worked) == set(engine.KINDS.values()) and len(set(worked.values())) == 6
    for category, example in worked.items():
        assert example.count('Thought:') == example.count('Action:') == example.count('Observation:') >= 4
        assert (f'Action: {version.put[0]} ' in example) == (category != 'look_at_obj_in_light')
        assert text.NOTHING_HAPPENS not in example and 'loc ' not in example
    games = {row['id'] for row in small_rows()}
    assert len(games) == 18 and not any(scenario.id in worked for scenario in table()[1])


def test_cues_and_advice_fit_together():
    for options, cues, advice in (({}, Observation('', ''), '\n'),
                                  ({'begun': True}, Observation('Thought:', 'Action:'), '\nThought:'),
                                  ({'constrained': True}, Observation('', 'Action:'), '\n')):
        env, scenarios = table(**options)
        state, _ = play(env, scenarios[0])
        assert env.cues(state, 0) == cues and env.advice == (advice, '')


def test_choices_are_the_admissible_commands_where_they_bind():
    env, scenarios = table(constrained=True, begun=True)
    assert env.variant == 'alfworld-0.4-unseen+constrained+begun'
    state, _ = play(env, scenarios[0])
    for _ in range(5):
        choices = env.choices(state, 0)
        assert [choice[0] for choice in choices] == [' '] * len(choices)
        assert [choice[1:] for choice in choices] == text.admissible(state.game, V4, state.state)
        state, step = env.step(state, 0, choices[0])
        assert step.events[:1] == ('action/done',)
    assert table()[0].choices(state, 0) == ()


@pytest.mark.parametrize('reply, begun, command, event', [
    ('Action: go to desk 1', False, 'go to desk 1', ''),
    ('Action:go to desk 1 ', False, 'go to desk 1', ''),
    (' go to desk 1', True, 'go to desk 1', ''),
    ('Action: Go to desk 1.', False, 'go to desk 1', 'action/repaired'),
    (' "go to desk 1"', True, 'go to desk 1', 'action/repaired'),
    ('Action: go to desk 1', True, 'go to desk 1', 'action/repaired'),
    ('I think.\nAction: look\nObservation: You win.', False, 'look', 'action/repaired'),
    (' look\nObservation: You win.', True, 'look', 'action/repaired'),
    ('go to desk 1', False, 'go to desk 1', 'action/unparsable'),
    ('', True, '', 'action/unparsable'), ('Action:', False, '', 'action/unparsable')])
def test_replies_are_read(reply, begun, command, event):
    assert read_reply(reply, begun) == (command, event)


@pytest.mark.parametrize('begun', [False, True])
def test_reasoning_is_cut_and_counted(begun):
    env, scenarios = table(begun=begun)
    cue = '' if begun else 'Action: '
    after, (step,) = play(env, scenarios[0], f'<think>Perhaps Action: inventory</think>{cue}look')
    assert after.lines[-1][0] == 'look' and step.events == ('action/reasoning', 'action/done')
    _, (step,) = play(env, scenarios[0], '<think>Action: look')
    assert step.events == ('action/unparsable', 'action/reasoning')


def test_what_is_not_possible_or_no_action_counts_as_such_and_changes_nothing():
    env, scenarios = table()
    state, steps = play(env, scenarios[0], 'Action: go to moon 1', 'fly', 'Action: Look', 'Action: look')
    assert [step.events for step in steps] == [
        ('action/invalid',), ('action/unparsable',), ('action/repaired', 'action/done'), ('action/done',)]
    assert [step.observations[0].actor.startswith('Observation: Nothing happens.') for step in steps] == [
        True, True, False, False]
    assert state.state == scenarios[0].game.initial and len(state.lines) == 4


@pytest.mark.parametrize('max_turns', [1, 3, 40])
def test_it_ends_with_action_number_max_turns(max_turns):
    env, scenarios = table(max_turns=max_turns)
    _, steps = play(env, scenarios[0], *['Action: look'] * max_turns)
    assert [step.done for step in steps] == [False] * (max_turns - 1) + [True]
    assert steps[-1].events[-1] == 'episode/out_of_turns' and steps[-1].rewards == (0.0,)


def test_it_ends_early_after_too_many_actions_that_do_nothing():
    env, scenarios = table(max_idle=2)
    messages = ['fly', 'Action: fly', 'Action: look', 'fly', 'fly', 'fly']
    _, steps = play(env, scenarios[0], *messages)
    assert [step.done for step in steps] == [False] * 5 + [True]
    assert steps[-1].events == ('action/unparsable', 'episode/stopped_early')
    assert not any(step.done for step in play(table()[0], scenarios[0], *['fly'] * 20)[1])


def test_a_share_of_the_goal_may_count():
    for share, worth in ((False, 0.0), (True, 0.5)):
        env, scenarios = table(share=share, max_turns=4)
        scenario = next(s for s in scenarios if s.category == 'pick_two_obj_and_place')
        state, steps = play(env, scenario, *(f'Action: {command}' for command in scenario.game.walkthrough[:4]))
        assert steps[-1].done and steps[-1].rewards == (worth,)


def test_the_record_is_json_and_the_judge_reads_the_task():
    env, scenarios = table()
    state, _ = play(env, scenarios[0], 'Action: look')
    facts = json.loads(json.dumps(env.describe(state.scenario, state)))
    assert facts['scenario'] == scenarios[0].id and facts['environment'] == 'alfworld-0.4-unseen'
    assert facts['category'] in engine.KINDS.values() and len(facts['seats']) == 1 and facts['won'] is False
    assert scenarios[0].task in env.judge_prompt(state, 0) and 'Thought' not in env.judge_prompt(state, 0)


def test_a_step_leaves_the_state_before_it_as_it_was():
    env, scenarios = table()
    first, _ = play(env, scenarios[0])
    kept = dataclasses.replace(first)
    second, _ = env.step(first, 0, f'Action: {first.game.walkthrough[0]}')
    assert first == kept and second.state != first.state
    assert env.step(first, 0, 'Action: look')[0].lines != first.lines == ()


@pytest.mark.parametrize('preset', ['quickstart', 'tiny', 'llama3_8b'])
def test_presets_are_valid_and_their_splits_are_apart(preset):
    config = get_config(preset)
    validate(config)
    scenarios = DOMAIN.scenarios(config.scenarios, config.environment)
    assert {s.split for s in scenarios} == {'train', 'held_out'} and len({s.id for s in scenarios}) == len(scenarios)


def test_unknown_variants_and_missing_splits_are_refused():
    config = get_config('tiny')
    config.environment.variant = 'alfworld-0.5-unseen'
    with pytest.raises(ConfigError, match='alfworld-0.4-unseen'):
        validate(config)
    config.environment.variant = 'alfworld-0.4-seen'
    with pytest.raises(engine.GameError, match='no games of the split'):
        DOMAIN.scenarios('', config.environment)
