"""Endpoints that fail: what is asked again, what stops the run, and what concerns one request alone."""

import shutil
import socket
import ssl
import subprocess

from asking import ask, echo, error_body
from fake_endpoint import serve
import pytest

from epo_jax.agents.remote import Failure, NoAccess, Refused, Unavailable


@pytest.mark.parametrize('status, body, message', [
    (401, error_body('no'), 'HTTP 401: no .*API key'), (402, error_body('Insufficient Balance'), 'HTTP 402'),
    (403, error_body('no'), 'HTTP 403'), (404, error_body('The model `m` does not exist', code='model_not_found'), 'HTTP 404'),
    (405, b'<html>', 'HTTP 405: no error message .check the URL'), (308, {}, 'HTTP 308: it redirects to no address'),
    (302, {}, 'HTTP 302'), (410, {}, 'HTTP 410'), (501, {}, 'HTTP 501'),
    (429, error_body('You exceeded your current quota', code='insufficient_quota'), 'HTTP 429'),
    (400, error_body('API key not valid. Please pass a valid API key.'), 'API key not valid'),
    (400, error_body('Invalid model'), 'Invalid model'), (400, error_body('m is not a valid model ID'), 'model ID'),
    (400, error_body('Your credit balance is too low to access the API'), 'credit balance'),
    (400, error_body('temperature: Input should be less than or equal to 1'), 'temperature'),
    (400, error_body('max_tokens is too large: 100000. This model supports at most 16384 completion tokens'), 'too large'),
    (400, error_body('Model name gpt is case sensitive: unknown model'), 'case sensitive'),
    (422, {'detail': [{'loc': ['body', 'seed'], 'msg': 'value is not a valid integer'}]}, 'HTTP 422'),
    (200, error_body('insufficient credits', code=402), 'HTTP 402'), (200, {'error': 'unauthorized'}, 'unauthorized'),
    (200, error_body('bad key', code='401'), 'HTTP 401')])
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


def test_a_key_that_is_not_set_is_named(fake, monkeypatch):
    monkeypatch.delenv('MY_KEY', raising=False)
    with serve(echo) as server, fake.remote(key_variable='OTHER,127.0.0.1=MY_KEY') as remote:
        server.always = (401, error_body('Unauthorized'), {})
        with pytest.raises(NoAccess, match='HTTP 401: Unauthorized .the environment variable MY_KEY holds no API key'):
            remote.complete([ask(server)])
    monkeypatch.setenv('MY_KEY', 'wrong')
    with serve(echo) as server, fake.remote(key_variable='MY_KEY') as remote:
        server.always = (401, error_body('Unauthorized'), {})
        with pytest.raises(NoAccess, match='Unauthorized .check the API key'):
            remote.complete([ask(server)])


def test_a_refusal_without_a_known_reason_stops_after_some(fake):
    odd = (400, error_body('Bad request'), {})
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
    slow = (429, error_body('slow down'), {'Retry-After': asked})
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
    with serve(echo, lambda prompt: [(400, error_body(message), {})] * 99 if prompt == 'long' else ()) as server:
        for _ in range(2):
            with fake.remote(cache=str(tmp_path)) as remote:
                long, short = remote.complete([ask(server, 'long'), ask(server, 'short')])
                assert isinstance(long, Refused) and message[:40] in long.reason and short.text == 'short 0'
    assert len(server.times) == 2  # it is not sent again
