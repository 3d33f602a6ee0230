"""A claim belongs to one process, says who that is, and ends with it."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading

import pytest

from epo_jax.runtime.locks import InUseError, UnwritableError, claim, directory

HOLDER = '''
    import sys, time
    from epo_jax.runtime.locks import claim
    with claim(sys.argv[1]):
        print('ready', flush=True)
        time.sleep(60)
'''


def hold(path):
    """Start a process that holds a claim."""
    process = subprocess.Popen([sys.executable, '-c', textwrap.dedent(HOLDER), str(path)], stdout=subprocess.PIPE,
                               text=True)
    assert process.stdout.readline() == 'ready\n'
    return process


@pytest.mark.parametrize('name', ['workdir', 'out.json'])
def test_a_claim_names_its_holder_and_ends_with_it(tmp_path, name):
    (tmp_path / 'workdir').mkdir()
    path = tmp_path / name
    process = hold(path)
    try:
        with pytest.raises(InUseError) as error, claim(path):
            pass
        assert str(error.value).startswith(f'{path} is in use by process {process.pid} on {socket.gethostname()}, '
                                           'since 20')
        assert '\n' not in str(error.value)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    with claim(path):  # the file of the killed process is still there
        pass
    assert [entry.name for entry in tmp_path.rglob('*')] == ['workdir']


def test_a_claim_excludes_other_threads_of_its_process_and_can_be_repeated(tmp_path):
    path = tmp_path / 'out.json'
    for _ in range(3):
        with claim(path):
            with pytest.raises(InUseError, match=f'process {os.getpid()} on'), claim(path):
                pass
    with pytest.raises(KeyError), claim(path):
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_of_many_claims_at_once_one_holds_at_a_time(tmp_path):
    """The file of a lock is removed by each holder, so others must notice that theirs is no longer the one."""
    path, inside, seen, refused = tmp_path / 'out.json', [], [], []

    def work():
        for _ in range(200):
            try:
                with claim(path):
                    inside.append(1)
                    seen.append(len(inside))
                    inside.pop()
            except InUseError:
                refused.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(seen) == {1} and len(seen) + len(refused) == 800


def test_a_file_system_without_locks_is_named_once(tmp_path, monkeypatch, capsys):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr(fcntl, 'flock', no_locks)
    with claim(tmp_path):
        pass
    line, = capsys.readouterr().err.splitlines()
    assert line == (f'warning: the file system of {tmp_path} has no locks (No locks available); make sure that no other '
                    'process writes there')


def test_what_cannot_be_written_is_named(tmp_path):
    (tmp_path / 'file').write_text('')
    for path in (tmp_path / 'file' / 'workdir', '/proc/epo/run'):
        with pytest.raises(UnwritableError, match=f'cannot create the directory {path}: '), directory(path):
            pass
    with pytest.raises(UnwritableError, match='cannot write to .*/missing/out.json: No such file'), claim(
            tmp_path / 'missing' / 'out.json'):
        pass


def test_a_directory_that_stays_empty_is_removed(tmp_path):
    path = tmp_path / 'a' / 'b' / 'c'
    with pytest.raises(KeyError), directory(path), claim(path):
        raise KeyError
    assert not (tmp_path / 'a').exists()
    (tmp_path / 'a').mkdir()
    with directory(path):
        assert path.is_dir()
    assert [entry.name for entry in tmp_path.rglob('*')] == ['a']  # this one was there before
    with directory(path):
        (path / 'config.json').write_text('{}')
    assert (path / 'config.json').exists()
