"""Atomic checkpoints that restore bit for bit into shards.

A checkpoint holds the leaves of the state by name, and a JSON record with the type and checksum of every leaf and with
further values of the run. Orbax writes the leaves sharded and in the background. It stores no checksums; without them,
a damaged disk could silently change weights.
"""

import contextlib
import itertools
import json
import os
from pathlib import Path
import re
from typing import Any, Callable, Iterable, Optional, Union
import zlib

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from epo_jax.runtime import hosts
from epo_jax.runtime.errors import CheckpointError, DamagedError, SaveError

PyTree = Any


class Checkpoints(contextlib.AbstractContextManager):
    """The checkpoints of a run, in `checkpoints/<step>`; leaving the context waits for unfinished saves.

    A checkpoint appears under its name only when it is complete. Incomplete saves of a killed process are ignored, and
    removed when the directory is next opened. On several hosts, every process must make the same calls.
    """

    def __init__(self, workdir: Union[str, Path], keep: int = 2, every: int = 1, read_only: bool = False):
        """Open the checkpoints of a run; keep the last `keep`, and save those whose step is a multiple of `every`.

        With `read_only`, nothing is written, so that another process may go on with the run.
        """
        if keep < 1 or every < 1:
            raise ValueError(f'keep and every must be at least 1, not {keep} and {every}')
        self._directory = Path(workdir).absolute() / 'checkpoints'
        self._every, self._read_only = every, read_only
        # Orbax does not open a directory that does not exist for reading only.
        read_only = read_only and self._directory.is_dir()
        self._manager = ocp.CheckpointManager(self._directory, options=ocp.CheckpointManagerOptions(
            read_only=read_only, preservation_policy=ocp.checkpoint_managers.LatestN(keep),
            cleanup_tmp_directories=not read_only))

    def latest(self) -> Optional[int]:
        """Return the step of the last checkpoint that is complete or that this process is saving, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: PyTree, extra: dict[str, Any], force: bool = False) -> bool:
        """Save a state in the background if it is due; its arrays may be donated as soon as this returns.

        Args:
          step: the number of the checkpoint, which is due if it is a multiple of `every` and not yet saved.
          state: a pytree of JAX arrays, which may be typed random keys.
          extra: further values that the run needs to resume, as JSON.
          force: whether to save even if `step` is not a multiple of `every`.

        Returns:
          Whether a save was started.

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
        self._guard(lambda: self._manager.save(step, args=ocp.args.Composite(
            state=ocp.args.StandardSave({name: leaf for name, leaf in bits.items() if leaf.size}),
            record=ocp.args.JsonSave({'json': record, 'crc32': zlib.crc32(record.encode())}))))
        return True

    def restore(self, step: int, abstract_state: PyTree) -> tuple[PyTree, dict[str, Any]]:
        """Restore a checkpoint.

        Args:
          step: the number of the checkpoint.
          abstract_state: a pytree of jax.ShapeDtypeStruct with shardings, as `abstract` makes it from a state; every
            process reads only its own shards.

        Returns:
          The state, bit for bit as it was saved, and the dict `extra`.

        Raises:
          CheckpointError: there is no such checkpoint, it is damaged, or its leaves, shapes or dtypes differ from those
            of `abstract_state`; the message names each leaf that differs.
        """
        self.wait()
        steps = list(self._manager.all_steps())
        if step not in steps:
            raise CheckpointError(f'{self._directory} has no checkpoint {step}; it has {steps}')
        expected = _leaves(abstract_state)
        record = self._read(step, lambda: _open_record(self._manager.restore(
            step, args=ocp.args.Composite(record=ocp.args.JsonRestore())).record))
        saved = record['leaves']
        misfits = _misfits({name: text for name, (text, _) in saved.items()}, expected)
        if misfits:
            raise CheckpointError(f'{self._directory / str(step)} does not fit the state:\n  ' + '\n  '.join(misfits))
        targets = {name: _key_data_struct(leaf) for name, leaf in expected.items()}
        stored = {name: leaf for name, leaf in targets.items() if leaf.size}
        bits = self._read(step, lambda: self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(stored))).state)
        for name, leaf in targets.items():
            if not leaf.size:  # Orbax stores no empty array
                bits[name] = jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)
        sums = jax.device_get(_checksums(bits))
        wrong = [name for name, (_, checksum) in saved.items() if int(sums[name]) != checksum]
        if wrong:
            raise DamagedError(f'{self._directory / str(step)} is damaged: wrong checksum of {", ".join(wrong)}')
        leaves = [_as_key(bits[name], leaf.dtype) for name, leaf in expected.items()]
        return jax.tree.unflatten(jax.tree.structure(abstract_state), leaves), record['extra']

    def resume(self, abstract_state: Callable[[int], PyTree],
               say: Callable[[str], None]) -> Optional[tuple[int, PyTree, dict[str, Any]]]:
        """Restore the last checkpoint that is not damaged.

        The damaged ones after it are moved to the folder `damaged` beside `checkpoints`, unless this is read-only.

        Args:
          abstract_state: the state of a step, as in `restore`.
          say: prints a line about a damaged checkpoint.

        Returns:
          The step, the state and the dict `extra`, or None if there are no checkpoints.

        Raises:
          CheckpointError: all checkpoints are damaged, or one does not fit the state.
        """
        self.wait()
        damaged: dict[int, DamagedError] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state, extra = self.restore(step, abstract_state(step))
            except DamagedError as error:
                damaged[step] = error
                continue
            for other, error in damaged.items():
                say(f'{error}; continuing from checkpoint {step}')
            if damaged and not self._read_only:
                hosts.share([0] if hosts.is_primary() else [], lambda _: self._set_aside(damaged))
                self._manager.reload()
            return step, state, extra
        if damaged:
            raise CheckpointError(f'{damaged[max(damaged)]}; there is no earlier checkpoint to continue from, so '
                                  'restore its files, or start in a new --workdir')
        return None

    def _set_aside(self, steps: Iterable[int]) -> None:
        """Move checkpoints out of the way of those that will be saved."""
        folder = self._directory.with_name('damaged')
        folder.mkdir(exist_ok=True)
        for step in steps:
            name = next(name for n in itertools.count() if not (folder / (name := f'{step}.{n}')).exists())
            os.replace(self._directory / str(step), folder / name)

    def wait(self) -> None:
        """Wait until all saves are on disk.

        Raises:
          CheckpointError: the last save failed.
        """
        self._guard(self._manager.wait_until_finished)

    def close(self) -> None:
        """Wait for unfinished saves and release the directory.

        Raises:
          CheckpointError: the last save failed.
        """
        self._guard(self._manager.close)

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def _guard(self, call: Callable[[], Any]) -> Any:
        """Call a function of Orbax that saves, and raise its errors, which have no common type, as SaveError.

        An error in the background shows in a later call, so its step is not known.
        """
        try:
            return call()
        except Exception as error:
            raise SaveError(f'a checkpoint cannot be saved in {self._directory}: {_reason(error)}') from error

    def _read(self, step: int, call: Callable[[], Any]) -> Any:
        """Call a function that reads a checkpoint; where it fails in one process, it fails in all of them."""
        result = cause = None
        try:
            result = call()
        except Exception as error:
            cause = error
        if hosts.any_process(cause is not None):
            reason = 'another process cannot read it' if cause is None else _reason(cause)
            raise DamagedError(f'{self._directory / str(step)} is damaged: {reason}') from cause
        return result


def _reason(error: Exception) -> str:
    """Return what an error of Orbax says about its reason; the whole message is in the cause."""
    line = (str(error) or repr(error)).splitlines()[0]
    of_system = re.search(r': ([^:]+) \[os_error_code=', line)  # behind a chain of places
    return of_system[1] if of_system else line


def abstract(state: PyTree) -> PyTree:
    """Return a state with every array replaced by its jax.ShapeDtypeStruct, sharding included."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


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
    """Return a type such as 'float32[3,4]', in which saved and restored leaf must be equal."""
    return f'{leaf.dtype}[{",".join(map(str, leaf.shape))}]'


def _key_data(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf.dtype) else leaf


def _key_data_struct(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Return the ShapeDtypeStruct of `_key_data`; the sharding of the keys does not split its additional axis."""
    if not _is_key(leaf.dtype):
        return leaf
    data = jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding)


def _as_key(data: jax.Array, dtype: Any) -> jax.Array:
    """Return a leaf of the given dtype from the output of `_key_data`."""
    return jax.random.wrap_key_data(data, dtype=dtype) if _is_key(dtype) else data


@jax.jit
def _checksum(x: jax.Array) -> jax.Array:
    """Return the sum of an array's bits as unsigned words, uint32; it does not depend on the sharding."""
    if x.dtype == bool:
        return x.sum(dtype=jnp.uint32)
    word = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.dtype.itemsize]
    return jax.lax.bitcast_convert_type(x, word).astype(jnp.uint32).sum(dtype=jnp.uint32)


@jax.jit
def _checksums(bits: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Return the checksum of every leaf; one program computes them all."""
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
            lines.append(f'{name}: abstract_state gives no sharding for it')
    return lines
