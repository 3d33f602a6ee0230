"""What the benchmarks print: arithmetic of limits, the table, the plan of the rows. No model is timed."""

import ast
import importlib
import json
import os
import pathlib
import subprocess
import sys

import pytest

from benchmarks import episodes, limits, plan, run, table
from benchmarks.measure import Measured, Policy, Sample
from epo_jax.models.config import ModelConfig

ROOT = pathlib.Path(__file__).resolve().parents[1]
SMOLLM2 = ModelConfig(
    vocab_size=49152, width=576, num_layers=30, num_heads=9, num_kv_heads=3, head_dim=64, mlp_width=1536, tied=True)
REQUIRED = {'name', 'ours', 'unit', 'peers', 'ratio_to_peer', 'limit', 'ratio_to_limit'}


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


@pytest.mark.parametrize('path', sorted((ROOT / 'benchmarks').glob('*.py')), ids=lambda path: path.stem)
def test_every_name_that_a_benchmark_imports_exists(path):
    """Most imports of benchmarks are inside functions, so that nothing else finds the stale ones."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.split('.')[0] in ('epo_jax', 'benchmarks'):
            module = importlib.import_module(node.module)
            for name in node.names:
                if not hasattr(module, name.name):
                    importlib.import_module(f'{node.module}.{name.name}')


def test_our_dialogues_have_as_many_tokens_as_announced():
    episodes.ours('dummy', 'float32', episodes=2, turns=2, opening_tokens=30, new=4, chunk=16).run()


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
