"""The client of remote models against an endpoint that misbehaves in every known way, with fake clocks."""

import asyncio
import collections
import json
import logging
import random
import shutil
import socket
import ssl
import subprocess
import threading
import time

from fake_endpoint import FAILURES, FORMS, LOSSES, forbidden, pick, serve
import pytest

from epo_jax.agents.address import Address, parse_address
from epo_jax.agents.remote import (
    Answer,
    AnswersError,
    BudgetSpent,
    Failure,
    NoAccess,
    Refused,
    Remote,
    RemoteOptions,
    ReplayMiss,
    Request,
    Unavailable,
)
from epo_jax.runtime.errors import InputError


class Time:
    """A clock that moves only when someone sleeps, and what was printed."""

    def __init__(self):
        self.now, self.sleeps, self.lines = 0.0, [], []

    def clock(self):
        return self.now

    async def sleep(self, seconds):
        self.sleeps.append(seconds)
        await asyncio.sleep(0)
        self.now += seconds

    def remote(self, process=0, processes=1, **options):
        return Remote(RemoteOptions(**options), process, processes, self.lines.append, self.clock, self.sleep)


@pytest.fixture
def fake():
    return Time()


def echo(prompt, seed):
    return f'{prompt} {seed}'


def ask(server, prompt='hello', seed=0, role='actor', model='m', **more):
    url = server if isinstance(server, str) else server.url
    settings = {'temperature': 0.7, 'max_tokens': 100} | more
    return Request(Address(model, url), role, (('user', prompt),), seed=seed, **settings)


def test_requests_have_the_format_of_openai(fake, monkeypatch):
    monkeypatch.setenv('SOME_KEY', 'secret')
    with serve(echo) as server, fake.remote(key_variable='SOME_KEY', headers=('X-Title: epo',), body='{"top_p": 0.5}',
                                            reasoning_tokens=50) as remote:
        messages = (('system', 'be brief'), ('user', 'a'), ('assistant', 'b'), ('user', 'c'))
        address, schema = Address('m', server.url), {'type': 'object'}
        assert remote.complete([Request(address, 'judge', messages, 0.3, 7, 5, schema=schema)]) == [
            Answer('c 5', None, False, 100, 20, False)]
        assert remote.complete([Request(address, 'judge', messages, 0, 0, 2**31 + 6)])[0].text == 'c 6'
    assert server.headers[0]['authorization'] == 'Bearer secret' and server.headers[0]['x-title'] == 'epo'
    shown = [{'role': role, 'content': text} for role, text in messages]
    assert server.bodies == [
        {'model': 'm', 'messages': shown, 'temperature': 0.3, 'seed': 5, 'max_tokens': 57, 'top_p': 0.5,
         'response_format': {'type': 'json_schema', 'json_schema': {'name': 'judge', 'schema': schema, 'strict': True}}},
        {'model': 'm', 'messages': shown, 'temperature': 0, 'seed': 6, 'top_p': 0.5}]


def test_fields_can_be_left_out_and_replaced(fake):
    with serve(echo) as server, fake.remote(body='{"seed": null, "temperature": null, "max_tokens": 3}',
                                            structured='json_object') as remote:
        remote.complete([ask(server), ask(server, 'b', schema={})])
    assert [set(body) for body in server.bodies] in ([{'model', 'messages', 'max_tokens'}, {
        'model', 'messages', 'max_tokens', 'response_format'}], [{
            'model', 'messages', 'max_tokens', 'response_format'}, {'model', 'messages', 'max_tokens'}])
    assert all(body['max_tokens'] == 3 for body in server.bodies)


@pytest.mark.parametrize('path', ['', '/', '/v1', '/v1/', '/v1/chat/completions', '/v1/chat/completions/'])
def test_urls(fake, path):
    with serve(echo) as server, fake.remote() as remote:
        assert remote.complete([ask(server.url.removesuffix('/v1') + path)])[0].text == 'hello 0'
    assert server.paths == ['/v1/chat/completions']


def test_the_query_string_of_a_url_is_kept(fake, monkeypatch):
    monkeypatch.setenv('AZURE_KEY', 'abcdef')
    with serve(echo) as server, fake.remote(key_variable='', headers=('api-key: $AZURE_KEY',)) as remote:
        url = server.url.removesuffix('/v1') + '/openai/deployments/gpt/?api-version=2024-06-01&x=a%26b'
        assert remote.complete([ask(url)])[0].text == 'hello 0'
    assert server.paths == ['/openai/deployments/gpt/chat/completions?api-version=2024-06-01&x=a%26b']
    assert server.headers[0]['api-key'] == 'abcdef' and 'authorization' not in server.headers[0]


def test_a_key_goes_to_its_host_only(fake, monkeypatch):
    monkeypatch.setenv('A_KEY', 'aaa')
    monkeypatch.setenv('B_KEY', 'bbb')
    with serve(echo) as server, fake.remote(key_variable='A_KEY, localhost=B_KEY') as remote:
        remote.complete([ask(server)])
        remote.complete([ask(server.url.replace('127.0.0.1', 'localhost'))])
        remote.complete([ask(server.url.replace('//', '//me:p%40ss@'))])
    assert [headers['authorization'] for headers in server.headers] == [
        'Bearer aaa', 'Bearer bbb', 'Basic bWU6cEBzcw==']


@pytest.mark.parametrize('text, name, url', [
    ('gpt-4o@https://api.openai.com/v1', 'gpt-4o', 'https://api.openai.com/v1'),
    ('Qwen/Qwen3-8B@http://localhost:8000', 'Qwen/Qwen3-8B', 'http://localhost:8000'),
    ('a@b@http://me:pw@host/v1?x=1', 'a@b', 'http://me:pw@host/v1?x=1'), ('m@HTTPS://Host/v1', 'm', 'HTTPS://Host/v1')])
def test_addresses(text, name, url):
    address = parse_address(text)
    assert (address.name, address.url) == (name, url) and 'pw' not in f'{address} {address!r} {[address]}'


@pytest.mark.parametrize('text', ['', 'smollm2', 'OWNER/NAME@main', 'C:/models/x', 'folder@v1', 'x/y@r/file.gguf'])
def test_other_names_of_models_are_no_addresses(text):
    assert parse_address(text) is None


@pytest.mark.parametrize('text', ['m@ftp://host', 'm@http://', 'm@http://:80', 'm@http://host:port', 'm@http://[::1', '@http://h',
                                  'http://host', 'https://me:SECRET@host/v1', 'm@http://h/a b', 'm@http://h/#x',
                                  'm@http://h\n', 'm@http://h?a=1&a=2', 'm@ftp://me:SECRET@h?api_key=SECRET',
                                  'm@http://me:SEC/RET@host'])
def test_bad_addresses_are_named_without_their_secrets(text):
    with pytest.raises(InputError) as error:
        parse_address(text)
    assert 'SEC' not in str(error.value) and '\n' not in str(error.value)


def expected(prompt):
    """Return what must become of a prompt of the test of all forms."""
    form = pick(f'form {prompt}', (*FORMS, *FORMS, *LOSSES))
    failures = [pick(f'failure {i} {prompt}', FAILURES) for i in range(pick(f'count {prompt}', (0, 0, 1, 2, 3)))]
    return form, failures if pick(f'dead {prompt}', range(40)) else ['500'] * 99


@pytest.mark.parametrize('count', [300, pytest.param(1000, marks=pytest.mark.slow)])
def test_answers_in_all_forms_lose_nothing_silently(fake, tmp_path, count):
    roles = ('actor', 'partner', 'judge', 'process', 'strategist')
    prompts = [f'prompt {n} \u00e9' for n in range(count)]
    served = lambda prompt: f'said to {prompt}'
    with serve(lambda prompt, seed: served(prompt), lambda prompt: expected(prompt)[1],
               form=lambda prompt: expected(prompt)[0]) as server:
        requests = [ask(server, prompt, role=roles[n % 5]) for n, prompt in enumerate(prompts)]
        with fake.remote(retries=4, prices=('m=1,2',), cache=str(tmp_path)) as remote:
            results = remote.complete(requests)
            usage, spent = remote.usage(), remote.spent
        asked = len(server.times)
        with fake.remote(retries=4, prices=('m=1,2',), cache=str(tmp_path)) as remote:
            assert remote.spent == pytest.approx(spent)
            again = remote.complete([request for request, result in zip(requests, results)
                                     if not isinstance(result, Failure) or isinstance(result, Refused)])
            assert len(server.times) == asked and remote.spent == pytest.approx(spent)
        with fake.remote(cache=str(tmp_path), replay=True) as remote:
            replayed = remote.complete([request for request, result in zip(requests, results)
                                        if not isinstance(result, Failure) or isinstance(result, Refused)])
    assert [r if isinstance(r, Failure) else r.text for r in again] == [
        r if isinstance(r, Failure) else r.text for r in replayed]
    losses, kinds, first = collections.defaultdict(collections.Counter), collections.Counter(), iter(again)
    for request, prompt, result in zip(requests, prompts, results):
        form, failures = expected(prompt)
        kinds[form] += 1
        if len(failures) == 99:
            assert type(result) is Failure and 'no answer after 5 attempt(s); last problem: HTTP 500' in result.reason
        elif form in ('too long', 'flagged', 'too large'):
            assert type(result) is Refused and LOSSES[form] in result.reason
        elif form in LOSSES:
            assert result.text is None and LOSSES[form] in result.problem and not result.cached
            assert result.refused == (form in ('refusal', 'refusal in a part', 'filtered'))
        else:
            assert result.text == served(prompt) and result.problem is None and not result.cut
            if form in ('nulls', 'no usage', 'usage of text'):  # estimates
                assert 10 < result.prompt_tokens < 40 and 1 < result.completion_tokens < 20
            else:
                assert (result.prompt_tokens, result.completion_tokens) == (100, 20)
        if type(result) is not Failure:
            repeated = next(first)
            assert repeated == result if isinstance(result, Failure) else (
                repeated.cached and (repeated.text, repeated.problem) == (result.text, result.problem))
        reason = result.reason if isinstance(result, Failure) else result.problem
        losses[request.role][reason] += reason is not None
    assert set(kinds) == set(FORMS) | set(LOSSES)
    for role in roles:
        mine = [result for request, result in zip(requests, results) if request.role == role]
        failed = sum(isinstance(result, Failure) for result in mine)
        without = sum(isinstance(result, Answer) and result.text is None for result in mine)
        assert (usage[role].requests, usage[role].cached) == (count // 5, 0)
        assert (usage[role].failed, usage[role].without_text) == (failed, without) and failed * without
        assert sum(usage[role].losses.values()) == sum(losses[role].values()) == failed + without
        answers = [result for result in mine if isinstance(result, Answer)]
        assert usage[role].prompt_tokens == sum(answer.prompt_tokens for answer in answers)
        assert usage[role].dollars == pytest.approx(sum(
            answer.prompt_tokens + 2 * answer.completion_tokens for answer in answers) / 1e6)
    assert sum(role.dollars for role in usage.values()) == pytest.approx(spent)
    assert asked == count + sum(role.retried for role in usage.values())


@pytest.mark.parametrize('form', ['plain', 'think'])
def test_an_answer_at_its_longest_length_is_cut(fake, form):
    with serve(lambda prompt, seed: None) as server, fake.remote() as remote:
        server.failures = lambda prompt: [(200, {'choices': [{'finish_reason': 'length', 'message': {
            'content': '<think>no</think>half an' if form == 'think' else 'half an'}}]}, {})]
        answer, = remote.complete([ask(server)])
    assert answer.cut and answer.text == 'half an'


def test_halves_of_characters_are_replaced_on_both_ways(fake, tmp_path):
    said = '\ud83d\ude00 and \ud83d'
    with serve(lambda prompt, seed: said) as server:
        for replay in (False, True):
            with fake.remote(cache=str(tmp_path), replay=replay) as remote:
                answer, = remote.complete([ask(server, 'half \ude00')])
            assert answer.text == '\U0001f600 and \ufffd' and answer.text.encode()
    assert server.bodies[0]['messages'][0]['content'] == 'half \ufffd'


@pytest.mark.parametrize('refusal', [None, forbidden])
@pytest.mark.parametrize('refuses', [('temperature',), ('seed',), ('max_tokens',), ('response_format',),
                                     ('max_tokens', 'max_completion_tokens'),
                                     ('seed', 'temperature', 'max_tokens', 'response_format')])
def test_refused_parameters_are_left_out_from_then_on(fake, refuses, refusal):
    with serve(echo, refuses=refuses, refusal=refusal) as server, fake.remote(concurrency=1) as remote:
        results = remote.complete([ask(server, f'{n}', schema={'type': 'object'}) for n in range(20)])
        assert all(isinstance(result, Answer) and result.text for result in results)
        assert len(server.bodies) == 20 + len(refuses) and len(fake.lines) == len(refuses)
        for parameter, line in zip(sorted(refuses), sorted(fake.lines, key=lambda line: line.split(' is refused')[0][-12:])):
            assert 'from now on' in line and str(ask(server).address) in line
        sent = set(server.bodies[-1])
        assert not sent & set(refuses)
        if 'max_tokens' in refuses and 'max_completion_tokens' not in refuses:
            assert server.bodies[-1]['max_completion_tokens'] == 100
        assert not fake.sleeps and not sum(usage.retried for usage in remote.usage().values())


def test_parameters_that_simultaneous_requests_lose_are_said_once(fake):
    with serve(echo, delay=0.05, refuses=('temperature',)) as server, fake.remote() as remote:
        assert all(isinstance(result, Answer) for result in remote.complete([ask(server, f'{n}') for n in range(16)]))
    assert len(fake.lines) == 1 and 'temperature is refused, so leaving it out' in fake.lines[0]


ERROR = lambda message, **more: {'error': {'message': message} | more}


@pytest.mark.parametrize('status, body, message', [
    (401, ERROR('no'), 'HTTP 401: no .check the API key'), (402, ERROR('Insufficient Balance'), 'HTTP 402'),
    (403, ERROR('no'), 'HTTP 403'), (404, ERROR('The model `m` does not exist', code='model_not_found'), 'HTTP 404'),
    (405, b'<html>', 'HTTP 405: no error message .check the URL'), (308, {}, 'HTTP 308: it redirects to no address'),
    (302, {}, 'HTTP 302'), (410, {}, 'HTTP 410'), (501, {}, 'HTTP 501'),
    (429, ERROR('You exceeded your current quota', code='insufficient_quota'), 'HTTP 429'),
    (400, ERROR('API key not valid. Please pass a valid API key.'), 'API key not valid'),
    (400, ERROR('Invalid model'), 'Invalid model'), (400, ERROR('m is not a valid model ID'), 'model ID'),
    (400, ERROR('Your credit balance is too low to access the API'), 'credit balance'),
    (400, ERROR('temperature: Input should be less than or equal to 1'), 'temperature'),
    (400, ERROR('max_tokens is too large: 100000. This model supports at most 16384 completion tokens'), 'too large'),
    (400, ERROR('Model name gpt is case sensitive: unknown model'), 'case sensitive'),
    (422, {'detail': [{'loc': ['body', 'seed'], 'msg': 'value is not a valid integer'}]}, 'HTTP 422'),
    (200, ERROR('insufficient credits', code=402), 'HTTP 402'), (200, {'error': 'unauthorized'}, 'unauthorized'),
    (200, ERROR('bad key', code='401'), 'HTTP 401')])
def test_what_concerns_all_requests_stops_at_once(fake, tmp_path, status, body, message):
    with serve(echo, lambda prompt: [(status, body, {})] * 99) as server:
        with fake.remote(concurrency=2, cache=str(tmp_path)) as remote:
            with pytest.raises(NoAccess, match=f'^m@{server.url}: .*{message}') as error:
                remote.complete([ask(server, f'{n}') for n in range(50)])
            assert len(server.times) <= 2 and '\n' not in str(error.value) and not fake.sleeps
            with pytest.raises(NoAccess, match=message):  # and from then on
                remote.complete([ask(server)])
            assert len(server.times) <= 2
        server.failures = lambda prompt: ()
        with fake.remote(cache=str(tmp_path)) as remote:  # nothing of that was kept
            assert remote.complete([ask(server)])[0].text == 'hello 0'


def test_a_refusal_without_a_known_reason_stops_after_some(fake):
    odd = (400, ERROR('Bad request'), {})
    with serve(echo, lambda prompt: [odd] * 99 if int(prompt) % 4 else ()) as server:
        with fake.remote(concurrency=1) as remote:
            results = remote.complete([ask(server, f'{n}') for n in range(40)])
            assert [isinstance(result, Failure) for result in results] == [n % 4 > 0 for n in range(40)]
            assert not any(isinstance(result, Refused) for result in results)
            with pytest.raises(NoAccess, match=r'HTTP 400: Bad request \(5 requests in succession\)'):
                remote.complete([ask(server, f'{n}') for n in range(1, 400, 4)])


def test_backoff_doubles_up_to_its_limit(fake):
    with serve(echo, lambda prompt: ['500'] * 6) as server:
        with fake.remote(backoff=1, longest_wait=10, retries=6) as remote:
            assert remote.complete([ask(server)])[0].text == 'hello 0'
            assert remote.usage()['actor'].retried == 6
    for wait, longest in zip(fake.sleeps, (1, 2, 4, 8, 10, 10), strict=True):
        assert longest / 2 <= wait <= longest
    assert len(fake.lines) == 1 and 'HTTP 500' in fake.lines[0] and 'asking again in' in fake.lines[0]


@pytest.mark.parametrize('asked, waits, said', [('0.02', 0.02, 0), ('9', 9, 0), ('30', 30, 1), ('86400', 60, 1),
                                                ('1e12', 60, 1), ('-3', 0, 0)])
def test_what_the_endpoint_asks_for_overrides_the_backoff(fake, asked, waits, said):
    slow = (429, ERROR('slow down'), {'Retry-After': asked})
    with serve(echo, lambda prompt: [slow]) as server, fake.remote(backoff=100, longest_wait=60) as remote:
        assert remote.complete([ask(server)])[0].text == 'hello 0'
    assert sum(fake.sleeps) == pytest.approx(waits)
    assert len(fake.lines) == said and all(f'asks to wait {float(asked):g} s, and all requests to it wait {waits} s' in line
                                           and 'HTTP 429: slow down' in line for line in fake.lines)


@pytest.mark.parametrize('asked', ['nan', 'inf', 'soon', ''])
def test_absurd_requests_to_wait_are_ignored(fake, asked):
    with serve(echo, lambda prompt: [(503, {}, {'Retry-After': asked})]) as server, fake.remote(backoff=4) as remote:
        assert remote.complete([ask(server)])[0].text == 'hello 0'
    assert len(fake.sleeps) == 1 and 2 <= fake.sleeps[0] <= 4


def test_a_pause_holds_all_requests_to_the_address_but_no_others(fake):
    slow = (429, {}, {'Retry-After': '50'})
    with serve(echo, lambda prompt: [slow] if prompt == '0' else ()) as server, fake.remote(concurrency=1) as remote:
        remote.complete([ask(server, '0'), ask(server, '1')])
        assert fake.now == pytest.approx(50)
        remote.complete([ask(server, '2', model='other')])
    assert fake.now == pytest.approx(50)


def test_rates_are_kept(fake):
    with serve(echo, usage=(900, 100)) as server:
        with fake.remote(requests_per_minute=30, concurrency=1) as remote:
            remote.complete([ask(server, f'{n}') for n in range(10)])
        assert fake.now == pytest.approx(9 * 2)
        fake.now = 0.0
        with fake.remote(tokens_per_minute=6000, concurrency=1) as remote:  # 1000 tokens take 10 s
            remote.complete([ask(server, f'{n}') for n in range(10)])
        assert fake.now == pytest.approx(9 * 10)
        fake.now = 0.0
        with fake.remote(1, 3, requests_per_minute=30, concurrency=1) as remote:  # one of three processes
            remote.complete([ask(server, f'{n}') for n in range(10)])
        assert fake.now == pytest.approx(9 * 6)


def test_requests_run_at_once_up_to_the_limit(fake):
    with serve(echo, delay=0.05) as server, fake.remote(concurrency=3) as remote:
        answers = remote.complete([ask(server, f'{n}', n) for n in range(12)])
        assert [answer.text for answer in answers] == [f'{n} {n}' for n in range(12)]
        assert server.peak == 3


def test_threads_share_the_limits(fake):
    results = {}
    with serve(echo, delay=0.02) as server, fake.remote(concurrency=2) as remote:
        def work(i):
            results[i] = remote.complete([ask(server, f'{i} {n}') for n in range(4)])
        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert server.peak == 2
    assert all([answer.text for answer in results[i]] == [f'{i} {n} 0' for n in range(4)] for i in range(4))


@pytest.mark.parametrize('failure', ['hang', 'trickle'])
def test_no_request_exceeds_its_timeout(fake, failure):
    with serve(echo, lambda prompt: [failure] * 9) as server, fake.remote(timeout=0.3, retries=1) as remote:
        result, = remote.complete([ask(server)])
        assert result == Failure('no answer after 2 attempt(s); last problem: no answer within 0.3 s')
        assert len(server.times) == 2


def test_an_address_without_a_server_is_reported_promptly(fake):
    with socket.socket() as closed:
        closed.bind(('127.0.0.1', 0))
        url = f'http://127.0.0.1:{closed.getsockname()[1]}'
    with fake.remote() as remote:
        with pytest.raises(NoAccess, match=f'cannot connect to m@{url}: ConnectionRefusedError'):
            remote.complete([ask(url)])
    assert len(fake.sleeps) == 2 and sum(fake.sleeps) < 4 and 'ConnectionRefusedError' in fake.lines[0]


def test_a_server_that_speaks_no_tls_is_reported_promptly(fake):
    with serve(echo) as server, fake.remote() as remote:
        with pytest.raises(NoAccess, match='cannot connect to m@https.*SSL'):
            remote.complete([ask(server.url.replace('http:', 'https:'))])
    assert len(fake.sleeps) <= 2


def test_a_certificate_that_nobody_signed_is_reported_promptly(fake, tmp_path):
    if shutil.which('openssl') is None:
        pytest.skip('needs openssl')
    subprocess.run(['openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-subj', '/CN=localhost', '-keyout',
                    tmp_path / 'key', '-out', tmp_path / 'certificate'], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / 'certificate', tmp_path / 'key')
    with serve(echo) as server, fake.remote() as remote:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        with pytest.raises(NoAccess, match='cannot connect to m@https.*CERTIFICATE_VERIFY_FAILED'):
            remote.complete([ask(server.url.replace('http:', 'https:'))])
    assert len(fake.sleeps) <= 2


def test_a_server_that_went_away_is_waited_for(fake):
    with serve(echo) as server, fake.remote(retries=7) as remote:
        remote.complete([ask(server)])
        server.failures = lambda prompt: ['reset']  # closes the connection that is kept alive
        server.shutdown()
        server.socket.close()
        result, = remote.complete([ask(server, 'again')])
    assert isinstance(result, Failure) and 'no answer after 8 attempt(s)' in result.reason and len(fake.sleeps) == 7


def test_an_endpoint_that_is_down_stops_the_run(fake):
    with serve(echo, lambda prompt: ['503'] * 99) as server, fake.remote(retries=1, concurrency=1) as remote:
        with pytest.raises(Unavailable, match='did not answer 10 requests in succession: no answer after 2 .*HTTP 503'):
            remote.complete([ask(server, f'{n}') for n in range(100)])
        assert len(server.times) == 20


def test_simultaneous_requests_do_not_exceed_the_budget(fake, tmp_path):
    with serve(echo, delay=0.01, usage=(20, 1000)) as server:  # $0.00202 of at most $0.002033 each
        options = dict(prices=('m=1,2',), budget=0.011, cache=str(tmp_path))
        with fake.remote(**options) as remote:
            with pytest.raises(BudgetSpent, match=r'budget of \$0.011 \(\$0.0101 is spent\); increase the budget'):
                remote.complete([ask(server, f'{n}', max_tokens=1000) for n in range(16)])
            assert len(server.requests) == 5 and remote.spent == pytest.approx(5 * 0.00202)
        with fake.remote(**options) as remote:  # earlier runs count
            assert remote.spent == pytest.approx(5 * 0.00202)
            paid = [int(prompt) for prompt, _ in server.requests]
            assert all(answer.cached for answer in remote.complete([
                ask(server, f'{n}', max_tokens=1000) for n in paid]))
            with pytest.raises(BudgetSpent):
                remote.complete([ask(server, 'other', max_tokens=1000)])
        assert len(server.requests) == 5
        with fake.remote(1, 2, **options | dict(budget=0.0101 + 2 * 0.005)) as remote:  # one of two processes
            with pytest.raises(BudgetSpent):
                remote.complete([ask(server, f'second {n}', max_tokens=1000) for n in range(16)])
        assert len(server.requests) == 5 + 2


def test_a_failure_costs_nothing_and_frees_its_part_of_the_budget(fake):
    with serve(echo, lambda prompt: ['500'] * 99 if prompt == '0' else (), usage=(20, 1000)) as server:
        with fake.remote(prices=('m=1,2',), budget=0.0042, retries=1) as remote:
            results = remote.complete([ask(server, f'{n}', max_tokens=1000) for n in range(3)])
            assert [isinstance(result, Failure) for result in results] == [True, False, False]
            assert remote.spent == pytest.approx(2 * 0.00202)


def test_models_without_a_price(fake):
    with serve(echo) as server, fake.remote(prices=('m=1,2',)) as remote:
        remote.complete([ask(server), ask(server, model='free')])
        usage = remote.usage()['actor']
        assert usage.unpriced == 1 and usage.dollars == pytest.approx((100 + 2 * 20) / 1e6)
    with fake.remote(prices=('m=1,2',), budget=1.0) as remote:
        for call in (lambda: remote.check(Address('free', 'http://host')), lambda: remote.complete([
                ask('http://host', model='free')])):
            with pytest.raises(InputError, match='remote.budget needs a price of \'free\': add free=INPUT,OUTPUT to remote'):
                call()


@pytest.mark.parametrize('change', [
    {'seed': 1}, {'attempt': 1}, {'role': 'judge'}, {'temperature': 0.0}, {'max_tokens': 50}, {'model': 'n'},
    {'schema': {'type': 'object'}}, {'prompt': 'hello!'}, {'url': '/v2'}], ids=str)
def test_requests_that_differ_are_different_samples(fake, tmp_path, change):
    with serve(echo, form=lambda prompt: 'plain') as server:
        with fake.remote(cache=str(tmp_path)) as remote:
            first = ask(server)
            second = ask(server.url.replace('/v1', change.pop('url', '/v1')), **change)
            remote.complete([first, second, first])
            remote.complete([second, first])
    assert len(server.times) == 2


def test_secrets_in_a_url_do_not_make_another_request(fake, tmp_path):
    with serve(echo) as server, fake.remote(cache=str(tmp_path)) as remote:
        for url in ('', '?key=1', '?key=2'):
            remote.complete([ask(server.url + url)])
        remote.complete([ask(server.url.replace('//', '//me:pw@').removesuffix('/v1'))])
        assert len(server.times) == 1
        remote.complete([ask(server.url + '?version=1')])
        assert len(server.times) == 2


def test_equal_requests_at_the_same_time_are_sent_once(fake):
    with serve(echo, delay=0.05) as server, fake.remote() as remote:
        answers = remote.complete([ask(server)] * 10)
        assert len(server.times) == 1 and [answer.cached for answer in answers].count(False) == 1
        assert remote.usage()['actor'].prompt_tokens == 100


def test_a_replay_needs_neither_network_nor_key_and_names_what_is_missing(fake, tmp_path, monkeypatch):
    with serve(echo) as server, fake.remote(cache=str(tmp_path)) as remote:
        recorded = remote.complete([ask(server, f'{n}') for n in range(5)])
    monkeypatch.setenv('OPENAI_API_KEY', 'not\nallowed')
    with fake.remote(cache=str(tmp_path), replay=True, budget=1e-9, prices=('m=1,1',)) as remote:
        remote.check(Address('m', server.url))
        replayed = remote.complete([ask(server, f'{n}') for n in range(5)])
        assert [answer.text for answer in replayed] == [answer.text for answer in recorded]
        with pytest.raises(ReplayMiss, match=r"holds no answer to a request of the actor to m@http.* \(seed 9, attempt 0\): "
                                             "'other'; run without remote.replay"):
            remote.complete([ask(server, '1'), ask(server, 'other', 9)])
        assert remote.complete([ask(server, '2')])[0].text == '2 0'  # others are answered still


def test_two_processes_ask_each_question_once_in_all_runs(fake, tmp_path):
    with serve(echo) as server:
        requests = [ask(server, f'{n}') for n in range(20)]
        with fake.remote(0, 2, cache=str(tmp_path)) as first, fake.remote(1, 2, cache=str(tmp_path)) as second:
            first.complete(requests[:12])
            second.complete(requests[8:])
            second.complete(requests)
        with fake.remote(cache=str(tmp_path)) as remote:
            assert all(answer.cached for answer in remote.complete(requests))
    assert len(server.times) == 20


def test_a_record_that_cannot_be_written_ends_the_run(fake, tmp_path):
    with serve(echo) as server, fake.remote(cache=str(tmp_path)) as remote:
        remote.complete([ask(server)])
        (tmp_path / 'answers.sqlite').write_bytes(b'damaged' * 1000)
        with pytest.raises(AnswersError, match='answers.sqlite'):
            remote.complete([ask(server, 'more')])


def test_stopping_keeps_what_is_in_flight(fake, tmp_path):
    outcome = []
    with serve(echo, delay=0.3) as server, Remote(RemoteOptions(cache=str(tmp_path), concurrency=2)) as remote:
        def work():
            with pytest.raises(Unavailable, match='stopped') as error:
                remote.complete([ask(server, f'{n}') for n in range(20)])
            outcome.append(error)
        thread = threading.Thread(target=work)
        thread.start()
        while len(server.times) < 2:
            time.sleep(0.01)
        remote.stop()
        thread.join()
        assert outcome and len(server.requests) < 20
    with fake.remote(cache=str(tmp_path), replay=True) as remote:
        for prompt, _ in server.requests:
            assert remote.complete([ask(server, prompt)])[0].cached


def test_stopping_ends_long_waits():
    with serve(echo, lambda prompt: ['500'] * 99) as server:
        with Remote(RemoteOptions(backoff=1000, longest_wait=1000), say=lambda line: remote.stop()) as remote:
            with pytest.raises(Unavailable, match='stopped'):  # would wait for 500 s
                remote.complete([ask(server)])


def test_closing_ends_everything_at_once():
    with serve(echo, lambda prompt: ['hang']) as server:
        with Remote(RemoteOptions()) as remote:
            thread = threading.Thread(target=lambda: pytest.raises(BaseException, remote.complete, [ask(server)]))
            thread.start()
            while not server.times:
                time.sleep(0.01)
        thread.join(20)
        assert not thread.is_alive()
        remote.close()


@pytest.mark.parametrize('options, message', [
    (dict(timeout=float('nan')), 'remote.timeout must be'), (dict(timeout=0), 'remote.timeout must be above 0'),
    (dict(budget=float('nan')), 'remote.budget must be'), (dict(budget=-1.0), 'remote.budget must be at least 0'),
    (dict(concurrency=0), 'remote.concurrency'), (dict(retries=-1), 'remote.retries'),
    (dict(backoff=float('inf')), 'remote.backoff'), (dict(requests_per_minute=-1), 'remote.requests_per_minute'),
    (dict(structured='yes'), 'remote.structured must be one of'), (dict(reasoning_tokens=-1), 'remote.reasoning_tokens'),
    (dict(budget=1.0), 'remote.budget needs remote.prices'), (dict(replay=True), 'remote.replay needs remote.cache'),
    (dict(prices=('m=1',)), 'remote.prices'), (dict(prices=('m=-1,2',)), 'remote.prices'),
    (dict(prices=('m=nan,2',)), 'remote.prices'), (dict(prices=('=1,2',)), 'remote.prices'),
    (dict(prices=('m=1,2', 'm=1,2')), 'remote.prices'), (dict(prices=(1,)), 'remote.prices must be text'),
    (dict(body='{'), 'remote.body must be a JSON object; it is not JSON'), (dict(body='[1]'), 'remote.body must be a'),
    (dict(body='{"a": NaN}'), 'NaN is not a JSON number'), (dict(body='{"stream": true}'), 'remote.body must not set stream'),
    (dict(body='{"n": 2, "model": ""}'), 'must not set model, n'),
    (dict(body='{"api_key": "SECRET"}'), 'must not hold secrets, as in api_key'),
    (dict(headers=('X',)), "remote.headers must be 'Name: value'"), (dict(headers=('X: a\nb',)), 'remote.headers'),
    (dict(headers=('X Y: a',)), 'remote.headers'), (dict(headers=('X: \u00e9',)), 'remote.headers'),
    (dict(headers=('api-key: SECRET',)), "write 'api-key: [$]VARIABLE'"),
    (dict(headers=('Authorization: Bearer SECRET',)), 'must not hold secrets'),
    (dict(headers=('X: $A $B',)), 'at the end of a value'),
    (dict(key_variable='sk-SECRET-1234567890'), 'remote.key_variable must be'),
    (dict(key_variable='A, B'), 'remote.key_variable must be'), (dict(key_variable='h='), 'remote.key_variable must be')],
    ids=str)
def test_bad_options_name_their_key(options, message):
    with pytest.raises(InputError, match=message) as error:
        RemoteOptions(**options)
    assert 'SECRET' not in str(error.value)


def test_a_header_takes_its_secret_from_the_environment(fake, monkeypatch):
    with fake.remote(headers=('X-Key: Token $MY_KEY',)) as remote:
        with pytest.raises(InputError, match='remote.headers: the environment variable MY_KEY is not set'):
            remote.check(Address('m', 'http://host'))
    monkeypatch.setenv('MY_KEY', 'abc\n')
    with serve(echo) as server, fake.remote(headers=('X-Key: Token $MY_KEY',)) as remote:
        remote.complete([ask(server)])
    assert server.headers[0]['x-key'] == 'Token abc'


def test_proxies_of_the_environment_are_used(fake, monkeypatch):
    with serve(echo) as proxy, fake.remote() as remote:
        monkeypatch.setenv('http_proxy', proxy.url.removesuffix('/v1'))
        monkeypatch.setenv('no_proxy', '')
        assert remote.complete([ask('http://nowhere.invalid/v1')])[0].text == 'hello 0'
    assert proxy.paths == ['http://nowhere.invalid/v1/chat/completions']


@pytest.mark.parametrize('proxy', ['socks5://127.0.0.1:1', 'nonsense://host', 'http://[::1'])
def test_a_proxy_that_cannot_be_used_is_named(fake, monkeypatch, proxy):
    monkeypatch.setenv('ALL_PROXY', proxy)
    with fake.remote() as remote:
        with pytest.raises(InputError, match='the proxy in the environment cannot be used'):
            remote.check(Address('m', 'http://host'))


@pytest.mark.parametrize('status', [200, 400, 401, 500, 308])
def test_secrets_are_nowhere(fake, tmp_path, monkeypatch, caplog, capfd, status):
    secrets = KEY, HEADER, PASSWORD, QUERY = 'sk-Xq93+/"abc==', 'hd-abcdefgh', 'pw-p@ss', 'qr-12345678'
    monkeypatch.setenv('OPENAI_API_KEY', KEY + '\n')
    monkeypatch.setenv('OTHER', HEADER)
    caplog.set_level(logging.DEBUG)
    logging.getLogger('httpx2').setLevel(logging.DEBUG)
    rng, said = random.Random(0), []
    with serve(echo) as server:
        url = server.url.replace('//', '//me:pw-p%40ss@') + f'?api_key={QUERY}&v=1'
        echoes = {'error' if status != 200 else 'x': {'message': '.' * rng.randrange(250, 290) + ' '.join(secrets)}}
        content = json.dumps({'said': ' '.join((KEY, HEADER, QUERY, PASSWORD))})
        body = echoes | {'choices': [{'message': {'content': content}}]}
        server.failures = lambda prompt: [(status, body, {'Location': f'http://x/?key={QUERY}&k={KEY[:5]}'})] * 99
        with fake.remote(retries=1, cache=str(tmp_path), headers=('X-Other: $OTHER',)) as remote:
            try:
                said += map(str, remote.complete([ask(url), ask(url, schema={})]))
            except InputError as error:
                said.append(str(error))
            said.append(str(remote.usage()) + repr(ask(url)))
    if status == 200:
        assert '***' in said[0]
    printed = capfd.readouterr()
    everything = '\n'.join([*said, *fake.lines, printed.out, printed.err, caplog.text]) + ''.join(
        path.read_bytes().decode(errors='replace') for path in tmp_path.iterdir())
    for secret in (*secrets, 'pw-p%40ss', json.dumps(KEY)[1:-1]):
        assert secret not in everything


@pytest.mark.parametrize('message', [
    'This model\'s maximum context length is 4096 tokens. However, you requested 5000 tokens.',
    "'max_tokens' or 'max_completion_tokens' is too large: 5000. This model's maximum context length is 4096 tokens and "
    'your request has 500 input tokens', 'prompt is too long: 210000 tokens > 200000 maximum',
    'the request exceeds the available context size, try increasing it',
    'The input token count (2000000) exceeds the maximum number of tokens allowed (1048576).',
    'The decoder prompt (length 5000) is longer than the maximum model length of 4096.',
    'Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8193. Given: 9000',
    "The response was filtered due to the prompt triggering Azure OpenAI's content management policy.",
    'Output data may contain inappropriate content.'])
def test_what_endpoints_say_about_one_request_fails_it_alone(fake, tmp_path, message):
    with serve(echo, lambda prompt: [(400, ERROR(message), {})] * 99 if prompt == 'long' else ()) as server:
        for _ in range(2):
            with fake.remote(cache=str(tmp_path)) as remote:
                long, short = remote.complete([ask(server, 'long'), ask(server, 'short')])
                assert isinstance(long, Refused) and message[:40] in long.reason and short.text == 'short 0'
    assert len(server.times) == 2  # it is not sent again
