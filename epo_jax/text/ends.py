"""Which tokens end a reply, according to the files of a model."""

import json
import os
import pathlib

from epo_jax.models.gguf import GGUFFile
from epo_jax.runtime.errors import InputError

FILES = ('generation_config.json', 'config.json')
GGUF_KEYS = tuple(f'tokenizer.ggml.{name}_token_id' for name in ('eos', 'eot', 'eom'))


class EndsError(InputError):
    """A file names tokens that end a reply, but not by ids of the vocabulary."""


def declared_ends(source: str | os.PathLike | GGUFFile, vocab_size: int) -> tuple[int, ...]:
    """Return the ids that end a reply according to a Hugging Face folder or a GGUF file.

    Many models have more than one: Qwen2.5 ends with <|im_end|> or <|endoftext|>, and Llama 3 with <|eot_id|>,
    <|eom_id|> or <|end_of_text|>. A model that draws any of them has finished its reply.

    Args:
      source: the folder, or the opened file.
      vocab_size: number of rows of the embedding table.

    Raises:
      EndsError: an end is not an id of the vocabulary, or a file is not a JSON object.
    """
    if isinstance(source, GGUFFile):
        named = {f'{source.path}: {key}': source.metadata.get(key) for key in GGUF_KEYS}
    else:
        paths = [pathlib.Path(source) / name for name in FILES]
        named = {f'{path}: eos_token_id': _eos(path) for path in paths if path.is_file()}
    ends = {}
    for where, value in named.items():
        for i in value if isinstance(value, list) else [] if value is None else [value]:
            if not isinstance(i, int) or isinstance(i, bool) or not 0 <= i < vocab_size:
                raise EndsError(f'{where} is {value!r:.80}, but ids are whole numbers from 0 to {vocab_size - 1}')
            ends[i] = None
    return tuple(ends)


def _eos(path: pathlib.Path):
    try:
        return json.loads(path.read_text(encoding='utf-8')).get('eos_token_id')
    except (ValueError, AttributeError, RecursionError) as error:
        raise EndsError(f'{path}: the file is not a JSON object ({error})') from error
