"""Reading GGUF files: round trips, quantization, and files that are damaged or not supported."""

import dataclasses
import re

from families import CONFIGS, GEMMA, LLAMA, assert_equal, random_params
import gguf
import jax
import numpy as np
import pytest

from epo_jax.models import weights
from epo_jax.models.layout import unstack
from epo_jax.models.rope import rope_frequencies
from epo_jax.models.weights import WeightsError


def gguf_tensors(config, params, permuted):
    """Return parameters as the float32 tensors of a GGUF file."""
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
        if 'attn_post_norm' in layer:
            named |= {'post_attention_norm.weight': layer['attn_post_norm']['scale'],
                      'post_ffw_norm.weight': layer['mlp_post_norm']['scale']}
        if config.qk_norm:
            named |= {f'attn_{n}_norm.weight': layer[f'{n}_norm']['scale'] for n in 'qk'}
        tensors |= {f'blk.{i}.{name}': x for name, x in named.items()}
    offset = lambda name: config.norm_offset if name.endswith('norm.weight') else 0  # llama.cpp's converter adds it
    return {name: np.ascontiguousarray(x + offset(name), np.float32) for name, x in tensors.items()}


def write_gguf(path, config, params, kind='llama', quantization='F32', metadata=None, extra=None):
    """Write a GGUF file. None in `metadata` or `extra` leaves out a key or a tensor."""
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
    as_type = gguf.GGMLQuantizationType[quantization]
    for name, x in (gguf_tensors(config, params, kind in ('llama', 'smollm3')) | (extra or {})).items():
        if x is not None and x.ndim > 1 and quantization != 'F32':
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
def test_round_trip(name, kind, tmp_path):
    config = CONFIGS[name]
    params = random_params(config)
    window = {'attention.sliding_window': config.sliding_window}
    path = write_gguf(tmp_path / 'model.gguf', config, params, kind, metadata=window)
    for stacked in (True, False):
        read, params_read = weights.load(path, stacked=stacked)
        assert read == config
        assert_equal(params_read, params if stacked else unstack(params))


def test_smollm3(tmp_path):
    """The file does not say which layers have no rotary embedding; llama.cpp takes every fourth."""
    config = dataclasses.replace(LLAMA, num_layers=5, rope_layers=(True, True, True, False, True))
    params = random_params(config)
    read, params_read = weights.load(write_gguf(tmp_path / 'model.gguf', config, params, 'smollm3'), stacked=True)
    assert read == config
    assert_equal(params_read, params)


@pytest.mark.parametrize('change, metadata', [
    ({}, {'rope.scaling.type': 'linear', 'rope.scaling.factor': 8.0, 'final_logit_softcapping': 4.0}),
    ({'rope_scaling': None, 'logit_cap': None}, {}),
    ({'rope_scaling': None, 'logit_cap': None, 'local_rope_theta': 77.0, 'local_layers': (True, False) * 3 + (True,)},
     {'rope.freq_base_swa': 77.0, 'attention.sliding_window_pattern': 2}),
    ({'rope_scaling': None, 'logit_cap': None, 'sliding_window': None, 'local_layers': (False,) * 7}, {}),
])
def test_gemma3(change, metadata, tmp_path):
    config = dataclasses.replace(GEMMA, **dict(
        num_layers=7, local_layers=(True,) * 5 + (False, True), query_scale=24.0) | change)
    params = random_params(config)
    metadata = {'attention.sliding_window': config.sliding_window} | metadata
    path = write_gguf(tmp_path / 'model.gguf', config, params, 'gemma3', metadata=metadata)
    for stacked in (True, False):
        read, params_read = weights.load(path, stacked=stacked)
        assert read == config
        expected = params if stacked else unstack(params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), params_read, expected)


def test_the_largest_gemma3_has_another_scale_of_attention(tmp_path):
    config = dataclasses.replace(GEMMA, num_layers=62, width=8, mlp_width=4, local_layers=((True,) * 5 + (False,)) * 10
                                 + (True,) * 2, rope_scaling=None, logit_cap=None, query_scale=2.0)
    metadata = {'attention.sliding_window': config.sliding_window}
    path = write_gguf(tmp_path / 'model.gguf', config, random_params(config), 'gemma3', metadata=metadata)
    assert weights.load(path)[0] == config


@pytest.mark.parametrize('quantization, tolerance', [
    ('F32', 0), ('F16', 1e-3), ('BF16', 1e-2), ('Q8_0', 0.02), ('Q5_1', 0.12), ('Q5_0', 0.15), ('Q4_1', 0.25),
    ('Q4_0', 0.3)])
def test_quantization(quantization, tolerance, tmp_path):
    params = random_params(LLAMA)
    path = write_gguf(tmp_path / 'model.gguf', LLAMA, params, quantization=quantization)
    _, params_read = weights.load(path, stacked=True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), params_read, params)


def test_rope_scaling(tmp_path):
    config = CONFIGS['tied, scaled']
    divisors = rope_frequencies(16, 5e5) / rope_frequencies(16, 5e5, config.rope_scaling)
    params = random_params(config)
    path = write_gguf(tmp_path / 'llama3.gguf', config, params, extra={'rope_freqs.weight': divisors})
    assert weights.load(path)[0] == config
    path = write_gguf(tmp_path / 'other.gguf', config, params, extra={'rope_freqs.weight': divisors ** 2})
    with pytest.raises(WeightsError, match='rope_freqs.weight.*not the rotary scaling of a published Llama 3'):
        weights.load(path)


def test_scaling_that_changes_nothing(tmp_path):
    params = random_params(LLAMA)
    for metadata in ({'rope.scaling.type': 'none', 'rope.scaling.factor': 4.0}, {'rope.scale_linear': 1.0},
                     {'rope.scaling.type': 'linear', 'rope.scaling.factor': 1.0}):
        assert weights.load(write_gguf(tmp_path / 'model.gguf', LLAMA, params, metadata=metadata))[0] == LLAMA


def test_optional_metadata(tmp_path):
    config = dataclasses.replace(LLAMA, num_kv_heads=4)
    params = random_params(config)
    optional = dict.fromkeys(['attention.head_count_kv', 'attention.key_length', 'attention.value_length'])
    optional |= {'attention.causal': True, 'attention.scale': config.head_dim ** -0.5, 'rope.scaling.attn_factor': 1.0}
    read, params_read = weights.load(write_gguf(tmp_path / 'model.gguf', config, params, metadata=optional), stacked=True)
    assert read == config
    assert_equal(params_read, params)


@pytest.mark.parametrize('changes, message', [
    (dict(kind='gemma2'), "architecture 'gemma2' is not supported"),
    (dict(metadata={'block_count': None}), "the metadata has no key 'llama.block_count'"),
    (dict(metadata={'attention.layer_norm_rms_epsilon': None}), 'no key .*layer_norm_rms_epsilon'),
    (dict(metadata={'attention.head_count_kv': [2, 1]}), 'differ between layers'),
    (dict(metadata={'rope.dimension_count': 8}), 'different sizes of keys, values and rotary embeddings'),
    (dict(metadata={'expert_count': 8}), 'mixtures of experts'),
    (dict(metadata={'attention.causal': False}), 'another attention than causal attention'),
    (dict(metadata={'attention.scale': 0.1}), 'another attention than'),
    (dict(metadata={'rope.scaling.attn_factor': 1.5}), 'another attention than'),
    (dict(metadata={'rope.scaling.type': 'yarn'}), "rope scaling 'yarn'"),
    (dict(metadata={'attention.head_count_kv': 3}), 'cannot share 3 key/value heads'),
    (dict(metadata={'rope.scaling.type': 'linear', 'rope.scaling.factor': 4.0}), "rope scaling 'linear' by .* 4.0"),
    (dict(metadata={'rope.scaling.factor': 4.0}), "rope scaling 'linear' by the factor 4.0"),  # as llama.cpp reads it
    (dict(metadata={'rope.scale_linear': 2.0}), "rope scaling 'linear' by the factor 2.0"),
    (dict(metadata={'block_count': 10_000_000}), 'announces 10000000 layers, but there are only'),
    (dict(metadata={'block_count': 'two'}), "llama.block_count must be a positive int, not 'two'"),
    (dict(metadata={'attention.head_count': 0}), 'attention.head_count must be a positive int, not 0'),
    (dict(metadata={'rope.freq_base': float('nan')}), 'rope.freq_base must be a positive float, not nan'),
    (dict(extra={'blk.0.attn_k.weight': np.zeros((32, 64), np.int32)}), "attn_k.weight' has the unsupported type I32"),
    (dict(extra={'token_embd.weight': None}), "'token_embd.weight' is missing"),
    (dict(extra={'blk.1.attn_q.weight': None}), "missing tensor 'blk.1.attn_q.weight'"),
    (dict(extra={'blk.1.attn_q.bias': np.zeros(64, np.float32)}), "unexpected tensor 'blk.1.attn_q.bias'"),
    (dict(extra={'blk.0.attn_k.weight': np.zeros((16, 64), np.float32)}), r"attn_k.weight' has shape \(16, 64\)"),
])
def test_invalid_files_raise(changes, message, tmp_path):
    path = write_gguf(tmp_path / 'model.gguf', LLAMA, random_params(LLAMA), **changes)
    with pytest.raises(WeightsError, match=message) as caught:
        weights.load(path)
    assert str(path) in str(caught.value)


def test_truncated_files_and_other_formats_raise(tmp_path):
    complete = write_gguf(tmp_path / 'model.gguf', LLAMA, random_params(LLAMA)).read_bytes()
    path = tmp_path / 'invalid.gguf'
    for size in (0, 3, 20, 25, 40, 61, 100, 333, 500, 777, 1500, len(complete) // 2,
                 len(complete) - 100):
        path.write_bytes(complete[:size])
        with pytest.raises(WeightsError, match=re.escape(str(path))):
            weights.load(path)
    path.write_bytes(b'GGML' + complete[4:])
    with pytest.raises(WeightsError, match='not a GGUF file'):
        weights.load(path)
    path.write_bytes(b'this is not a model, but long enough for a header')
    with pytest.raises(WeightsError, match='not a GGUF file'):
        weights.load(path)
