"""The record of a client: which requests are the same, replay, and several processes."""

from asking import ask, echo
from fake_endpoint import serve
import pytest

from epo_jax.agents.address import Address
from epo_jax.agents.remote import AnswersError, ReplayMiss


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
