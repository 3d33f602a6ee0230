"""Estimate the memory and time of a run on a TPU slice, without the hardware.

    python -m epo_jax.plan --config=configs/sotopia.py:llama3_8b --topology=v5p:2x2x2
    python -m epo_jax.plan --config=... --topology=v5e:4x4 --search --json=plan.json

This compiles the programs of the run for the slice. The TPU compiler comes with `pip install libtpu`. It needs no TPU
and no weights, only the shapes and shardings of the configuration. Times are XLA's estimates (see cost.py) for
messages of maximum length.

`--search` compares meshes, each with the largest micro-batch that fits, and plans with the best one.
"""

import importlib.util
import json
import sys

from absl import app, flags
from ml_collections import config_flags

from epo_jax.config import ConfigError
from epo_jax.defaults import validate
from epo_jax.plan.estimate import plan, report, to_json
from epo_jax.plan.programs import PlanError, plan_target, use_compiler_only
from epo_jax.plan.search import search
from epo_jax.runtime import command
from epo_jax.runtime.files import write_atomically
from epo_jax.runtime.parallel import MeshError

_CONFIG = config_flags.DEFINE_config_file('config', help_string='Configuration file, with :PRESET appended.')
_TOPOLOGY = flags.DEFINE_string('topology', None, 'Kind of chip and shape of the slice, such as v5p:2x2x2.')
_SEARCH = flags.DEFINE_bool('search', False, 'Compare meshes and micro-batches, and plan with the best ones.')
_JSON = flags.DEFINE_string('json', None, 'File to write the plan to, as JSON.')


def main(argv):
    """Print a plan for the configuration of the command line."""
    if len(argv) > 1:
        raise app.UsageError(f'unexpected arguments: {" ".join(argv[1:])}')
    if importlib.util.find_spec('libtpu') is None:
        sys.exit('error: epo_jax.plan needs the TPU compiler; run pip install libtpu')
    use_compiler_only()
    try:
        config = _CONFIG.value
        validate(config)
        if _SEARCH.value:
            config = search(config, _TOPOLOGY.value)[0][1].config
        target = plan_target(config, _TOPOLOGY.value)
        programs = plan(target)
    except (ConfigError, MeshError, PlanError) as error:
        sys.exit(f'error: {error}')
    print(report(target, programs))
    if _JSON.value:
        write_atomically(_JSON.value, json.dumps(to_json(target, programs), indent=2))


if __name__ == '__main__':
    flags.mark_flags_as_required(['config', 'topology'])
    command.run(lambda: app.run(main))
