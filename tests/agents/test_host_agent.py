"""Agents that are Python functions: their messages, seeds and failures."""

import jax
import numpy as np

from epo_jax.agents.host import HostAgent
from epo_jax.testing import byte_tokenizer
from epo_jax.text.tokenizer import decode, encode
from epo_jax.text.tokens import pack

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
    agent = HostAgent(lambda history, seed: f'{len(history)}', TOKENIZER, 8)
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

    agent = HostAgent(reply, TOKENIZER, 8)
    memory, _ = respond(agent, agent.start(2), 'a!', 'b!')
    assert agent.failed(memory).tolist() == [True, True]
    assert list(agent.reasons(memory)) == ['ConnectionError: down'] * 2
    again = agent.begin(None, memory, tokens('New. ', ''), np.array([True, False]))
    assert agent.failed(again).tolist() == [False, True] and memory.histories[0] == (('user', 'a!'),)
    again, replies = respond(agent, again, 'c', 'd')
    assert replies == ['ok', ''] and again.histories[0] == (('user', 'New. c'), ('assistant', 'ok'))


def test_seeds_depend_only_on_episode_agent_and_position():
    seeds = []
    agent = HostAgent(lambda history, seed: seeds.append(seed) or '.', TOKENIZER, 8)
    for who in (0, 1, 0):
        memory, _ = respond(agent, agent.start(2), 'a', 'b', who=who)
        respond(agent, memory, 'c', 'd', who=who)
    assert len(set(seeds[:8])) == 8 and seeds[8:] == seeds[:4]


def test_long_replies_are_truncated():
    agent = HostAgent(lambda history, seed: 'x' * 50, TOKENIZER, 8)
    assert agent.width == 8 and respond(agent, agent.start(2), 'a', 'b')[1] == ['x' * 8] * 2
