"""The safetensors files of a Hugging Face folder: which of them hold the model, and reading tensors on demand."""

import pathlib
import re

import numpy as np
import safetensors

from epo_jax.models.fields import read_object, texts
from epo_jax.runtime.errors import InputError

FILE, INDEX = 'model.safetensors', 'model.safetensors.index.json'
SHARD = re.compile(r'model-\d+-of-\d+\.safetensors')
# Formats of PyTorch, which are not read because loading them can run any code.
TORCH_FILES = ('pytorch_model*.bin', 'consolidated*.pth', '*.pt')


class WeightsError(InputError):
    """A checkpoint cannot be read or written. The message names the file or the tensor."""


class SafetensorsFiles:
    """The tensors in `model.safetensors`, or in the shards that `model.safetensors.index.json` lists; read on demand.

    Attributes:
      shapes: maps each tensor name to its shape.
    """

    def __init__(self, folder: pathlib.Path):
        """Open the files of a folder.

        Raises:
          WeightsError: a file is missing or damaged, does not match the index, or is not of the model that the others
            hold.
        """
        weight_map = _weight_map(folder)
        if weight_map is None:
            files = {FILE: _open(folder / FILE)}
            weight_map = {name: FILE for name in files[FILE].keys()}
        else:
            files = {name: _open(folder / name) for name in sorted(set(weight_map.values()))}
        contents = {file_name: set(file.keys()) for file_name, file in files.items()}
        for name, file_name in weight_map.items():
            if name not in contents[file_name]:
                raise WeightsError(f'{folder / file_name}: tensor {name!r} is missing, but the index lists it')
        if stale := sorted(_shards(folder) - set(files)):
            raise WeightsError(f'{folder / stale[0]} belongs to another checkpoint than {min(files)}; remove the files '
                               'of the one that is not meant')
        self._file_of = {name: files[file_name] for name, file_name in weight_map.items()}
        self.shapes = {name: tuple(file.get_slice(name).get_shape()) for name, file in self._file_of.items()}

    def read(self, name: str) -> np.ndarray:
        """Return a tensor of type float32, float16 or bfloat16; raise WeightsError if it has another type."""
        dtype = self._file_of[name].get_slice(name).get_dtype()
        if dtype not in ('F32', 'F16', 'BF16'):
            raise WeightsError(f'tensor {name!r} has the unsupported type {dtype}; '
                               'supported types are F32, F16 and BF16')
        return self._file_of[name].get_tensor(name)


def _weight_map(folder: pathlib.Path) -> dict[str, str] | None:
    """Return the file of every tensor according to the index; None if `model.safetensors` holds all tensors."""
    weight_map = None
    if (folder / INDEX).exists():
        content = read_object(folder / INDEX)
        weight_map = content.get('weight_map')
        if not isinstance(weight_map, dict) or not weight_map:
            raise WeightsError(f'{folder / INDEX}: weight_map is missing or not an object')
        names = texts({'the values of weight_map': list(weight_map.values())}, 'the values of weight_map')
        if outside := [name for name in names if pathlib.PurePath(name).name != name]:
            raise WeightsError(f'{folder / INDEX}: {outside[0]!r} is not the name of a file in this folder')
    used = {FILE} if weight_map is None else set(weight_map.values())
    if (folder / FILE).exists() and FILE not in used:
        raise WeightsError(f'{folder}: both {FILE} and {INDEX} are here, and only one of them can be the model; remove '
                           'the other one (the index with its shards)')
    if weight_map is None and not (folder / FILE).exists():
        _explain_missing(folder)
    return weight_map


def _shards(folder: pathlib.Path) -> set[str]:
    return {path.name for path in folder.iterdir() if SHARD.fullmatch(path.name)}


def _explain_missing(folder: pathlib.Path) -> None:
    """Raise the error about a folder without weights that can be read."""
    if shards := _shards(folder):
        raise WeightsError(f'{folder / INDEX}: no such file, but it must list the tensors of {min(shards)}')
    for pattern in TORCH_FILES:
        if found := sorted(folder.glob(pattern)):
            raise WeightsError(
                f'{found[0]}: this format is not read, because loading it can run any code; convert a checkpoint that '
                "you trust with: python -c \"from transformers import AutoModelForCausalLM as M; "
                f"M.from_pretrained('{folder}').save_pretrained('{folder}')\"")
    raise WeightsError(f'{folder / FILE}: no such file; weights are read from safetensors or GGUF files')


def _open(path: pathlib.Path):
    if not path.exists():
        raise WeightsError(f'{path}: no such file')
    try:
        return safetensors.safe_open(path, 'np')
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(f'{path}: not a safetensors file, or truncated ({error})') from error
