"""Hugging Face's config.json: defaults and windows as in transformers, and clear errors about everything else."""

import json
import time

from families import LLAMA, random_params
import pytest
import transformers

from epo_jax.models import weights
from epo_jax.models.config import ModelConfig
from epo_jax.models.weights import WeightsError
from epo_jax.runtime.errors import InputError

BASE = dict(vocab_size=96, hidden_size=128, intermediate_size=48, num_hidden_layers=3, num_attention_heads=32,
            num_key_value_heads=2, max_position_embeddings=256, rms_norm_eps=1e-5, rope_theta=500.0, head_dim=8)
LLAMA3 = dict(rope_type='llama3', factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)


def reference(kind, content):
    """Return what transformers reads: heads, rotary base, epsilon, context, tying, and the window of every layer."""
    c = transformers.AutoConfig.for_model(kind, **content)
    window = None if kind == 'llama' else getattr(c, 'sliding_window', None)  # Llama's layers do not read it
    types = getattr(c, 'layer_types', None) if kind.startswith('qwen') else None
    windows = [window] * c.num_hidden_layers if types is None else [
        window if of_layer == 'sliding_attention' else None for of_layer in types]
    head_dim = getattr(c, 'head_dim', None) or c.hidden_size // c.num_attention_heads
    return (c.num_key_value_heads, head_dim, c.rope_parameters['rope_theta'], c.rms_norm_eps,
            c.max_position_embeddings, c.tie_word_embeddings, windows)


def ours(kind, content):
    c = ModelConfig.from_hf(content | {'model_type': kind})
    return (c.num_kv_heads, c.head_dim, c.rope_theta, c.norm_eps, c.max_positions, c.tied,
            [c.sliding_window] * c.num_layers)


@pytest.mark.parametrize('kind', ['llama', 'mistral', 'qwen2', 'qwen3', 'smollm3'])
@pytest.mark.parametrize('absent', ['num_key_value_heads', 'head_dim', 'rms_norm_eps', 'rope_theta',
                                    'max_position_embeddings', None])
def test_absent_keys_have_the_defaults_of_the_family(kind, absent):
    content = {key: value for key, value in BASE.items() if key != absent}
    assert ours(kind, content) == reference(kind, content)


@pytest.mark.parametrize('kind', ['llama', 'mistral', 'qwen2', 'qwen3', 'smollm3'])
def test_null_means_as_many_key_value_heads_as_heads_and_no_window(kind):
    content = BASE | {'sliding_window': None} | ({} if kind == 'mistral' else {'num_key_value_heads': None})
    assert ours(kind, content) == reference(kind, content)


FULL, SLIDING = 'full_attention', 'sliding_attention'


@pytest.mark.parametrize('kind', ['llama', 'mistral', 'qwen2', 'qwen3'])
@pytest.mark.parametrize('used', [None, False, True])
@pytest.mark.parametrize('first', [None, 0, 2, 3, 28])
@pytest.mark.parametrize('types', [None, [FULL] * 3, [SLIDING] * 3, [FULL, SLIDING, SLIDING]])
def test_the_window_is_that_of_transformers_or_refused(kind, used, first, types):
    content = dict(BASE, sliding_window=4)
    for key, value in (('use_sliding_window', used), ('max_window_layers', first), ('layer_types', types)):
        if value is not None:
            content[key] = value
    expected = reference(kind, content)
    uniform = len(set(expected[-1])) == 1
    try:
        assert ours(kind, content) == expected
    except InputError as error:
        assert 'sliding window in some layers only' in str(error)
        assert not uniform or kind == 'mistral' and types is not None  # Ministral, written as mistral
    else:
        assert uniform


@pytest.mark.parametrize('change', [
    {}, {'no_rope_layer_interval': 2}, {'no_rope_layers': [0, 1, 1]}, {'no_rope_layers': [1, 1, 0, 0, 1, 1]},
    {'no_rope_layer_interval': 1}, {'num_hidden_layers': 9},
    {'sliding_window': 4, 'use_sliding_window': False}, {'layer_types': [FULL] * 3, 'use_sliding_window': True}])
def test_layers_of_smollm3_without_rotary_embeddings(change):
    theirs = transformers.AutoConfig.for_model('smollm3', **BASE | change)
    config = ModelConfig.from_hf(BASE | change | {'model_type': 'smollm3'})
    assert list(config.rope_layers) == [bool(x) for x in theirs.no_rope_layers[:config.num_layers]]
    assert set(theirs.layer_types) == {FULL} and config.sliding_window is None


@pytest.mark.parametrize('change', [
    {'rope_scaling': LLAMA3}, {'rope_scaling': LLAMA3, 'rope_parameters': {'rope_type': 'default', 'rope_theta': 7.0}},
    {'rope_parameters': LLAMA3 | {'rope_theta': 9.0}}, {'rope_scaling': {'type': 'default'}},
    {'rope_scaling': {k: v for k, v in LLAMA3.items() if k != 'original_max_position_embeddings'}},
    {'rope_scaling': LLAMA3, 'original_max_position_embeddings': 64}])
def test_rotary_parameters_are_those_of_transformers(change):
    content = BASE | change
    theirs = transformers.AutoConfig.for_model('llama', **json.loads(json.dumps(content)))
    theirs.standardize_rope_params()  # as the model does
    theirs = theirs.rope_parameters
    config = ModelConfig.from_hf(content | {'model_type': 'llama'})
    assert config.rope_theta == theirs['rope_theta']
    if theirs['rope_type'] == 'default':
        assert config.rope_scaling is None
    else:
        assert (config.rope_scaling.factor, config.rope_scaling.low_freq_factor, config.rope_scaling.high_freq_factor,
                config.rope_scaling.original_positions) == (
            theirs['factor'], theirs['low_freq_factor'], theirs['high_freq_factor'],
            theirs['original_max_position_embeddings'])


@pytest.mark.parametrize('change, message', [
    ({'rope_theta': float('nan')}, 'rope_theta must be a finite number greater than 0, not nan'),
    ({'rope_theta': 0}, 'rope_theta must be a finite number greater than 0, not 0'),
    ({'rope_theta': float('inf')}, 'rope_theta'),
    ({'rope_theta': '10000'}, "rope_theta must be a finite number greater than 0, not '10000'"),
    ({'rope_parameters': {'rope_theta': -1}}, 'rope_theta'),
    ({'rope_scaling': [8]}, 'rope_scaling must be a JSON object, not a list'),
    ({'rope_scaling': LLAMA3 | {'factor': 0}}, 'factor'),
    ({'rope_scaling': LLAMA3 | {'high_freq_factor': 1.0}}, 'high_freq_factor must be a finite number greater than 1'),
    ({'rope_scaling': {'rope_type': 'llama3'}}, "'low_freq_factor' is missing"),
    ({'rope_scaling': {'rope_type': 'yarn', 'factor': 4.0}}, "rope type 'yarn' is not supported"),
    ({'rope_scaling': {'type': ['linear']}}, 'is not supported'),
    ({'rope_parameters': {FULL: {'rope_theta': 1e6}}}, 'differ between layers'),
    ({'partial_rotary_factor': 0.5}, 'partial_rotary_factor other than 1'),
    ({'num_attention_heads': 0}, 'num_attention_heads must be a whole number from 1'),
    ({'num_attention_heads': '32'}, "num_attention_heads must be a whole number from 1 to 2.31 - 1, not '32'"),
    ({'num_attention_heads': 512, 'head_dim': None}, 'head_dim must be a whole number from 1'),
    ({'num_key_value_heads': -2}, 'num_key_value_heads'),
    ({'num_key_value_heads': 3}, 'cannot share 3'),
    ({'head_dim': 8.5}, 'head_dim'),
    ({'head_dim': 0}, 'head_dim'),
    ({'hidden_size': 10 ** 30}, 'hidden_size .* not 1000'),
    ({'hidden_size': [32]}, 'hidden_size .* not a list'),
    ({'vocab_size': True}, 'vocab_size .* not True'),
    ({'vocab_size': None}, "the key 'vocab_size' is missing"),
    ({'intermediate_size': {}}, 'intermediate_size'),
    ({'rms_norm_eps': 'small'}, 'rms_norm_eps'),
    ({'max_position_embeddings': '4096'}, 'max_position_embeddings'),
    ({'tie_word_embeddings': 'false'}, "tie_word_embeddings must be true or false, not 'false'"),
    ({'model_type': 'qwen2', 'use_sliding_window': 1}, 'use_sliding_window'),
    ({'model_type': 'qwen2', 'use_sliding_window': True, 'max_window_layers': -1}, 'max_window_layers'),
    ({'model_type': 'mistral', 'sliding_window': 0}, 'sliding_window'),
    ({'model_type': 'mistral', 'layer_types': [3]}, 'layer_types must be a list of texts'),
    ({'model_type': 'qwen3', 'use_sliding_window': True, 'layer_types': ['linear_attention'] * 3}, 'layer_types'),
    ({'model_type': 'smollm3', 'no_rope_layers': [1, 0]}, 'no_rope_layers has 2 entries for 3 layers'),
    ({'model_type': 'smollm3', 'no_rope_layers': [1, 2, 0]}, 'no_rope_layers must be a list of 0 and 1'),
    ({'model_type': 'smollm3', 'no_rope_layer_interval': 0}, 'no_rope_layer_interval'),
    ({'model_type': 'smollm3', 'use_sliding_window': True, 'sliding_window': 4}, 'sliding window in some layers only'),
    ({'model_type': 'smollm3', 'layer_types': [SLIDING] * 3}, 'sliding window in some layers only'),
    ({'model_type': 'smollm3', 'attention_bias': True}, 'biases are only supported'),
    ({'model_type': ['llama']}, 'model_type .* is not supported'),
    ({'quantization_config': {'quant_method': 'bitsandbytes', 'load_in_4bit': True}},
     "the weights are quantized .quantization_config with quant_method 'bitsandbytes'"),
    ({'quantization_config': {'quant_method': 'fp8'}}, "quant_method 'fp8'"),
    ({'quantization': {'group_size': 64, 'bits': 4}}, 'the weights are quantized .quantization.'),
])
def test_odd_configurations_raise_one_line(change, message, tmp_path):
    content = {'model_type': 'llama'} | BASE | change
    (tmp_path / 'config.json').write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=message) as caught:
        weights.read_config(tmp_path)
    assert str(tmp_path) in str(caught.value) and '\n' not in str(caught.value)


def test_config_files_that_are_not_objects_raise_one_line(tmp_path):
    file = tmp_path / 'config.json'
    for content in ('[' * 100_000, '{"a":' * 100_000, '9' * 5000, '\ud800'.encode('utf-8', 'surrogatepass'), 'null'):
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(WeightsError, match='config.json') as caught:
            weights.read_config(tmp_path)
        assert '\n' not in str(caught.value) and len(str(caught.value)) < 500
    file.unlink()
    file.mkdir()
    with pytest.raises(WeightsError, match='config.json: the file cannot be read'):
        weights.read_config(tmp_path)


@pytest.mark.parametrize('key', ['num_hidden_layers', 'hidden_size', 'vocab_size', 'intermediate_size',
                                 'num_attention_heads', 'head_dim'])
def test_a_model_that_the_files_cannot_hold_is_refused_at_once(key, tmp_path):
    weights.save(tmp_path / 'model', LLAMA, random_params(LLAMA))
    file = tmp_path / 'model' / 'config.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: 2 ** 30}))
    start = time.perf_counter()
    for stacked in (False, True):
        with pytest.raises(WeightsError):
            weights.load(tmp_path / 'model', stacked=stacked)
    assert time.perf_counter() - start < 5
