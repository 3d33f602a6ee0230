"""Gemma 3's config.json: defaults and both forms of rotary parameters as in transformers, and clear errors."""

import json

from families import GEMMA, random_params
import pytest
import transformers

from epo_jax.models import weights
from epo_jax.models.families import config_from_hf
from epo_jax.models.weights import WeightsError

FULL, SLIDING = 'full_attention', 'sliding_attention'
BASE = dict(vocab_size=96, hidden_size=128, intermediate_size=48, num_hidden_layers=7, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, max_position_embeddings=256, rms_norm_eps=1e-5, sliding_window=9,
            query_pre_attn_scalar=20)


def reference(content):
    """Return what transformers reads, with the window and the rotary embedding of every layer."""
    c = transformers.AutoConfig.for_model('gemma3_text', **json.loads(json.dumps(content)))
    layers = [(c.sliding_window if kind == SLIDING else None, c.rope_parameters[kind]['rope_theta'],
               c.rope_parameters[kind].get('factor')) for kind in c.layer_types]
    return (c.vocab_size, c.hidden_size, c.intermediate_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim,
            c.max_position_embeddings, c.rms_norm_eps, c.query_pre_attn_scalar, c.final_logit_softcapping,
            c.tie_word_embeddings, layers)


def ours(content):
    c = config_from_hf(content | {'model_type': 'gemma3_text'})
    layers = [(kind.window, kind.rope_theta, kind.rope_scaling and kind.rope_scaling.factor)
              for kind in c.attention_kinds]
    return (c.vocab_size, c.width, c.mlp_width, c.num_heads, c.num_kv_heads, c.head_dim, c.max_positions, c.norm_eps,
            c.query_scale, c.logit_cap, c.tied, layers)


@pytest.mark.parametrize('absent', [*BASE, None])
def test_absent_keys_have_the_defaults_of_the_family(absent):
    content = {key: value for key, value in BASE.items() if key != absent}
    assert ours(content) == reference(content)


@pytest.mark.parametrize('change', [
    {'rope_theta': 5e5, 'rope_local_base_freq': 500.0, 'sliding_window_pattern': 3},
    {'rope_scaling': {'rope_type': 'linear', 'factor': 8.0}, 'rope_theta': 1e6},
    {'rope_scaling': None}, {'rope_scaling': {'factor': 8.0, 'rope_type': 'linear'}},
    {'rope_parameters': {FULL: {'rope_type': 'linear', 'factor': 8.0, 'rope_theta': 7.0},
                         SLIDING: {'rope_theta': 3.0}}},
    {'rope_parameters': {FULL: {'rope_type': 'default'}, SLIDING: None}, 'rope_theta': 5.0,
     'rope_local_base_freq': 2.0},
    {'layer_types': [FULL] * 3 + [SLIDING] * 4},
    {'layer_types': [FULL] * 7, 'sliding_window': None},
    {'sliding_window_pattern': 1}, {'final_logit_softcapping': 30.0}, {'tie_word_embeddings': False}])
def test_every_form_is_read_as_in_transformers(change):
    assert ours(BASE | change) == reference(BASE | change)


@pytest.mark.parametrize('change, message', [
    ({'hidden_activation': 'silu'}, "hidden_activation 'silu' is not supported"),
    ({'attention_bias': True}, 'attention_bias is not supported for Gemma 3'),
    ({'attn_logit_softcapping': 50.0}, 'attn_logit_softcapping is not supported'),
    ({'use_bidirectional_attention': True}, 'use_bidirectional_attention is not supported'),
    ({'rope_parameters': {'rope_type': 'default', 'rope_theta': 1e4}}, 'rope_parameters of Gemma 3 must be the groups'),
    ({'rope_parameters': {SLIDING: {'rope_type': 'linear', 'factor': 2.0}}}, 'scaling .* in sliding_attention'),
    ({'rope_scaling': {'rope_type': 'yarn', 'factor': 4.0}}, "rope type 'yarn' is not supported"),
    ({'layer_types': ['full_attention'] * 3}, 'layer_types has 3 entries for 7 layers'),
    ({'layer_types': ['linear_attention'] * 7}, "layer_types must name 'full_attention' or 'sliding_attention'"),
    ({'sliding_window': None}, 'need a sliding_window'),
    ({'sliding_window': 0}, 'sliding_window must be a whole number from 1'),
    ({'query_pre_attn_scalar': 0}, 'query_pre_attn_scalar'),
    ({'final_logit_softcapping': -1}, 'final_logit_softcapping'),
    ({'num_hidden_layers': 2**30}, '1073741824 layers are not supported'),
    ({'quantization_config': {'quant_method': 'awq'}}, "quantized .quantization_config with quant_method 'awq'"),
    ({'model_type': 'gemma3'}, "model_type 'gemma3' is not supported, because it also reads images"),
    ({'model_type': 'gemma2'}, "model_type 'gemma2' is not supported; supported types are .*gemma3_text"),
])
def test_what_is_not_supported_is_refused_in_one_line(change, message, tmp_path):
    (tmp_path / 'config.json').write_text(json.dumps({'model_type': 'gemma3_text'} | BASE | change))
    with pytest.raises(WeightsError, match=message) as caught:
        weights.read_config(tmp_path)
    assert str(tmp_path) in str(caught.value) and '\n' not in str(caught.value)


def test_missing_norms_are_named(tmp_path):
    from safetensors.numpy import load_file, save_file
    weights.save(tmp_path / 'model', GEMMA, random_params(GEMMA))
    file = tmp_path / 'model' / 'model.safetensors'
    tensors = load_file(file)
    del tensors['model.layers.1.post_feedforward_layernorm.weight']
    save_file(tensors, file)
    with pytest.raises(WeightsError, match="missing tensor 'model.layers.1.post_feedforward_layernorm.weight'"):
        weights.load(tmp_path / 'model')
