"""One mesh, one table of sharding rules; a single device is a mesh of size one.

Mesh axes: `data` and `fsdp` both split rows (episodes, conversations); `fsdp` also splits parameters and
optimiser state; `tensor` splits heads, the MLP and the vocabulary.
"""

import math
from typing import Sequence

import flax.linen as nn
import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from epo_jax.models.transformer import Transformer

AXES = ('data', 'fsdp', 'tensor')

# Logical axis of a parameter -> mesh axis.
RULES = (
    ('vocab', 'tensor'), ('embed', 'fsdp'), ('heads', 'tensor'), ('kv_heads', 'tensor'), ('mlp', 'tensor'),
    ('head_dim', None), ('layers', None))


class MeshError(ValueError):
    """The mesh does not fit the devices, or the model does not fit the mesh."""


def make_mesh(shape: Sequence[int]) -> Mesh:
    """A mesh ('data', 'fsdp', 'tensor') over all devices.

    Args:
      shape: three sizes, of which one may be -1: what is left.

    Raises:
      MeshError: the sizes do not multiply to the number of devices.
    """
    sizes, count = list(shape), jax.device_count()
    if len(sizes) != len(AXES) or sizes.count(-1) > 1 or any(n < 1 and n != -1 for n in sizes):
        raise MeshError(f'a mesh has three positive sizes {AXES}, one of which may be -1; not {tuple(shape)}')
    if -1 in sizes:
        sizes[sizes.index(-1)] = max(1, count // math.prod(n for n in sizes if n != -1))
    if math.prod(sizes) != count:
        raise MeshError(f'a mesh of {tuple(shape)} does not cover the {count} devices there are')
    devices = np.array(jax.devices()).reshape(sizes)
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def param_shardings(model: Transformer, mesh: Mesh):
    """NamedSharding of every parameter, a tree like the model's parameters.

    Raises:
      MeshError: an axis of a parameter is not divisible by its share of the mesh; names the parameter.
    """
    abstract = jax.eval_shape(model.init_boxed, jax.random.key(0))
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


def row_sharding(mesh: Mesh, rows: int) -> NamedSharding:
    """Sharding of arrays whose first axis is rows: split over data and fsdp where that divides, else replicated."""
    parts = mesh.shape['data'] * mesh.shape['fsdp']
    return NamedSharding(mesh, PartitionSpec(('data', 'fsdp')) if rows % parts == 0 else PartitionSpec())
