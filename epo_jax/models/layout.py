"""The two layouts of a decoder's parameters, and the conversion of trained parameters for sampling.

See models/base.py for a description of the layouts.
"""

import functools
from typing import Any, Optional

import jax
import jax.numpy as jnp

from epo_jax.models.lora import LoRA


def sampling_params(trained: Any, lora: Optional[LoRA], dtype: Any, base: Any = None) -> Any:
    """Return trained parameters in the dtype and layout used for sampling.

    Args:
      trained: all parameters of the model in the stacked layout, or an adapter.
      lora: the shape of the adapter; None if the whole model is trained.
      dtype: dtype in which the model samples.
      base: the frozen parameters under the adapter, in the stacked layout; unused if `lora` is None.
    """
    if lora is None:
        return unstack(trained, dtype)
    return _join(lora, dtype, base, trained)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _join(lora, dtype, base, adapter):
    return lora.join(base, jax.tree.map(lambda x: x.astype(dtype), adapter))


def unstack(params: Any, dtype: Any = None) -> Any:
    """Convert the stacked layout to one subtree per layer (`layer_0`, ...), cast to `dtype` if it is not None.

    Arrays outside the layers that already have this dtype are not copied, so donating them invalidates the originals.
    """
    cast = lambda x: x if dtype is None or x.dtype == dtype else x.astype(dtype)
    rest = {k: jax.tree.map(cast, v) for k, v in params.items() if k != 'layers'}
    count = jax.tree.leaves(params['layers'])[0].shape[0]
    return rest | {f'layer_{i}': _layer(params['layers'], i, dtype) for i in range(count)}


@functools.partial(jax.jit, static_argnames='dtype')
def _layer(layers, number, dtype):
    """Return one layer. One program serves all layers, because XLA takes seconds to compile slices of all of them."""
    return jax.tree.map(lambda x: x[number].astype(dtype or x.dtype), layers)


def stack(params: Any) -> Any:
    """Convert one subtree per layer to the stacked layout."""
    names = sorted((k for k in params if k.startswith('layer_')), key=lambda k: int(k[6:]))
    rest = {k: v for k, v in params.items() if k not in names}
    return rest | {'layers': jax.tree.map(lambda *xs: jnp.stack(xs), *(params[k] for k in names))}
