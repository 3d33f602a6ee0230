"""Limits of remote models: rates, pauses, simultaneous requests, dollars, and the end of the client."""

import threading
import time

from asking import ask, echo
from fake_endpoint import serve
import pytest

from epo_jax.agents.address import Address
from epo_jax.agents.remote import BudgetSpent, Failure, Remote, RemoteOptions, Unavailable
from epo_jax.runtime.errors import InputError


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
