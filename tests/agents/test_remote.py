"""Limits of rate, time and cost of the chat client, with a fake endpoint and a fake clock."""

import email.utils
import threading
import time

from fake_endpoint import serve
import pytest

from epo_jax.agents import remote
from epo_jax.agents.host import HostAgent
from epo_jax.agents.remote import BudgetSpent, Client, Endpoint, NoAccess, RequestRefused, Unavailable

HELLO = [{'role': 'user', 'content': 'hello'}]


def echo(prompt, seed):
    return f'{prompt} {seed}'


def call_in_threads(count, call):
    """Call a function in `count` threads; return the results or exceptions."""
    results = [None] * count

    def run(i):
        try:
            results[i] = call(i)
        except remote.RemoteError as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return results


def test_requests_have_the_format_of_openai(monkeypatch):
    monkeypatch.setenv('SOME_KEY', 'secret')
    with serve(echo) as server:
        client = Client(Endpoint(server.url, 'm', key_variable='SOME_KEY', temperature=0.3, max_tokens=7))
        assert client.complete(HELLO, 5) == remote.Answer('hello 5', 100, 20)
        assert client.reply([('user', 'a'), ('assistant', 'b'), ('user', 'c')], 1) == 'c 1'
        assert server.headers[0]['Authorization'] == 'Bearer secret'
        assert server.bodies[0] == {'model': 'm', 'messages': HELLO, 'temperature': 0.3, 'seed': 5, 'max_tokens': 7}
        assert [m['role'] for m in server.bodies[1]['messages']] == ['user', 'assistant', 'user']


@pytest.mark.parametrize('path', ['', '/', '/v1', '/v1/', '/v1/chat/completions'])
def test_urls(path):
    with serve(echo) as server:
        url = server.url.removesuffix('/v1') + path
        assert Client(Endpoint(url, 'm')).complete(HELLO, 0).text == 'hello 0'


def test_requests_run_in_parallel_up_to_the_limit():
    with serve(echo, delay=0.05) as server:
        client = Client(Endpoint(server.url, 'm', concurrency=3))
        start = time.monotonic()
        answers = call_in_threads(12, lambda i: client.complete([{'role': 'user', 'content': str(i)}], i).text)
        assert answers == [f'{i} {i}' for i in range(12)]
        assert server.peak == 3 and time.monotonic() - start < 0.05 * 12


def test_requests_per_minute():
    with serve(echo) as server:
        client = Client(Endpoint(server.url, 'm', requests_per_minute=60 / 0.05))
        call_in_threads(8, lambda i: client.complete(HELLO, i))
        times = sorted(server.times)
        assert times[-1] - times[0] >= 7 * 0.05 - 0.02


def test_tokens_per_minute_counts_used_tokens():
    with serve(echo, usage=(900, 100)) as server:  # 1000 tokens per request take 100 ms
        client = Client(Endpoint(server.url, 'm', tokens_per_minute=600_000, max_tokens=0))
        start = time.monotonic()
        [client.complete(HELLO, i) for i in range(6)]
        assert 0.45 < time.monotonic() - start < 2


def test_backoff_doubles_up_to_its_limit():
    waits = []
    with serve(echo, lambda prompt: ['500'] * 6) as server:
        end = Endpoint(server.url, 'm', backoff=1, longest_wait=10, retries=6)
        assert Client(end, sleep=waits.append).complete(HELLO, 0).text == 'hello 0'
    for wait, longest in zip(waits, (1, 2, 4, 8, 10, 10), strict=True):
        assert longest / 2 <= wait <= longest


def test_retry_after_overrides_the_backoff():
    now, waits = [0.0], []

    def sleep(seconds):
        waits.append(seconds)
        now[0] += seconds

    with serve(echo, lambda prompt: ['429']) as server:
        client = Client(Endpoint(server.url, 'm', backoff=100), clock=lambda: now[0], sleep=sleep)
        client.complete(HELLO, 0)
    assert waits == [0.02]  # the delay that the endpoint requests, not 100 s


def test_retry_after_as_a_date():
    later = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert 28 < remote._retry_after(later) <= 30
    assert remote._retry_after('2.5') == 2.5 and remote._retry_after('-1') == 0
    assert remote._retry_after('soon') is None and remote._retry_after(None) is None
    assert remote._retry_after('nan') is None and remote._retry_after('inf') is None


@pytest.mark.parametrize('failure', ['hang', 'trickle'])
def test_no_request_exceeds_its_timeout(failure):
    with serve(echo, lambda prompt: [failure] * 9) as server:
        client = Client(Endpoint(server.url, 'm', timeout=0.2, retries=1, backoff=0.01))
        start = time.monotonic()
        with pytest.raises(Unavailable, match='after 2 attempt.*no answer within 0.2 s'):
            client.complete(HELLO, 0)
        assert time.monotonic() - start < 0.8


@pytest.mark.parametrize('status, error', [('400', RequestRefused), ('422', RequestRefused), ('401', NoAccess),
                                           ('403', NoAccess), ('503', Unavailable), ('408', Unavailable)])
def test_errors_by_http_status(status, error):
    with serve(echo, lambda prompt: [status] * 9) as server:
        with pytest.raises(error, match=f'HTTP {status}'):
            Client(Endpoint(server.url, 'm', retries=2, backoff=0.001)).complete(HELLO, 0)
        assert len(server.times) == (3 if error is Unavailable else 1)


def test_parallel_requests_do_not_exceed_the_budget():
    with serve(echo, delay=0.02, usage=(1000, 1000)) as server:  # $0.002 each
        client = Client(Endpoint(server.url, 'm', prices=(1, 1), budget=0.011, max_tokens=1000, concurrency=16))
        results = call_in_threads(16, lambda i: client.complete(HELLO, i))
        assert any(isinstance(result, BudgetSpent) for result in results)
        assert client.spent == pytest.approx(0.002 * len(server.requests))
        assert 0 < client.spent <= 0.011 + 0.002 * 9  # the client cannot foresee the 1000 prompt tokens
    with pytest.raises(BudgetSpent, match='budget of .1 .* is spent'):
        Client(Endpoint('http://127.0.0.1:9', 'm', prices=(1, 1), budget=1.0), spent=1.0).complete(HELLO, 0)


def test_a_host_agent_replies_with_an_endpoint(smollm2_tokenizer):
    import jax
    import numpy as np

    from epo_jax.text import tokenizer as text
    from epo_jax.text.tokens import repeat

    with serve(lambda prompt, seed: None if 'secret' in prompt else prompt.upper()) as server:
        agent = HostAgent(Client(Endpoint(server.url, 'm')).reply, smollm2_tokenizer, 16, timeout=10)
        keys, live = jax.random.split(jax.random.key(0), 2), np.array([True, True])
        encode = lambda message: repeat(text.encode(smollm2_tokenizer, message), 2)
        memory, reply = agent.respond(None, agent.start(2), [encode('good morning')], encode(''), None, keys, 0, live)
        assert [text.decode(smollm2_tokenizer, row) for row in reply.rows()] == ['GOOD MORNING'] * 2
        memory, _ = agent.respond(None, memory, [encode('a secret')], encode(''), None, keys, 0, live)
        assert all(agent.failed(memory)) and 'declined' in memory.failures[0]
    assert [m['content'] for m in server.bodies[-1]['messages']] == ['good morning', 'GOOD MORNING', 'a secret']


@pytest.mark.parametrize('settings, message', [
    (dict(url='ftp://x'), 'not an http or https URL'), (dict(url='localhost'), 'not an http or https URL'),
    (dict(concurrency=0), 'must be positive'), (dict(timeout=0), 'must be positive'),
    (dict(budget=1.0), 'a budget requires prices')])
def test_invalid_settings_raise(settings, message):
    with pytest.raises(ValueError, match=message):
        Endpoint(**{'url': 'http://x', 'model': 'm'} | settings)


def test_stop_ends_waiting_calls():
    with serve(echo, lambda prompt: ['500'] * 99) as server:
        client = Client(Endpoint(server.url, 'm', backoff=1000, longest_wait=1000))
        threading.Timer(0.1, client.stop).start()
        start = time.monotonic()
        with pytest.raises(Unavailable, match='stopped after 1 attempt.s. .last problem: HTTP 500'):
            client.complete(HELLO, 0)
        assert time.monotonic() - start < 5
