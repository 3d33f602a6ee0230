"""The device mesh and the table of sharding rules; a single device is a mesh of size one.

Mesh axes: `data` and `fsdp` both split rows (episodes and conversations); `fsdp` also splits parameters and optimizer
state; `tensor` splits heads, the MLP and the vocabulary.

The sharding of the parameters does not determine the sharding of the activations. Without a constraint, the compiler
splits activations by width and all-reduces over the whole mesh, so the decoder also names the axes of its activations
(see `constrain`).
"""

import functools
import math
from typing import Any, Mapping, Optional, Sequence

import flax.linen as nn
import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from epo_jax.runtime.errors import InputError

AXES = ('data', 'fsdp', 'tensor')

# Maps the logical axis of a parameter or an activation to the mesh axes that split it.
RULES = (
    ('vocab', 'tensor'), ('embed', 'fsdp'), ('heads', 'tensor'), ('kv_heads', 'tensor'), ('mlp', 'tensor'),
    ('head_dim', None), ('layers', None), ('rows', ('data', 'fsdp')))


class MeshError(InputError):
    """The mesh does not fit the devices, or the model or the rows do not fit the mesh."""


def make_mesh(shape: Sequence[int], devices: Optional[Sequence[Any]] = None) -> Mesh:
    """Return a mesh with the axes ('data', 'fsdp', 'tensor') over all devices.

    The shape (1, 1, 1) uses the first device only, unless there are several processes.

    Args:
      shape: three sizes; one may be -1, which uses the remaining devices.
      devices: the devices to arrange, or None for all devices of this run.

    Raises:
      MeshError: a size is not valid, or the product of the sizes is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes, count = list(shape), len(devices)
    if len(sizes) != len(AXES) or sizes.count(-1) > 1 or any(n < 1 and n != -1 for n in sizes):
        raise MeshError(f'mesh must be three positive sizes {AXES}, one of which may be -1, not {tuple(shape)}')
    if -1 in sizes:
        sizes[sizes.index(-1)] = max(1, count // math.prod(n for n in sizes if n != -1))
    if math.prod(sizes) == 1 and jax.process_count() == 1:
        devices = devices[:1]
    elif math.prod(sizes) != count:
        raise MeshError(f'mesh {tuple(shape)} does not cover exactly the {count} devices of this run; choose sizes '
                        f'whose product is {count}')
    return Mesh(np.array(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_axes(mesh: Mesh, axis: Optional[str]) -> tuple[str, ...]:
    """Return the mesh axes that split a logical axis.

    Raises:
      MeshError: the logical axis is not in RULES, or the mesh lacks an axis that RULES names.
    """
    if axis is None:
        return ()
    rules = dict(RULES)
    if axis not in rules:
        raise MeshError(f'the logical axis {axis!r} is not known; the known axes are {", ".join(rules)} (RULES in '
                        f'{__name__})')
    names = rules[axis] or ()
    names = (names,) if isinstance(names, str) else names
    for name in names:
        if name not in mesh.shape:
            raise MeshError(f'the logical axis {axis!r} is split over {name!r}, but the mesh has only the axes '
                            f'{mesh.axis_names}; create the mesh with make_mesh')
    return names


def num_shards(mesh: Mesh, axis: Optional[str]) -> int:
    """Return the number of shards into which the mesh splits a logical axis."""
    return math.prod(mesh.shape[name] for name in mesh_axes(mesh, axis))


def check_rows(mesh: Mesh, rows: Mapping[str, int]) -> None:
    """Check that the mesh splits rows evenly; otherwise every device would compute all of them.

    Args:
      mesh: the device mesh.
      rows: number of rows by configuration key.

    Raises:
      MeshError: one line for each number that does not split evenly, with its key and the values that would.
    """
    shards = num_shards(mesh, 'rows')
    sizes = ' x '.join(f'{name} {mesh.shape[name]}' for name in mesh_axes(mesh, 'rows'))
    wrong = [f'{key}={count} rows do not split over the {shards} devices of mesh {tuple(mesh.shape.values())} that '
             f'share rows ({sizes}); make {key} a multiple of {shards}, or choose another mesh'
             for key, count in rows.items() if count % shards]
    if wrong:
        raise MeshError('\n'.join(wrong))


def param_shardings(model: nn.Module, mesh: Mesh, lora: Optional[Any] = None):
    """Return the NamedSharding of every parameter of a model, or of its adapter if `lora` is given.

    Raises:
      MeshError: an axis of a parameter is not known, or the mesh does not split it evenly; the message names the
        parameter.
    """
    init = model.init_boxed if lora is None else functools.partial(lora.init_boxed, model)
    abstract = jax.eval_shape(lambda: init(jax.random.key(0)))

    def sharding(path, leaf, names):
        name = jax.tree_util.keystr(path)
        try:
            split = [mesh_axes(mesh, axis) for axis in names]
        except MeshError as error:
            raise MeshError(f'{name}: {error}') from None
        for size, axes in zip(leaf.shape, split):
            count, label = math.prod(mesh.shape[axis] for axis in axes), '+'.join(axes)
            if size % count:
                raise MeshError(f'{name} of shape {leaf.shape} does not split into {count} along the mesh axis '
                                f'{label!r}; choose a mesh whose {label} divides {size}')
        return NamedSharding(mesh, PartitionSpec(*map(_spec_entry, split)))

    is_spec = lambda x: isinstance(x, PartitionSpec)
    return jax.tree_util.tree_map_with_path(
        lambda path, names, leaf: sharding(path, leaf, names), nn.get_partition_spec(abstract),
        nn.meta.unbox(abstract), is_leaf=is_spec)


def _spec_entry(axes: Sequence[str]):
    """Return mesh axes as an entry of a PartitionSpec: None, a name, or a tuple of names."""
    return axes[0] if len(axes) == 1 else tuple(axes) or None


def named_sharding(mesh: Mesh, shape: Sequence[int], *axes: Optional[str]) -> NamedSharding:
    """Return the sharding of an array by the logical names of its leading axes.

    An axis that does not split evenly is not split.

    Raises:
      MeshError: a logical axis is not known, or the mesh lacks one of its axes (see `mesh_axes`).
    """
    entry = lambda size, axis: _spec_entry(mesh_axes(mesh, axis)) if size % num_shards(mesh, axis) == 0 else None
    return NamedSharding(mesh, PartitionSpec(*map(entry, shape, axes)))


def constrain(mesh: Optional[Mesh], x: jax.Array, *axes: Optional[str]) -> jax.Array:
    """Constrain `x` to the sharding of `named_sharding`; without a mesh of several devices, return it unchanged."""
    if mesh is None or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, named_sharding(mesh, x.shape, *axes))
