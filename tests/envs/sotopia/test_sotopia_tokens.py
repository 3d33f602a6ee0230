"""SOTOPIA on the device behaves like SOTOPIA in text."""

import jax
import numpy as np
import pytest

from epo_jax.envs.sotopia import prompts
from epo_jax.envs.sotopia.dialogue import Sotopia
from epo_jax.envs.sotopia.profiles import load_scenarios
from epo_jax.envs.sotopia.tokens import TokenSotopia
from epo_jax.testing import byte_tokenizer
from epo_jax.text import tokenizer as text
from epo_jax.text.tokens import pack

TOKENIZER = byte_tokenizer()
WIDTH = 2048


def decode(tokens, b):
    return text.decode(TOKENIZER, np.asarray(tokens.ids)[b, :int(tokens.length[b])].tolist())


def play(rules, scenario, messages):
    """Play messages in turn in both forms, in slot 1 of 2, and compare everything that they return.

    Returns:
      The environment, the queue, the final state of the slot, and its EpisodeText.
    """
    env = TokenSotopia(rules, TOKENIZER, WIDTH)
    queue = env.encode([scenario], [True, True])
    rows = np.array([False, True])
    state, encoded = env.reset(env.start(2), queue, np.array([1, 0]), rows)
    dialogue, openings = rules.reset(scenario, (True, True))
    events = []
    for observation, opening in zip(encoded, openings):
        assert (decode(observation.strategist, 1), decode(observation.actor, 1)) == tuple(opening)
        assert observation.strategist.length[0] == 0
    for number, message in enumerate(messages):
        seat = number % 2
        cues, expected = env.cues(state, seat), rules.cues(dialogue, seat)
        assert (decode(cues.strategist, 1), decode(cues.actor, 1)) == tuple(expected)
        ids = text.encode(TOKENIZER, message)
        state, step = env.step(state, seat, pack([[], ids], 64), rows)
        dialogue, text_step = rules.step(dialogue, seat, message)
        events += text_step.events
        for observation, expected in zip(step.observations, text_step.observations):
            assert (decode(observation.strategist, 1), decode(observation.actor, 1)) == tuple(expected)
        np.testing.assert_array_equal(np.asarray(step.reward)[1], np.array(
            [np.nan if reward is None else reward for reward in text_step.rewards], np.float32))
        assert np.isnan(np.asarray(step.reward)[0]).all()
        assert bool(step.done[1]) == text_step.done and not step.done[0] and not np.asarray(step.failed).any()
    finished = jax.tree.map(lambda x: np.asarray(x)[1:], state)
    [episode] = env.texts([scenario], finished)
    assert tuple(episode.lines) == rules.transcript(dialogue, ()) and episode.events == events
    assert episode.overview == rules.overview(dialogue, ())
    assert list(episode.judge_prompts) == [rules.judge_prompt(dialogue, seat) for seat in (0, 1)]
    return env, queue, finished, episode


SCENARIO = load_scenarios('')[0]


@pytest.mark.parametrize('advised', [(True, True), (True, False), (False, True), (False, False)])
def test_an_actor_reads_of_a_strategist_only_where_there_is_one(advised):
    env = TokenSotopia(Sotopia(4), TOKENIZER, WIDTH)
    _, openings = env.reset(env.start(1), env.encode([SCENARIO], advised), np.array([0]), np.array([True]))
    _, expected = Sotopia(4).reset(SCENARIO, advised)
    assert [decode(opening.actor, 0) for opening in openings] == [opening.actor for opening in expected]
    assert ['strategist' in opening.actor for opening in expected] == list(advised)


@pytest.mark.parametrize('short', [False, True])
def test_speech_is_the_same_as_in_text(short):
    rules = Sotopia(4, 2, ('speak',), short, True)
    _, _, _, episode = play(rules, SCENARIO, ['Hello there."', 'Good day.', 'How about $20?"', 'Deal.'])
    assert episode.events.count('action/speak') == 4


def test_max_turns_and_idle_actions_end_a_dialogue():
    play(Sotopia(2, 2, ('speak',), True, True), SCENARIO, ['Hello.', 'Bye.'])
    _, _, _, episode = play(Sotopia(9, 1, ('speak',), True, True), SCENARIO, ['', ''])
    assert episode.events.count('action/unparsable') == 2


def test_reasoning_and_lines_of_the_partner_count_as_in_text():
    other = SCENARIO.characters[1].first_name
    messages = ['<think>Hm.</think>Hello.', 'Turn #2\nHi.', f'{other}: Hello.', '<think>I wonder']
    _, _, _, episode = play(Sotopia(9, 2), SCENARIO, messages)
    assert [line.partition(': ')[2] for _, line in episode.lines] == ['"Hello."', '"Hi."', f'"{other}: Hello."', '']
    assert episode.events == [
        'action/speak', 'action/reasoning', 'action/speak', 'action/repaired', 'action/speak', 'action/partner',
        'action/none', 'action/unparsable', 'action/reasoning']


def test_every_kind_of_action_becomes_a_line():
    env = TokenSotopia(Sotopia(6, 2), TOKENIZER, WIDTH)
    name = [c.first_name for c in SCENARIO.characters]
    state, _ = env.reset(env.start(1), env.encode([SCENARIO], [True, True]), np.array([0]), np.array([True]))
    done = []
    for seat, message in ((0, 'gesture: waves'), (1, 'act: sits down'), (0, 'wait: so be it'), (1, 'leave: bye')):
        state, step = env.step(state, seat, pack([text.encode(TOKENIZER, message)], 64), np.array([True]))
        done.append(bool(step.done[0]))
    [episode] = env.texts([SCENARIO], state)
    assert [line for _, line in episode.lines] == [
        f'{name[0]} [gesture] waves', f'{name[1]} [action] sits down', f'{name[0]} did nothing.',
        f'{name[1]} left the conversation.']
    assert done == [False, False, False, True]
    assert episode.events == ['action/non-verbal communication', 'action/action', 'action/none', 'action/leave']


def test_a_kind_that_is_not_allowed_is_unparsable():
    env = TokenSotopia(Sotopia(6, 2, ('speak',)), TOKENIZER, WIDTH)
    state, _ = env.reset(env.start(1), env.encode([SCENARIO], [True, True]), np.array([0]), np.array([True]))
    state, step = env.step(state, 0, pack([text.encode(TOKENIZER, 'leave: bye')], 64), np.array([True]))
    [episode] = env.texts([SCENARIO], state)
    assert not step.done[0] and episode.events == ['action/none', 'action/unparsable']


def test_the_judge_reads_opening_and_lines():
    rules = Sotopia(4, 2, ('speak',), True, True)
    env, queue, state, episode = play(rules, SCENARIO, ['Hello."', 'Hi."'])
    for seat in (0, 1):
        opening, lines = env.judge_prompts(queue, state, seat)
        assert decode(opening, 0) == prompts.judge_opening(SCENARIO, seat)
        transcript = ''.join(text.decode(TOKENIZER, np.asarray(lines.ids)[0, a, :int(lines.length[0, a])].tolist())
                             for a in range(4))
        assert transcript == ''.join(f'\n{line}' for _, line in episode.lines)
