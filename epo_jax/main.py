"""Trains a strategist by explicit policy optimization.

    python -m epo_jax.main --config=configs/sotopia.py:quickstart --workdir=runs/quickstart
    python -m epo_jax.main --config=configs/sotopia.py:tiny --workdir=W --config.learner.learning_rate=1e-4
    python -m epo_jax.main --config=configs/offline.py --config.data=prepared.json --workdir=runs/offline

A run that was interrupted goes on when started again with the same workdir. On several hosts the same command runs
on each of them, with --hosts (see epo_jax/runtime/hosts.py) and a workdir that all of them see.
"""

import os
import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file('config', help_string='Configuration file, with a preset after a colon.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where the run leaves its files; an existing run goes on.')
_HOSTS = flags.DEFINE_string('hosts', '', "Other processes of this run: 'auto', or HOST:PORT,PROCESSES,NUMBER.")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f'unexpected arguments: {" ".join(argv[1:])}')
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')  # that it has no PyTorch here is as it should be
    if not flags.FLAGS['verbosity'].present:
        logging.set_verbosity(logging.WARNING)  # libraries report every file they write
    from epo_jax import experiment, offline, telemetry  # after the flags: --help must not wait for JAX
    from epo_jax.runtime import hosts
    from epo_jax.runtime.checkpoint import CheckpointError
    from epo_jax.runtime.errors import InputError

    cache = pathlib.Path(os.environ.get('XDG_CACHE_HOME', '~/.cache')).expanduser()
    telemetry.enable_compilation_cache(cache / 'epo_jax')
    try:
        hosts.start(_HOSTS.value)
        training = offline if 'data' in _CONFIG.value else experiment
        training.run(_CONFIG.value, _WORKDIR.value)
    except (InputError, CheckpointError, FileNotFoundError) as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    flags.mark_flags_as_required(['config', 'workdir'])
    app.run(main)
