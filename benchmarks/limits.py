"""The limits of the machine: the work of a job in bytes and operations, and the measured rates.

No program can be faster than max(bytes / bandwidth, operations / matrix product rate), step by step.

Axis letters: B rows, L layers, H query heads, D head size, W width, V vocabulary.
"""

import time
from typing import Callable, Mapping, NamedTuple, Sequence

from benchmarks.measure import Contender, Unavailable


class Rates(NamedTuple):
    """Measured: bytes/s read from memory, floating-point operations/s of a large matrix product."""

    bandwidth: float
    gemm: float


class Step(NamedTuple):
    """One of several sequential steps of a job: the bytes that must be read, and the operations."""

    bytes: float
    flops: float


Work = tuple[Step, ...]


def layer_matrices(config) -> int:
    """Return the number of parameters in the matrix products of all layers."""
    attention = 2 * config.width * config.head_dim * (config.num_heads + config.num_kv_heads)
    return config.num_layers * (attention + 3 * config.width * config.mlp_width)


def head_matrix(config) -> int:
    """Return the number of parameters in the projection to the vocabulary."""
    return config.vocab_size * config.width


def attention_flops(config, keys: float) -> float:
    """Return the operations of one query's scores and weighted sum over its keys, in all layers."""
    return 4 * config.num_layers * config.num_heads * config.head_dim * keys


def cache_bytes(config, itemsize: int) -> int:
    """Return bytes of keys and values that one token leaves in the cache of all layers."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * itemsize


def decode(config, batch: int, begin: int, new: int, itemsize: int) -> Work:
    """Return the work of sampling `new` tokens in each of `batch` rows of `begin` tokens, the last of them not fed yet.

    Every step reads the weights once (only the needed rows of an untied embedding table) and the cache up to
    the current length.
    """
    weights = (layer_matrices(config) + head_matrix(config)) * itemsize
    flops = 2 * (layer_matrices(config) + head_matrix(config))
    return tuple(
        Step(weights + batch * length * cache_bytes(config, itemsize),
             batch * (flops + attention_flops(config, length)))
        for length in range(begin, begin + new))


def prefill(config, batch: int, begin: int, new: int, itemsize: int) -> Work:
    """Return the work of prefilling `new` tokens in each of `batch` rows of `begin` fed tokens, without logits."""
    keys = new * begin + new * (new + 1) / 2
    return (Step(
        layer_matrices(config) * itemsize + batch * (begin + new) * cache_bytes(config, itemsize),
        batch * (2 * layer_matrices(config) * new + attention_flops(config, keys))),)


def train(config, batch: int, length: int, itemsize: int) -> Work:
    """Return the work of a gradient step with a loss on every token.

    The backward pass costs twice the forward pass. Attention is causal: half of the square. Bytes: parameters,
    gradients and both moments are read once, in float32.
    """
    matrices = 2 * (layer_matrices(config) + head_matrix(config)) * length
    flops = 3 * batch * (matrices + attention_flops(config, length * (length + 1) / 2))
    return (Step(4 * 4 * config.num_params, flops),)


def dialogue(config, batch: int, turns: int, opening: int, new: int, itemsize: int) -> Work:
    """Return the work of a dialogue: each seat reads its opening and the other's messages, and samples its own.

    The tokens that a chat template puts between messages are not counted.
    """
    held, fed, unread, work = [0, 0], [0, 0], [opening, opening], []
    for t in range(turns):
        seat = t % 2
        held[seat] += unread[seat]
        work += prefill(config, batch, fed[seat], held[seat] - 1 - fed[seat], itemsize)
        work += decode(config, batch, held[seat], new, itemsize)
        held[seat] += new
        fed[seat] = held[seat] - 1
        unread[seat], unread[1 - seat] = 0, unread[1 - seat] + new
    return tuple(work)


def seconds(work: Work, rates: Rates) -> float:
    """Return the least time: per step, the longer of its bytes at full bandwidth and its operations at full rate."""
    return sum(max(step.bytes / rates.bandwidth, step.flops / rates.gemm) for step in work)


def flops(work: Work) -> float:
    """Return the number of operations."""
    return sum(step.flops for step in work)


def rates_of(medians: Sequence[Mapping[str, float]]) -> Rates:
    """Return the best rate of several libraries."""
    return Rates(*(max(m[name] for m in medians) for name in Rates._fields))


def _timed(work: Callable[[], None], amount: float, budget: float) -> float:
    """Return the amount per second of the fastest run, of at least three and as many as fit into `budget` seconds."""
    best, end, runs = float('inf'), time.perf_counter() + budget, 0
    while runs < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        best, runs = min(best, time.perf_counter() - start), runs + 1
    return amount / best


def devices() -> list[str]:
    """Return the name of JAX's default devices."""
    import jax

    return [f'{device.platform}: {device.device_kind}' for device in jax.devices()]


def xla_rates(dtype: str, size: int, megabytes: int, budget: float) -> Contender:
    """Measure the rates of XLA on the default device: a square matrix product, and the sum of a large array."""
    import jax
    import jax.numpy as jnp

    a, b = (jax.random.normal(jax.random.key(i), (size, size), dtype) for i in (0, 1))
    x = jnp.ones((megabytes * 2**20 // jnp.dtype(dtype).itemsize,), dtype)
    multiply, read = jax.jit(jnp.matmul), jax.jit(lambda x: jnp.sum(x, dtype=jnp.float32))
    return Contender(lambda: {
        'gemm': _timed(lambda: multiply(a, b).block_until_ready(), 2 * size**3, budget),
        'bandwidth': _timed(lambda: read(x).block_until_ready(), x.nbytes, budget)})


def torch_rates(dtype: str, size: int, megabytes: int, budget: float) -> Contender:
    """Measure the same on PyTorch's CPU backend."""
    try:
        import torch
    except ImportError as error:
        raise Unavailable('torch is not installed') from error

    kind = getattr(torch, dtype)
    a, b = torch.randn(size, size, dtype=kind), torch.randn(size, size, dtype=kind)
    x = torch.ones(megabytes * 2**20 // kind.itemsize, dtype=kind)
    return Contender(lambda: {
        'gemm': _timed(lambda: torch.mm(a, b), 2 * size**3, budget),
        'bandwidth': _timed(lambda: x.sum(), x.nbytes, budget)})
