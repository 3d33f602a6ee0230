"""Several hosts, one program: every process runs the same code on the devices of all of them.

Each process makes the same scenarios and keys from the same configuration, and dispatches the same programs in the
same order; the mesh gives its devices their share of the rows. What happens outside the devices is shared out by
slot: an environment is stepped, and an endpoint asked, by one process alone, and what comes of it is told to all
(`share`), so that all decide alike. Process 0 prints, and writes the files; checkpoints are written together, by
Orbax.
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
    if jax.config.jax_platforms == 'cpu':  # there, collectives that may overtake each other do, and get mixed up
        os.environ['XLA_FLAGS'] = ' '.join(
            [os.environ.get('XLA_FLAGS', ''), '--xla_cpu_enable_concurrency_optimized_scheduler=false'])
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


def first() -> bool:
    """Whether this is process 0, which writes the files."""
    return jax.process_index() == 0


def own(slots: int) -> np.ndarray:
    """bool[slots] those whose work outside the devices is this process's: each process has a block of neighbours, as
    the mesh splits rows."""
    return np.arange(slots) * jax.process_count() // slots == jax.process_index()


def agree(flag: bool) -> bool:
    """Whether any process says so; all of them must ask."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(jax.numpy.asarray(flag)).any())


def everywhere(tree: Any) -> Any:
    """The tree with what lies on the devices of several processes read, whole, into NumPy arrays; all must ask for it
    together. Everything else, and so the whole tree of a single process, stays as it is."""
    if jax.process_count() == 1:
        return tree
    leaves, form = jax.tree.flatten(tree)
    apart = [i for i, x in enumerate(leaves) if isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)
             and not x.is_fully_addressable]
    if apart:
        mesh = jax.sharding.Mesh(np.array(jax.devices()), ('all',))
        whole = jax.jit(_same, out_shardings=NamedSharding(mesh, PartitionSpec()))([leaves[i] for i in apart])
        for i, x in zip(apart, whole):
            leaves[i] = np.asarray(x)
    return jax.tree.unflatten(form, leaves)


def _same(x):  # a function with a name, so that it is traced once
    return x


def share(rows: Iterable[int], call: Callable[[int], Any]) -> dict[int, Any]:
    """{row: call(row)} of the rows of all processes: each is called where it belongs, and known to all afterwards.

    Args:
      rows: of this process; none of them is another's.
      call: its result must be one that can be pickled; with a single process it may be anything.

    Raises:
      Exception: what a call of this process raised.
      HostsError: a call of another process raised something.
    """
    if jax.process_count() == 1:
        return {row: call(row) for row in rows}
    failure = None
    try:
        said = pickle.dumps(({row: call(row) for row in rows}, ''))
    except Exception as error:  # raised below, when the others know: they would wait for ever
        failure, said = error, pickle.dumps(({}, f'{type(error).__name__}: {error}'))
    parts = [pickle.loads(part) for part in _gather(said)]
    if failure is not None:
        raise failure
    for number, (_, problem) in enumerate(parts):
        if problem:
            raise HostsError(f'process {number}: {problem}')
    return {row: value for part, _ in parts for row, value in part.items()}


def _gather(data: bytes) -> list[bytes]:
    """The bytes of every process, in their order; few sizes are sent, so that few programs are compiled."""
    lengths = multihost_utils.process_allgather(np.int32(len(data)))
    padded = np.zeros(max(1024, 1 << (int(lengths.max()) - 1).bit_length()), np.uint8)
    padded[:len(data)] = np.frombuffer(data, np.uint8)
    return [row[:length].tobytes() for row, length in zip(multihost_utils.process_allgather(padded), lengths)]
