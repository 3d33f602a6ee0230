"""Signals request a stop, are announced at once, and a second one ends the process; statuses of commands."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from epo_jax.runtime import command
from epo_jax.runtime.errors import InputError, SaveError, Stopped, TrainingError
from epo_jax.runtime.stopping import SIGNALS, StopSignals

# A command that waits for a signal, with the work of its main thread in one long call of C.
WAITING = '''
    import hashlib, sys, time
    from epo_jax.runtime import command
    from epo_jax.runtime.errors import Stopped
    from epo_jax.runtime.stopping import StopSignals

    def main():
        say = lambda line: print(line, flush=True)
        with StopSignals(say, 'this step') as signals:
            say('ready')
            hashlib.pbkdf2_hmac('sha256', b'', b'', int(sys.argv[1]))
            while not signals.requested:
                time.sleep(0.01)
            raise Stopped('the state is saved')

    command.run(main)
'''
LONG = 200_000_000  # minutes


def start(code, *arguments):
    process = subprocess.Popen([sys.executable, '-c', textwrap.dedent(code), *map(str, arguments)], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == 'ready\n'
    return process


def end(process):
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


@pytest.mark.parametrize('signum', SIGNALS)
def test_a_signal_stops_a_command_with_its_status(signum):
    process = start(WAITING, 1)
    process.send_signal(signum)
    status, output, errors = end(process)
    assert status == 75
    assert output == f'{signum.name}: stopping after this step; a second signal stops at once\n'
    assert errors == 'stopped: the state is saved\n'


@pytest.mark.parametrize('first, second', [(a, b) for a in SIGNALS for b in SIGNALS])
def test_a_second_signal_stops_at_once_even_within_a_long_call(first, second):
    process = start(WAITING, LONG)
    process.send_signal(first)
    assert first.name in process.stdout.readline()  # while the call of C goes on
    process.send_signal(second)
    assert end(process) == (75, '', '')


@pytest.mark.parametrize('signum', SIGNALS)
def test_a_command_with_nothing_to_save_stops_without_a_traceback(signum):
    process = start('''
        import time
        from epo_jax.runtime import command
        command.run(lambda: (print('ready', flush=True), time.sleep(60)))
        ''')
    process.send_signal(signum)
    assert end(process) == (75, '', 'stopped by a signal; run the command again\n')


def test_the_previous_handlers_are_restored_and_get_a_second_signal():
    seen, lines = [], []
    previous = signal.signal(signal.SIGTERM, lambda signum, frame: seen.append(signum))
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore SIGINT
    try:
        with StopSignals(lines.append, 'this step') as signals:
            assert signals.requested is False
            signal.raise_signal(signal.SIGTERM)
            assert signals.requested is True and seen == []
            signal.raise_signal(signal.SIGTERM)
            assert seen == [signal.SIGTERM]
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert lines == ['SIGTERM: stopping after this step; a second signal stops at once']
        signal.raise_signal(signal.SIGTERM)
        assert len(seen) == 2
        with pytest.raises(RuntimeError), StopSignals(lines.append, 'this step'):
            raise RuntimeError
        signal.raise_signal(signal.SIGTERM)
        assert len(seen) == 3
    finally:
        signal.signal(signal.SIGTERM, previous)
        signal.signal(signal.SIGINT, interrupt)
    assert threading.active_count() == 1 or all('_watch' not in thread.name for thread in threading.enumerate())


def test_outside_the_main_thread_nothing_happens():
    results = []

    def work():
        with StopSignals(print, 'this step') as signals:
            results.append(signals.requested)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results == [False] and signal.getsignal(signal.SIGTERM) is before


def test_a_request_that_cannot_be_announced_is_still_a_request():
    def broken(line):
        raise BrokenPipeError

    with StopSignals(broken, 'this step') as signals:
        os.kill(os.getpid(), signal.SIGINT)
        while not signals.requested:
            time.sleep(0.01)


@pytest.mark.parametrize('error, status, line', [
    (Stopped('again'), 75, 'stopped: again'),
    (InputError('no such key'), 1, 'error: no such key'),
    (TrainingError('loss nan'), 1, 'error: loss nan'),
    (PermissionError(errno.EACCES, 'Permission denied', 'w'), 1, "error: [Errno 13] Permission denied: 'w'"),
    (OSError(errno.ENOSPC, 'No space left on device', 'w'), 74, "error: [Errno 28] No space left on device: 'w'"),
    (OSError(errno.EFBIG, 'File too large', 'w'), 74, "error: [Errno 27] File too large: 'w'"),
    (SaveError('7 cannot be saved'), 74, 'error: 7 cannot be saved'),
    (InputError('at https://me:secret@host/v1?api_key=sk-1'), 1, 'error: at https://***@host/v1?api_key=***'),
], ids=lambda value: type(value).__name__)
def test_errors_are_one_line_with_a_status(capsys, error, status, line):
    with pytest.raises(SystemExit) as ended, command.one_line_errors():
        raise error
    if status == 1:  # Python prints the message and exits with 1
        assert ended.value.code == line
    else:
        assert ended.value.code == status and capsys.readouterr().err == line + '\n'


def test_a_full_disk_is_recognized_behind_other_errors(capsys):
    with pytest.raises(SystemExit) as ended, command.one_line_errors():
        try:
            raise OSError(errno.ENOSPC, 'No space left on device')
        except OSError as error:
            raise InputError('the file cannot be written') from error
    assert ended.value.code == 74


def test_other_errors_keep_their_traceback():
    with pytest.raises(KeyError), command.one_line_errors():
        raise KeyError('a bug')
    with pytest.raises(SystemExit), command.one_line_errors(KeyError):
        raise KeyError('of an input')


def test_a_signal_during_garbage_collection_is_not_lost():
    process = start('''
        import gc, time
        from epo_jax.runtime import command

        def callback(phase, info):
            if phase == 'start':
                print('ready', flush=True)
                time.sleep(60)

        def main():
            gc.callbacks.append(callback)
            gc.collect()
            gc.callbacks.clear()
            print('finished as if nothing had happened')

        command.run(main)
        ''')
    process.send_signal(signal.SIGTERM)
    assert end(process) == (75, '', 'stopped by a signal; run the command again\n')


@pytest.mark.parametrize('signum', SIGNALS)
def test_a_signal_during_an_import_is_not_taken_for_a_module_that_is_missing(tmp_path, signum):
    """Modules in C turn every exception of what they import into ImportError, and imports may be optional."""
    (tmp_path / 'extension.py').write_text(textwrap.dedent('''
        import time
        try:
            print('ready', flush=True)
            time.sleep(60)
        except BaseException:
            raise ImportError('cannot be initialized') from None
        '''))
    process = start('''
        import sys
        from epo_jax.runtime import command
        sys.path.insert(0, sys.argv[1])

        def main():
            try:
                import extension
            except ImportError:
                print('goes on without it')

        command.run(main)
        ''', tmp_path)
    process.send_signal(signum)
    assert end(process) == (75, '', 'stopped by a signal; run the command again\n')


@pytest.mark.parametrize('how', ['raise', 'raise from'])
def test_errors_that_follow_from_a_signal_are_not_reported(how):
    process = start('''
        import sys, time
        from epo_jax.runtime import command

        def main():
            try:
                print('ready', flush=True)
                time.sleep(60)
            except KeyboardInterrupt as error:
                if sys.argv[1] == 'raise':
                    raise RuntimeError('a callback failed')
                raise RuntimeError('a callback failed') from error

        command.run(main)
        ''', how)
    process.send_signal(signal.SIGINT)
    assert end(process) == (75, '', 'stopped by a signal; run the command again\n')
