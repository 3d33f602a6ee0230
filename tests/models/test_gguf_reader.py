"""The container of GGUF: block types, split files, and files that announce more than they hold."""

import dataclasses
import struct
import time
import tracemalloc

from families import LLAMA, assert_equal, random_params
import gguf
import numpy as np
import pytest
from test_gguf import gguf_tensors, write_gguf

from epo_jax.models import weights
from epo_jax.models.gguf import GGUFFile, is_gguf
from epo_jax.models.gguf_reader import GGUFError, read_header

BLOCKS = ('Q4_0', 'Q4_1', 'Q5_0', 'Q5_1', 'Q8_0', 'Q2_K', 'Q3_K', 'Q4_K', 'Q5_K', 'Q6_K', 'IQ2_XXS', 'IQ2_XS', 'IQ2_S',
          'IQ3_XXS', 'IQ3_S', 'IQ1_S', 'IQ1_M', 'IQ4_NL', 'IQ4_XS', 'TQ1_0', 'TQ2_0', 'BF16', 'F16', 'F64')
# The types of presets: of the head, of half of the down projections, of everything else.
PRESETS = {'Q4_0': ('Q6_K', 'Q4_0', 'Q4_0'), 'Q4_K_M': ('Q6_K', 'Q6_K', 'Q4_K'), 'Q5_K_M': ('Q6_K', 'Q6_K', 'Q5_K'),
           'Q6_K': ('Q6_K', 'Q6_K', 'Q6_K'), 'Q5_0': ('Q6_K', 'Q5_0', 'Q5_0'), 'IQ4_XS': ('Q6_K', 'Q5_K', 'IQ4_XS'),
           'IQ3_XXS': ('Q5_K', 'IQ3_S', 'IQ3_XXS')}
WIDE = dataclasses.replace(LLAMA, width=256, head_dim=64, mlp_width=512)  # rows that hold whole blocks of 256


def random_blocks(shape, kind):
    """Return random blocks of a type, with finite scales."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return np.random.default_rng(0).integers(0, 60, (shape[0], shape[1] // block * size), np.uint8)


def write_tensors(path, tensors):
    """Write a file of tensors, each a pair of data and type."""
    writer = gguf.GGUFWriter(path, 'qwen2')
    for name, (x, kind) in tensors.items():
        writer.add_tensor(name, x, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize('name', BLOCKS)
def test_block_types_equal_the_library(name, tmp_path):
    kind = gguf.GGMLQuantizationType[name]
    data = random_blocks((6, 512), kind)
    path = write_tensors(tmp_path / 'model.gguf', {'x': (data, kind)})
    if name == 'F64':
        with pytest.raises(GGUFError, match="tensor 'x' has the unsupported type F64"):
            GGUFFile(path).read('x')
        return
    library = gguf.GGUFReader(path).tensors[0]
    expected = gguf.quants.dequantize(library.data, library.tensor_type)
    actual = GGUFFile(path).read('x')
    assert actual.shape == (6, 512) and actual.dtype == np.float32
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize('preset', PRESETS)
def test_presets_mix_types(preset, tmp_path):
    head, down, rest = (gguf.GGMLQuantizationType[name] for name in PRESETS[preset])
    path = write_gguf(tmp_path / 'plain.gguf', WIDE, random_params(WIDE))
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(tmp_path / 'model.gguf', 'llama')
    for field in reader.fields.values():
        if field.name.startswith('llama.'):
            writer.add_key_value(field.name, field.contents(), field.types[0])
    for tensor in reader.tensors:
        if len(tensor.shape) == 1:
            writer.add_tensor(tensor.name, tensor.data)
            continue
        kind = head if tensor.name == 'output.weight' else down if 'ffn_down' in tensor.name else rest
        writer.add_tensor(tensor.name, random_blocks(tensor.data.shape, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    config, params = weights.load(tmp_path / 'model.gguf', stacked=True)
    library = {t.name: gguf.quants.dequantize(t.data, t.tensor_type)
               for t in gguf.GGUFReader(tmp_path / 'model.gguf').tensors}
    assert config == WIDE
    expected = {name: x.reshape(-1, x.shape[-1]) for name, x in gguf_tensors(WIDE, params, permuted=True).items()}
    assert expected.keys() == library.keys()
    for name, x in expected.items():
        np.testing.assert_array_equal(x, library[name].reshape(x.shape), err_msg=name)


# Split files


@pytest.fixture
def parts(tmp_path):
    """The three parts of a file, and its parameters."""
    params = random_params(LLAMA)
    whole = write_gguf(tmp_path / 'whole.gguf', LLAMA, params)
    reader = gguf.GGUFReader(whole)
    writer = gguf.GGUFWriter(tmp_path / 'model.gguf', 'llama', split_max_tensors=-(-len(reader.tensors) // 3))
    for field in reader.fields.values():
        if field.name.startswith('llama.'):
            writer.add_key_value(field.name, field.contents(), field.types[0])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = sorted(tmp_path.glob('model-*.gguf'))
    assert [path.name for path in found] == [f'model-0000{i}-of-00003.gguf' for i in (1, 2, 3)]
    return found, params


def test_split_files(parts):
    paths, params = parts
    for path in paths:  # any part stands for all of them
        config, read = weights.load(path, stacked=True)
        assert config == LLAMA
        assert_equal(read, params)


def test_incomplete_split_files_are_refused(parts):
    paths, _ = parts
    content = paths[1].read_bytes()
    paths[1].unlink()
    with pytest.raises(weights.WeightsError, match='split into 3 parts, and model-00002-of-00003.gguf is missing'):
        weights.load(paths[0])
    paths[1].write_bytes(paths[2].read_bytes())
    with pytest.raises(weights.WeightsError, match='model-00002-of-00003.gguf.*this is not part 2 of 3'):
        weights.load(paths[0])
    paths[1].write_bytes(content)
    renamed = paths[0].rename(paths[0].with_name('first.gguf'))
    with pytest.raises(weights.WeightsError, match='first.gguf.*name it as llama.cpp does, NAME-00001-of-00003.gguf'):
        weights.load(renamed)


def test_suffix_in_capitals(parts, tmp_path):
    path = (tmp_path / 'whole.gguf').rename(tmp_path / 'MODEL.GGUF')
    assert is_gguf(path) and not is_gguf(tmp_path / 'none.gguf') and not is_gguf(tmp_path)
    assert weights.load(path)[0] == LLAMA
    for part in parts[0]:
        part.rename(part.with_suffix('.GGUF'))
    assert weights.load(tmp_path / 'model-00001-of-00003.GGUF')[0] == LLAMA


# Files that announce more than they hold


def header(tensors=0, keys=0, version=3):
    return b'GGUF' + struct.pack('<IQQ', version, tensors, keys)


def key(name, kind, value):
    return struct.pack('<Q', len(name)) + name.encode() + struct.pack('<I', kind) + value


ARRAY, TEXT, BYTE = 9, 8, 0


@pytest.mark.parametrize('content, message', [
    (header(keys=1) + key('a', ARRAY, struct.pack('<IQ', BYTE, 10 ** 7)), '10000000 numbers are announced'),
    (header(keys=1) + key('a', ARRAY, struct.pack('<IQ', TEXT, 10 ** 7)), '10000000 strings are announced'),
    (header(keys=1) + key('a', ARRAY, struct.pack('<IQ', 10, 2 ** 63)), f'{2 ** 63} numbers are announced'),
    (header(keys=1) + key('a', ARRAY, struct.pack('<IQIQ', ARRAY, 10 ** 7, BYTE, 1)), 'arrays of arrays'),
    (header(keys=1) + key('a', TEXT, struct.pack('<Q', 2 ** 40)), f'{2 ** 40} bytes are announced'),
    (header(keys=1) + struct.pack('<Q', 2 ** 62), f'{2 ** 62} bytes are announced'),
    (header(keys=1) + key('a', 77, b''), '77 is not a valid'),
    (header(keys=10 ** 9), '1000000000 keys are announced'),
    (header(tensors=10 ** 9), '1000000000 tensors are announced'),
    (header(tensors=1) + key('a', 10 ** 6, b''), 'has 1000000 axes'),
    (header(tensors=1) + key('a', 1, struct.pack('<QIQ', 2 ** 60, 0, 0)), f'{2 ** 62} bytes are announced'),
    (header(tensors=1) + key('a', 1, struct.pack('<QIQ', 4, 0, 2 ** 60)), "tensor 'a' begins at byte"),
    (header(tensors=1) + key('a', 1, struct.pack('<QIQ', 4, 999, 0)), 'has the unknown type 999'),
    (header(tensors=1) + key('a', 1, struct.pack('<QIQ', 33, 2, 0)), 'Q4_0 needs a multiple of 32'),
    (header(keys=2) + 2 * key('a', BYTE, b'\1'), "the key 'a' occurs twice"),
    (header(keys=1) + key('general.alignment', BYTE, b'\0'), 'general.alignment is 0'),
    (header(version=1), 'version 1 is not one of'),
    (b'GGUF' + struct.pack('>IQQ', 3, 0, 0), 'byte order'),
])
def test_announced_sizes_are_checked_first(content, message, tmp_path):
    path = tmp_path / 'model.gguf'
    path.write_bytes(content + bytes(40))
    tracemalloc.start()
    begin = time.monotonic()
    with pytest.raises(GGUFError, match=message) as caught:
        read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.monotonic() - begin < 1 and peak < 4_000_000
    assert str(path) in str(caught.value)


def test_metadata_equals_the_library(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / 'model.gguf', 'llama')
    values = {'u8': 3, 'i64': -5, 'f32': 0.5, 'f64': 0.1, 'yes': True, 'text': 'naïve 🙂'}
    for name, value in values.items():
        {'u8': writer.add_uint8, 'i64': writer.add_int64, 'f32': writer.add_float32, 'f64': writer.add_float64,
         'yes': writer.add_bool, 'text': writer.add_string}[name](name, value)
    writer.add_array('words', ['a', '', '▁the'])
    writer.add_array('numbers', [1, 2, -3])
    writer.add_array('flags', [True, False])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    expected = {name: field.contents() for name, field in gguf.GGUFReader(tmp_path / 'model.gguf').fields.items()
                if not name.startswith('GGUF.')}
    assert GGUFFile(tmp_path / 'model.gguf').metadata == expected
    assert expected.items() > values.items()


def test_a_file_is_parsed_once(smollm2_gguf, monkeypatch):
    """Shape, tokenizer, ends and parameters come from one parsed file."""
    import jax
    import jax.numpy as jnp

    from epo_jax import language
    from epo_jax.models import gguf as module
    from epo_jax.runtime.parallel import make_mesh
    opened = []
    monkeypatch.setattr(module, 'read_header', lambda path: opened.append(path) or read_header(path))
    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    loaded = language.load_language(str(smollm2_gguf), '', jnp.bfloat16, mesh).with_params()
    assert len(opened) == 1 and loaded.params
