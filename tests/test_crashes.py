"""Runs that are killed, stopped, damaged or started twice: the status says so, and the results are those of one run."""

import json
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest

from epo_jax.runtime.files import read_jsonl

ROOT = pathlib.Path(__file__).parent.parent
FLAGS = [
    '--config=sotopia:tiny', '--config.reward.process=none', '--config.reward.outcome=epo_jax.testing:share_of_e',
    '--config.environment.max_turns=2', '--config.iterations=3', '--config.evaluation.episodes=2',
    "--config.evaluation.conditions=('none','policy')"]

pytestmark = pytest.mark.slow


def start(workdir, cache, *flags, largest_file=resource.RLIM_INFINITY):
    """Start a run of a few seconds in a process, with its output in a file beside the workdir.

    Files that it writes may have at most `largest_file` bytes.
    """
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu',
                   'JAX_COMPILATION_CACHE_DIR': str(cache), 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
    with open(log(workdir), 'a') as file:
        return subprocess.Popen([sys.executable, '-m', 'epo_jax.main', *FLAGS, f'--workdir={workdir}', *flags],
                                stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=ROOT, preexec_fn=limit)


def log(workdir):
    return workdir.with_name(f'{workdir.name}.log')


def wait_for(process, workdir, text):
    """Wait until a run has printed a text."""
    while text not in log(workdir).read_text():
        assert process.poll() is None, log(workdir).read_text()
        time.sleep(0.01)


def results(workdir):
    """Return everything that a run leaves and that does not measure time."""
    metrics = [{name: value for name, value in row.items() if not name.startswith('time/')}
               for row in read_jsonl(workdir / 'metrics.jsonl')]
    files = sorted(path.relative_to(workdir) for path in (workdir / 'episodes').iterdir())
    return metrics, json.loads((workdir / 'evaluation.json').read_text()), {
        str(name): (workdir / name).read_text() for name in files}


def output_is_clean(workdir):
    text = log(workdir).read_text()
    return 'Traceback' not in text and 'Error' not in text


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """Return the results of an uninterrupted run, its workdir, its time with a warm cache, and the cache."""
    folder = tmp_path_factory.mktemp('whole')
    cache = folder / 'cache'
    assert start(folder / 'cold', cache).wait(600) == 0, log(folder / 'cold').read_text()
    began = time.monotonic()
    assert start(folder / 'run', cache).wait(600) == 0
    seconds = time.monotonic() - began
    assert results(folder / 'cold') == results(folder / 'run')
    assert 'PyTorch' not in log(folder / 'run').read_text() and not (folder / 'run' / '.lock').exists()
    assert any(cache.iterdir())  # the cache of the user's choice
    return results(folder / 'run'), folder / 'run', seconds, cache


@pytest.mark.parametrize('kind, count', [('KILL', 30), ('TERM', 10), ('INT', 10), ('twice', 4)])
def test_signals_at_random_moments_do_not_change_the_results(tmp_path, whole, kind, count):
    """Runs get up to four signals each, in training and in evaluation, until `count` of them have interrupted one."""
    expected, _, seconds, cache = whole
    rng, sent, number = random.Random(kind), 0, 0
    while sent < count:
        workdir, status = tmp_path / f'run{number}', None
        for turn in range(4):
            process = start(workdir, cache)
            try:
                # The first signal comes early, so that it arrives in time also on a machine that has become faster.
                status = process.wait(rng.uniform(1, seconds * (0.8 if turn else 0.25)))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGTERM if kind == 'twice' else signal.Signals[f'SIG{kind}'])
                if kind == 'twice':
                    time.sleep(rng.uniform(0, 0.3))
                    process.send_signal(signal.SIGINT)
                status = process.wait(300)
            assert status in (0, -signal.SIGKILL if kind == 'KILL' else 75), log(workdir).read_text()
            sent += status != 0
            assert turn or status
            if status == 0:
                break
        if status:
            assert start(workdir, cache).wait(300) == 0, log(workdir).read_text()
        assert results(workdir) == expected and output_is_clean(workdir), log(workdir).read_text()
        number += 1


@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize('when, part', [('[iteration 1/3]', 'iteration 1:'), ('iteration 3:', 'iteration 3:')])
def test_a_stop_is_announced_and_work_goes_on_where_it_was(tmp_path, whole, signum, when, part):
    expected, _, _, cache = whole
    workdir = tmp_path / 'run'
    process = start(workdir, cache)
    wait_for(process, workdir, when)
    process.send_signal(signum)
    assert process.wait(300) == 75, log(workdir).read_text()
    lines = log(workdir).read_text().splitlines()
    assert f'{signum.name}: stopping after this iteration; a second signal stops at once' in lines
    assert lines[-1] == 'stopped: the state is saved, and the same command continues the run'
    assert [line for line in lines if line.startswith('iteration ')][-1].startswith(part)
    assert not (workdir / 'evaluation.json').exists() and not (workdir / '.lock').exists()
    assert start(workdir, cache).wait(300) == 0
    assert results(workdir) == expected and output_is_clean(workdir)


def test_a_second_run_in_a_workdir_is_refused_and_changes_nothing(tmp_path, whole):
    expected, _, _, cache = whole
    workdir = tmp_path / 'run'
    first = start(workdir, cache)
    wait_for(first, workdir, '[iteration 1/3]')
    os.rename(log(workdir), tmp_path / 'first.log')
    for flags in ((), ('--config.learner.learning_rate=0.5',)):
        second = start(workdir, cache, *flags)
        assert second.wait(300) == 1
    lines = log(workdir).read_text().splitlines()
    assert len(lines) == 2 and f'{workdir} is in use by process {first.pid} on ' in lines[0], lines
    assert first.wait(300) == 0
    assert results(workdir) == expected


@pytest.mark.parametrize('damage', ['truncated', 'emptied', 'removed'])
def test_a_damaged_newest_checkpoint_is_replaced_by_the_one_before(tmp_path, whole, damage):
    expected, finished, _, cache = whole
    workdir = tmp_path / 'run'
    shutil.copytree(finished, workdir)
    (workdir / 'evaluation.json').unlink()
    for path in (workdir / 'checkpoints' / '3').rglob('*'):
        if damage == 'truncated' and path.is_file():
            path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
        elif damage == 'emptied' and path.is_file():
            path.unlink()
    if damage == 'removed':
        shutil.rmtree(workdir / 'checkpoints' / '3' / 'state')
    assert start(workdir, cache).wait(300) == 0, log(workdir).read_text()
    text = log(workdir).read_text()
    assert 'checkpoints/3 is damaged' in text and 'continuing from checkpoint 2' in text
    assert 'resumed after iteration 2 of 3' in text and output_is_clean(workdir), text
    assert results(workdir) == expected and (workdir / 'damaged' / '3.0').is_dir()
    # Without one before, the line says so.
    shutil.rmtree(workdir / 'checkpoints' / '2')
    for path in (workdir / 'checkpoints' / '3').rglob('*'):
        if path.is_file():
            path.write_bytes(b'')
    log(workdir).unlink()
    assert start(workdir, cache).wait(300) == 1
    line, = [line for line in log(workdir).read_text().splitlines() if 'is damaged' in line]
    assert 'there is no earlier checkpoint to continue from' in line and output_is_clean(workdir)


def test_lost_and_damaged_files_of_a_run_are_named(tmp_path, whole):
    expected, finished, _, cache = whole
    workdir = tmp_path / 'run'
    shutil.copytree(finished, workdir)
    metrics = (workdir / 'metrics.jsonl').read_bytes()

    def end(*flags):
        log(workdir).unlink(missing_ok=True)
        status = start(workdir, cache, *flags).wait(300)
        return status, log(workdir).read_text().splitlines()

    (workdir / 'metrics.jsonl').write_bytes(b'{"iteration": 1}\n\xff\x00garbage\n' + metrics)
    status, (line,) = end()
    assert status == 1 and 'metrics.jsonl, line 2: not JSON' in line and 'start in a new --workdir' in line
    (workdir / 'metrics.jsonl').unlink()  # another configuration must not resume the state, even without metrics
    status, lines = end('--config.learner.learning_rate=0.5')
    assert status == 1 and 'learner.learning_rate: 0.001 (saved) != 0.5 (given)' in '\n'.join(lines)
    (workdir / 'metrics.jsonl').write_bytes(metrics + b'{"iteration": 4, "lo')  # a write that was cut off
    config = (workdir / 'config.json').read_bytes()
    (workdir / 'config.json').unlink()
    status, (line,) = end()
    assert status == 1 and 'config.json is missing' in line
    (workdir / 'config.json').write_bytes(config)
    assert end()[0] == 0
    assert results(workdir) == expected


def test_a_full_disk_is_one_line_and_the_run_continues_when_there_is_room(tmp_path, whole):
    expected, _, _, cache = whole
    disk = tmp_path / 'disk'
    disk.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', str(disk)], capture_output=True).returncode:
        pytest.skip('a small file system cannot be mounted here')
    try:
        workdir = disk / 'run'
        for kilobytes in (4090, 4060, 3980, 3400):
            (disk / 'fill').write_bytes(bytes(kilobytes * 1024))
            assert start(workdir, cache).wait(300) == 74, log(workdir).read_text()
            (disk / 'fill').unlink()
            lines = log(workdir).read_text().splitlines()
            wrong = [line for line in lines if line.startswith('error: ')]
            assert len(wrong) == 1 and 'No space left on device' in wrong[0] and lines[-1] == wrong[0]
            assert output_is_clean(workdir)
            log(workdir).unlink()
        assert start(workdir, cache).wait(300) == 0
        assert results(workdir) == expected
    finally:
        subprocess.run(['umount', str(disk)])


@pytest.mark.parametrize('largest', (500, 20_000, 60_000))
def test_a_file_that_may_not_grow_is_one_line_and_the_run_continues_when_it_may(tmp_path, whole, largest):
    """A quota or a full disk at different moments: configuration, episodes or a checkpoint cannot be written."""
    expected, _, _, cache = whole
    workdir = tmp_path / 'run'
    assert start(workdir, tmp_path / 'other cache', largest_file=largest).wait(600) == 74, log(workdir).read_text()
    lines = [line for line in log(workdir).read_text().splitlines() if line.startswith('error: ')]
    assert len(lines) == 1 and 'File too large' in lines[0], log(workdir).read_text()
    assert 'Traceback' not in log(workdir).read_text()
    assert start(workdir, cache).wait(300) == 0, log(workdir).read_text()
    assert results(workdir) == expected


def test_a_damaged_configuration_or_summary_is_one_line_or_made_again(tmp_path, whole):
    expected, finished, _, cache = whole
    workdir = tmp_path / 'run'
    shutil.copytree(finished, workdir)
    for damage in (b'', b'\xff\xfe', b'[' * 100_000):  # the scores are computed again from nothing
        (workdir / 'evaluation.json').write_bytes(damage)
        assert start(workdir, cache).wait(300) == 0, log(workdir).read_text()
        assert results(workdir) == expected and output_is_clean(workdir)
    for damage in (b'', b'{', b'\xff\xfe', b'[' * 100_000):
        log(workdir).unlink()
        (workdir / 'config.json').write_bytes(damage)
        assert start(workdir, cache).wait(300) == 1
        line, = log(workdir).read_text().splitlines()
        assert 'config.json is damaged' in line and (workdir / 'config.json').read_bytes() == damage
