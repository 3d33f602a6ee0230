"""API keys are checked where they enter, and appear in nothing that is printed or written."""

import contextlib
import http.server
import json
import threading

import pytest

from epo_jax import label
from epo_jax.agents.remote import Address, Remote, RemoteOptions, Request
from epo_jax.config import open_workdir
from epo_jax.defaults import default_config
from epo_jax.runtime.secrets import SecretError, read_key, redact

KEY = 'sk-Xq93+/abc=='


@pytest.mark.parametrize('value, key', [('sk-1', 'sk-1'), (' sk-1\n', 'sk-1'), ('sk-1\r\n\t', 'sk-1'), ('', ''), ('\n', '')])
def test_a_key_has_no_blanks_around_it(monkeypatch, value, key):
    monkeypatch.setenv('SOME_KEY', value)
    assert read_key('SOME_KEY') == key
    monkeypatch.delenv('SOME_KEY')
    assert read_key('SOME_KEY') == ''


@pytest.mark.parametrize('value', ['sk-\n1', 'sk-\x1b1', 'sk 1', 'sk-ü', 'sk-\u20281', 'sk-\udcff'])
def test_a_key_that_no_header_can_hold_is_refused_without_repeating_it(monkeypatch, value):
    monkeypatch.setenv('SOME_KEY', value)
    with pytest.raises(SecretError, match=r'the API key in \$SOME_KEY has a character .* at position [23]') as error:
        RemoteOptions(key_variable='SOME_KEY').api_key(Address('m', 'http://host'))
    assert 'sk' not in str(error.value)


@pytest.mark.parametrize('text, expected', [
    ('https://me:pass@host/v1', 'https://***@host/v1'),
    ('https://token@host/v1?a=1', 'https://***@host/v1?a=1'),
    ('https://me:p@ss:w@host:80/v1', 'https://***@host:80/v1'),
    ('http://host/v1?api_key=K&n=1#f', 'http://host/v1?api_key=***&n=1#f'),
    ("'http://host/?model=m&api-key=K'", "'http://host/?model=m&api-key=***'"),
    ('http://host/?access_token=K http://host/?x=2', 'http://host/?access_token=*** http://host/?x=2'),
    ('http://host/?X-Amz-Signature=K&sig=L&Password=M', 'http://host/?X-Amz-Signature=***&sig=***&Password=***'),
    ('Authorization: Bearer abcdefgh1234', 'Authorization: Bearer ***'),
    (f'wrong key {KEY}!', 'wrong key ***!'),
    ('at sk-Xq93%2B%2Fabc%3D%3D', 'at ***'),
    ('mail me@example.org, 3 < 4, a=b?c', 'mail me@example.org, 3 < 4, a=b?c'),
    ('https://host/v1 and me@host', 'https://host/v1 and me@host'),
])
def test_secrets_are_left_out_and_other_text_stays(text, expected):
    assert redact(text, KEY) == expected


@contextlib.contextmanager
def telltale(status):
    """Serve an endpoint whose errors repeat everything that it was sent."""
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_POST(self):
            self.rfile.read(int(self.headers['Content-Length']))
            told = f'{"." * 150} {self.headers["Authorization"]} at {self.path}'
            body = json.dumps({'error': {'message': told}}).encode()
            self.send_response(status)
            self.send_header('Content-Length', str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=lambda: server.serve_forever(0.01), daemon=True).start()
    try:
        yield f'127.0.0.1:{server.server_address[1]}'
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize('status', [400, 401, 500])
def test_labelling_leaves_no_secret_anywhere(tmp_path, monkeypatch, capsys, status):
    monkeypatch.setenv('OPENAI_API_KEY', KEY + '\n')
    row = {'conversations': [{'from': 'human', 'value': 'hello'}, {'from': 'gpt', 'value': 'plan'}], 'score': 5}
    (tmp_path / 'raw.json').write_text(json.dumps([row]))
    ended = ''
    with telltale(status) as host:
        try:
            label.main([f'--data={tmp_path}/raw.json', f'--out={tmp_path}/out.json', '--domain=sotopia', '--retries=0',
                        f'--judge=http://me:{KEY[:8]}@{host}/v1?api_key={KEY[3:9]}'])
        except SystemExit as error:
            ended = str(error)
    printed = capsys.readouterr()
    everything = (printed.out + printed.err + ended).encode() + b''.join(
        path.read_bytes() for path in tmp_path.iterdir() if path.name != 'raw.json')
    assert b'***' in everything
    for secret in (KEY, KEY[:8], KEY[3:9]):
        assert secret.encode() not in everything
    assert not list(tmp_path.glob('.*'))


def test_the_messages_of_a_client_and_the_saved_configuration_hold_no_secret(tmp_path, monkeypatch):
    monkeypatch.setenv('OPENAI_API_KEY', KEY)
    with telltale(400) as host, Remote(RemoteOptions()) as remote:
        request = Request(Address('m', f'http://{host}'), 'actor', (('user', 'x'),), 0.7, 8, 0)
        failure, = remote.complete([request])
    assert KEY not in str(failure) and 'Bearer' in failure.reason
    with pytest.raises(ValueError) as error:
        Address('m', f'ftp://me:{KEY}@host')
    assert KEY not in str(error.value) and '***@host' in str(error.value)
    config = default_config()
    config.actor.model = f'https://me:{KEY}@host/v1?api_key={KEY}'
    open_workdir(tmp_path, config)
    assert KEY not in (tmp_path / 'config.json').read_text()
    assert open_workdir(tmp_path, config) is True  # the same configuration
