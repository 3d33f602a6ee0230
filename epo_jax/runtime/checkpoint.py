"""Checkpoints, saved atomically and restored bit for bit into their shards; and preemption.

A checkpoint holds the leaves of the state by name, and a record of the type and checksum of every leaf and of further
numbers of the run. Orbax writes the leaves sharded and in the background. It stores no checksums; without them, a
damaged disk would give slightly wrong weights.
"""

import contextlib
import json
from pathlib import Path
import signal
from typing import Any, Callable, Optional, Union
import zlib

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

PyTree = Any


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be saved or restored; the message names it and what is wrong."""


class Checkpoints(contextlib.AbstractContextManager):
    """The checkpoints of a run, in `checkpoints/<step>`. Leaving the context finishes what is being saved.

    A checkpoint appears under its name only when it is complete. What a killed process left behind is ignored, and
    removed when the directory is next opened. On several hosts, every process makes the same calls.
    """

    def __init__(self, workdir: Union[str, Path], keep: int = 2, every: int = 1):
        """Open the checkpoints of a run; the last `keep` are kept, and one is due every `every` steps."""
        if keep < 1 or every < 1:
            raise ValueError(f'keep and every must be at least 1, not {keep} and {every}')
        self._directory = Path(workdir).absolute() / 'checkpoints'
        self._every = every
        self._manager = ocp.CheckpointManager(self._directory, options=ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.LatestN(keep), cleanup_tmp_directories=True))

    def latest(self) -> Optional[int]:
        """Return the step of the last complete checkpoint, or one being completed by this process; None without any."""
        return self._manager.latest_step()

    def save(self, step: int, state: PyTree, extra: dict[str, Any], force: bool = False) -> bool:
        """Save a state if it is due; the arrays may be donated afterwards, and are written in the background.

        Args:
          step: saved if it is a multiple of `every`, and not yet saved.
          state: a pytree of JAX arrays, typed random keys among them.
          extra: what else the run needs to go on, as JSON.
          force: save even if `step` is not a multiple of `every`.

        Returns:
          Whether a save was begun.

        Raises:
          CheckpointError: `step` is before the latest one, or saving it, or the previous one, failed.
          TypeError, ValueError: `extra` is not JSON, or a leaf of the state is not a JAX array.
        """
        latest = self.latest()
        if latest is not None and step < latest:
            raise CheckpointError(f'step {step} cannot be saved: {self._directory} is already at step {latest}')
        if step == latest or step % self._every and not force:
            return False
        leaves = _leaves(state)
        for name, leaf in leaves.items():
            if not isinstance(leaf, jax.Array):
                raise TypeError(f'leaf {name} of the state is a {type(leaf).__name__}, not a JAX array')
        bits = {name: _key_data(leaf) for name, leaf in leaves.items()}
        sums = jax.device_get(_checksums(bits))
        record = json.dumps({'leaves': {name: [_describe(leaf), int(sums[name])] for name, leaf in leaves.items()},
                             'extra': extra}, allow_nan=False)
        self._guard(step, 'cannot be saved', lambda: self._manager.save(step, args=ocp.args.Composite(
            state=ocp.args.StandardSave({name: leaf for name, leaf in bits.items() if leaf.size}),
            record=ocp.args.JsonSave({'json': record, 'crc32': zlib.crc32(record.encode())}))))
        return True

    def restore(self, step: int, abstract_state: PyTree) -> tuple[PyTree, dict[str, Any]]:
        """Restore a checkpoint.

        Args:
          step: which one.
          abstract_state: what to restore into, a pytree of jax.ShapeDtypeStruct with shardings; every process
            reads its own shards only. `abstract` makes one from a state.

        Returns:
          The state, bit for bit as it was saved, and the extra dict.

        Raises:
          CheckpointError: there is no such checkpoint; its leaves, shapes or dtypes are not those of
            `abstract_state` (naming each); or it is damaged.
        """
        self.wait()
        if step not in self._manager.all_steps():
            raise CheckpointError(f'{self._directory} has no checkpoint {step}, only {self._manager.all_steps()}')
        damaged = 'is damaged; remove it to continue from an earlier checkpoint'
        expected = _leaves(abstract_state)
        record = self._guard(step, damaged, lambda: _open_record(self._manager.restore(
            step, args=ocp.args.Composite(record=ocp.args.JsonRestore())).record))
        saved = record['leaves']
        misfits = _misfits({name: text for name, (text, _) in saved.items()}, expected)
        if misfits:
            raise CheckpointError(f'{self._directory / str(step)} does not fit the state:\n  ' + '\n  '.join(misfits))
        targets = {name: _key_data_struct(leaf) for name, leaf in expected.items()}
        stored = {name: leaf for name, leaf in targets.items() if leaf.size}
        bits = self._guard(step, damaged, lambda: self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(stored))).state)
        for name, leaf in targets.items():
            if not leaf.size:  # Orbax stores no empty array
                bits[name] = jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)
        sums = jax.device_get(_checksums(bits))
        wrong = [name for name, (_, checksum) in saved.items() if int(sums[name]) != checksum]
        if wrong:
            raise CheckpointError(f'{self._directory / str(step)} {damaged}: wrong checksum of {", ".join(wrong)}')
        leaves = [_as_key(bits[name], leaf.dtype) for name, leaf in expected.items()]
        return jax.tree.unflatten(jax.tree.structure(abstract_state), leaves), record['extra']

    def wait(self) -> None:
        """Wait until everything saved so far is on disk.

        Raises:
          CheckpointError: the last save failed.
        """
        self._guard(self.latest(), 'cannot be saved', self._manager.wait_until_finished)

    def close(self) -> None:
        """Finish saving and release the directory.

        Raises:
          CheckpointError: the last save failed.
        """
        self._guard(self.latest(), 'cannot be saved', self._manager.close)

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def _guard(self, step: Optional[int], problem: str, call: Callable[[], Any]) -> Any:
        """Call, and turn whatever Orbax raises, which has no common type, into a CheckpointError."""
        try:
            return call()
        except Exception as error:
            reason = (str(error) or repr(error)).splitlines()[0]  # the full message is in the cause
            raise CheckpointError(f'{self._directory / str(step)} {problem}: {reason}') from error


def abstract(state: PyTree) -> PyTree:
    """Return the jax.ShapeDtypeStruct, with its sharding, of every array of a state."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


class Preemption(contextlib.AbstractContextManager):
    """Turns SIGTERM into a request to stop: `with Preemption() as preemption: ...`, in the main thread.

    The loop reads `requested` between steps, saves, and leaves. The former handler is restored on exit. Each process
    sees its own signal only, so several hosts have to agree on it (see `hosts.any_process`).
    """

    def __init__(self):
        self.requested = False

    def __enter__(self) -> 'Preemption':
        self._former = signal.signal(signal.SIGTERM, self._request)
        return self

    def __exit__(self, *exception: Any) -> None:
        # None means that the former handler was not Python's and cannot be restored.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if self._former is None else self._former)

    def _request(self, signum: int, frame: Any) -> None:
        self.requested = True


def _leaves(tree: PyTree) -> dict[str, Any]:
    """Return the leaves by dotted name, in the order in which the tree is flattened."""
    paths, _ = jax.tree.flatten_with_path(tree)
    leaves = {jax.tree_util.keystr(path, simple=True, separator='.'): leaf for path, leaf in paths}
    if len(leaves) != len(paths):
        raise ValueError('two leaves of the state have the same dotted name: a key of a dict has a dot in it')
    return leaves


def _is_key(dtype: Any) -> bool:
    return jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)


def _describe(leaf: Any) -> str:
    """'float32[3,4]': what has to be equal for a leaf to be restored into another."""
    return f'{leaf.dtype}[{",".join(map(str, leaf.shape))}]'


def _key_data(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf.dtype) else leaf


def _key_data_struct(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Return the shape of `_key_data`; its additional axis is not split by any sharding of keys."""
    if not _is_key(leaf.dtype):
        return leaf
    data = jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding)


def _as_key(data: jax.Array, dtype: Any) -> jax.Array:
    """Undo `_key_data` for a leaf that had this dtype."""
    return jax.random.wrap_key_data(data, dtype=dtype) if _is_key(dtype) else data


@jax.jit
def _checksum(x: jax.Array) -> jax.Array:
    """Return the sum of an array's bits as unsigned words, u32: the same however the array is sharded."""
    if x.dtype == bool:
        return x.sum(dtype=jnp.uint32)
    word = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.dtype.itemsize]
    return jax.lax.bitcast_convert_type(x, word).astype(jnp.uint32).sum(dtype=jnp.uint32)


@jax.jit
def _checksums(bits: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Return the checksum of every leaf, by one program."""
    return {name: _checksum(leaf) for name, leaf in bits.items()}


def _open_record(stored: dict[str, Any]) -> dict[str, Any]:
    if zlib.crc32(stored['json'].encode()) != stored['crc32']:
        raise ValueError('wrong checksum of the record')
    return json.loads(stored['json'])


def _misfits(saved: dict[str, str], expected: dict[str, jax.ShapeDtypeStruct]) -> list[str]:
    """Return one line for each leaf that differs between checkpoint and state, or has no sharding."""
    lines = [f'{name}: saved as {text}, but the state has no such leaf'
             for name, text in saved.items() if name not in expected]
    for name, leaf in expected.items():
        if name not in saved:
            lines.append(f'{name}: not saved, but the state has {_describe(leaf)}')
        elif saved[name] != _describe(leaf):
            lines.append(f'{name}: saved as {saved[name]}, but the state has {_describe(leaf)}')
        elif leaf.sharding is None:
            lines.append(f'{name}: no sharding is given to restore it into')
    return lines
