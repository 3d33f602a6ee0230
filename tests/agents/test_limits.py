"""Rates, pauses and dollars, with numbers for clocks."""

import email.utils
import random

import pytest

from epo_jax.agents.limits import Budget, BudgetSpent, Pace, retry_after


@pytest.mark.parametrize('seed', range(5))
def test_any_sequence_of_requests_stays_below_its_rates(seed):
    rng = random.Random(seed)
    pace, now, starts = Pace(rng.choice([0, 30]), rng.choice([0, 1000])), 0.0, []
    for _ in range(100):
        now += rng.choice([0, 0, 0.1, 10])
        tokens = rng.randrange(200)
        starts.append((pace.reserve(now, tokens), tokens))
        assert starts[-1][0] >= now
    for (start, tokens), (later, _) in zip(starts, starts[1:]):
        needed = max(60 / pace.requests_per_minute if pace.requests_per_minute else 0,
                     60 * tokens / pace.tokens_per_minute if pace.tokens_per_minute else 0)
        assert later - start >= needed - 1e-9


def test_without_limits_requests_start_at_once():
    pace = Pace(0, 0)
    assert [pace.reserve(5.0, 10**9) for _ in range(3)] == [5.0] * 3


def test_used_tokens_replace_expected_ones():
    pace = Pace(0, 600)  # ten a second
    assert pace.reserve(0.0, 100) == 0.0
    pace.correct(50)     # 150 were used
    assert pace.reserve(0.0, 0) == 15.0
    pace.correct(-1000)  # an unused place does not allow a start in the past
    assert pace.reserve(20.0, 0) == 20.0


def test_a_pause_is_the_longest_that_was_asked_for_and_begins_once():
    pace = Pace(0, 0)
    assert pace.pause(0.0, 10) and not pace.pause(1.0, 5) and not pace.pause(1.0, 20)
    assert pace.reserve(2.0, 0) == pace.paused_until == 21.0
    assert pace.pause(30.0, 1)


@pytest.mark.parametrize('seed', range(5))
def test_a_budget_is_never_exceeded_and_used_up_to_one_request(seed):
    rng = random.Random(seed)
    budget, flying, most = Budget(10.0, 1.0), [], 0.7
    while True:
        try:
            if budget.reserve(most):
                flying.append(most)
            else:
                assert flying
        except BudgetSpent:
            break
        if flying and (len(flying) > 5 or rng.random() < 0.3):
            budget.settle(flying.pop(), rng.uniform(0, most))
        assert budget.spent + budget.reserved <= 10 + 1e-9
    while flying:
        budget.settle(flying.pop(), 0.0)
    assert 10 - most < budget.spent <= 10


def test_a_request_waits_for_others_only_if_that_can_help():
    budget = Budget(1.0)
    assert budget.reserve(0.6) and not budget.reserve(0.6)
    budget.settle(0.6, 0.1)
    assert budget.reserve(0.6) and budget.spent == 0.1
    with pytest.raises(BudgetSpent, match=r'may cost \$0.9500 and could exceed the budget of \$1 \(\$0.1000 is spent'):
        budget.reserve(0.95)
    assert Budget(0).reserve(1e9)  # no limit


@pytest.mark.parametrize('headers, seconds', [
    ({}, None), ({'retry-after': '2.5'}, 2.5), ({'retry-after': '-1'}, 0), ({'retry-after': 'soon'}, None),
    ({'retry-after': 'nan'}, None), ({'retry-after': 'inf'}, None), ({'retry-after': '1e12'}, 1e12),
    ({'retry-after': ''}, None), ({'retry-after-ms': '1500', 'retry-after': '9'}, 1.5),
    ({'retry-after-ms': 'x', 'retry-after': '9'}, 9), ({'retry-after': email.utils.formatdate(130, usegmt=True)}, 30),
    ({'retry-after': email.utils.formatdate(10, usegmt=True)}, 0),
    ({'retry-after': 'Wed, 99 Oct 2015 07:28:00 GMT'}, None), ({'retry-after': 'Wed, 21 Oct 99999 07:28:00 GMT'}, None)])
def test_what_endpoints_ask_to_wait(headers, seconds):
    assert retry_after(headers, 100.0) == seconds
