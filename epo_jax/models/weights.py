"""Reading checkpoints (Hugging Face safetensors or GGUF) and writing Hugging Face checkpoints, tensor by tensor.

Each tensor is read, converted to the layout of the decoder ([in, out...] kernels with separate head axes), cast and put
on its devices before the next one is read, so the host holds only one tensor at a time.
"""

import dataclasses
import functools
import json
import math
import os
import pathlib
import shutil
from typing import Any, Callable, Iterator, Optional

from flax.traverse_util import flatten_dict, unflatten_dict
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from epo_jax.models.config import ModelConfig, UnsupportedModelError
from epo_jax.models.families import config_from_hf, decoder, family_of
from epo_jax.models.fields import read_object
from epo_jax.models.gguf import GGUFFile, is_gguf, read_gguf_config
from epo_jax.models.safetensors_files import SafetensorsFiles, WeightsError
from epo_jax.runtime.errors import InputError

Path = tuple[str, ...]

# Name in the decoder -> (name in Hugging Face checkpoints, name in GGUF files); those of layers are in families.py.
OTHER_MODULES = {
    'embed': ('model.embed_tokens', 'token_embd'),
    'final_norm': ('model.norm', 'output_norm'),
    'head': ('lm_head', 'output'),
}

# Ends of the names of tensors that bitsandbytes, GPTQ, AWQ, compressed-tensors, FP8 and MLX store beside weights.
QUANTIZED = ('.absmax', '.quant_map', '.SCB', '.qweight', '.qzeros', '.weight_packed', '.weight_scale',
             '.weight_scale_inv', '.scales')


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint.

    Attributes:
      leaf: path of its leaf in the stacked layout, such as ('layers', 'q', 'kernel').
      layer: index of its layer in this leaf; None for tensors outside the layers.
      shape: shape in the decoder, without the layer axis.
      module: name of its module in Hugging Face checkpoints and in GGUF files.
    """

    leaf: Path
    layer: Optional[int]
    shape: tuple[int, ...]
    module: tuple[str, str]

    @property
    def path(self) -> Path:
        """Return the path of its leaf in the layout with one subtree per layer."""
        return self.leaf if self.layer is None else (f'layer_{self.layer}', *self.leaf[1:])

    def name(self, gguf: bool = False) -> str:
        """Return its name in Hugging Face checkpoints or in GGUF files."""
        kind = 'bias' if self.leaf[-1] == 'bias' else 'weight'
        if self.layer is None:
            return f'{self.module[gguf]}.{kind}'
        return f'{"blk" if gguf else "model.layers"}.{self.layer}.{self.module[gguf]}.{kind}'

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Return its shape in files, where kernels are [out, in] and heads have no axis of their own."""
        if self.leaf[-1] == 'kernel':
            return math.prod(self.shape[1:]), self.shape[0]
        return (math.prod(self.shape),) if self.leaf[-1] == 'bias' else self.shape

    def from_stored(self, x: np.ndarray, dtype) -> np.ndarray:
        """Convert an array from a file, of shape `stored_shape`, to a new array of shape `shape` and dtype `dtype`."""
        x = x.T if self.leaf[-1] == 'kernel' else x
        return np.array(x.reshape(self.shape), dtype=np.dtype(dtype), order='C')

    def to_stored(self, x: np.ndarray) -> np.ndarray:
        """Convert an array of shape `shape` to a contiguous array of shape `stored_shape` for a file."""
        x = x.reshape(x.shape[0], -1).T if self.leaf[-1] == 'kernel' else x
        return np.ascontiguousarray(x.reshape(self.stored_shape))


def load(source: str | os.PathLike | GGUFFile, dtype=jnp.float32, stacked: bool = False,
         shardings: Optional[Callable[[ModelConfig], Any]] = None,
         ) -> tuple[ModelConfig, dict[str, Any]]:
    """Read a checkpoint.

    Args:
      source: a folder with `config.json` and `model.safetensors` (or shards and their index), or a GGUF file, as a
        path or opened.
      dtype: dtype of all parameters.
      stacked: whether to return the stacked layout; see models/base.py.
      shardings: a function that returns the sharding of every parameter, in the chosen layout, for the shape of the
        decoder. None puts all parameters on the default device.

    Returns:
      The shape of the decoder, and its parameters as a nested dict of `jax.Array`.

    Raises:
      WeightsError: a file is missing, truncated or of an unknown format; the model is not supported; or a tensor is
        missing, unexpected, of the wrong shape or of an unsupported type, or contains NaN or infinity.
    """
    path = pathlib.Path(source.path if isinstance(source, GGUFFile) else source)
    try:
        if path.is_dir():
            config, files = read_config(path), SafetensorsFiles(path)
        elif is_gguf(path):
            files = source if isinstance(source, GGUFFile) else GGUFFile(path)
            config = read_gguf_config(files)
        else:
            raise WeightsError('this path is neither a folder with safetensors nor a .gguf file')
        # Before anything is built for every layer, or for every dimension of a head.
        if config.num_layers > len(files.shapes):
            raise WeightsError(f'the model should have {config.num_layers} layers, but the files hold only '
                               f'{len(files.shapes)} tensors')
        if config.head_dim > (largest := max(map(math.prod, files.shapes.values()))):
            raise WeightsError(f'the heads of the model should have size {config.head_dim}, but the largest tensor of '
                               f'the files holds only {largest} numbers')
        leaves = _leaves(config)
        names = {t: t.name(gguf=isinstance(files, GGUFFile)) for tensors in leaves.values() for t in tensors}
        _check(config, files, {name: t.stored_shape for t, name in names.items()})
        read = lambda tensor: tensor.from_stored(files.read(names[tensor]), dtype)
        leaf_shardings = flatten_dict(shardings(config)) if shardings else {}
        return config, _read_params(leaves, names, read, dtype, stacked, leaf_shardings)
    except (InputError, safetensors.SafetensorError) as error:
        message = str(error)
        raise WeightsError(message if str(path) in message else f'{path}: {message}') from error


def read_config(path: str | os.PathLike) -> ModelConfig:
    """Return the shape of the decoder of a Hugging Face folder.

    Raises:
      WeightsError: config.json is missing or damaged, or the model is not supported.
    """
    file = pathlib.Path(path) / 'config.json'
    if not file.exists() and file.with_name('adapter_config.json').exists():
        raise WeightsError(f'{path}: this folder holds an adapter and no model; name its base as the model, and the '
                           'adapter as lora.init')
    try:
        return config_from_hf(read_object(file))
    except InputError as error:
        raise WeightsError(str(error) if str(file) in str(error) else f'{file}: {error}') from error


def _leaves(config: ModelConfig) -> dict[Path, list[Tensor]]:
    """Return the tensors of every leaf of the stacked layout."""
    tree = flatten_dict(jax.eval_shape(lambda: decoder(config, stacked=True).init_params(jax.random.key(0))))
    modules = family_of(config).modules
    layers = lambda path, x: [Tensor(path, i, x.shape[1:], modules[path[1]]) for i in range(config.num_layers)]
    return {p: layers(p, x) if p[0] == 'layers' else [Tensor(p, None, x.shape, OTHER_MODULES[p[0]])]
            for p, x in tree.items()}


def _check(config: ModelConfig, files: SafetensorsFiles | GGUFFile, expected: dict[str, tuple[int, ...]]):
    """Compare the names and shapes of tensors in the files with those of the model before any tensor is read."""
    listing = lambda names: ', '.join(map(repr, names[:5])) + (f' and {len(names) - 5} more' if names[5:] else '')
    if quantized := [name for name in files.shapes if name.endswith(QUANTIZED)]:
        raise WeightsError(f'tensor {listing(quantized)} belongs to quantized weights, which are not supported; take '
                           'the original checkpoint, or a GGUF file')
    if missing := [name for name in expected if name not in files.shapes]:
        raise WeightsError(f'missing tensor {listing(missing)}')
    for name, shape in expected.items():
        if files.shapes[name] != shape:
            raise WeightsError(f'tensor {name!r} has shape {files.shapes[name]}, expected {shape}')
    head, table = 'lm_head.weight', 'model.embed_tokens.weight'
    # Rotary frequencies follow from the configuration. A tied output projection may be stored if it equals the table.
    redundant = ('rotary_emb.inv_freq', 'rope_freqs.weight', *([head] if config.tied else []))
    if extra := [name for name in files.shapes if name not in expected and not name.endswith(redundant)]:
        raise WeightsError(f'unexpected tensor {listing(extra)}')
    if config.tied and head in files.shapes and not np.array_equal(files.read(head), files.read(table)):
        raise WeightsError(f'tensor {head!r} differs from {table!r}, but config.json sets tie_word_embeddings')


def _read_params(leaves: dict[Path, list[Tensor]], names: dict[Tensor, str], read: Callable[[Tensor], np.ndarray],
                 dtype, stacked: bool, shardings: dict[Path, jax.sharding.Sharding]):
    """Read all tensors, put them on their devices, and return them as a nested dict; refuse NaN and infinity."""
    params = {}
    for leaf, tensors in leaves.items():
        if stacked and leaf[0] == 'layers':
            shape = (len(tensors), *tensors[0].shape)
            params[leaf] = x = _stack(map(read, tensors), shape, dtype, shardings.get(leaf))
            finite = np.asarray(_finite(x, tuple(range(1, x.ndim))))
        else:
            for tensor in tensors:
                params[tensor.path] = _place(read(tensor), shardings.get(tensor.path))
            finite = np.array([_finite(params[tensor.path]) for tensor in tensors])
        if not finite.all():
            raise WeightsError(f'tensor {names[tensors[finite.argmin()]]!r} contains NaN or infinity')
    return unflatten_dict(params)


@functools.partial(jax.jit, static_argnames='axes')
def _finite(x: jax.Array, axes: Optional[tuple[int, ...]] = None) -> jax.Array:
    """Return whether all numbers are finite, over all axes or some of them."""
    return jnp.isfinite(x).all(axes)


def _place(x: np.ndarray, sharding: Optional[jax.sharding.Sharding]) -> jax.Array:
    if sharding is None:
        return jax.device_put(x).block_until_ready()
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]).block_until_ready()


_write_layer = jax.jit(lambda shard, x, i: jax.lax.dynamic_update_index_in_dim(shard, x, i, 0), donate_argnums=0)


def _stack(layers: Iterator[np.ndarray], shape: tuple[int, ...], dtype,
           sharding: Optional[jax.sharding.Sharding]) -> jax.Array:
    """Write one layer after the other into a leaf, in place, on every device into its shard."""
    if sharding is None:
        shard_shape, slices = shape, {None: (slice(None),) * len(shape)}
    else:
        shard_shape, slices = sharding.shard_shape(shape), sharding.addressable_devices_indices_map(shape)
    shards = {device: jnp.zeros(shard_shape, dtype, device=device) for device in slices}
    for i, x in enumerate(layers):
        for device, (rows, *rest) in slices.items():
            first, end, _ = rows.indices(shape[0])
            if first <= i < end:
                shards[device] = _write_layer(shards[device], x[tuple(rest)], i - first)
        jax.block_until_ready(list(shards.values()))  # otherwise layers accumulate on the host
    arrays = list(shards.values())
    return arrays[0] if sharding is None else jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def save(path: str | os.PathLike, config: ModelConfig, params: dict[str, Any], max_file_bytes: int = 5_000_000_000,
         bos_token_id: Optional[int] = None, eos_token_id: Optional[int | list[int]] = None):
    """Write a Hugging Face folder (`config.json` and safetensors) that the transformers library can load.

    The folder appears under its name only when it is complete.

    Args:
      path: the folder, which must be empty or not exist.
      config: the shape of the decoder.
      params: its parameters in either layout, in float32, float16 or bfloat16. They are written in their own dtype.
        This process must be able to read all shards.
      max_file_bytes: maximum size of a file in bytes, unless a single tensor is larger. It also bounds the memory that
        the host needs.
      bos_token_id: begin-of-sequence token for `config.json`.
      eos_token_id: end-of-sequence token for `config.json`, or a list of several.

    Raises:
      WeightsError: the folder is not empty, no supported architecture has this shape, or `params` does not match it.
    """
    path = pathlib.Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise WeightsError(f'{path}: this path already exists; choose a new one or an empty folder')
    try:
        content = config.to_hf() | {'bos_token_id': bos_token_id, 'eos_token_id': eos_token_id}
    except UnsupportedModelError as error:
        raise WeightsError(f'{path}: {error}') from error
    params = flatten_dict(params)
    stacked = any(leaf[0] == 'layers' for leaf in params)
    tensors = [tensor for group in _leaves(config).values() for tensor in group]
    expected = {(t.leaf if stacked else t.path): (config.num_layers, *t.shape) if stacked and t.layer is not None
                else t.shape for t in tensors}
    if wrong := set(expected).symmetric_difference(params):
        leaf = min(wrong)
        raise WeightsError(f'{"missing" if leaf in expected else "unexpected"} parameter {"/".join(leaf)}')
    for leaf, shape in expected.items():
        x = params[leaf]
        if x.shape != shape or str(x.dtype) not in ('float32', 'float16', 'bfloat16'):
            raise WeightsError(f'parameter {"/".join(leaf)} is {x.dtype}{list(x.shape)}, expected {list(shape)}')
    content['torch_dtype'] = str(params[('embed',)].dtype)

    def value(tensor: Tensor) -> np.ndarray:
        x = params[tensor.leaf if stacked else tensor.path]
        return tensor.to_stored(np.asarray(x[tensor.layer] if stacked and tensor.layer is not None else x))

    files = [[]]
    for tensor in tensors:
        size = lambda t: math.prod(t.shape) * params[t.leaf if stacked else t.path].dtype.itemsize
        if files[-1] and sum(map(size, files[-1])) + size(tensor) > max_file_bytes:
            files.append([])
        files[-1].append(tensor)
    names = [f'model-{i:05d}-of-{len(files):05d}.safetensors' for i in range(1, len(files) + 1)]
    unfinished = path.with_name(f'.{path.name}.{os.getpid()}.unfinished')
    unfinished.mkdir(parents=True)
    try:
        if len(files) == 1:
            names = ['model.safetensors']
        else:
            weight_map = {tensor.name(): name for name, file in zip(names, files) for tensor in file}
            index = {'metadata': {'total_size': sum(x.nbytes for x in params.values())}, 'weight_map': weight_map}
            (unfinished / 'model.safetensors.index.json').write_text(json.dumps(index, indent=2))
        for name, file in zip(names, files):
            safetensors.numpy.save_file({t.name(): value(t) for t in file}, unfinished / name, {'format': 'pt'})
            os.chmod(unfinished / name, 0o644)  # safetensors lets only the owner read its files
        (unfinished / 'config.json').write_text(json.dumps(content, indent=2))
        os.rename(unfinished, path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
