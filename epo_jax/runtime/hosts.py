"""Runs on several hosts: every process runs the same program on the devices of all hosts.

All processes derive the same scenarios and random keys from the same configuration and dispatch the same programs in
the same order; the mesh gives every device its part of the rows. Work outside the devices is divided by slots: only the
process that owns a slot steps its environment or calls its endpoint, and `share` sends the result to all processes, so
that they make the same decisions. Process 0 prints and writes the files; Orbax writes checkpoints from all processes.
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
    """The processes of a run cannot find each other, or one of them failed."""


def start(hosts: str) -> None:
    """Connect to the other processes of a run; call this before any other JAX function.

    Args:
      hosts: '' for a single process; 'auto' where JAX detects the processes (a TPU pod, SLURM's srun, Open MPI, GKE);
        elsewhere 'HOST:PORT,PROCESSES,NUMBER': the address of process 0, the number of processes, and the number of
        this process.

    Raises:
      HostsError: `hosts` has another form, or JAX detects no other processes.
    """
    if not hosts:
        return
    if jax.config.jax_platforms == 'cpu':  # this scheduler may reorder collectives, so that processes mismatch
        os.environ['XLA_FLAGS'] = ' '.join(
            [os.environ.get('XLA_FLAGS', ''), '--xla_cpu_enable_concurrency_optimized_scheduler=false'])
    if hosts == 'auto':
        try:
            jax.distributed.initialize()
        except ValueError as error:
            raise HostsError(f'--hosts=auto detects no other processes ({error}); pass '
                             '--hosts=HOST:PORT,PROCESSES,NUMBER instead') from error
        return
    match = re.fullmatch(r'([^,]+:\d+),(\d+),(\d+)', hosts)
    if not match or not int(match[3]) < int(match[2]):
        raise HostsError(f"--hosts must be 'auto' or HOST:PORT,PROCESSES,NUMBER, with NUMBER from 0 to PROCESSES - 1, "
                         f"not {hosts!r}")
    jax.distributed.initialize(match[1], int(match[2]), int(match[3]))


def is_primary() -> bool:
    """Return whether this is process 0, which writes the files."""
    return jax.process_index() == 0


def local_slots(slots: int) -> np.ndarray:
    """Return bool[slots], true for the slots whose work outside the devices belongs to this process.

    Each process owns a contiguous block of slots, like the rows that the mesh gives it.
    """
    return np.arange(slots) * jax.process_count() // slots == jax.process_index()


def any_process(flag: bool) -> bool:
    """Return whether the flag is true in any process; all processes must call this together."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(jax.numpy.asarray(flag)).any())


def fetch(tree: Any) -> Any:
    """Return a tree with every array that is sharded over several processes as a NumPy array.

    All processes must call this together. Other leaves are returned unchanged, and so is the tree of a single process.
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


def _identity(x):  # a module-level function, so that jit traces it once
    return x


def share(rows: Iterable[int], call: Callable[[int], Any]) -> dict[int, Any]:
    """Call a function for the rows of this process, and return the results for the rows of all processes.

    Args:
      rows: the rows of this process; no row may belong to two processes.
      call: the function; its results must be picklable, unless there is only one process.

    Returns:
      {row: call(row)}, the same in all processes.

    Raises:
      Exception, HostsError: see `share_all`.
    """
    return share_all(lambda: {row: call(row) for row in rows})


def share_all(call: Callable[[], dict[int, Any]]) -> dict[int, Any]:
    """Call a function in every process, and return the results of all of them as one dict.

    Args:
      call: returns the results for the rows of this process by row; no row may belong to two processes. Results must
        be picklable, unless there is only one process.

    Raises:
      Exception: the call of this process raised it.
      HostsError: the call of another process raised an error; the message names the process.
    """
    if jax.process_count() == 1:
        return call()
    failure = None
    try:
        data = pickle.dumps((call(), ''))
    except Exception as error:  # raised below, after the other processes are notified; else they would wait forever
        failure, data = error, pickle.dumps(({}, f'{type(error).__name__}: {error}'))
    results = [pickle.loads(content) for content in _gather(data)]
    if failure is not None:
        raise failure
    for number, (_, problem) in enumerate(results):
        if problem:
            raise HostsError(f'process {number} failed: {problem}')
    return {row: value for values, _ in results for row, value in values.items()}


def _gather(data: bytes) -> list[bytes]:
    """Return the bytes of every process, by process number.

    Buffers are padded to a power of 2, which keeps the number of compiled programs small.
    """
    lengths = multihost_utils.process_allgather(np.int32(len(data)))
    padded = np.zeros(max(1024, 1 << (int(lengths.max()) - 1).bit_length()), np.uint8)
    padded[:len(data)] = np.frombuffer(data, np.uint8)
    gathered = multihost_utils.process_allgather(padded)
    return [row[:length].tobytes() for row, length in zip(gathered, lengths, strict=True)]
