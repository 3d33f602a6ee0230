"""The harness of the benchmarks: contention, alternation, arithmetic of limits, and the table. No model is timed."""

import ast
import json
import os
import pathlib
import subprocess
import sys
import time

import pytest

from benchmarks import episodes, limits, measure, plan, run, table
from benchmarks.measure import BenchmarkError, Child, Contender, Measured, Policy, Sample, Unavailable
from epo_jax.models.config import ModelConfig

ROOT = pathlib.Path(__file__).resolve().parents[1]
SMOLLM2 = ModelConfig(
    vocab_size=49152, width=576, num_layers=30, num_heads=9, num_kv_heads=3, head_dim=64, mlp_width=1536, tied=True)
REQUIRED = {'name', 'ours', 'unit', 'peers', 'ratio_to_peer', 'limit', 'ratio_to_limit'}


# Contenders made in child processes.

def counting(first):
    """Returns first, first + 1, ... The warm-up is not counted."""
    state = {'next': first - 1, 'prepared': 0}

    def prepare():
        state['prepared'] += 1

    def work():
        time.sleep(measure.SHORTEST)
        state['next'] += 1
        return {'number': state['next'] - 1, 'prepared': state['prepared'], 'pid': os.getpid()}

    return Contender(work, prepare)


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


def test_children_report_what_went_wrong():
    with pytest.raises(Unavailable, match='not installed'):
        Child(f'{__name__}:not_installed', {})
    with pytest.raises(BenchmarkError, match='ZeroDivisionError: seven'):
        Child(f'{__name__}:broken', {})
    with Child(f'{__name__}:dying', {}) as child, pytest.raises(BenchmarkError, match='exit code 7'):
        child.sample()


def test_call_returns_the_result():
    assert measure.call(f'{__name__}:twice', x=21) == 42


# Limits.

def test_limits_are_those_of_the_reference_machine():
    """Least ms a step and prefill tokens/s as they were worked out by hand for 30 GB/s and 210 GFLOP/s."""
    rates = limits.Rates(30e9, 210e9)
    for batch, ms in ((1, 18.4), (8, 21.5), (32, 43.5)):
        work = limits.decode(SMOLLM2, batch, 256, 64, itemsize=4)
        assert 1000 * limits.seconds(work, rates) / 64 == pytest.approx(ms, rel=0.02)
    assert 2048 / limits.seconds(limits.prefill(SMOLLM2, 8, 0, 256, 4), rates) == pytest.approx(948, rel=0.03)
    assert limits.seconds(limits.train(SMOLLM2, 4, 512, 4), rates) == pytest.approx(7.9, rel=0.07)


def by_token(config, seen, logits):
    """Operations of one token that attends to `seen` keys, product by product."""
    c, total = config, 0
    for _ in range(c.num_layers):
        for rows, columns in ((c.num_heads * c.head_dim, c.width), (c.num_kv_heads * c.head_dim, c.width),
                              (c.num_kv_heads * c.head_dim, c.width), (c.width, c.num_heads * c.head_dim),
                              (c.mlp_width, c.width), (c.mlp_width, c.width), (c.width, c.mlp_width)):
            total += 2 * rows * columns
        for _ in range(c.num_heads):
            total += 2 * seen * c.head_dim + 2 * seen * c.head_dim
    return total + (2 * c.vocab_size * c.width if logits else 0)


def test_operations_equal_a_count_token_by_token():
    config = ModelConfig(vocab_size=50, width=12, num_layers=2, num_heads=6, num_kv_heads=2, head_dim=4, mlp_width=20)
    count = lambda first, last, logits: sum(by_token(config, n, logits) for n in range(first, last + 1))
    assert limits.flops(limits.decode(config, 3, 10, 5, 4)) == 3 * count(10, 14, True)
    assert limits.flops(limits.prefill(config, 3, 10, 5, 4)) == 3 * count(11, 15, False)
    assert limits.flops(limits.train(config, 3, 16, 4)) == 3 * 3 * count(1, 16, True)


def test_a_dialogue_reads_every_token_once_in_each_seat():
    config = ModelConfig(vocab_size=50, width=12, num_layers=2, num_heads=6, num_kv_heads=2, head_dim=4, mlp_width=20)
    turns, opening, new = 5, 7, 3
    total, fed, held = 0, [0, 0], [opening, opening]
    for t in range(turns):
        seat = t % 2
        context = held[seat] - 1  # the last one begins the sampling
        total += sum(by_token(config, n + 1, False) for n in range(fed[seat], context))
        total += sum(by_token(config, n + 1, True) for n in range(context, context + new))
        fed[seat], held[seat] = context + new, held[seat] + new
        held[1 - seat] += new
    assert limits.flops(limits.dialogue(config, 2, turns, opening, new, 4)) == 2 * total


def test_each_step_is_held_to_what_limits_it():
    work = (limits.Step(100, 1), limits.Step(1, 1000))
    assert limits.seconds(work, limits.Rates(10, 50)) == 10 + 20


# The table.

def measured(*values, refused=0, contended=False):
    return Measured(tuple(Sample(seconds, 0.2 if contended else 0.0, contended, dict(extra))
                          for seconds, extra in values), refused)


def speed_group():
    """A hundred tokens in ten steps; one contender does a quarter of them, another computes in another precision."""
    entries = {
        plan.OURS: plan.Entry('m:f', {}), 'slow': plan.Entry('m:f', {}), 'part': plan.Entry('m:f', {}, amount=25),
        'coarse': plan.Entry('m:f', {}, equal=False)}
    work = (limits.Step(100.0, 10.0),) * 10
    return plan.Group((plan.Row('decode_b1', 'tokens/s'),), entries, work, amount=100, steps=10, what='work')


def test_rates_of_work():
    ours, slow = measured((4.0, {}), (5.0, {}), (6.0, {})), measured((9.0, {}), (10.0, {}), (20.0, {}))
    part, coarse = measured((2.0, {}), (2.0, {}), (2.0, {})), measured((1.0, {}), (1.0, {}), (1.0, {}))
    row, = table.rows_of(speed_group(), {plan.OURS: ours, 'slow': slow, 'part': part, 'coarse': coarse},
                         limits.Rates(1000.0, 50.0), Policy(samples=3), {})
    assert row.keys() >= REQUIRED
    assert row['ours'] == 20 and row['peers'] == {'slow': 10, 'part': 12.5}
    assert row['other_precision'] == {'coarse': 100}
    assert row['ratio_to_peer'] == pytest.approx(20 / 12.5) and row['best_peer'] == 'part'
    assert row['limit'] == pytest.approx(100 / 2.0)  # ten steps of max(0.1, 0.2) seconds
    assert row['ratio_to_limit'] == pytest.approx(0.4)
    assert row['details']['ms_per_step'] == pytest.approx(
        {plan.OURS: 500, 'slow': 1000, 'part': 800, 'coarse': 100, 'limit': 200})
    assert row['details']['share_of_gemm_rate'][plan.OURS] == pytest.approx(100 / 5 / 50)
    assert row['clean'] and not row['notes']


def test_less_is_better_for_seconds_and_bytes():
    rows = (plan.Row('train', 'tokens/s'), plan.Row('train_memory', 'MB', 'memory', ('state', 1.8)),
            plan.Row('train_peak', 'MB', 'peak', None))
    group = plan.Group(rows, {name: plan.Entry('m:f', {}) for name in (plan.OURS, 'a', 'b')}, amount=8)
    got = table.rows_of(
        group, {plan.OURS: measured((2.0, {'memory': 9e6, 'state': 10e6, 'peak': 20e6})),
                'a': measured((1.0, {'peak': 30e6})), 'b': measured((4.0, {'peak': 80e6}))},
        None, Policy(samples=1), {})
    speed, memory, peak = got
    assert speed['ratio_to_peer'] == pytest.approx(0.5) and speed['limit'] is None
    assert (memory['ours'], memory['peers'], memory['ratio_to_peer']) == (9, {}, None)
    assert memory['limit'] == pytest.approx(18) and memory['ratio_to_limit'] == pytest.approx(2)
    assert peak['best_peer'] == 'a' and peak['ratio_to_peer'] == pytest.approx(1.5) and peak['limit'] is None
    assert table.in_unit('episodes/min', 30.0, 8) == 16


def test_a_row_says_what_is_missing():
    fine = measured((4.0, {}), (4.0, {}))
    few = measured((5.0, {}), refused=11)
    rows = table.rows_of(
        speed_group(), {plan.OURS: Measured(refused=11), 'slow': few, 'part': fine}, None, Policy(samples=2),
        {'coarse': 'it is not installed'})
    row, = rows
    assert row['ours'] is None and row['ratio_to_peer'] is None and row['limit'] is None
    assert not row['clean'] and row['samples'][plan.OURS]['refused'] == 11 and row['peers']['slow'] == 20
    text = ' '.join(row['notes'])
    assert 'coarse: it is not installed' in text and 'slow: only 1 of 2 clean samples, 11 refused' in text
    dirty = {name: fine for name in speed_group().entries} | {'rates of x': measured((1.0, {}), contended=True)}
    rated, = table.rows_of(speed_group(), dirty, limits.Rates(1.0, 1.0), Policy(samples=1, accept=True), {})
    assert not rated['clean'] and rated['notes'] == ['rates of x: 1 of 1 samples CONTENDED']
    marked, = table.rows_of(
        speed_group(), {name: measured((4.0, {}), (4.0, {}), contended=True) for name in speed_group().entries},
        limits.Rates(1.0, 1.0), Policy(samples=2, accept=True), {})
    assert not marked['clean'] and marked['ours'] == 25 and 'CONTENDED' in ' '.join(marked['notes'])
    assert 'NOT CLEAN' in table.show([marked])


def result(rows):
    return {'machine': run.machine(['cpu: cpu']), 'versions': run.versions(), 'commit': run.commit(), 'date': 'today',
            'precision': 'float32', 'quick': False, 'settings': {'samples': 2}, 'rows': rows}


def test_files_are_json_and_markdown(tmp_path):
    group = speed_group()
    rows = table.rows_of(
        group, {plan.OURS: measured((4.0, {'programs': 12})), 'slow': measured((8.0, {}))},
        limits.Rates(1000.0, 50.0), Policy(samples=1), {'part': 'no', 'coarse': 'no'})
    run.write(tmp_path / 'x.json', result(rows))
    read = json.loads((tmp_path / 'x.json').read_text())
    assert read.keys() >= {'machine', 'versions', 'commit', 'rows'} and read['rows'][0].keys() >= REQUIRED
    lines = (tmp_path / 'x.md').read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines if line.startswith('|')]
    assert len({len(row) for row in cells}) == 1
    assert cells[2][:3] == ['decode_b1', '25', 'tokens/s'] and '2.00' in cells[2] and '400 / 800 / 200' in cells[2]
    assert any('programs 12' in line and 'part: no' in line for line in lines)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['x.json', 'x.md']


# The plan.

def planned(**options):
    peer = {'config': SMOLLM2, 'shape': {'vocab_size': 49152}, 'folder': '/f',
            'gguf': {'float32': 'a.gguf', 'as shipped': 'b.gguf'}}
    return plan.groups(plan.Settings(), 'smollm2', peer, 'float32', 'cpu', **options)


def test_all_rows_are_planned():
    assert set(plan.names(planned())) >= {
        'decode_b1', 'decode_b8', 'decode_b32', 'prefill', 'train', 'train_1024', 'train_1024_memory', 'episodes',
        'compile_cold', 'compile_warm'}
    assert [g.rows[0].name for g in plan.only(planned(), ['train_memory', 'episodes'])] == ['train', 'episodes']
    with pytest.raises(ValueError, match="'decode_b9'.*decode_b8"):
        plan.only(planned(), ['decode_b9'])
    assert plan.Settings().samples >= 5
    assert all(list(group.entries)[0] == plan.OURS for group in planned())


def test_other_precisions_are_not_compared_with():
    extra = {name for group in planned(extra=True) for name, entry in group.entries.items() if not entry.equal}
    assert extra == {'transformers bfloat16', 'llama.cpp Q4_1'}


def test_every_contender_exists_and_takes_its_options():
    for group in planned(extra=True):
        for entry in group.entries.values():
            module, name = entry.factory.split(':')
            tree = ast.parse((ROOT / f'{module.replace(".", "/")}.py').read_text())
            function = next(x for x in tree.body if isinstance(x, ast.FunctionDef) and x.name == name)
            assert {a.arg for a in function.args.args} == set(entry.options), entry.factory


def test_histories_are_what_each_seat_has_heard():
    assert episodes.histories([], 'AB', 0) == ['A']
    assert episodes.histories(['x'], 'AB', 1) == ['Bx']
    assert episodes.histories(['x', 'y', 'z'], 'AB', 1) == ['Bx', 'y', 'z']
    assert episodes.histories(['x', 'y', 'z', 'w'], 'AB', 0) == ['A', 'x', 'y', 'z', 'w']


def test_without_a_gpu_the_command_says_so(tmp_path):
    command = [sys.executable, '-m', 'benchmarks.run', f'--out={tmp_path}/x.json', '--gpu']
    env = os.environ | {'JAX_PLATFORMS': 'cpu'}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
    assert done.returncode == 1 and 'no GPU found' in done.stderr and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_end_to_end(tmp_path):
    pytest.importorskip('torch')
    command = [sys.executable, '-m', 'benchmarks.run', f'--out={tmp_path}/x.json', '--quick', '--model=dummy',
               '--allow_contention']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = {row['name']: row for row in json.loads((tmp_path / 'x.json').read_text())['rows']}
    assert rows.keys() == set(plan.names(planned()))
    for name, row in rows.items():
        assert row.keys() >= REQUIRED and row['ours'] > 0
        assert 'memory' in name or 'compile' in name or row['ratio_to_peer'] > 0
    assert rows['compile_warm']['details']['ours']['warm_programs'] == 0
    assert 0 < rows['train_memory']['ours'] < 100
