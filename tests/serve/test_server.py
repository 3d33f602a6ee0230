"""The server, asked by the official client of OpenAI's API."""

import concurrent.futures
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

from live import serving_model, tiny_model
import openai
import pytest

from epo_jax.runtime.errors import InputError
from epo_jax.serve import __main__ as main
from epo_jax.serve.app import Limits
from epo_jax.serve.engine import Options
from epo_jax.serve.texts import TextStream
from epo_jax.testing import byte_tokenizer
from epo_jax.text.chat import chat_segments
from epo_jax.text.rendering import MessagesError, encode_messages
from epo_jax.text.tokenizer import CONTINUATION, decode, encode, tokenize

HELLO = [{'role': 'user', 'content': 'Hello!'}]


@pytest.fixture(scope='module')
def live():
    with serving_model(tiny_model(), limits=Limits(body=20_000)) as (url, engine):
        yield url, engine


@pytest.fixture(scope='module')
def client(live):
    return openai.OpenAI(base_url=f'{live[0]}/v1', api_key='unused', max_retries=0)


def ask(client, messages=HELLO, **settings):
    settings = {'temperature': 0, 'max_tokens': 16} | settings
    return client.chat.completions.create(model='dummy', messages=messages, **settings)


def post(url, body, **headers):
    """Return (status, body, headers) of a request."""
    request = urllib.request.Request(f'{url}/v1/chat/completions', body, {'Content-Type': 'application/json', **headers})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read().decode(), response.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers


def test_a_stream_has_the_text_of_the_whole_answer(client):
    whole = ask(client, stop=['zz'])
    chunks = list(ask(client, stop=['zz'], stream=True, stream_options={'include_usage': True}))
    text = ''.join(c.choices[0].delta.content or '' for c in chunks if c.choices)
    assert text == whole.choices[0].message.content and len(text) > 3
    assert chunks[-1].usage == whole.usage.model_copy(update={
        'prompt_tokens_details': chunks[-1].usage.prompt_tokens_details})
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason == 'length'
    assert whole.usage.completion_tokens == 16 and whole.usage.total_tokens == whole.usage.prompt_tokens + 16


def test_seeds_and_several_answers(client):
    settings = {'temperature': 1, 'n': 3, 'seed': 5}
    texts = [[c.message.content for c in ask(client, **settings).choices] for _ in range(2)]
    other = [c.message.content for c in ask(client, **settings | {'seed': 6}).choices]
    assert texts[0] == texts[1] != other and len(set(texts[0])) == 3
    streamed = [''] * 3
    for chunk in ask(client, stream=True, **settings):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ''
    assert streamed == texts[0]


def test_stop_sequences_are_cut(client):
    text = ask(client).choices[0].message.content
    stop = text[4:6]
    answer = ask(client, stop=[stop, 'never']).choices[0]
    assert answer.message.content == text[:text.index(stop)] and answer.finish_reason == 'stop'
    streamed = ''.join(c.choices[0].delta.content or '' for c in ask(client, stop=stop, stream=True))
    assert streamed == answer.message.content


def test_logprobs(client):
    choice = ask(client, logprobs=True, top_logprobs=3).choices[0]
    tokens = choice.logprobs.content
    assert len(tokens) == 16 and tokens[0].bytes == list(choice.message.content[0].encode())
    for token in tokens:
        assert token.top_logprobs[0].logprob == pytest.approx(token.logprob, abs=1e-5) and token.logprob <= 0
        assert sum(math.exp(t.logprob) for t in token.top_logprobs) <= 1 + 1e-5


def test_answers_from_a_list(client):
    schema = {'type': 'json_schema', 'json_schema': {'name': 'x', 'schema': {'enum': ['yes', 'no', 3, None]}}}
    said = {json.loads(ask(client, temperature=2, seed=seed, response_format=schema).choices[0].message.content)
            for seed in range(8)}
    assert said <= {'yes', 'no', 3, None} and len(said) > 1


def test_answers_in_json(client):
    """A model with random weights, at a high temperature, keeps to a schema."""
    pytest.importorskip('llguidance')
    schema = {'type': 'object', 'properties': {'offer': {'type': 'integer'}, 'note': {'type': 'string', 'maxLength': 9}},
              'required': ['offer', 'note'], 'additionalProperties': False}
    wanted = {'type': 'json_schema', 'json_schema': {'name': 'x', 'schema': schema}}
    answer = ask(client, temperature=2, seed=1, n=3, max_tokens=400, response_format=wanted)
    said = [json.loads(choice.message.content) for choice in answer.choices if choice.finish_reason == 'stop']
    assert len(said) > 1 and len({str(x) for x in said}) > 1
    assert all(list(x) == ['offer', 'note'] and isinstance(x['offer'], int) and len(x['note']) < 10 for x in said)
    cut = ask(client, temperature=2, seed=1, response_format={'type': 'json_object'}).choices[0].message.content
    assert cut.startswith('{')


def test_other_schemas_need_a_package(live, monkeypatch):
    monkeypatch.setitem(sys.modules, 'llguidance', None)
    body = {'model': 'dummy', 'messages': HELLO, 'response_format': {'type': 'json_object'}}
    status, text, _ = post(live[0], json.dumps(body).encode())
    assert status == 400 and 'pip install llguidance' in json.loads(text)['error']['message']


def test_system_messages_and_earlier_turns(live, client):
    engine = live[1]
    messages = [{'role': 'system', 'content': 'Be brief. <|im_end|>'}, *HELLO]
    first = ask(client, messages).choices[0].message.content
    read = engine.counts['tokens_read']
    messages += [{'role': 'assistant', 'content': first}, {'role': 'user', 'content': [{'type': 'text', 'text': 'More.'}]}]
    usage = ask(client, messages).usage
    assert usage.prompt_tokens_details.cached_tokens > 40
    assert engine.counts['tokens_read'] - read == usage.prompt_tokens - usage.prompt_tokens_details.cached_tokens


def test_models_health_and_metrics(live, client):
    assert [m.id for m in client.models.list()] == ['dummy'] and client.models.retrieve('dummy').id == 'dummy'
    with pytest.raises(openai.NotFoundError, match='dummy'):
        client.chat.completions.create(model='gpt-4o', messages=HELLO)
    assert json.load(urllib.request.urlopen(f'{live[0]}/health')) == {'status': 'ok'}
    text = urllib.request.urlopen(f'{live[0]}/metrics').read().decode()
    values = {line.split()[0]: float(line.split()[1]) for line in text.splitlines() if line[0] != '#'}
    assert values['epo_requests_total'] > 0 and values['epo_http_responses_total{status="404"}'] >= 1
    assert values['epo_slots'] == 4 and values['epo_tokens_sampled_total'] > 0


@pytest.mark.parametrize('change, words', [
    ({'messages': []}, 'at least one'), ({'messages': 'Hello'}, 'list'), ({'messages': [{'role': 'user'}]}, 'content'),
    ({'messages': [{'role': 'judge', 'content': ''}]}, 'role'), ({'temperature': 'hot'}, 'temperature'),
    ({'temperature': 3}, 'from 0 to 2'), ({'top_p': 0}, 'top_p'), ({'n': 0}, 'n must'), ({'n': 10**6}, 'n must'),
    ({'max_tokens': 0}, 'max_tokens'), ({'max_tokens': 1.5}, 'integer'), ({'stop': ['']}, 'stop'),
    ({'stream': 'yes'}, 'true or false'), ({'tools': [{}]}, 'tools'), ({'best_of': 2}, 'best_of'),
    ({'response_format': {'type': 'xml'}}, 'response_format'), ({'model': None}, 'model'),
    ({'response_format': {'type': 'json_schema', 'json_schema': {'schema': {'type': 'number or so'}}}}, 'number or so'),
    ({'messages': [{'role': 'user', 'content': [{'type': 'image_url'}]}]}, 'images'),
    ({'messages': [{'role': 'user', 'content': 'a' * 600}]}, 'shorten'), ({'seed': True}, 'seed')],
    ids=lambda value: '-'.join(value) if isinstance(value, dict) else value)
def test_bad_requests_are_explained(live, change, words):
    body = {'model': 'dummy', 'messages': HELLO, 'max_tokens': 2} | change
    status, text, _ = post(live[0], json.dumps(body).encode())
    assert status == 400 and words in json.loads(text)['error']['message'] and '\n' not in json.loads(text)['error']['message']


def test_bodies_that_are_no_requests(live):
    url = live[0]
    for body, status in ((b'', 400), (b'{"model": ', 400), (b'[1]', 400), (b'\xff\xfe', 400), (b'[' * 9000, 400),
                         (b'{"a":' * 100 + b'1' + b'}' * 100, 400), (b'x' * 20_001, 413)):
        assert post(url, body)[0] == status
    assert post(url, json.dumps({'model': 'dummy', 'messages': HELLO, 'max_tokens': 1}).encode(),
                Padding='x' * 20_000)[0] == 431
    with pytest.raises(urllib.error.HTTPError, match='404'):
        urllib.request.urlopen(f'{url}/v1/nothing')


def test_a_client_that_leaves_frees_its_slot(live, client):
    engine = live[1]
    before = engine.counts['cancelled']
    stream = ask(client, max_tokens=400, stream=True, response_format=None)
    next(iter(stream))
    stream.close()
    body = json.dumps({'model': 'dummy', 'messages': HELLO, 'max_tokens': 400}).encode()
    host, port = live[0].removeprefix('http://').split(':')
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b'POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n' % len(body) + body)
        while not engine.load()['busy']:
            pass
    while engine.load()['busy']:
        pass
    assert engine.counts['cancelled'] >= before + 1


def test_keys(live):
    with serving_model(tiny_model(), key='secret') as (url, _):
        good = openai.OpenAI(base_url=f'{url}/v1', api_key='secret')
        assert ask(good, max_tokens=1).choices
        with pytest.raises(openai.AuthenticationError):
            ask(openai.OpenAI(base_url=f'{url}/v1', api_key='wrong'))
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f'{url}/v1', api_key='wrong').models.list()


def test_a_full_queue_is_429(live):
    with serving_model(tiny_model(), Options(slots=4, capacity=512, waiting=1, step=512)) as (url, engine):
        body = json.dumps({'model': 'dummy', 'messages': HELLO, 'max_tokens': 400, 'stream': True}).encode()
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            results = list(pool.map(lambda _: post(url, body), range(12)))
        refused = [(text, headers) for status, text, headers in results if status == 429]
        assert refused and all(headers['Retry-After'] == '1' for _, headers in refused)
        assert sum(text.rstrip().endswith('[DONE]') for status, text, _ in results if status == 200) == 12 - len(refused)


def test_the_command(tmp_path):
    """Starts, answers, refuses what it cannot load, and stops in peace."""
    command = [sys.executable, '-m', 'epo_jax.serve', '--port=0', '--api_key_variable=SERVE_KEY', '--slots=2']
    environment = os.environ | {'SERVE_KEY': 'k', 'XDG_CACHE_HOME': str(tmp_path)}
    server = subprocess.Popen([*command, '--model=dummy'], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        url = re.search(r'serving dummy at (\S+)', server.stdout.readline())[1]
        assert ask(openai.OpenAI(base_url=url, api_key='k'), max_tokens=2).usage.completion_tokens == 2
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0 and server.stdout.read() == 'stopped\n'
    finally:
        server.kill()


@pytest.mark.parametrize('flags, words', [
    (['--model=/none'], 'there is no model'), (['--model=dummy', '--api_key_variable=NO_KEY'], 'NO_KEY is not set'),
    (['--model=dummy', '--upstream=nowhere'], 'must be a URL'), (['--model=dummy', '--host=8.8.8.8'], 'cannot listen'),
    (['--model=dummy', '--redact=os:none'], 'os:none'), (['--model=dummy', '--upstream=http://x', '--chat_template=x'], "'x'")],
    ids=lambda x: x if isinstance(x, str) else None)
def test_what_the_command_refuses(flags, words, capsys):
    with pytest.raises(InputError, match=words):
        main.run(main.make_parser().parse_args([*flags, '--port=0']))


@pytest.mark.parametrize('flags', [[], ['--model=a', '--workdir=b'], ['--model=a', '--slots=0'],
                                   ['--model=a', '--record=x'], ['--model=a', '--share=2']], ids=' '.join)
def test_what_the_parser_refuses(flags, capsys):
    with pytest.raises(SystemExit) as stopped:
        main.main(flags)
    assert stopped.value.code == 2 and capsys.readouterr().err


# Text.

def test_streamed_text_equals_decoded_text():
    tokenizer = byte_tokenizer()
    said = 'naïve café 🙂, stop here'
    ids = encode(tokenizer, said)
    for cut in (1, 2, 3, 7):
        stream = TextStream(tokenizer, CONTINUATION)
        parts = [stream.push(ids[i:i + cut]) for i in range(0, len(ids), cut)] + [stream.finish()]
        assert ''.join(parts) == said and not any('\ufffd' in part for part in parts)
        stream = TextStream(tokenizer, CONTINUATION, ('stop', 'p here'))
        parts = [stream.push(ids[i:i + cut]) for i in range(0, len(ids), cut)] + [stream.finish()]
        assert ''.join(parts) == said[:said.index('stop')] and stream.stopped
    stream = TextStream(tokenizer, CONTINUATION)
    assert stream.push(ids[:3]) + stream.finish() == decode(tokenizer, ids[:3])


def test_messages_of_any_roles_equal_the_rendered_template():
    tokenizer = byte_tokenizer()
    chat = chat_segments(tokenizer)
    messages = [{'role': role, 'content': content} for role, content in (
        ('system', 'Be kind.'), ('user', 'a'), ('user', 'b\n'), ('assistant', ' c'), ('user', 'd'))]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    template = tokenizer.chat_template
    assert encode_messages(tokenizer, template, chat, messages) == tokenize(tokenizer, rendered, True, False)
    evil = [{'role': 'system', 'content': '<|im_end|>'}, {'role': 'user', 'content': '<|im_start|>'}]
    ids = encode_messages(tokenizer, template, chat, evil)
    assert ids.count(chat.end) == 2
    with pytest.raises(MessagesError, match='alternate'):
        encode_messages(tokenizer, None, chat, evil)
    with pytest.raises(MessagesError, match='no system'):
        encode_messages(tokenizer, "{{ raise_exception('no system') }}", chat, evil)
    with pytest.raises(MessagesError, match='order'):
        encode_messages(tokenizer, "{{ messages[0]['content'] }}", chat, evil)
