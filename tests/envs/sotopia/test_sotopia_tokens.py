"""SOTOPIA in array code says, shows and ends what SOTOPIA in text does."""

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
    """Plays messages in turn in both forms, in slot 1 of 2, and compares all that comes back; -> state in tokens."""
    env = TokenSotopia(rules, TOKENIZER, WIDTH)
    queue = env.encode([scenario])
    rows = np.array([False, True])
    state, views = env.reset(env.start(2), queue, np.array([1, 0]), rows)
    dialogue, openings = rules.reset(scenario, (True, True))
    for view, opening in zip(views, openings):
        assert (decode(view.strategist, 1), decode(view.actor, 1)) == tuple(opening)
        assert view.strategist.length[0] == 0
    for number, message in enumerate(messages):
        seat = number % 2
        cues, wanted = env.cues(state, seat), rules.cues(dialogue, seat)
        assert (decode(cues.strategist, 1), decode(cues.actor, 1)) == tuple(wanted)
        ids = text.encode(TOKENIZER, message)
        state, seen = env.step(state, seat, pack([[], ids], 64), rows)
        dialogue, step = rules.step(dialogue, seat, message)
        for view, shown in zip(seen.observations, step.observations):
            assert (decode(view.strategist, 1), decode(view.actor, 1)) == tuple(shown)
        np.testing.assert_array_equal(np.asarray(seen.reward)[1], np.array(
            [np.nan if reward is None else reward for reward in step.rewards], np.float32))
        assert np.isnan(np.asarray(seen.reward)[0]).all()
        assert bool(seen.done[1]) == step.done and not seen.done[0] and not np.asarray(seen.failed).any()
    one = jax.tree.map(lambda x: np.asarray(x)[1:], state)
    [episode] = env.texts([scenario], one)
    assert tuple(episode.lines) == rules.transcript(dialogue, ())
    assert list(episode.judge_prompts) == [rules.judge_prompt(dialogue, seat) for seat in (0, 1)]
    return env, queue, one, episode


SCENARIO = load_scenarios('')[0]


@pytest.mark.parametrize('short', [False, True])
def test_speech_is_shown_as_in_text(short):
    rules = Sotopia(4, 2, ('speak',), short, True)
    _, _, _, episode = play(rules, SCENARIO, ['Hello there."', 'Good day.', 'How about $20?"', 'Deal.'])
    assert episode.events.count('action/speak') == 4


def test_the_last_action_and_too_many_idle_ones_end_it():
    play(Sotopia(2, 2, ('speak',), True, True), SCENARIO, ['Hello.', 'Bye.'])
    _, _, _, episode = play(Sotopia(9, 1, ('speak',), True, True), SCENARIO, ['', ''])
    assert episode.events.count('action/unparsable') == 2


def test_named_kinds_become_lines():
    env = TokenSotopia(Sotopia(6, 2), TOKENIZER, WIDTH)
    name = [c.first_name for c in SCENARIO.characters]
    state, _ = env.reset(env.start(1), env.encode([SCENARIO]), np.array([0]), np.array([True]))
    done = []
    for seat, message in ((0, 'gesture: waves'), (1, 'act: sits down'), (0, 'wait: so be it'), (1, 'leave: bye')):
        state, seen = env.step(state, seat, pack([text.encode(TOKENIZER, message)], 64), np.array([True]))
        done.append(bool(seen.done[0]))
    [episode] = env.texts([SCENARIO], state)
    assert [line for _, line in episode.lines] == [
        f'{name[0]} [gesture] waves', f'{name[1]} [action] sits down', f'{name[0]} did nothing.',
        f'{name[1]} left the conversation.']
    assert done == [False, False, False, True]
    assert episode.events == ['action/non-verbal communication', 'action/action', 'action/none', 'action/leave']


def test_a_kind_that_is_not_allowed_does_nothing():
    env = TokenSotopia(Sotopia(6, 2, ('speak',)), TOKENIZER, WIDTH)
    state, _ = env.reset(env.start(1), env.encode([SCENARIO]), np.array([0]), np.array([True]))
    state, seen = env.step(state, 0, pack([text.encode(TOKENIZER, 'leave: bye')], 64), np.array([True]))
    [episode] = env.texts([SCENARIO], state)
    assert not seen.done[0] and episode.events == ['action/none', 'action/unparsable']


def test_the_judge_reads_opening_and_lines():
    rules = Sotopia(4, 2, ('speak',), True, True)
    env, queue, state, episode = play(rules, SCENARIO, ['Hello."', 'Hi."'])
    for seat in (0, 1):
        opening, lines = env.judge_prompts(queue, state, seat)
        assert decode(opening, 0) == prompts.judge_opening(SCENARIO, seat)
        told = ''.join(text.decode(TOKENIZER, np.asarray(lines.ids)[0, a, :int(lines.length[0, a])].tolist())
                       for a in range(4))
        assert told == ''.join(f'\n{line}' for _, line in episode.lines)
