"""The tokens that end a reply: the union of what the files of a model name."""

import json

import gguf
import jax
import jax.numpy as jnp
import pytest
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from epo_jax import export, language
from epo_jax.models.gguf import GGUFFile
from epo_jax.runtime.parallel import make_mesh
from epo_jax.testing import byte_tokenizer, dummy_config, dummy_params
from epo_jax.text.ends import EndsError, declared_ends


@pytest.fixture
def folder(tmp_path):
    """A model without weights, whose tokenizer ends a turn with <|im_end|>, 258."""
    byte_tokenizer().save_pretrained(tmp_path)
    (tmp_path / 'config.json').write_text(json.dumps(dummy_config().to_hf()))
    return tmp_path


def load(path):
    return language.load_language(str(path), '', jnp.float32, make_mesh((1, 1, 1), jax.devices()[:1]))


@pytest.mark.parametrize('generation, config, stop', [
    (None, 258, {258}),
    ([258, 256], 258, {256, 258}),           # Qwen2.5: generation_config.json lists two
    ([256, 257, 258], [256, 257, 258], {256, 257, 258}),  # Llama 3.1: both files list three
    (256, None, {256, 258}),
    (None, [257, 256], {256, 257, 258}),
])
def test_union_of_all_files(generation, config, stop, folder):
    content = json.loads((folder / 'config.json').read_text()) | {'eos_token_id': config}
    (folder / 'config.json').write_text(json.dumps(content))
    if generation is not None:
        (folder / 'generation_config.json').write_text(json.dumps({'eos_token_id': generation}))
    chat = load(folder).chat
    assert chat.end == AutoTokenizer.from_pretrained(folder).eos_token_id == chat.stop[0]
    assert set(chat.stop) == stop


@pytest.mark.parametrize('value', ['<|im_end|>', 259, -1, [258, None], True, 1.5])
def test_ends_that_are_no_ids_are_refused(value, folder):
    (folder / 'generation_config.json').write_text(json.dumps({'eos_token_id': value}))
    with pytest.raises(EndsError, match='generation_config.json: eos_token_id is .* from 0 to 258'):
        load(folder)
    for text in ('[]', '[' * 100_000):
        (folder / 'generation_config.json').write_text(text)
        with pytest.raises(EndsError, match='generation_config.json: the file is not a JSON object'):
            load(folder)


def test_ends_of_a_gguf_file(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / 'model.gguf', 'llama')
    writer.add_eos_token_id(3)
    writer.add_eot_token_id(5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    file = GGUFFile(tmp_path / 'model.gguf')
    assert declared_ends(file, 6) == (3, 5)
    with pytest.raises(EndsError, match='tokenizer.ggml.eot_token_id is 5'):
        declared_ends(file, 5)


def test_an_export_keeps_the_list_of_the_base(folder, tmp_path):
    (folder / 'generation_config.json').write_text(json.dumps({'eos_token_id': [258, 256]}))
    loaded = load(folder)
    export._save_model(tmp_path / 'out', loaded, dummy_params(dummy_config(), stacked=True))
    assert AutoConfig.from_pretrained(tmp_path / 'out').eos_token_id == [258, 256]
    assert GenerationConfig.from_pretrained(tmp_path / 'out').eos_token_id == [258, 256]
