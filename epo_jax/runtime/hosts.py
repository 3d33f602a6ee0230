"""Several hosts, one program: every process runs the same code on the devices of all of them.

All processes make the same scenarios and keys from the same configuration and dispatch the same programs in the same
order; the mesh gives every device its share of the rows. Work outside the devices is divided by slots: one process
alone steps an environment or asks an endpoint, and `share` tells the result to all, so that all decide alike.
Process 0 prints and writes the files; Orbax writes checkpoints from all processes.
"""

import os
import pickle
import re
from typing import Any, Callable, Iterable

import jax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from epo_jax.runtime.errors import InputError


class HostsError(InputError):
    """The processes cannot find each other."""


def start(hosts: str) -> None:
    """Join the other processes of a run. Call it before anything else of JAX.

    Args:
      hosts: '' for one process; 'auto' where the machine knows the processes (a TPU pod, SLURM's srun, Open MPI, GKE);
        'HOST:PORT,PROCESSES,NUMBER' elsewhere: the address of process 0, the number of processes, and the number of
        this process.

    Raises:
      HostsError: `hosts` has another form, or the machine knows of no other processes.
    """
    if not hosts:
        return
    if jax.config.jax_platforms == 'cpu':  # this scheduler may reorder collectives, which then mix up
        os.environ['XLA_FLAGS'] = ' '.join(
            [os.environ.get('XLA_FLAGS', ''), '--xla_cpu_enable_concurrency_optimized_scheduler=false'])
    if hosts == 'auto':
        try:
            jax.distributed.initialize()
        except ValueError as error:
            raise HostsError(f'--hosts=auto finds no other processes ({error}); give --hosts=HOST:PORT,PROCESSES,NUMBER'
                             ) from error
        return
    match = re.fullmatch(r'([^,]+:\d+),(\d+),(\d+)', hosts)
    if not match or not int(match[3]) < int(match[2]):
        raise HostsError(f"--hosts must be 'auto' or HOST:PORT,PROCESSES,NUMBER with NUMBER from 0, not {hosts!r}")
    jax.distributed.initialize(match[1], int(match[2]), int(match[3]))


def is_primary() -> bool:
    """Return whether this is process 0, which writes the files."""
    return jax.process_index() == 0


def local_slots(slots: int) -> np.ndarray:
    """Return bool[slots], the slots whose work outside the devices this process does.

    Each process has a block of neighbors, as the mesh splits rows.
    """
    return np.arange(slots) * jax.process_count() // slots == jax.process_index()


def any_process(flag: bool) -> bool:
    """Return whether the flag is true in any process; all processes must call this together."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(jax.numpy.asarray(flag)).any())


def fetch(tree: Any) -> Any:
    """Read the arrays of a tree that are spread over several processes into NumPy; all processes must call together.

    All other leaves, and so the whole tree of a single process, stay as they are.
    """
    if jax.process_count() == 1:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    spread = [i for i, x in enumerate(leaves) if isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)
              and not x.is_fully_addressable]
    if spread:
        mesh = jax.sharding.Mesh(np.array(jax.devices()), ('all',))
        replicated = jax.jit(_identity, out_shardings=NamedSharding(mesh, PartitionSpec()))([leaves[i] for i in spread])
        for i, x in zip(spread, replicated, strict=True):
            leaves[i] = np.asarray(x)
    return jax.tree.unflatten(structure, leaves)


def _identity(x):  # named, so that it is traced once
    return x


def share(rows: Iterable[int], call: Callable[[int], Any]) -> dict[int, Any]:
    """Call a function for the rows of this process, and return the results for the rows of all processes.

    Args:
      rows: the rows of this process; no row belongs to two processes.
      call: its result must be picklable, unless there is only one process.

    Returns:
      {row: call(row)}, the same in all processes.

    Raises:
      Exception: whatever a call of this process raised.
      HostsError: a call of another process raised an error.
    """
    if jax.process_count() == 1:
        return {row: call(row) for row in rows}
    failure = None
    try:
        data = pickle.dumps(({row: call(row) for row in rows}, ''))
    except Exception as error:  # raised below, after the other processes know; they would wait forever
        failure, data = error, pickle.dumps(({}, f'{type(error).__name__}: {error}'))
    parts = [pickle.loads(part) for part in _gather(data)]
    if failure is not None:
        raise failure
    for number, (_, problem) in enumerate(parts):
        if problem:
            raise HostsError(f'process {number} failed: {problem}')
    return {row: value for part, _ in parts for row, value in part.items()}


def _gather(data: bytes) -> list[bytes]:
    """Return the bytes of every process, in order; sizes are rounded up to powers of 2, for few compiled programs."""
    lengths = multihost_utils.process_allgather(np.int32(len(data)))
    padded = np.zeros(max(1024, 1 << (int(lengths.max()) - 1).bit_length()), np.uint8)
    padded[:len(data)] = np.frombuffer(data, np.uint8)
    gathered = multihost_utils.process_allgather(padded)
    return [row[:length].tobytes() for row, length in zip(gathered, lengths, strict=True)]
