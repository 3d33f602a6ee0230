"""The harness of the benchmarks: contention, alternation, contenders in child processes. No model is timed."""

import os
import subprocess
import sys
import time

import pytest

from benchmarks import measure
from benchmarks.measure import BenchmarkError, Child, Contender, Policy, Sample, Unavailable

# Contenders made in child processes.

def counting(first, rehearse=False):
    """Returns first, first + 1, ... The warm-up is not counted."""
    state = {'next': first - 1, 'prepared': 0}

    def prepare():
        state['prepared'] += 1

    def work():
        time.sleep(measure.SHORTEST)
        state['next'] += 1
        return {'number': state['next'] - 1, 'prepared': state['prepared'], 'pid': os.getpid()}

    return Contender(work, prepare, rehearse=rehearse)


def not_installed():
    raise Unavailable('it is not installed')


def broken():
    raise ZeroDivisionError('seven')


def dying():
    return Contender(lambda: os._exit(7), warm_up=False)


def twice(x):
    return 2 * x


# Contention.

def test_busy_seconds_leave_out_idleness_and_count_steal():
    # user nice system idle iowait irq softirq steal guest guest_nice; guests are within user
    stat = 'cpu  100 20 30 5000 600 7 8 9 50 60\ncpu0 1 2 3 4 5 6 7 8 9 10\nintr 1\n'
    assert measure.busy_seconds(stat) == pytest.approx((100 + 20 + 30 + 7 + 8 + 9) * measure.TICK)


def test_what_the_measured_process_does_is_not_foreign():
    before = (10.0, 100.0, 5.0)
    assert measure.foreign_share(before, (20.0, 119.0, 24.0), cores=2) == 0  # 19 s on two cores, all its own
    assert measure.foreign_share(before, (20.0, 110.0, 10.0), cores=2) == pytest.approx(0.25, abs=0.01)
    assert measure.foreign_share(before, (20.0, 120.0, 5.0), cores=2) == pytest.approx(1.0, abs=0.01)


def test_a_sample_is_contended_when_another_process_computes():
    spin = subprocess.Popen([sys.executable, '-c', 'while True: pass'])
    try:
        time.sleep(0.2)
        got = measure.sample(Contender(lambda: time.sleep(measure.SHORTEST)), allowed=0.03)
    finally:
        spin.kill()
        spin.wait()
    assert got.contended and got.foreign > 0.1


class Machine:
    """One on which time passes, and processors are used, only when told; stands in for the module `time`."""

    def __init__(self, monkeypatch):
        self.now = self.busy = self.own = 0.0
        monkeypatch.setattr(measure, 'time', self)
        monkeypatch.setattr(measure, '_reading', lambda: (self.now, self.busy, self.own))

    def perf_counter(self):
        return self.now

    def sleep(self, seconds, own=0.0, others=0.0):
        self.now, self.own, self.busy = self.now + seconds, self.own + own, self.busy + own + others


def test_short_runs_are_repeated_and_preparation_is_not_timed(monkeypatch):
    machine, done = Machine(monkeypatch), []

    def prepare():
        done.append('prepare')
        machine.sleep(0.25, own=0.25)

    def work():
        done.append('run')
        machine.sleep(0.2, own=0.4)
        return {'runs': len(done) / 2}

    got = measure.sample(Contender(work, prepare), allowed=0.0)
    assert done == ['prepare', 'run'] * 3
    assert got == Sample(pytest.approx(0.2), 0.0, False, {'runs': 3})


@pytest.mark.parametrize('others, contended', [(0.0, False), (0.2, False), (0.4, True), (4.0, True)])
def test_others_may_use_a_small_share(monkeypatch, others, contended):
    machine = Machine(monkeypatch)
    monkeypatch.setattr(measure.os, 'cpu_count', lambda: 2)
    got = measure.sample(Contender(lambda: machine.sleep(4.0, own=3.9, others=others)), allowed=0.03)
    assert got.contended is contended and got.foreign == pytest.approx(others / 8, abs=0.01)


# Alternation.

class Scripted:
    """A child whose samples are contended as the script says ('c' or '.'); clean after its end."""

    def __init__(self, name, log, script=''):
        self.name, self.log, self.script = name, log, list(script)

    def sample(self):
        self.log.append(self.name)
        contended = bool(self.script) and self.script.pop(0) == 'c'
        return Sample(float(len(self.log)), 0.5 if contended else 0.0, contended)


@pytest.fixture
def quiet(monkeypatch):
    monkeypatch.setattr(measure, 'wait_until_quiet', lambda patience: True)


def test_contenders_alternate(quiet):
    log = []
    measured = measure.alternate({name: Scripted(name, log) for name in 'abc'}, Policy(samples=3))
    assert ''.join(log) == 'abcabcabc'
    assert [s.seconds for s in measured['b'].samples] == [2.0, 5.0, 8.0]
    assert measured['a'].median(lambda s: s.seconds) == 4.0


def test_contended_samples_are_refused_and_taken_again(quiet):
    log = []
    measured = measure.alternate({'a': Scripted('a', log, '.cc.'), 'b': Scripted('b', log)}, Policy(samples=2))
    assert ''.join(log) == 'abaaab'
    assert (len(measured['a'].samples), measured['a'].refused, measured['a'].contended) == (2, 2, 0)


def test_retries_are_bounded_over_all_samples_of_a_contender(quiet):
    log, told = [], []
    children = {'a': Scripted('a', log, '.c.' + 100 * 'c'), 'b': Scripted('b', log)}
    policy = Policy(samples=5, retries=3)
    measured = measure.alternate(children, policy, lambda name, s: told.append((name, s is None)))
    assert (len(measured['a'].samples), measured['a'].refused) == (2, 4)
    assert len(measured['b'].samples) == 5
    assert ('a', True) in told and log.count('a') == 6


def test_accepted_contention_is_marked(quiet):
    log = []
    measured = measure.alternate({'a': Scripted('a', log, 'c.c')}, Policy(samples=3, accept=True))
    assert (len(measured['a'].samples), measured['a'].refused, measured['a'].contended) == (3, 0, 2)


def test_waiting_for_quiet_ends(monkeypatch):
    machine = Machine(monkeypatch)
    pause = machine.sleep
    machine.sleep = lambda seconds: pause(seconds, others=seconds if machine.now < 10 else 0)
    assert not measure.wait_until_quiet(patience=5)
    assert 5 <= machine.now < 8
    assert measure.wait_until_quiet(patience=30)
    assert 10 <= machine.now < 13


# Child processes.

def test_a_child_keeps_its_contender_between_samples():
    with Child(f'{__name__}:counting', {'first': 5}) as child:
        samples = [child.sample() for _ in range(2)]
    assert [s.values['number'] for s in samples] == [5, 6]
    assert [s.values['prepared'] for s in samples] == [2, 3]  # once for the warm-up
    assert len({s.values['pid'] for s in samples} | {os.getpid()}) == 2
    assert all(s.seconds >= measure.SHORTEST for s in samples)


def test_a_rehearsal_is_not_measured():
    with Child(f'{__name__}:counting', {'first': 5, 'rehearse': True}) as child:
        samples = [child.sample() for _ in range(2)]
    assert [s.values['number'] for s in samples] == [6, 8]
    assert [s.values['prepared'] for s in samples] == [3, 5]


def test_children_report_what_went_wrong():
    with pytest.raises(Unavailable, match='not installed'):
        Child(f'{__name__}:not_installed', {})
    with pytest.raises(BenchmarkError, match='ZeroDivisionError: seven'):
        Child(f'{__name__}:broken', {})
    with Child(f'{__name__}:dying', {}) as child, pytest.raises(BenchmarkError, match='exit code 7'):
        child.sample()


def test_call_returns_the_result():
    assert measure.call(f'{__name__}:twice', x=21) == 42
