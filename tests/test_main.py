"""The command line: packaged configurations by name, and errors in one line before anything is loaded."""

import itertools
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

import epo_jax
from epo_jax import cli, presets

ROOT = pathlib.Path(__file__).parents[1]


FORKS = """
import json, os, runpy, sys, warnings
import epo_jax.experiment, epo_jax.serve  # and with them what takes seconds: jax, flax, orbax and transformers
warnings.simplefilter('ignore')  # jax warns of forks; no computation was started
for line in sys.stdin:
    folder, module, flags, prefix = json.loads(line)
    child = os.fork()
    if not child:
        os.chdir(folder)
        for number, name in enumerate(('out', 'err'), start=1):
            os.dup2(os.open(f'{prefix}.{name}', os.O_WRONLY | os.O_CREAT), number)
        sys.argv = [module, *flags]
        runpy.run_module(module, run_name='__main__', alter_sys=True)
        sys.exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Return a function that runs a module as a command, in a fork of a process that has imported jax."""
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}
    outputs = tmp_path_factory.mktemp('outputs')
    process = subprocess.Popen([sys.executable, '-c', FORKS], env=environment, text=True, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE)
    numbers = itertools.count()

    def command(module, *flags, cwd=ROOT):
        prefix = outputs / str(next(numbers))
        print(json.dumps([str(cwd), module, flags, str(prefix)]), file=process.stdin, flush=True)
        status = int(process.stdout.readline())
        return subprocess.CompletedProcess(
            flags, status, *(pathlib.Path(f'{prefix}.{name}').read_text() for name in ('out', 'err')))

    yield command
    process.stdin.close()
    assert process.wait(60) == 0


@pytest.mark.parametrize('flags, message', [
    (['--config=sotopia:tiny'], 'the flag --workdir is missing'),
    (['--workdir=w'], 'the flag --config is missing'),
    (['--config=chess', '--workdir=w'], "no configuration 'chess'.*alfworld, bargain, offline, sotopia, webshop"),
    (['--config=no/file.py', '--workdir=w'], "no configuration 'no/file.py'"),
    (['--config', 'sotopia:huge', '--workdir=w'], "unknown preset 'huge'; choose one of quickstart, tiny"),
    (['--config=sotopia:tiny', '--workdir=w', '--config.learner.learning_rat=1'],
     "no key 'learning_rat'; the nearest known key is 'learning_rate'"),
    (['--config=sotopia:tiny', '--workdir=w', '--config.seed=abc'], 'config.seed=abc'),
    (['--config=sotopia:tiny', '--workdir=w', '--bogus'], "flag 'bogus'"),
    (['--config=sotopia:tiny', '--workdir=w', 'extra'], 'unexpected arguments: extra'),
    (['--config=sotopia:tiny', '--workdir=w', '--config.seed=-1'], 'seed must be at least 0'),
    (['--config=sotopia:tiny', '--workdir=w', '--config.reward.outcome=nope'], "no outcome function 'nope'"),
    (['--config=offline:tiny', '--workdir=w', '--config.data=x', '--config.learner.warmup_ratio=5'],
     'learner.warmup_ratio must be at least 0 and at most 1; it is 5'),
    (['--config=sotopia:tiny', '--workdir=w', '--config.model.path=./no/such'], "no model at './no/such'"),
    (['--config=sotopia:tiny', '--workdir=w', '--config.mesh=(3,7,1)'], 'mesh .3, 7, 1. does not cover'),
    (['--config=sotopia:tiny', '--workdir=/proc/epo/run'], 'cannot create the directory /proc/epo/run: No such file'),
], ids=str)
def test_a_wrong_command_line_is_one_line_and_leaves_nothing(tmp_path, run, flags, message):
    done = run('epo_jax.main', *flags, cwd=tmp_path)
    assert done.returncode == 1 and not done.stdout and not list(tmp_path.iterdir())
    line, = done.stderr.strip().splitlines()
    assert line.startswith('error: ')
    assert re.search(message, line)


def test_packaged_configurations_go_by_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert presets.names() == ['alfworld', 'bargain', 'offline', 'sotopia', 'webshop']
    for name in presets.names():
        assert presets.resolve(f'{name}:tiny') == f'{ROOT / "configs" / name}.py:tiny'
        assert presets.load_config(name).learner.batch > 0
    assert epo_jax.load_config('sotopia:tiny').model.path == 'dummy'
    own = tmp_path / 'sotopia'  # a file goes before a name
    own.write_text('def get_config():\n    return 1\n')
    assert presets.resolve('sotopia') == 'sotopia'
    with pytest.raises(presets.PresetError, match='chess'):
        presets.load_config('chess:tiny')


def test_the_package_imports_fast_and_names_its_public_parts():
    code = ('import sys, epo_jax; assert "jax" not in sys.modules and "transformers" not in sys.modules; '
            'print(epo_jax.__version__, *dir(epo_jax))')
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert {'run', 'load_config', 'TextEnvironment', 'Domain'} <= set(done.stdout.split())
    with pytest.raises(AttributeError, match='nothing'):
        epo_jax.nothing
    for name in epo_jax.__all__:
        assert getattr(epo_jax, name) is not None


def test_the_command_lists_and_runs_the_commands(run):
    done = run('epo_jax.cli')
    assert done.returncode == 0 and all(name in done.stdout for name in cli.COMMANDS)
    done = run('epo_jax.cli', 'trian')
    assert done.returncode == 1 and "no command 'trian'" in done.stderr
    for name in cli.COMMANDS:
        done = run('epo_jax.cli', name, '--help')
        assert done.returncode in (0, 1) and 'Traceback' not in done.stderr, (name, done.stderr)
        assert f'epo_jax.{name}' in done.stdout + done.stderr or '--' in done.stdout + done.stderr
