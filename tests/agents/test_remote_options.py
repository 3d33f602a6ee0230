"""Settings of remote models, and secrets, which appear nowhere."""

import json
import logging
import random

from asking import ask, echo
from fake_endpoint import serve
import pytest

from epo_jax.agents.address import Address
from epo_jax.agents.remote import RemoteOptions
from epo_jax.runtime.errors import InputError


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
