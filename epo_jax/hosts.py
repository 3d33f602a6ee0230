"""Several hosts, one program: every process runs the same code on the devices of all of them.

Each host builds the same scenarios and keys from the same configuration; the mesh gives it its share of rows, so its
devices play and train on that share alone. What is computed is gathered on every host; process 0 tells it and
writes the metrics, the others keep to a folder of their own. Only checkpoints are written together, by Orbax.
"""

import pathlib
import re
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec


class HostsError(ValueError):
    """The processes cannot find each other as told."""


def start(hosts: str) -> None:
    """Joins the other processes of a run; must come before anything else of JAX.

    Args:
      hosts: '' for one process; 'auto' where the machine knows (a TPU pod, SLURM's srun, Open MPI, GKE);
        'HOST:PORT,PROCESSES,NUMBER' anywhere else: where process 0 listens, how many there are, which one this is.

    Raises:
      HostsError: it is none of these.
    """
    if not hosts:
        return
    if hosts == 'auto':
        try:
            jax.distributed.initialize()
        except ValueError as error:  # nobody here knows of other processes
            raise HostsError(f'--hosts=auto finds nothing here ({error}); give HOST:PORT,PROCESSES,NUMBER') from error
        return
    found = re.fullmatch(r'([^,]+:\d+),(\d+),(\d+)', hosts)
    if not found or not int(found[3]) < int(found[2]):
        raise HostsError(f"--hosts is 'auto' or HOST:PORT,PROCESSES,NUMBER with NUMBER from 0 on, not {hosts!r}")
    jax.distributed.initialize(found[1], int(found[2]), int(found[3]))


def own_folder(workdir: pathlib.Path) -> pathlib.Path:
    """Where this process writes all but checkpoints: process 0 into the workdir, others beneath it."""
    number = jax.process_index()
    return workdir if number == 0 else workdir / 'hosts' / str(number)


def agree(flag: bool) -> bool:
    """Whether any process says so; all of them must ask."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(jax.numpy.asarray(flag)).any())


def everywhere(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """Arrays that every process can read whole."""
    if jax.process_count() == 1:
        return tree
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))(tree)
