"""One mesh, one table of sharding rules; a single device is a mesh of size one.

Mesh axes: `data` and `fsdp` both split rows (episodes, conversations); `fsdp` also splits parameters and
optimiser state; `tensor` splits heads, the MLP and the vocabulary.

Where parameters lie does not say where a product of them is computed: left alone, the compiler splits activations
by their width and adds up over the whole mesh. So the decoder names the axes of its activations too (`constrain`).
"""

import functools
import math
from typing import Any, Optional, Sequence

import flax.linen as nn
import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

AXES = ('data', 'fsdp', 'tensor')

# Logical axis of a parameter, or of what is computed (`rows`) -> mesh axis.
RULES = (
    ('vocab', 'tensor'), ('embed', 'fsdp'), ('heads', 'tensor'), ('kv_heads', 'tensor'), ('mlp', 'tensor'),
    ('head_dim', None), ('layers', None), ('rows', ('data', 'fsdp')))


class MeshError(ValueError):
    """The mesh does not fit the devices, or the model does not fit the mesh."""


def make_mesh(shape: Sequence[int], devices: Optional[Sequence[Any]] = None) -> Mesh:
    """A mesh ('data', 'fsdp', 'tensor') over all devices.

    Args:
      shape: three sizes, of which one may be -1: what is left.
      devices: those of another machine; None: those that there are.

    Raises:
      MeshError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes, count = list(shape), len(devices)
    if len(sizes) != len(AXES) or sizes.count(-1) > 1 or any(n < 1 and n != -1 for n in sizes):
        raise MeshError(f'a mesh has three positive sizes {AXES}, one of which may be -1; not {tuple(shape)}')
    if -1 in sizes:
        sizes[sizes.index(-1)] = max(1, count // math.prod(n for n in sizes if n != -1))
    if math.prod(sizes) != count:
        raise MeshError(f'a mesh of {tuple(shape)} does not cover the {count} devices there are')
    return Mesh(np.array(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def param_shardings(model: nn.Module, mesh: Mesh, lora: Optional[Any] = None):
    """NamedSharding of every parameter, a tree like the model's parameters, or like those of its adapter.

    Raises:
      MeshError: an axis of a parameter is not divisible by its share of the mesh; names the parameter.
    """
    init = model.init_boxed if lora is None else functools.partial(lora.init_boxed, model)
    abstract = jax.eval_shape(lambda: init(jax.random.key(0)))
    specs = nn.logical_to_mesh(nn.get_partition_spec(abstract), RULES)

    def sharding(path, leaf, spec):
        for size, axis in zip(leaf.shape, spec):
            if axis is not None and size % mesh.shape[axis]:
                raise MeshError(f'{jax.tree_util.keystr(path)} of shape {leaf.shape} does not split into '
                                f'{mesh.shape[axis]} along the mesh axis {axis!r}; choose another size for it')
        return NamedSharding(mesh, spec)

    is_spec = lambda x: isinstance(x, PartitionSpec)
    return jax.tree_util.tree_map_with_path(
        lambda path, spec, leaf: sharding(path, leaf, spec), specs, nn.meta.unbox(abstract), is_leaf=is_spec)


def named_sharding(mesh: Mesh, shape: Sequence[int], *axes: Optional[str]) -> NamedSharding:
    """Sharding of an array by the names of its first axes (see RULES); one that does not divide is not split."""
    def part(size, axis):
        over = dict(RULES)[axis] if axis else None
        count = math.prod(mesh.shape[a] for a in ((over,) if isinstance(over, str) else over or ()))
        return over if size % count == 0 else None

    return NamedSharding(mesh, PartitionSpec(*map(part, shape, axes)))


def row_sharding(mesh: Mesh, rows: int) -> NamedSharding:
    """Sharding of arrays whose first axis is rows: split over data and fsdp where that divides, else replicated."""
    return named_sharding(mesh, (rows,), 'rows')


def constrain(mesh: Optional[Mesh], x: jax.Array, *axes: Optional[str]) -> jax.Array:
    """x, laid over the mesh as `named_sharding` says; as it is where there is no mesh, or one of a single device."""
    if mesh is None or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, named_sharding(mesh, x.shape, *axes))
