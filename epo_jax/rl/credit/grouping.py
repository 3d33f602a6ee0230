"""Sums and means over conversations or turns that belong together. Pure functions of arrays with leading axis M.

Means are exact to the last bits for values that are all equal, and `difference` takes what is left for 0. Otherwise the
rounding of ties, divided by its own size, would look like credit.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from epo_jax.text.tokens import Array


def same(*keys: Int[Array, ' M']) -> Int[Array, ' M']:
    """Return a number from 0 to M - 1 for every element; two elements with the same keys get the same number."""
    keys = tuple(map(jnp.asarray, keys))
    order = jnp.lexsort(keys)
    new = sum((key[order][1:] != key[order][:-1]).astype(jnp.int32) for key in keys) > 0
    numbers = jnp.cumsum(jnp.concatenate([jnp.zeros(1, jnp.int32), new.astype(jnp.int32)]))
    return jnp.zeros(len(order), jnp.int32).at[order].set(numbers.astype(jnp.int32))


def total(value: Float[Array, ' M'], used: Bool[Array, ' M'], group: Int[Array, ' M']) -> Float[Array, ' M']:
    """Return for every element the sum of the used values in its group, which is numbered by `same`."""
    return jax.ops.segment_sum(jnp.where(used, value, 0), group, len(group))[group]


def count(used: Bool[Array, ' M'], group: Int[Array, ' M'], dtype=jnp.float32) -> Float[Array, ' M']:
    """Return for every element the number of used elements in its group."""
    return total(jnp.ones(len(group), dtype), used, group)


def mean(value: Float[Array, ' M'], used: Bool[Array, ' M'], group: Int[Array, ' M']) -> Float[Array, ' M']:
    """Return for every element the mean of the used values in its group; 0 for a group without any."""
    number = jnp.maximum(count(used, group, value.dtype), 1)
    rough = total(value, used, group) / number
    return rough + total(value - rough, used, group) / number  # the first sum rounds with the number of its terms


def difference(value: Float[Array, '...'], mean: Float[Array, '...']) -> Float[Array, '...']:
    """Return value - mean, and 0 where both are equal but for rounding."""
    rounding = 8 * jnp.finfo(value.dtype).eps * jnp.maximum(jnp.abs(value), jnp.abs(mean))
    return jnp.where(jnp.abs(value - mean) > rounding, value - mean, 0)


def deviation(value: Float[Array, ' M'], used: Bool[Array, ' M'], group: Int[Array, ' M'],
              lost: int = 1) -> Float[Array, ' M']:
    """Return for every element the standard deviation of the used values in its group; 0 for a group of one.

    Args:
      value, used, group: as in `total`.
      lost: degrees of freedom lost; the sum of squares is divided by the number of values minus `lost`.
    """
    squares = difference(value, mean(value, used, group)) ** 2
    number = count(used, group, value.dtype)
    return jnp.sqrt(total(squares, used, group) / jnp.maximum(number - lost, 1))
