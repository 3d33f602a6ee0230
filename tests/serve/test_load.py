"""Many clients at once, some of them rude: nobody gets another's answer, nothing hangs, and memory stays flat."""

import asyncio
import json
import os
import random

import httpx2
import jax
from live import serving_model, tiny_model
import numpy as np
import pytest

from epo_jax.models import sampling
from epo_jax.models.sampling import SamplingConfig
from epo_jax.roles import unspeakable_ids
from epo_jax.serve.app import Limits
from epo_jax.serve.engine import Options
from epo_jax.text import tokenizer as text
from epo_jax.text.tokens import pack

TOKENS = 12


def expected_answers(loaded, questions):
    """Return the greedy answers of `sampling.generate`, without the engine."""
    language = loaded.language
    chat, model = language.chat, language.sampler()
    prompts = pack([chat.join(chat.encode(language.tokenizer, [question])) for question in questions])
    config = SamplingConfig(TOKENS, chat.stop, banned=tuple(unspeakable_ids(language) - set(chat.stop)), temperature=0.0)

    @jax.jit
    def generate(params):
        session = sampling.extend(model, params, sampling.open_session(model, len(questions), 256), prompts)
        keys = jax.random.split(jax.random.key(0), len(questions))
        return sampling.generate(model, params, session, keys, np.ones(len(questions), bool), config)[1]

    return [text.decode(language.tokenizer, row, chat.reply_lead) for row in generate(language.params).rows()]


def body_of(question, **settings):
    return {'model': 'dummy', 'messages': [{'role': 'user', 'content': question}], 'temperature': 0,
            'max_tokens': TOKENS} | settings


async def whole(client, question, expected):
    response = await client.post('/v1/chat/completions', json=body_of(question))
    assert response.json()['choices'][0]['message']['content'] == expected


async def stream(client, question, expected, pause=0.0):
    said = ''
    async with client.stream('POST', '/v1/chat/completions', json=body_of(question, stream=True)) as response:
        async for line in response.aiter_lines():
            await asyncio.sleep(pause)
            if line.startswith('data: {'):
                said += json.loads(line[6:])['choices'][0]['delta'].get('content') or ''
    assert said == expected


async def slow(client, question, expected):
    await stream(client, question, expected, 0.02)


async def marked(client, question, expected):
    """The only answer that is allowed is the question itself."""
    schema = {'type': 'json_schema', 'json_schema': {'name': 'mark', 'schema': {'const': question}}}
    response = await client.post('/v1/chat/completions', json=body_of(question, response_format=schema, max_tokens=60))
    assert json.loads(response.json()['choices'][0]['message']['content']) == question


async def leaver(client, question, expected):
    async with client.stream('POST', '/v1/chat/completions', json=body_of(question, stream=True)) as response:
        async for _ in response.aiter_lines():
            break


async def malformed(client, question, expected):
    for content in (b'{"model": "dummy", ', b'[' * 5000, b'\xff'):
        response = await client.post('/v1/chat/completions', content=content)
        assert response.status_code == 400 and response.json()['error']['message']


async def huge(client, question, expected):
    response = await client.post('/v1/chat/completions', json=body_of('x' * 100_000))
    assert response.status_code == 413


KINDS = (whole, stream, marked, slow, leaver, malformed, huge)


async def storm(url, requests, clients, check):
    """Send all requests with a number of clients at once; call `check` after each quarter."""
    async def work(client, queue):
        while queue:
            kind, question, expected = queue.pop()
            await kind(client, question, expected)

    limits = httpx2.Limits(max_connections=clients)  # each worker has a connection of its own
    async with httpx2.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        for quarter in range(4):
            queue = requests[quarter::4]
            await asyncio.gather(*(work(client, queue) for _ in range(clients)))
            check()


def resident():
    """Return the memory of this process in MB."""
    with open('/proc/self/statm', encoding='ascii') as file:
        return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 1e6


def run_storm(clients, count, different):
    loaded = tiny_model()
    questions = [f'Question {i}: what about {i * 7919 % 1000}?' for i in range(different)]
    answers = expected_answers(loaded, questions)
    assert len(set(answers)) > different // 2
    rng, memory = random.Random(0), []
    chosen = [rng.randrange(len(questions)) for _ in range(count)]
    requests = [(KINDS[i % len(KINDS)], questions[q], answers[q]) for i, q in enumerate(chosen)]
    with serving_model(loaded, Options(slots=4, capacity=512, step=512), limits=Limits(body=50_000)) as (url, engine):
        asyncio.run(asyncio.wait_for(storm(url, requests, clients, lambda: memory.append(resident())), 1800))
        while engine.load()['busy'] or engine.load()['waiting']:
            pass
        assert not engine.failure and engine.counts['failed'] == engine.counts['refused'] == 0
        assert engine.counts['finished'] + engine.counts['cancelled'] == engine.counts['requests'] >= 5 * count // 7
    return memory


def test_a_small_storm():
    run_storm(clients=16, count=56, different=8)


@pytest.mark.slow
def test_sixty_four_clients_and_two_thousand_requests():
    memory = run_storm(clients=64, count=2000, different=40)
    assert memory[-1] - memory[0] < 40
