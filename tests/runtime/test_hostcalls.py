"""Errors and stalls of foreign code do not stop the run."""

import pathlib
import subprocess
import sys
import threading
import time

import pytest

from epo_jax.runtime.hostcalls import Failure, call_all

ROOT = pathlib.Path(__file__).parents[2]


def raising(error):
    def call():
        raise error
    return call


@pytest.mark.parametrize('timeout', [None, 30.0])
def test_results_come_in_the_order_of_the_calls(timeout):
    assert call_all([], timeout) == []
    assert call_all([lambda i=i: i * i for i in range(20)], timeout) == [i * i for i in range(20)]


def test_the_order_does_not_depend_on_which_call_finishes_first():
    gates = [threading.Event() for _ in range(4)]

    def call(i):
        assert i == 3 or gates[i + 1].wait(30)  # the last one finishes first
        gates[i].set()
        return i

    assert call_all([lambda i=i: call(i) for i in range(4)], 30) == [0, 1, 2, 3]


def test_without_a_limit_calls_run_one_after_the_other_in_this_thread():
    order = []
    call_all([lambda i=i: order.append((i, threading.current_thread())) for i in range(3)])
    assert order == [(i, threading.current_thread()) for i in range(3)]


@pytest.mark.parametrize('timeout', [None, 30.0])
@pytest.mark.parametrize('error, reason', [
    (ValueError('bad move'), 'ValueError: bad move'), (KeyError('x'), "KeyError: 'x'"),
    (AssertionError(), 'AssertionError'), (SystemExit(1), 'SystemExit: 1'),
    (RuntimeError('first\n  second'), 'RuntimeError: first second')])
def test_an_error_becomes_a_reason_in_one_line_and_the_other_calls_run(timeout, error, reason):
    got = call_all([lambda: 1, raising(error), lambda: 3], timeout)
    assert (got[0], got[2]) == (1, 3)
    assert isinstance(got[1], Failure) and got[1].reason.rstrip(': ') == reason


def test_the_user_can_interrupt():
    with pytest.raises(KeyboardInterrupt):
        call_all([raising(KeyboardInterrupt())])


def test_the_timeout_is_for_all_calls_and_only_stalled_ones_fail():
    never = threading.Event()
    start = time.monotonic()
    got = call_all([never.wait, lambda: 1, never.wait, never.wait, lambda: 2, *[never.wait] * 4], 0.3)
    took = time.monotonic() - start
    never.set()
    assert (got[1], got[4]) == (1, 2)
    assert [got[i] for i in (0, 2, 3, 5, 6, 7, 8)] == [Failure('no answer within 0.3 s')] * 7
    assert 0.3 <= took < 2.0  # not 0.3 for each


def test_finished_calls_do_not_wait_for_the_timeout():
    start = time.monotonic()
    assert call_all([lambda: 1] * 3, 30) == [1] * 3
    assert time.monotonic() - start < 10


def test_a_late_result_changes_nothing():
    gate, finished = threading.Event(), threading.Event()

    def late():
        gate.wait()
        finished.set()
        return 'late'

    got = call_all([late, lambda: 1], 0.1)
    before = list(got)
    gate.set()
    assert finished.wait(30)
    time.sleep(0.05)
    assert got == before == [Failure('no answer within 0.1 s'), 1]


def test_an_abandoned_call_does_not_keep_the_process_alive():
    code = ('import threading; from epo_jax.runtime.hostcalls import call_all; '
            'print(call_all([threading.Event().wait, lambda: 1], 0.1)[1], flush=True)')
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, timeout=60, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, '1\n', '')
