"""One mesh, one table of sharding rules; a single device is a mesh of size one.

Mesh axes: `data` and `fsdp` both split rows (episodes, conversations); `fsdp` also splits parameters and
optimiser state; `tensor` splits heads, the MLP and the vocabulary.

The sharding of parameters does not determine the sharding of their products: left alone, the compiler splits
activations by their width and adds up over the whole mesh. So the decoder names the axes of its activations too
(`constrain`).
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

# Logical axis of a parameter, or of what is computed (`rows`) -> mesh axis.
RULES = (
    ('vocab', 'tensor'), ('embed', 'fsdp'), ('heads', 'tensor'), ('kv_heads', 'tensor'), ('mlp', 'tensor'),
    ('head_dim', None), ('layers', None), ('rows', ('data', 'fsdp')))


class MeshError(InputError):
    """The mesh does not fit the devices, or the model or the rows do not fit the mesh."""


def make_mesh(shape: Sequence[int], devices: Optional[Sequence[Any]] = None) -> Mesh:
    """Return a mesh ('data', 'fsdp', 'tensor') over all devices; with the shape (1, 1, 1), over the first one alone.

    Args:
      shape: three sizes, one of which may be -1: all devices that are left.
      devices: None takes the devices of this run.

    Raises:
      MeshError: the product of the sizes is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes, count = list(shape), len(devices)
    if len(sizes) != len(AXES) or sizes.count(-1) > 1 or any(n < 1 and n != -1 for n in sizes):
        raise MeshError(f'mesh: three positive sizes {AXES}, one of which may be -1; not {tuple(shape)}')
    if -1 in sizes:
        sizes[sizes.index(-1)] = max(1, count // math.prod(n for n in sizes if n != -1))
    if math.prod(sizes) == 1 and jax.process_count() == 1:
        devices = devices[:1]
    elif math.prod(sizes) != count:
        raise MeshError(f'mesh: {tuple(shape)} does not cover the {count} devices there are')
    return Mesh(np.array(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_axes(mesh: Mesh, axis: Optional[str]) -> tuple[str, ...]:
    """Return the mesh axes over which a logical axis is split.

    Raises:
      MeshError: the logical axis is not in RULES, or the mesh lacks an axis that they name.
    """
    if axis is None:
        return ()
    rules = dict(RULES)
    if axis not in rules:
        raise MeshError(f'the logical axis {axis!r} is not known; there are {", ".join(rules)} (RULES in {__name__})')
    over = rules[axis] or ()
    over = (over,) if isinstance(over, str) else over
    for name in over:
        if name not in mesh.shape:
            raise MeshError(f'the logical axis {axis!r} is split over {name!r}, and the mesh has only the axes '
                            f'{mesh.axis_names}; meshes are made by make_mesh')
    return over


def num_shards(mesh: Mesh, axis: Optional[str]) -> int:
    """Return the number of shards of a logical axis."""
    return math.prod(mesh.shape[name] for name in mesh_axes(mesh, axis))


def check_rows(mesh: Mesh, rows: Mapping[str, int]) -> None:
    """Check that the mesh can split rows; otherwise every device would do the work of all.

    Args:
      mesh: the mesh.
      rows: numbers of rows by configuration key.

    Raises:
      MeshError: one line for each number that cannot be split, with the key and its possible values.
    """
    parts = num_shards(mesh, 'rows')
    sizes = ' x '.join(f'{name} {mesh.shape[name]}' for name in mesh_axes(mesh, 'rows'))
    wrong = [f'{key}={count} rows do not split over the {parts} devices of mesh {tuple(mesh.shape.values())} that '
             f'share rows ({sizes}); make {key} a multiple of {parts}, or choose another mesh'
             for key, count in rows.items() if count % parts]
    if wrong:
        raise MeshError('\n'.join(wrong))


def param_shardings(model: nn.Module, mesh: Mesh, lora: Optional[Any] = None):
    """Return the NamedSharding of every parameter of a model, or of its adapter.

    Raises:
      MeshError: an axis of a parameter is not known, or the mesh cannot split it; the message names the parameter.
    """
    init = model.init_boxed if lora is None else functools.partial(lora.init_boxed, model)
    abstract = jax.eval_shape(lambda: init(jax.random.key(0)))

    def sharding(path, leaf, names):
        name = jax.tree_util.keystr(path)
        try:
            over = [mesh_axes(mesh, axis) for axis in names]
        except MeshError as error:
            raise MeshError(f'{name}: {error}') from None
        for size, axis, parts in zip(leaf.shape, names, over):
            count = math.prod(mesh.shape[part] for part in parts)
            if size % count:
                raise MeshError(f'{name} of shape {leaf.shape} does not split into {count} along the mesh axis '
                                f'{"+".join(parts)!r}; choose another mesh, whose {"+".join(parts)} divides {size}')
        return NamedSharding(mesh, PartitionSpec(*(_part(parts) for parts in over)))

    is_spec = lambda x: isinstance(x, PartitionSpec)
    return jax.tree_util.tree_map_with_path(
        lambda path, names, leaf: sharding(path, leaf, names), nn.get_partition_spec(abstract),
        nn.meta.unbox(abstract), is_leaf=is_spec)


def _part(axes: Sequence[str]):
    """Return mesh axes in the form of PartitionSpec."""
    return axes[0] if len(axes) == 1 else tuple(axes) or None


def named_sharding(mesh: Mesh, shape: Sequence[int], *axes: Optional[str]) -> NamedSharding:
    """Return the sharding of an array by the names of its first axes; axes that cannot be split evenly stay whole.

    Raises:
      MeshError: see mesh_axes.
    """
    over = lambda size, axis: _part(mesh_axes(mesh, axis)) if size % num_shards(mesh, axis) == 0 else None
    return NamedSharding(mesh, PartitionSpec(*map(over, shape, axes)))


def constrain(mesh: Optional[Mesh], x: jax.Array, *axes: Optional[str]) -> jax.Array:
    """Return x with the sharding of `named_sharding`, or unchanged without a mesh of several devices."""
    if mesh is None or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, named_sharding(mesh, x.shape, *axes))
