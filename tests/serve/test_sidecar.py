"""The side-car: what the upstream model reads, what the agent gets, and which conversation it is."""

import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
import urllib.error
import urllib.request

from live import Upstream, serving, sidecar, tiny_strategist
import openai
import pytest

from epo_jax.data import sharegpt
from epo_jax.serve.sidecar import Plan

ROOT = pathlib.Path(__file__).resolve().parents[2]
SYSTEM = {'role': 'system', 'content': 'Sell the lamp.'}
USER = {'role': 'user', 'content': 'Hi!'}


@pytest.fixture(scope='module')
def loaded():
    return tiny_strategist()


@pytest.fixture(scope='module')
def upstream():
    """An endpoint that answers with the number of messages and the last one."""
    return Upstream(lambda messages: f'{len(messages)}: {messages[-1]["content"]}')


@pytest.fixture(scope='module')
def upstream_url(upstream):
    with serving(upstream.app()) as url:
        yield url


@pytest.fixture(scope='module')
def advising(loaded, upstream_url, tmp_path_factory):
    folder = tmp_path_factory.mktemp('record')
    with sidecar(loaded, upstream_url, Plan(), folder) as (url, found):
        yield url, found, folder


def fetch(url, data=None, method=None, **headers):
    """Return (status, body, headers)."""
    data = json.dumps(data).encode() if isinstance(data, (dict, list)) else data
    request = urllib.request.Request(url, data, {name.replace('_', '-'): value for name, value in headers.items()},
                                     method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read(), response.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


def chat(url, messages, **headers):
    """Return (status, answer, name of the conversation)."""
    status, body, got = fetch(f'{url}/v1/chat/completions', {'model': 'm', 'messages': messages}, **headers)
    body = json.loads(body)
    return status, body['choices'][0]['message']['content'] if status == 200 else body, got['X-Epo-Conversation']


def strategy_of(message, said):
    """Return the strategy at the end of a message that the upstream model read."""
    assert message['content'].startswith(f'{said}\nAdvice: ')
    return message['content'].removeprefix(f'{said}\nAdvice: ')


def test_strategies_go_where_training_puts_them(advising, upstream):
    """In every turn, earlier strategies stay; the agent gets the answer and never sees a strategy of its own."""
    url, found, _ = advising
    messages, strategies = [SYSTEM, {'role': 'user', 'content': 'turn 0'}], []
    read = found.strategist.engine.counts['tokens_read']
    for turn in range(4):
        status, answer, name = chat(url, messages, X_Epo_Goal='Get 50 dollars.')
        body = json.loads(upstream.bodies[-1])
        assert status == 200 and body['messages'][0] == SYSTEM and body['model'] == 'm'
        users = [m for m in body['messages'] if m['role'] == 'user']
        strategies.append(strategy_of(users[-1], f'turn {turn}'))
        assert [strategy_of(m, f'turn {i}') for i, m in enumerate(users)] == strategies
        assert answer == f'{len(messages)}: turn {turn}\nAdvice: {strategies[-1]}'
        messages += [{'role': 'assistant', 'content': answer}, {'role': 'user', 'content': f'turn {turn + 1}'}]
        conversation = next(c for c in found.conversations if c.id == name)
    session = conversation.session
    assert session.turns == 4 and conversation.goal == 'Get 50 dollars.'
    assert found.strategist.engine.counts['tokens_read'] - read == session.turn.count(-1)
    assert [m.text for m in session.seen if not m.own] == [f'turn {i}' for i in range(4)]


def test_streams_come_back_unchanged(advising, upstream_url, upstream):
    url = advising[0]
    wanted = {'model': 'm', 'messages': [SYSTEM, {'role': 'user', 'content': 'stream'}], 'stream': True}
    status, through, headers = fetch(f'{url}/v1/chat/completions', wanted)
    direct = fetch(f'{upstream_url}/v1/chat/completions', upstream.bodies[-1])
    assert (status, through) == direct[:2] and headers['content-type'] == direct[2]['content-type']
    client = openai.OpenAI(base_url=f'{url}/v1', api_key='k')
    text = ''.join(c.choices[0].delta.content or '' for c in client.chat.completions.create(**wanted))
    again = [*wanted['messages'], {'role': 'assistant', 'content': text}, USER]
    name = chat(url, again, Authorization='Bearer k')[2]
    assert advising[1].conversations.get(client_digest('Bearer k'), name).session.turns == 2


def client_digest(authorization):
    import hashlib
    return hashlib.sha256(f'{authorization}\n'.encode()).hexdigest()[:16]


def test_what_is_not_understood_passes_through(advising, upstream, upstream_url):
    url = advising[0]
    for path, data, method in (('/v1/models?x=1&y=a%20b', None, None), ('/v1/files/7', None, 'DELETE'),
                               ('/v1/embeddings', b'\x00raw', None)):
        direct, through = (fetch(base + path, data, method) for base in (upstream_url, url))
        assert through[:2] == direct[:2] and through[2]['X-Kind'] == 'other'
        assert upstream.paths[-1] == upstream.paths[-2]
    for body in (b'{not json', b'{"model": "m", "messages": "hello"}', b'[]', b'{"messages":[{"role":"user"}], "n":2}'):
        direct, through = (fetch(f'{base}/v1/chat/completions', body) for base in (upstream_url, url))
        assert upstream.bodies[-1] == body and through[:2] == direct[:2] and through[2]['X-Reason'] == direct[2]['X-Reason']


def test_tools_and_parts(advising, upstream):
    """A strategy follows the result of a tool, and is a part of its own among parts."""
    url = advising[0]
    parts = [{'type': 'text', 'text': 'Look:'}, {'type': 'image_url', 'image_url': {'url': 'data:'}}]
    messages = [{'role': 'user', 'content': parts}]
    chat(url, messages)
    content = json.loads(upstream.bodies[-1])['messages'][0]['content']
    assert content[:2] == parts and content[2]['text'].startswith('\nAdvice: ')
    messages += [
        {'role': 'assistant', 'content': None, 'tool_calls': [
            {'id': '1', 'type': 'function', 'function': {'name': 'look', 'arguments': '{}'}}]},
        {'role': 'tool', 'tool_call_id': '1', 'content': 'a lamp'}]
    _, _, name = chat(url, messages)
    sent = json.loads(upstream.bodies[-1])['messages']
    assert sent[0]['content'] == content and sent[1] == messages[1] and sent[2]['content'].startswith('a lamp\nAdvice: ')
    seen = next(c for c in advising[1].conversations if c.id == name).session.seen
    assert [m.text for m in seen] == ['Look:[image_url]', '[calls look({})]', 'a lamp']


def test_conversations_do_not_meet(advising, upstream):
    """Forty agents of three clients with the same words at once: each conversation keeps its own strategies."""
    url, found, _ = advising

    def talk(number):
        client, messages, names, seen = f'Bearer {number % 3}', [SYSTEM, USER], set(), []
        for turn in range(3):
            _, answer, name = chat(url, messages, Authorization=client)
            names.add(name)
            seen.append(answer)
            messages = [*messages, {'role': 'assistant', 'content': answer}, {'role': 'user', 'content': f'{number}'}]
        return client, names, seen

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        results = list(pool.map(talk, range(40)))
    assert all(len(names) == 1 for _, names, _ in results)
    assert len({(client, *names) for client, names, _ in results}) == 40
    for client, names, seen in results:
        c = found.conversations.get(client_digest(client), *names)
        assert c.session.turns == 3 and [text for role, text in c.messages if role == 'assistant'] == seen


def test_a_second_attempt_gets_the_same_strategy(loaded):
    replies = iter([500, 'fine', 'again'])
    upstream = Upstream(lambda messages: next(replies))
    with serving(upstream.app()) as upstream_url, sidecar(loaded, upstream_url, Plan()) as (url, found):
        first, second, third = (chat(url, [SYSTEM, USER]) for _ in range(3))
        assert (first[0], second[:2]) == (500, (200, 'fine'))
        assert upstream.bodies[0] == upstream.bodies[1] and first[2] == second[2]
        assert third[2] != second[2]  # an answered request that is repeated begins another conversation
        assert found.counts['strategies'] == 2


def test_named_conversations_and_changed_histories(loaded, upstream, upstream_url):
    with sidecar(loaded, upstream_url, Plan()) as (url, found):
        chat(url, [SYSTEM, USER], X_Epo_Conversation='mine')
        assert 'x-epo-conversation' not in upstream.headers[-1]
        _, _, name = chat(url, [SYSTEM, {'role': 'user', 'content': 'A summary, and Hi.'}], X_Epo_Conversation='mine')
        conversation, = found.conversations
        assert name == 'mine' and found.counts['restarted'] == 1 and conversation.session.turns == 1
        assert chat(url, [USER], X_Epo_Conversation='x' * 200)[0] == 400


def test_a_strategy_in_the_system_message(loaded, upstream, upstream_url):
    with sidecar(loaded, upstream_url, Plan(place='system')) as (url, _):
        messages = [SYSTEM, USER]
        for turn in range(2):
            _, answer, _ = chat(url, messages)
            sent = json.loads(upstream.bodies[-1])['messages']
            assert sent[0]['content'].startswith(f'{SYSTEM["content"]}\nAdvice: ') and sent[1:] == messages[1:]
            assert sent[0]['content'].count('Advice') == 1
            messages = [*messages, {'role': 'assistant', 'content': answer}, USER]
        chat(url, [USER])
        sent = json.loads(upstream.bodies[-1])['messages']
        assert sent[0]['role'] == 'system' and sent[0]['content'].startswith('Advice: ') and sent[1] == USER


def test_arms(loaded, upstream, upstream_url):
    plan = Plan(mode='ab', share=0.3, seed=4)
    arms = [plan.arm('client', str(i)) for i in range(2000)]
    assert 0.25 < arms.count('advise') / 2000 < 0.35 and arms == [plan.arm('client', str(i)) for i in range(2000)]
    assert {Plan(mode='ab', share=share).arm('c', str(i)) for share, i in ((0.0, 1), (0.0, 2))} == {'observe'}
    with sidecar(loaded, upstream_url, Plan(mode='observe')) as (url, found):
        body = b'{"messages":  [{"role": "user", "content": "as it is"}]}'
        fetch(f'{url}/v1/chat/completions', body)
        assert upstream.bodies[-1] == body and not found.counts['strategies']


def test_a_strategist_that_cannot_answer_does_not_stop_the_agent(loaded, upstream, upstream_url):
    with sidecar(loaded, upstream_url, Plan()) as (url, found):
        long = {'role': 'user', 'content': 'long ' * 500}
        assert chat(url, [long])[0] == 200 and json.loads(upstream.bodies[-1])['messages'] == [long]
        assert found.counts['unadvised'] == 1


def test_keys(loaded, upstream, upstream_url):
    with sidecar(loaded, upstream_url, Plan(), key='ours', upstream_key='theirs') as (url, _):
        assert chat(url, [USER], Authorization='Bearer wrong')[0] == 401
        assert chat(url, [USER], Authorization='Bearer ours')[0] == 200
        assert upstream.headers[-1]['authorization'] == 'Bearer theirs'
    with sidecar(loaded, upstream_url, Plan(), key='ours') as (url, _):
        chat(url, [USER], Authorization='Bearer ours')
        assert 'authorization' not in upstream.headers[-1]
    with sidecar(loaded, upstream_url, Plan()) as (url, _):
        chat(url, [USER], Authorization='Bearer client')
        assert upstream.headers[-1]['authorization'] == 'Bearer client'


def test_an_endpoint_that_is_not_there(loaded):
    with sidecar(loaded, 'http://127.0.0.1:9/v1', Plan()) as (url, _):
        status, body, _ = chat(url, [USER])
        assert status == 502 and 'cannot be reached' in body['error']['message']


def test_outcomes(advising):
    url, found, folder = advising
    _, answer, name = chat(url, [SYSTEM, USER], Authorization='Bearer o')
    outcome = lambda body, key='o': fetch(f'{url}/v1/outcomes', body, Authorization=f'Bearer {key}')
    for body, status in (({'score': 1}, 400), ({'conversation': name}, 400), ({'conversation': name, 'score': 2}, 400),
                         ({'conversation': name, 'score': 'NaN'}, 400), ({'conversation': 'none', 'score': 1}, 404)):
        assert outcome(body)[0] == status
    assert outcome({'conversation': name, 'score': 1}, 'other')[0] == 404
    assert json.loads(outcome({'conversation': name, 'score': 0.75})[1])['already'] is False
    assert json.loads(outcome({'conversation': name, 'score': 0.1})[1])['already'] is True
    assert chat(url, [SYSTEM, USER], Authorization='Bearer o', X_Epo_Conversation=name)[0] == 409
    last = [SYSTEM, {'role': 'user', 'content': 'last'}]
    assert chat(url, last, X_Epo_Outcome='7')[0] == 400
    _, _, other = chat(url, last, X_Epo_Outcome='0.5')
    rows = {row['id']: row for path in folder.glob('conversations_*.jsonl')
            for row in map(json.loads, path.read_text().splitlines())}
    assert rows[name]['outcome'] == 0.75 and rows[other]['score'] == 0.5
    messages = sharegpt.messages(rows[name])
    assert len(messages) == 2 and messages[0]['value'].endswith('\nPartner: Hi!') and messages[1]['value'] in answer
    assert len(rows[name]['ids']) == len(rows[name]['turn']) == len(rows[name]['logprob'])
    assert all(x < 0 for x, t in zip(rows[name]['logprob'], rows[name]['turn']) if t == 0)


def test_the_example_runs_with_and_without_the_side_car(loaded, tmp_path):
    """The upstream model offers 30 dollars more in every turn; the seller agrees at 85."""
    upstream = Upstream(lambda messages: f'I offer {30 * (len(messages) // 2)} dollars.')
    command = [sys.executable, str(ROOT / 'examples' / 'negotiate.py'), 'm']

    def run(url):
        done = subprocess.run(command, capture_output=True, text=True,
                              env=os.environ | {'OPENAI_BASE_URL': f'{url}/v1', 'OPENAI_API_KEY': 'k'})
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    with serving(upstream.app()) as upstream_url, sidecar(loaded, upstream_url, Plan(), tmp_path) as (url, found):
        plain = run(upstream_url)
        assert run(url) == plain == {'paid': 70, 'score': 0.65, 'turns': 3}
        assert found.counts['closed'] == 1 and found.counts['strategies'] == 3
    row, = map(json.loads, (tmp_path / 'conversations_00001.jsonl').read_text().splitlines())
    assert row['outcome'] == 0.65 and len(row['conversations']) == 6
