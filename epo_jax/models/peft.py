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
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from epo_jax.models.config import ModelConfig
from epo_jax.models.lora import TARGETS, LoRA
from epo_jax.models.transformer import Transformer
from epo_jax.models.weights import LAYER_MODULES, WeightsError

# Settings of PEFT that change the result of an adapter and are not supported.
UNSUPPORTED = (
    'bias', 'use_rslora', 'use_dora', 'fan_in_fan_out', 'modules_to_save', 'layers_to_transform', 'rank_pattern',
    'alpha_pattern', 'layer_replication', 'lora_bias', 'target_parameters', 'trainable_token_indices', 'use_qalora',
    'exclude_modules', 'alora_invocation_tokens')


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
      The shape of the adapter, and the adapter in float32 on the default device.

    Raises:
      WeightsError: a file is missing or damaged, the kind of adapter is not supported, or a tensor is missing,
        unexpected or has the wrong shape.
    """
    path = pathlib.Path(path)
    try:
        content = json.loads((path / 'adapter_config.json').read_text())
        tensors = safetensors.numpy.load_file(path / 'adapter_model.safetensors')
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise WeightsError(f'{path}: {error}') from error
    lora = _lora(content, path)
    shapes = jax.eval_shape(lambda: lora.init(Transformer(config, stacked=True), jax.random.key(0)))
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

    def leaf(target, matrix, like):
        layers = [tensors[_name(target, i, matrix)].T.astype(np.float32) for i in range(config.num_layers)]
        return jnp.asarray(np.stack(layers).reshape(like.shape))

    return lora, {'layers': {
        target: {'a': leaf(target, 'A', pair['a']), 'b': leaf(target, 'B', pair['b'])}
        for target, pair in shapes['layers'].items()}}


def _module(target: str) -> str:
    """Return Hugging Face's name of a target, for example q_proj for q."""
    return LAYER_MODULES[target][0].rsplit('.', 1)[-1]


def _name(target: str, layer: int, matrix: str) -> str:
    return f'base_model.model.model.layers.{layer}.{LAYER_MODULES[target][0]}.lora_{matrix}.weight'


def _lora(content: dict[str, Any], path: pathlib.Path) -> LoRA:
    """Return the shape of the adapter that an adapter_config.json describes."""
    if content.get('peft_type') != 'LORA':
        raise WeightsError(f"{path}: peft_type {content.get('peft_type')!r} is not supported, only 'LORA'")
    for key in UNSUPPORTED:
        if content.get(key) and content[key] != 'none':
            raise WeightsError(f'{path}: {key} {content[key]!r} is not supported')
    targets, modules = content.get('target_modules'), {_module(target): target for target in TARGETS}
    if targets == 'all-linear':
        targets = list(modules)
    if not isinstance(targets, list) or not set(targets) <= set(modules):
        raise WeightsError(f'{path}: target_modules {targets!r} is not supported; '
                           f'supported are lists of {", ".join(modules)}')
    try:
        return LoRA(int(content['r']), float(content['lora_alpha']), tuple(
            target for module, target in modules.items() if module in targets))
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f'{path}: r or lora_alpha is missing or invalid ({error!r})') from error
