"""The client of remote models: what it sends, and what it makes of answers in all their forms."""

import collections

from asking import ask, echo, error_body
from fake_endpoint import FAILURES, FORMS, LOSSES, forbidden, internal, pick, serve
import pytest

from epo_jax.agents.address import Address
from epo_jax.agents.remote import Answer, Failure, Refused, Request


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


def test_a_schema_that_makes_the_server_fail_is_left_out(fake):
    with serve(echo, refuses=('response_format',), refusal=internal) as server, fake.remote() as remote:
        assert remote.complete([ask(server, schema={'type': 'object'})])[0].text == 'hello 0'
    assert not fake.sleeps and len(server.bodies) == 2 and 'response_format is refused' in fake.lines[0]
    with serve(echo, lambda prompt: [(500, error_body('response_format'), {})]) as server, fake.remote() as remote:
        assert remote.complete([ask(server)])[0].text == 'hello 0'  # it was not sent, so the failure is a temporary one
    assert fake.sleeps


def test_parameters_that_simultaneous_requests_lose_are_said_once(fake):
    with serve(echo, delay=0.05, refuses=('temperature',)) as server, fake.remote() as remote:
        assert all(isinstance(result, Answer) for result in remote.complete([ask(server, f'{n}') for n in range(16)]))
    assert len(fake.lines) == 1 and 'temperature is refused, so leaving it out' in fake.lines[0]
