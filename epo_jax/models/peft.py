"""Adapters in the file format of the PEFT library: `adapter_model.safetensors` and `adapter_config.json`.

For every target and layer, PEFT stores two matrices as `torch.nn.Linear` stores weights: lora_A [rank, in] and
lora_B [out, rank]. In models/lora.py they are transposed, have separate head axes, and are stacked over the layers.
"""

import json
import os
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from epo_jax.models import fields
from epo_jax.models.config import ModelConfig
from epo_jax.models.families import LAYER_MODULES, decoder
from epo_jax.models.fields import read_object
from epo_jax.models.lora import TARGETS, LoRA
from epo_jax.models.weights import WeightsError
from epo_jax.runtime.errors import InputError

# Keys of adapter_config.json that may have any value: they are read, or do not change what an adapter computes. Every
# other key must be off (absent, null, false or empty).
NEUTRAL = frozenset({
    'peft_type', 'r', 'lora_alpha', 'target_modules', 'init_lora_weights', 'bias',  # read
    'task_type', 'auto_mapping', 'base_model_name_or_path', 'revision', 'inference_mode', 'peft_version',
    'lora_dropout',  # dropout is used in PEFT's own training only
    # Of no effect without a key that is refused (megatron_config, use_qalora) or of a kind of initialization.
    'megatron_core', 'qalora_group_size', 'loftq_config', 'eva_config', 'corda_config', 'lora_ga_config'})
# Kinds of initialization that leave the base model as it is; PiSSA, OLoRA and others change its weights.
INITIALIZATIONS = (True, False, None, 'gaussian', 'eva', 'orthogonal')


def save(path: str | os.PathLike, lora: LoRA, adapter: Any, base: str = '') -> None:
    """Write an adapter in float32 as a folder that `peft.PeftModel.from_pretrained` can load.

    The folder appears under its name only when it is complete.

    Args:
      path: the folder, which must not exist.
      lora: the shape of the adapter.
      adapter: the adapter in the structure of `LoRA.init`. This process must be able to read all shards.
      base: name or path of the base model for `adapter_config.json`; '' leaves it out.

    Raises:
      WeightsError: the folder exists, or the adapter does not have the given shape.
    """
    path, layers = pathlib.Path(path), adapter['layers']
    if path.exists():
        raise WeightsError(f'{path}: this path already exists; choose a new one')
    if set(layers) != set(lora.targets):
        raise WeightsError(f'the adapter has the targets {", ".join(layers)}, expected {", ".join(lora.targets)}')
    tensors = {}
    for target, pair in layers.items():
        a, b = (np.asarray(pair[leaf], np.float32) for leaf in 'ab')
        if a.shape[2] != lora.rank:
            raise WeightsError(f'the adapter of {target} has rank {a.shape[2]}, expected {lora.rank}')
        for i in range(len(a)):
            tensors[_name(target, i, 'A')] = np.ascontiguousarray(a[i].T)
            tensors[_name(target, i, 'B')] = np.ascontiguousarray(b[i].reshape(lora.rank, -1).T)
    content = {
        'peft_type': 'LORA', 'task_type': 'CAUSAL_LM', 'base_model_name_or_path': base or None, 'r': lora.rank,
        'lora_alpha': lora.alpha, 'lora_dropout': 0.0, 'inference_mode': True,
        'target_modules': [_module(target) for target in lora.targets],
        'bias': 'none', 'fan_in_fan_out': False, 'use_rslora': False, 'use_dora': False}
    unfinished = path.with_name(f'.{path.name}.{os.getpid()}.unfinished')
    unfinished.mkdir(parents=True)
    try:
        safetensors.numpy.save_file(tensors, unfinished / 'adapter_model.safetensors', {'format': 'pt'})
        os.chmod(unfinished / 'adapter_model.safetensors', 0o644)  # safetensors lets only the owner read its files
        (unfinished / 'adapter_config.json').write_text(json.dumps(content, indent=2))
        os.rename(unfinished, path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def load(path: str | os.PathLike, config: ModelConfig) -> tuple[LoRA, Any]:
    """Read an adapter.

    Args:
      path: the folder.
      config: the shape of the base model.

    Returns:
      The shape of the adapter, and the adapter as float32 NumPy arrays.

    Raises:
      WeightsError: a file is missing or damaged, the kind of adapter is not supported, or a tensor is missing,
        unexpected, has the wrong shape or type, or contains NaN or infinity.
    """
    path = pathlib.Path(path)
    lora = load_shape(path)
    if (path / 'adapter_model.bin').exists() and not (path / 'adapter_model.safetensors').exists():
        raise WeightsError(f'{path / "adapter_model.bin"}: this format is not read, because loading it can run any '
                           'code; load the adapter with the PEFT library and save it as safetensors')
    try:
        tensors = safetensors.numpy.load_file(path / 'adapter_model.safetensors')
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:  # KeyError: a type NumPy has not
        raise WeightsError(f'{path / "adapter_model.safetensors"}: the file is missing or damaged ({error})') from error
    shapes = jax.eval_shape(lambda: lora.init(decoder(config, stacked=True), jax.random.key(0)))
    expected = {}
    for target, pair in shapes['layers'].items():
        for i in range(config.num_layers):
            expected[_name(target, i, 'A')] = pair['a'].shape[2:] + pair['a'].shape[1:2]
            expected[_name(target, i, 'B')] = (int(np.prod(pair['b'].shape[2:])), lora.rank)
    if wrong := set(expected).symmetric_difference(tensors):
        name = min(wrong)
        raise WeightsError(f'{path}: {"missing" if name in expected else "unexpected"} tensor {name!r}')
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise WeightsError(f'{path}: tensor {name!r} has shape {tensors[name].shape}, expected {shape}')
        if str(tensors[name].dtype) not in ('float32', 'float16', 'bfloat16'):
            raise WeightsError(f'{path}: tensor {name!r} has the unsupported type {tensors[name].dtype}')
        if not np.isfinite(tensors[name].astype(np.float32)).all():
            raise WeightsError(f'{path}: tensor {name!r} contains NaN or infinity')

    def leaf(target, matrix, like):
        layers = [tensors[_name(target, i, matrix)].T.astype(np.float32) for i in range(config.num_layers)]
        return np.stack(layers).reshape(like.shape)

    return lora, {'layers': {
        target: {'a': leaf(target, 'A', pair['a']), 'b': leaf(target, 'B', pair['b'])}
        for target, pair in shapes['layers'].items()}}


def load_shape(path: str | os.PathLike) -> LoRA:
    """Return the shape of the adapter that the adapter_config.json of a folder describes.

    Raises:
      WeightsError: the file is missing or damaged, or the kind of adapter is not supported.
    """
    file = pathlib.Path(path) / 'adapter_config.json'
    try:
        return _shape(read_object(file))
    except InputError as error:
        raise WeightsError(str(error) if str(file) in str(error) else f'{file}: {error}') from error


def _module(target: str) -> str:
    """Return Hugging Face's name of a target, for example q_proj for q."""
    return LAYER_MODULES[target][0].rsplit('.', 1)[-1]


def _name(target: str, layer: int, matrix: str) -> str:
    return f'base_model.model.model.layers.{layer}.{LAYER_MODULES[target][0]}.lora_{matrix}.weight'


def _shape(content: dict[str, Any]) -> LoRA:
    if content.get('peft_type') != 'LORA':
        raise WeightsError(f"peft_type {content.get('peft_type')!r} is not supported, only 'LORA'")
    for key, value in content.items():
        if value and key not in NEUTRAL or key == 'bias' and value not in (None, False, 'none'):
            raise WeightsError(f'{key} {repr(value)[:80]} is not supported')
    if (init := content.get('init_lora_weights')) not in INITIALIZATIONS:
        raise WeightsError(f'init_lora_weights {init!r} is not supported, because it changes the weights of the base '
                           'model; convert the adapter with the PEFT library, or merge it into its base')
    modules, targets = {_module(target): target for target in TARGETS}, content.get('target_modules')
    if targets == 'all-linear':
        targets = list(modules)
    if not isinstance(targets, list) or not targets or not all(name in modules.keys() for name in map(str, targets)):
        raise WeightsError(f'target_modules {repr(targets)[:200]} is not supported; '
                           f'supported are lists of {", ".join(modules)}')
    return LoRA(fields.size(content, 'r'), fields.number(content, 'lora_alpha'), tuple(
        target for module, target in modules.items() if module in targets))
