"""Reading and writing checkpoints: round trips, GGUF, shardings, and every way in which files can be wrong."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import textwrap

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from epo_jax.models import weights
from epo_jax.models.config import ModelConfig, RopeScaling
from epo_jax.models.transformer import Transformer, rope_frequencies, unstack
from epo_jax.models.weights import WeightsError
from epo_jax.parallel import make_mesh, param_shardings

LLAMA = ModelConfig(vocab_size=40, width=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, mlp_width=96)
LLAMA3_SCALING = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_positions=8192)
CONFIGS = {
    'llama': LLAMA,
    'tied, scaled': dataclasses.replace(LLAMA, tied=True, rope_theta=5e5, rope_scaling=LLAMA3_SCALING),
    'mistral': dataclasses.replace(LLAMA, sliding_window=9),
    'qwen2': dataclasses.replace(LLAMA, qkv_bias=True, tied=True, norm_eps=1e-6),
    'qwen2 with a window': dataclasses.replace(LLAMA, qkv_bias=True, sliding_window=9),
    'qwen3': dataclasses.replace(LLAMA, qk_norm=True, head_dim=24),
}


def random_params(config, dtype=np.float32):
    """Parameters in the stacked layout, all random."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(Transformer(config, stacked=True).init_params, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), dtype), shapes)


def assert_equal(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.fixture
def folder(tmp_path):
    """A saved checkpoint of LLAMA."""
    weights.save(tmp_path / 'model', LLAMA, random_params(LLAMA))
    return tmp_path / 'model'


# Round trips.


@pytest.mark.parametrize('name', CONFIGS)
def test_round_trip(name, tmp_path):
    config = CONFIGS[name]
    params = random_params(config)
    weights.save(tmp_path / 'stacked', config, params)
    weights.save(tmp_path / 'unstacked', config, unstack(params), max_file_bytes=30_000)
    assert len(list((tmp_path / 'unstacked').glob('*.safetensors'))) > 3
    assert max(file.stat().st_size for file in (tmp_path / 'unstacked').glob('*.safetensors')) < 35_000
    for path in (tmp_path / 'stacked', tmp_path / 'unstacked'):
        for stacked in (True, False):
            read, got = weights.load(path, stacked=stacked)
            assert read == config
            assert_equal(got, params if stacked else unstack(params))


@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16'])
def test_dtypes(dtype, tmp_path):
    params = random_params(LLAMA, dtype)
    weights.save(tmp_path / 'model', LLAMA, params)
    assert json.loads((tmp_path / 'model' / 'config.json').read_text())['torch_dtype'] == dtype
    assert {str(x.dtype) for x in load_file(tmp_path / 'model' / 'model.safetensors').values()} == {dtype}
    for wanted in (jnp.float32, jnp.bfloat16):
        _, got = weights.load(tmp_path / 'model', dtype=wanted, stacked=True)
        assert all(x.dtype == wanted for x in jax.tree.leaves(got))
        assert_equal(got, jax.tree.map(lambda x: x.astype(wanted), params))


def test_token_ids_in_config(tmp_path):
    weights.save(tmp_path / 'model', LLAMA, random_params(LLAMA), bos_token_id=5, eos_token_id=7)
    content = json.loads((tmp_path / 'model' / 'config.json').read_text())
    assert content['bos_token_id'] == 5 and content['eos_token_id'] == 7


def test_harmless_extras(folder):
    """Old checkpoints hold rotary frequencies; tied ones may hold the table twice, if it is the same."""
    tensors = load_file(folder / 'model.safetensors')
    _, want = weights.load(folder)
    save_file(tensors | {'model.layers.0.self_attn.rotary_emb.inv_freq': np.ones(8, np.float32)},
              folder / 'model.safetensors')
    assert_equal(weights.load(folder)[1], want)
    content = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps(content | {'tie_word_embeddings': True}))
    with pytest.raises(WeightsError, match="'lm_head.weight' differs from 'model.embed_tokens.weight'"):
        weights.load(folder)
    save_file(tensors | {'lm_head.weight': tensors['model.embed_tokens.weight']}, folder / 'model.safetensors')
    config, params = weights.load(folder)
    assert config.tied and 'head' not in params


# Shardings.


def test_every_leaf_gets_its_sharding(folder):
    mesh = make_mesh((1, 1, 1))
    for stacked in (True, False):
        shardings = lambda config: param_shardings(Transformer(config, stacked=stacked), mesh)
        config, params = weights.load(folder, stacked=stacked, shardings=shardings)
        jax.tree.map(lambda x, sharding: np.testing.assert_equal(x.sharding, sharding), params, shardings(config))


def test_sharded_over_four_devices(folder):
    program = textwrap.dedent('''
        import sys, jax, numpy as np
        from jax.sharding import NamedSharding, PartitionSpec
        jax.config.update('jax_platforms', 'cpu')
        jax.config.update('jax_num_cpu_devices', 4)
        from epo_jax.models import weights
        from epo_jax.models.transformer import Transformer
        mesh = jax.make_mesh((2, 2), ('fsdp', 'tensor'), (jax.sharding.AxisType.Auto,) * 2)
        def over_width(path, shape):
            lead = [None] * (path[0] == 'layers')
            axes = ('fsdp', 'tensor') if len(shape) - len(lead) > 1 else ()
            return NamedSharding(mesh, PartitionSpec(*lead, *axes))
        def over_layers(path, shape):
            return NamedSharding(mesh, PartitionSpec('fsdp' if path[0] == 'layers' else None))
        for stacked, sharding_of in ((True, over_width), (True, over_layers), (False, over_width)):
            def shardings(config):
                shapes = jax.eval_shape(Transformer(config, stacked=stacked).init_params, jax.random.key(0))
                return jax.tree_util.tree_map_with_path(
                    lambda path, x: sharding_of(tuple(k.key for k in path), x.shape), shapes)
            _, whole = weights.load(sys.argv[1], stacked=stacked)
            _, parts = weights.load(sys.argv[1], stacked=stacked, shardings=shardings)
            jax.tree.map(np.testing.assert_array_equal, parts, whole)
            for path, x in jax.tree_util.tree_leaves_with_path(parts):
                assert x.sharding == sharding_of(tuple(k.key for k in path), x.shape), (path, x.sharding)
        print('all the same')
    ''')
    done = subprocess.run([sys.executable, '-c', program, str(folder)], capture_output=True, text=True,
                          env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)})
    assert 'all the same' in done.stdout, done.stderr


# GGUF.


def gguf_tensors(config, params, permuted):
    """Parameters as a GGUF file holds them, f32."""
    def out_in(x):
        return np.asarray(x).reshape(x.shape[0], -1).T

    def permute(rows, heads):  # as llama.cpp's converter does
        return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape) if permuted else rows

    tensors = {'token_embd.weight': params['embed'], 'output_norm.weight': params['final_norm']['scale']}
    if not config.tied:
        tensors['output.weight'] = out_in(params['head']['kernel'])
    for i in range(config.num_layers):
        layer = {k: {kk: np.asarray(x) for kk, x in v.items()} for k, v in unstack(params)[f'layer_{i}'].items()}
        named = {
            'attn_norm.weight': layer['attn_norm']['scale'], 'ffn_norm.weight': layer['mlp_norm']['scale'],
            'attn_q.weight': permute(out_in(layer['q']['kernel']), config.num_heads),
            'attn_k.weight': permute(out_in(layer['k']['kernel']), config.num_kv_heads),
            'attn_v.weight': out_in(layer['v']['kernel']), 'attn_output.weight': out_in(layer['o']['kernel']),
            'ffn_gate.weight': out_in(layer['gate']['kernel']), 'ffn_up.weight': out_in(layer['up']['kernel']),
            'ffn_down.weight': out_in(layer['down']['kernel'])}
        if config.qkv_bias:
            named |= {f'attn_{n}.bias': layer[n]['bias'].reshape(-1) for n in 'qkv'}
        if config.qk_norm:
            named |= {f'attn_{n}_norm.weight': layer[f'{n}_norm']['scale'] for n in 'qk'}
        tensors |= {f'blk.{i}.{name}': x for name, x in named.items()}
    return {name: np.ascontiguousarray(x, np.float32) for name, x in tensors.items()}


def write_gguf(path, config, params, kind='llama', quantisation='F32', metadata=None, extra=None):
    """Writes a GGUF file; a value of None in `metadata` leaves the key out, in `extra` the tensor."""
    writer = gguf.GGUFWriter(path, kind)
    numbers = {
        'block_count': config.num_layers, 'context_length': config.max_positions, 'embedding_length': config.width,
        'feed_forward_length': config.mlp_width, 'attention.head_count': config.num_heads,
        'attention.head_count_kv': config.num_kv_heads, 'attention.layer_norm_rms_epsilon': config.norm_eps,
        'attention.key_length': config.head_dim, 'attention.value_length': config.head_dim,
        'rope.freq_base': config.rope_theta} | (metadata or {})
    for key, value in numbers.items():
        if isinstance(value, str):
            writer.add_string(f'{kind}.{key}', value)
        elif isinstance(value, list):
            writer.add_array(f'{kind}.{key}', value)
        elif value is not None:
            add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
            add(f'{kind}.{key}', value)
    as_type = gguf.GGMLQuantizationType[quantisation]
    for name, x in (gguf_tensors(config, params, kind == 'llama') | (extra or {})).items():
        if x is not None and x.ndim > 1 and quantisation != 'F32':
            writer.add_tensor(name, gguf.quants.quantize(x, as_type), raw_dtype=as_type)
        elif x is not None:
            writer.add_tensor(name, x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize('name, kind', [
    ('llama', 'llama'), ('mistral', 'llama'), ('qwen2', 'qwen2'), ('qwen3', 'qwen3')])
def test_gguf(name, kind, tmp_path):
    config = CONFIGS[name]
    params = random_params(config)
    window = {'attention.sliding_window': config.sliding_window}
    path = write_gguf(tmp_path / 'model.gguf', config, params, kind, metadata=window)
    for stacked in (True, False):
        read, got = weights.load(path, stacked=stacked)
        assert read == config
        assert_equal(got, params if stacked else unstack(params))


@pytest.mark.parametrize('quantisation, tolerance', [
    ('F32', 0), ('F16', 1e-3), ('BF16', 1e-2), ('Q8_0', 0.02), ('Q4_1', 0.25), ('Q4_0', 0.3)])
def test_gguf_quantisation(quantisation, tolerance, tmp_path):
    params = random_params(LLAMA)
    path = write_gguf(tmp_path / 'model.gguf', LLAMA, params, quantisation=quantisation)
    _, got = weights.load(path, stacked=True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), got, params)


def test_gguf_rope_scaling(tmp_path):
    config = CONFIGS['tied, scaled']
    divisors = rope_frequencies(dataclasses.replace(config, rope_scaling=None)) / rope_frequencies(config)
    params = random_params(config)
    path = write_gguf(tmp_path / 'llama3.gguf', config, params, extra={'rope_freqs.weight': divisors})
    assert weights.load(path)[0] == config
    path = write_gguf(tmp_path / 'other.gguf', config, params, extra={'rope_freqs.weight': divisors ** 2})
    with pytest.raises(WeightsError, match='rope_freqs.weight.*not the rotary scaling of a published Llama 3'):
        weights.load(path)


def test_gguf_key_value_heads_default(tmp_path):
    config = dataclasses.replace(LLAMA, num_kv_heads=4)
    params = random_params(config)
    optional = dict.fromkeys(['attention.head_count_kv', 'attention.key_length', 'attention.value_length'])
    read, got = weights.load(write_gguf(tmp_path / 'model.gguf', config, params, metadata=optional), stacked=True)
    assert read == config
    assert_equal(got, params)


@pytest.mark.parametrize('changes, message', [
    (dict(kind='gemma3'), "architecture 'gemma3' is not supported"),
    (dict(metadata={'block_count': None}), "no 'llama.block_count' in the metadata"),
    (dict(metadata={'attention.layer_norm_rms_epsilon': None}), 'no .*layer_norm_rms_epsilon'),
    (dict(metadata={'attention.head_count_kv': [2, 1]}), 'differ between layers'),
    (dict(metadata={'rope.dimension_count': 8}), 'different sizes'),
    (dict(metadata={'expert_count': 8}), 'mixtures of experts'),
    (dict(metadata={'rope.scaling.type': 'yarn'}), "rope scaling 'yarn'"),
    (dict(metadata={'attention.head_count_kv': 3}), 'cannot share 3 key/value heads'),
    (dict(quantisation='Q5_0'), "tensor 'token_embd.weight' is of type Q5_0; supported are F32"),
    (dict(extra={'token_embd.weight': None}), "'token_embd.weight' is missing"),
    (dict(extra={'blk.1.attn_q.weight': None}), "missing tensor 'blk.1.attn_q.weight'"),
    (dict(extra={'blk.1.attn_q.bias': np.zeros(64, np.float32)}), "unexpected tensor 'blk.1.attn_q.bias'"),
    (dict(extra={'blk.0.attn_k.weight': np.zeros((16, 64), np.float32)}), r"attn_k.weight' has shape \(16, 64\)"),
])
def test_gguf_refused(changes, message, tmp_path):
    path = write_gguf(tmp_path / 'model.gguf', LLAMA, random_params(LLAMA), **changes)
    with pytest.raises(WeightsError, match=message) as caught:
        weights.load(path)
    assert str(path) in str(caught.value)


def test_gguf_cut_short_or_not_gguf(tmp_path):
    whole = write_gguf(tmp_path / 'model.gguf', LLAMA, random_params(LLAMA)).read_bytes()
    cut = tmp_path / 'cut.gguf'
    for size in (0, 3, 20, 25, 40, 61, 100, 333, 500, 777, 1500, len(whole) // 2, len(whole) - 100):
        cut.write_bytes(whole[:size])
        with pytest.raises(WeightsError, match=re.escape(str(cut))):
            weights.load(cut)
    cut.write_bytes(b'GGML' + whole[4:])
    with pytest.raises(WeightsError, match='not a GGUF file'):
        weights.load(cut)
    cut.write_bytes(b'no model here, just a text that is long enough for a header')
    with pytest.raises(WeightsError, match='not a GGUF file'):
        weights.load(cut)


# Safetensors folders that are wrong.


def rewrite(folder, change):
    tensors = load_file(folder / 'model.safetensors')
    change(tensors)
    save_file(tensors, folder / 'model.safetensors')


@pytest.mark.parametrize('change, message', [
    (lambda t: t.pop('model.layers.1.mlp.up_proj.weight'), "missing tensor 'model.layers.1.mlp.up_proj.weight'"),
    (lambda t: t.pop('lm_head.weight'), "missing tensor 'lm_head.weight'"),
    (lambda t: t.update({'model.layers.2.mlp.up_proj.weight': np.ones(3)}), 'unexpected tensor .*layers.2.mlp.up'),
    (lambda t: t.update({'model.norm.weight': np.ones(63, np.float32)}), r'norm.* shape \(63,\), expected \(64,\)'),
    (lambda t: t.update({'model.norm.weight': np.ones(64, np.int8)}), "'model.norm.weight' is of type I8"),
])
def test_wrong_tensors(change, message, folder):
    rewrite(folder, change)
    with pytest.raises(WeightsError, match=message) as caught:
        weights.load(folder)
    assert str(folder) in str(caught.value)


def test_many_missing_tensors_are_summarised(folder):
    rewrite(folder, lambda t: [t.pop(k) for k in list(t) if 'layers.1' in k])
    with pytest.raises(WeightsError, match='and 4 more'):
        weights.load(folder)


@pytest.mark.parametrize('change, message', [
    ({'model_type': 'gemma3'}, "model_type 'gemma3' is not supported"),
    ({'hidden_act': 'gelu'}, "hidden_act 'gelu'"),
    ({'hidden_size': None}, "no 'hidden_size' in it"),
    ({'hidden_size': 32}, 'has shape'),
    ({'num_hidden_layers': 1}, 'unexpected tensor'),
])
def test_wrong_config(change, message, folder):
    content = json.loads((folder / 'config.json').read_text()) | change
    content = {k: v for k, v in content.items() if v is not None}
    (folder / 'config.json').write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=message) as caught:
        weights.load(folder)
    assert str(folder) in str(caught.value)


def test_damaged_files(folder, tmp_path):
    with pytest.raises(WeightsError, match='neither a folder'):
        weights.load(tmp_path / 'nothing')
    with pytest.raises(WeightsError, match='neither a folder'):
        weights.load(folder / 'model.safetensors')
    whole = (folder / 'model.safetensors').read_bytes()
    for size in (0, 5, 100, len(whole) - 1):
        (folder / 'model.safetensors').write_bytes(whole[:size])
        with pytest.raises(WeightsError, match='model.safetensors: not a safetensors file, or cut short'):
            weights.load(folder)
    (folder / 'model.safetensors').unlink()
    with pytest.raises(WeightsError, match='model.safetensors: no such file'):
        weights.load(folder)
    for content, message in (('{"hidden', 'not JSON'), ('[]', 'not a JSON object')):
        (folder / 'config.json').write_text(content)
        with pytest.raises(WeightsError, match=message):
            weights.load(folder)
    (folder / 'config.json').unlink()
    with pytest.raises(WeightsError, match='config.json: no such file'):
        weights.load(folder)


def test_damaged_shards(tmp_path):
    path = tmp_path / 'model'
    weights.save(path, LLAMA, random_params(LLAMA), max_file_bytes=40_000)
    index = path / 'model.safetensors.index.json'
    content = json.loads(index.read_text())
    first, second = sorted(path.glob('*.safetensors'))[:2]
    moved = {name: second.name if file == first.name else file for name, file in content['weight_map'].items()}
    index.write_text(json.dumps({'weight_map': moved}))
    with pytest.raises(WeightsError, match=f'{second.name}: tensor .* is missing'):
        weights.load(path)
    index.write_text('{}')
    with pytest.raises(WeightsError, match='no weight_map'):
        weights.load(path)
    index.write_text(json.dumps(content))
    second.unlink()
    with pytest.raises(WeightsError, match=f'{second.name}: no such file'):
        weights.load(path)


# Saving what cannot be saved.


def test_save_refuses(folder, tmp_path):
    params = random_params(LLAMA)
    with pytest.raises(WeightsError, match='already exists'):
        weights.save(folder, LLAMA, params)
    cases = [
        ({k: v for k, v in params.items() if k != 'embed'}, 'missing parameter embed'),
        (params | {'adapter': jnp.zeros(3)}, 'unexpected parameter adapter'),
        (params | {'embed': params['embed'][:-1]}, r'parameter embed is float32\[39, 64\], expected \[40, 64\]'),
        (params | {'embed': params['embed'].astype(jnp.int32)}, 'parameter embed is int32'),
        (unstack(params) | {'layer_2': unstack(params)['layer_1']}, 'unexpected parameter layer_2/'),
    ]
    for wrong, message in cases:
        with pytest.raises(WeightsError, match=message):
            weights.save(tmp_path / 'new', LLAMA, wrong)
    both = dataclasses.replace(LLAMA, qkv_bias=True, qk_norm=True)
    with pytest.raises(WeightsError, match='both qkv_bias and qk_norm'):
        weights.save(tmp_path / 'new', both, random_params(both))
    assert not (tmp_path / 'new').exists()


def test_interrupted_save_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError('disk full')
    monkeypatch.setattr(weights.safetensors.numpy, 'save_file', fail)
    with pytest.raises(OSError, match='disk full'):
        weights.save(tmp_path / 'model', LLAMA, random_params(LLAMA))
    assert not list(tmp_path.iterdir())


def test_save_into_an_empty_folder(tmp_path):
    weights.save(tmp_path, LLAMA, random_params(LLAMA))
    assert weights.load(tmp_path)[0] == LLAMA
