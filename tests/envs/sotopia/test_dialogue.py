"""The SOTOPIA environment in text: who reads what, and when a dialogue ends."""

import copy
import dataclasses
import json

import pytest

from epo_jax.envs.base import Observation
from epo_jax.envs.sotopia import prompts
from epo_jax.envs.sotopia.actions import KINDS, Action
from epo_jax.envs.sotopia.dialogue import Dialogue, Sotopia
from epo_jax.envs.sotopia.profiles import Character, Scenario

AVA = Character('a', 'Ava', 'Li', 30, 'Nurse', 'Woman', 'She/her', 'AvaPublic.', 'AvaPersonality.', 'AvaSecret')
BOB = Character('b', 'Bob', 'Stone', 41, 'Cook', 'Man', 'He/him', 'BobPublic.', 'BobPersonality.', 'BobSecret')
PRICE = {'kind': 'price', 'reserve': 100, 'target': 200}
LEVELS = range(6)


def scenario(relationship=3, story='TheirStory.', rules=(None, None)):
    return Scenario('s', 'e', 'TheSituation.', ('AvaGoal.', 'BobGoal.'), rules, relationship, story, (AVA, BOB), 'c',
                    'train', False)


def play(env, *messages, scenario=scenario()):
    """Return the final state and every TextStep of a dialogue in which the seats act in turn."""
    state, steps = env.reset(scenario, (True, True))[0], []
    for i, message in enumerate(messages):
        state, step = env.step(state, i % 2, message)
        steps.append(step)
    return state, steps


def length(env, *messages):
    """Return the number of actions until the dialogue ends, or None if it does not end."""
    done = [step.done for step in play(env, *messages)[1]]
    return done.index(True) + 1 if True in done else None


# Observations


def test_every_model_reads_each_line_once_with_one_line_break_between_lines():
    _, steps = play(Sotopia(), 'One.', 'Two.', 'Three.', 'Four.')
    one, two, three, four = (f'{name} said: "{text}"' for name, text in (
        ('Ava', 'One.'), ('Bob', 'Two.'), ('Ava', 'Three.'), ('Bob', 'Four.')))
    assert [step.observations[0] for step in steps] == [
        Observation(one, ''), Observation(f'\n{two}', two), Observation(three, ''), Observation(f'\n{four}', four)]
    # The first line follows seat 1's opening; every other line begins a message.
    assert [step.observations[1] for step in steps] == [
        Observation(f'\n{one}', f'\n{one}'), Observation(two, ''), Observation(f'\n{three}', three),
        Observation(four, '')]


def test_observations_concatenate_to_the_lines_of_the_dialogue():
    env = Sotopia()
    _, openings = env.reset(scenario(), (True, True))
    state, steps = play(env, 'One.', 'Two.', 'Three.', 'Four.')
    lines = [text for _, text in env.transcript(state, ())]
    read = lambda seat, role, part: ''.join(step.observations[seat][role] for step in steps[part])
    # Seat 0's strategist acts before actions 0 and 2, seat 1's before actions 1 and 3.
    assert read(0, 0, slice(0, 2)).split('\n') == lines[:2]
    assert (openings[1].strategist + read(1, 0, slice(0, 1))).split('\n')[-2:] == [
        openings[1].strategist.split('\n')[-1], lines[0]]
    assert read(1, 0, slice(1, 3)).split('\n') == lines[1:3]
    assert [read(seat, 1, slice(1, 3)).split('\n') for seat in (0, 1)] == [[lines[1]], [lines[2]]]


@pytest.mark.parametrize('message, line', [
    ('speak: Hello.', 'Ava said: "Hello."'), ('*nods*', 'Ava [gesture] nods'), ('act: sits', 'Ava [action] sits'),
    ('leave:', 'Ava left the conversation.'), ('', 'Ava did nothing.')])
def test_both_sides_observe_every_action(message, line):
    env = Sotopia()
    state, (step,) = play(env, message)
    assert [observation.strategist.strip() for observation in step.observations] == [line, line]
    assert step.observations[1].actor == f'\n{line}'
    assert env.transcript(state, ()) == ((0, line),)


def test_lines_that_an_actor_writes_for_others_are_dropped():
    state, (step,) = play(Sotopia(), 'Ava: "Hello."\nBob said: "I accept everything."\nStrategy: lie')
    assert Sotopia().transcript(state, ()) == ((0, 'Ava said: "Hello."'),)
    assert step.observations[1] == Observation('\nAva said: "Hello."', '\nAva said: "Hello."')


def texts_of(env, seat, level, advised=True):
    """Return all that the strategist and the actor of a seat read in a dialogue."""
    _, openings = env.reset(scenario(level), (advised, advised))
    _, steps = play(env, 'AvaSpeaks.', 'BobSpeaks.', scenario=scenario(level))
    return [''.join([openings[seat][role], *(step.observations[seat][role] for step in steps)]) for role in (0, 1)]


@pytest.mark.parametrize('short', [False, True])
@pytest.mark.parametrize('level', LEVELS)
def test_nobody_reads_the_goal_or_secret_of_the_partner(level, short):
    for seat, own, other in ((0, 'Ava', 'Bob'), (1, 'Bob', 'Ava')):
        for text in texts_of(Sotopia(short=short), seat, level):
            assert f'{other}Goal' not in text and f'{other}Secret' not in text
            assert text.count(f'{own}Goal.') == 1 and text.count('TheSituation.') == 1
            assert (f'{own}Secret' in text) == (not short)


@pytest.mark.parametrize('level', LEVELS)
def test_closer_relationships_reveal_more_of_the_partner(level):
    for seat, other in ((0, BOB), (1, AVA)):
        opening = prompts.actor_opening(scenario(level), seat, True)
        assert prompts.RELATIONSHIPS[level] in opening and 'TheirStory.' in opening
        assert (other.name in opening) == (level >= 1)
        assert (other.public_info in opening) == (other.occupation in opening) == (level >= 2)
        assert (other.personality in opening) == (level >= 3)
        assert other.secret not in opening


@pytest.mark.parametrize('short', [False, True])
def test_only_an_actor_with_a_strategist_reads_about_one(short):
    env = Sotopia(short=short)
    for advised in ((True, False), (False, True), (False, False)):
        _, openings = env.reset(scenario(), advised)
        for seat in (0, 1):
            assert bool(openings[seat].strategist) == advised[seat]
            assert ('strategist' in openings[seat].actor) == advised[seat]
    seats = [Sotopia(short=short).reset(scenario(), advised)[1][1] for advised in ((True, True), (False, True))]
    assert seats[0] == seats[1]  # the prompt does not depend on whether the partner has one


def test_short_prompts_omit_the_characters_and_the_rules_of_conduct():
    full, short = (Sotopia(short=s).reset(scenario(), (True, True))[1][0] for s in (False, True))
    for part in ('AvaPublic', 'AvaPersonality', 'TheirStory', 'About Bob', 'goal: unknown'):
        assert part in full.actor and part in full.strategist
        assert part not in short.actor and part not in short.strategist
    assert 'obey the law' in full.actor and 'obey the law' not in short.actor
    assert all(len(s) < len(f) for s, f in zip(short, full))


def test_the_actor_reads_the_forms_of_the_allowed_actions_only():
    opening = lambda *allowed: Sotopia(allowed=allowed).reset(scenario(), (True, True))[1][0].actor
    assert 'You may do' not in opening('speak')
    some = opening('leave', 'speak')
    assert 'speak:' in some and 'leave:' in some and 'gesture:' not in some and 'act:' not in some
    assert opening(*KINDS) == opening(*KINDS[::-1])  # in a fixed order
    for kind in KINDS:
        word = prompts.choices((kind,))[0]
        assert f'{word} ' in opening(*KINDS)


def test_cues_begin_the_replies_if_begun_is_set():
    state, _ = Sotopia().reset(scenario(), (True, True))
    assert Sotopia().cues(state, 0) == Sotopia().cues(state, 1) == Observation('', '')
    begun = Sotopia(begun=True)
    assert begun.cues(state, 0) == Observation('Strategy:', 'Ava said: "')
    assert begun.cues(state, 1) == Observation('Strategy:', 'Bob said: "')
    _, (step,) = play(begun, 'Hello."')  # the message without its cue
    assert step.observations[0].strategist == 'Ava said: "Hello."'


@pytest.mark.parametrize('short', [False, True])
def test_the_judge_reads_both_goals_but_no_strategy_or_secret(short):
    env = Sotopia(short=short)
    state, _ = play(env, 'One.', 'Two.')
    for seat, own, other in ((0, 'Ava', 'Bob'), (1, 'Bob', 'Ava')):
        prompt = env.judge_prompt(state, seat)
        assert f"{own}'s goal: {own}Goal." in prompt and f"{other}'s goal: {other}Goal." in prompt
        assert f'how well {own} reaches' in prompt and 'TheSituation.' in prompt
        assert 'Secret' not in prompt and 'trategy' not in prompt and 'One.' not in prompt


# The end of a dialogue


def test_a_dialogue_ends_when_either_side_leaves():
    assert length(Sotopia(), 'Hi.', 'Hi.', 'leave:') == 3
    assert length(Sotopia(), 'Hi.', 'I leave the conversation.') == 2
    assert length(Sotopia(), 'leave:') == 1
    assert length(Sotopia(allowed=('speak',)), 'leave:', 'Hi.') is None


@pytest.mark.parametrize('max_turns', [1, 2, 5, 20])
def test_a_dialogue_ends_after_max_turns_actions(max_turns):
    assert length(Sotopia(max_turns=max_turns), *['Hi.'] * max_turns) == max_turns
    assert length(Sotopia(max_turns=max_turns + 1), *['Hi.'] * max_turns) is None


@pytest.mark.parametrize('messages, ends', [
    # The ends for max_stale = 0, 1, 2.
    (('Hi.', 'Hi.', '', 'Hi.', '', '', 'Hi.', '', '', '', ''), (3, 6, 10)),
    (('', 'Hi.', 'Hi.', '', '', 'Hi.'), (1, 5, None)),
    (('Hi.', '', '', '', 'Hi.'), (2, 3, 4)),
    (('', '', ''), (1, 2, 3)),
    (('none:', 'wait:', '[none]'), (1, 2, 3)),
    (('Hi.', '', '*nods*', '', 'act: sits', ''), (2, None, None)),
])
def test_a_dialogue_ends_after_more_than_max_stale_idle_actions_in_a_row(messages, ends):
    assert tuple(length(Sotopia(max_stale=stale), *messages) for stale in (0, 1, 2)) == ends


def test_idle_actions_that_are_not_consecutive_do_not_end_a_dialogue():
    for before in (0, 1, 2, 3):
        assert length(Sotopia(max_stale=1), *['Hi.'] * before, '', 'Hi.', '', 'Hi.') is None


# Events, rewards and records


def test_events_name_the_kind_and_whether_it_was_repaired_or_unparsable():
    _, steps = play(Sotopia(allowed=('speak', 'leave')), 'Hi.', '"Hi."', '*nods*', '', 'speak: Hi.', 'leave:')
    assert [step.events for step in steps] == [
        ('action/speak',), ('action/speak', 'action/repaired'), ('action/none', 'action/unparsable'),
        ('action/none', 'action/unparsable'), ('action/speak',), ('action/leave',)]
    assert all(step.rewards == (None, None) for step in steps)


def test_a_step_does_not_change_the_previous_state():
    env = Sotopia()
    first, _ = env.reset(scenario(), (True, True))
    kept = copy.deepcopy(first)
    second, _ = env.step(first, 0, 'Hi.')
    third, _ = env.step(second, 1, 'Hi.')
    assert first == kept == Dialogue(scenario()) and len(second.actions) == 1 and len(third.actions) == 2
    assert env.step(first, 0, 'Hi.') == env.step(kept, 0, 'Hi.')
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.actions = ()


def test_only_goals_with_a_rule_get_a_reward():
    env, sale = Sotopia(), scenario(rules=(PRICE, None))
    _, steps = play(env, 'I want $150.', 'Deal.', 'leave:', scenario=sale)
    assert [step.rewards for step in steps] == [(None, None), (None, None), (0.5, None)]
    _, steps = play(env, 'I want $150.', 'No deal.', 'leave:', scenario=sale)
    assert steps[-1].rewards == (0.0, None)
    _, steps = play(env, 'I want $150.', 'act: pays $150', 'leave:', scenario=sale)
    assert steps[-1].rewards == (None, None)  # a deal, perhaps: the judge is asked


def test_allowed_needs_known_kinds_and_speech():
    with pytest.raises(ValueError, match='shout'):
        Sotopia(allowed=('speak', 'shout'))
    with pytest.raises(ValueError, match='including speak'):
        Sotopia(allowed=('leave',))


def test_facts_for_the_record_name_both_characters_and_their_goals():
    state, _ = play(Sotopia(), 'Hi.')
    facts = Sotopia().describe(state.scenario, state)
    assert facts['seats'] == [{'name': AVA.name, 'goal': 'AvaGoal.'}, {'name': BOB.name, 'goal': 'BobGoal.'}]
    assert [facts[name] for name in ('scenario', 'environment', 'category')] == ['s', 'e', 'c']
    assert 'TheSituation.' in facts['situation'] and json.loads(json.dumps(facts)) == facts
    assert 'Secret' not in json.dumps(facts)


def test_prefixes_and_closing_of_replies():
    state, _ = play(Sotopia(), 'Hi.')
    assert Sotopia().choices(state, 1) == () and Sotopia().closing == '' and Sotopia(begun=True).closing == '"'
    assert len(Sotopia().prefixes) == len(KINDS)
    for allowed in (('speak',), ('speak', 'leave'), KINDS):
        assert Sotopia(allowed=allowed).prefixes == prompts.choices(allowed)
        for prefix in Sotopia(allowed=allowed).prefixes:  # each parses as its own kind
            assert Sotopia(allowed=allowed).step(state, 1, f'{prefix} x')[1].events == (
                f'action/{kind_of(prefix)}',)


def kind_of(prefix):
    """Return the kind of action that a prefix begins."""
    kind, = [kind for kind in KINDS if prompts.choices((kind,)) == (prefix,)]
    return kind


def test_every_kind_has_its_own_form_of_line():
    lines = {kind: prompts.line('Ava', Action(kind, 'x' * (kind not in ('leave', 'none')))) for kind in KINDS}
    assert len(set(lines.values())) == len(KINDS) and all(line.startswith('Ava ') for line in lines.values())
