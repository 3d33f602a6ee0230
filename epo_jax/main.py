"""Train a strategist by explicit policy optimization.

    python -m epo_jax.main --config=configs/sotopia.py:quickstart --workdir=runs/quickstart
    python -m epo_jax.main --config=sotopia:tiny --workdir=W --config.learner.learning_rate=1e-4
    python -m epo_jax.main --config=configs/offline.py --config.data=prepared.json --workdir=runs/offline

    python -m epo_jax.main --list=credit     # the methods of credit assignment; --list=loss: the losses

--config takes the path of a configuration file or the name of a packaged one, with a preset after the colon;
--config.KEY=VALUE overrides a key. An interrupted run resumes when it is started again with the same workdir.
SIGTERM or SIGINT (Ctrl-C) stops it after the iteration in flight with status 75 (see epo_jax/runtime/errors.py).
On several hosts, start the same command on each of them with --hosts (see epo_jax/runtime/hosts.py) and a workdir that
all of them share.
"""

import os
import pathlib
import re
from typing import Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from epo_jax import presets
from epo_jax.runtime import command

CONFIG = config_flags.DEFINE_config_file('config', help_string='Configuration file or name, and :PRESET.')
WORKDIR = flags.DEFINE_string('workdir', None, 'Directory of the run; a run that it already contains is resumed.')
LIST = flags.DEFINE_enum('list', None, ('credit', 'loss'), 'Print the methods of a kind, each with its source.')
HOSTS = flags.DEFINE_string('hosts', '', "The processes of this run: 'auto', or HOST:PORT,PROCESSES,NUMBER.")

REPORT = flags.DEFINE_bool('report', True, 'Write report.html in the directory of the finished run.')


def parse_flags(argv: Sequence[str], required: Sequence[str] = ('config', 'workdir')) -> list[str]:
    """Parse the command line, with packaged configurations by name and errors in one line.

    Args:
      argv: the command line.
      required: the flags that must be given.

    Returns:
      The arguments that are not flags.
    """
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')  # before a configuration file imports JAX
    argv = list(argv)
    if not any(arg.lstrip('-').startswith(('help', 'list')) for arg in argv[1:]):
        for name in required:  # before the configuration file is run, which takes seconds
            if not any(arg.lstrip('-').partition('=')[0] == name for arg in argv[1:]):
                command.fail(f'error: the flag --{name} is missing')
    try:
        for i, arg in enumerate(argv):
            flag, equals, value = arg.partition('=')
            if flag in ('--config', '-config') and equals:
                argv[i] = f'{flag}={presets.resolve(value)}'
            elif flag in ('--config', '-config') and i + 1 < len(argv):
                argv[i + 1] = presets.resolve(argv[i + 1])
        return flags.FLAGS(argv)
    except (flags.Error, ValueError, TypeError, AttributeError, KeyError, OSError) as error:
        command.fail(f'error: {one_line(error)}')


def one_line(error: Exception) -> str:
    """Return the message of an error of the flag libraries, which may hold a traceback or several lines."""
    message = str(error.args[0] if error.args else error)
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if 'Traceback' in message:  # of the configuration file; its last line says what is wrong
        return lines[-1].partition(': ')[2] or lines[-1]
    if nearest := re.search(r'Did you mean "(\w+)" instead of "(\w+)"', message):
        return f'the configuration has no key {nearest[2]!r}; the nearest known key is {nearest[1]!r}'
    return ' '.join(lines)


def methods(kind: str) -> str:
    """Return the methods of a kind, credit or loss: for each its name, what it is, and its source."""
    from epo_jax.rl.credit.assign import METHODS
    from epo_jax.rl.losses import LOSSES
    from epo_jax.rl.methods import describe

    found = describe({'credit': METHODS, 'loss': LOSSES}[kind])
    width = max(len(name) for name, *_ in found)
    return '\n'.join(f'{name:{width}}  {line}\n{"":{width}}  {source}' for name, line, source in found)


def start(argv: Sequence[str]) -> None:
    """Prepare the process after the flags were parsed: no other arguments, quiet logs, a compilation cache, hosts."""
    if len(argv) > 1:
        command.fail(f'error: unexpected arguments: {" ".join(argv[1:])}')
    if not flags.FLAGS['verbosity'].present:
        logging.set_verbosity(logging.FATAL)  # Orbax reports every file, and every error before it raises it
    from epo_jax.runtime import hosts, timing

    cache = pathlib.Path(os.environ.get('XDG_CACHE_HOME', '~/.cache')).expanduser()
    timing.enable_compilation_cache(cache / 'epo_jax')
    hosts.start(HOSTS.value)


def main(argv: Sequence[str]) -> None:
    """Run the configuration of the command line."""
    start(argv)
    from epo_jax import experiment, offline  # after the flags, so that --help does not wait for JAX

    training = offline if 'data' in CONFIG.value else experiment
    training.run(CONFIG.value, WORKDIR.value)
    report(WORKDIR.value)


def report(workdir: str) -> None:
    """Write the report of a finished run, unless --noreport says otherwise."""
    if REPORT.value:
        from epo_jax.report.automatic import write_at_end
        write_at_end(workdir)


if __name__ == '__main__':
    command.run(lambda: app.run(main, flags_parser=parse_flags))
