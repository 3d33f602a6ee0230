"""Agents that are Python functions: their messages, seeds and failures."""

import jax
import numpy as np
import pytest

from epo_jax.agents.host import CHOOSE, CONTINUE, HostAgent, continuation, each
from epo_jax.runtime.hostcalls import Failure
from epo_jax.testing import byte_tokenizer
from epo_jax.text.tokenizer import decode, encode
from epo_jax.text.tokens import Tokens, pack

TOKENIZER = byte_tokenizer()
KEYS = jax.random.split(jax.random.key(0), 2)
EMPTY = pack([[]] * 2, 0)


def tokens(*texts):
    return pack([encode(TOKENIZER, text) for text in texts])


def texts(message):
    return [decode(TOKENIZER, row) for row in message.rows()]


def respond(agent, memory, *messages, live=(True, True), who=0):
    memory, reply = agent.respond(None, memory, [tokens(*messages)], EMPTY, None, KEYS, who, np.array(live))
    return memory, texts(reply)


def test_the_opening_begins_only_the_first_message():
    agent = HostAgent(each(lambda history, seed: f'{len(history)}'), TOKENIZER, 8)
    memory = agent.begin(None, agent.start(2), tokens('Hello. ', 'Hi. '), np.array([True, True]))
    memory, first = respond(agent, memory, 'a', 'b', live=(True, False))
    memory, second = respond(agent, memory, 'c', 'd')
    assert first == ['1', ''] and second == ['3', '1']
    assert memory.histories.tolist() == [
        (('user', 'Hello. a'), ('assistant', '1'), ('user', 'c'), ('assistant', '3')),
        (('user', 'Hi. d'), ('assistant', '1'))]


def test_begin_resets_only_the_selected_rows():
    def reply(history, seed):
        if history[-1][1].endswith('!'):
            raise ConnectionError('down')
        return 'ok'

    agent = HostAgent(each(reply), TOKENIZER, 8)
    memory, _ = respond(agent, agent.start(2), 'a!', 'b!')
    assert agent.failed(memory).tolist() == [True, True]
    assert list(agent.reasons(memory)) == ['ConnectionError: down'] * 2
    again = agent.begin(None, memory, tokens('New. ', ''), np.array([True, False]))
    assert agent.failed(again).tolist() == [False, True] and memory.histories[0] == (('user', 'a!'),)
    again, replies = respond(agent, again, 'c', 'd')
    assert replies == ['ok', ''] and again.histories[0] == (('user', 'New. c'), ('assistant', 'ok'))


def test_seeds_depend_only_on_episode_agent_and_position():
    seeds = []
    agent = HostAgent(each(lambda history, seed: seeds.append(seed) or '.'), TOKENIZER, 8)
    for who in (0, 1, 0):
        memory, _ = respond(agent, agent.start(2), 'a', 'b', who=who)
        respond(agent, memory, 'c', 'd', who=who)
    assert len(set(seeds[:8])) == 8 and seeds[8:] == seeds[:4]


def test_long_replies_are_truncated():
    agent = HostAgent(each(lambda history, seed: 'x' * 50), TOKENIZER, 8)
    assert agent.width == 8 and respond(agent, agent.start(2), 'a', 'b')[1] == ['x' * 8] * 2


SPEECH = 'Ann said: "'


@pytest.mark.parametrize('cue, closing, reply, said', [
    (SPEECH, '"', 'Hello.', 'Hello.'),
    (SPEECH, '"', 'Hello."', 'Hello.'),
    (SPEECH, '"', '"Hello."', 'Hello.'),
    (SPEECH, '"', 'said: "Hello."', 'Hello.'),
    (SPEECH, '"', 'ann said: Hello.', 'Hello.'),
    (SPEECH, '"', 'Ann said: "Hello." She smiles.', 'Hello.'),
    (SPEECH, '"', ' "They call it "art", I hear." ', 'They call it "art", I hear.'),
    (SPEECH, '"', 'I said: no.', 'I said: no.'),
    (SPEECH, '"', '', ''),
    ('Strategy:', '', 'Strategy: Ask first.', 'Ask first.'),
    ('Strategy:', '', 'Ask first.', 'Ask first.'),
    ('Action:', '', 'Action: click[Buy Now]', 'click[Buy Now]'),
    ('', '', ' "Hello." ', '"Hello."'),
])
def test_a_reply_that_repeats_its_cue_is_read_as_what_follows_it(cue, closing, reply, said):
    assert continuation(reply, cue, closing) == said


def test_the_cue_and_the_choices_are_asked_for_in_words():
    seen = []

    def replies(histories, seeds):
        seen.extend(history[-1][1] for history in histories)
        return ['Ann said: "Yes\n or no"', Failure('busy')]

    agent = HostAgent(replies, TOKENIZER, 20, one_line=True, closing='"')
    choices = Tokens(np.stack([tokens('Yes', 'No').ids] * 2), np.array([[3, 2], [0, 0]]))
    memory, message = agent.respond(
        None, agent.start(2), [tokens('Hi. ', 'Hey. ')], tokens(SPEECH, ''), choices, KEYS, 1, np.array([True, True]))
    assert seen == [f'Hi. {CONTINUE}{SPEECH}{CHOOSE}Yes\nNo', 'Hey. ']
    assert texts(message) == ['Yes or no', ''] and list(agent.reasons(memory)) == [None, 'busy']
