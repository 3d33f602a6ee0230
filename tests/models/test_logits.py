"""Logits against the reference implementation in the transformers library (torch, float32, CPU)."""

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip('torch')
import transformers  # noqa: E402

from epo_jax.models import weights  # noqa: E402
from epo_jax.models.families import decoder  # noqa: E402
from epo_jax.models.layout import stack  # noqa: E402

TOLERANCE = 2e-4  # of the largest logit
SMALL = dict(vocab_size=211, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
             intermediate_size=56, max_position_embeddings=128, bos_token_id=0, eos_token_id=1,
             attn_implementation='eager')
LLAMA3_ROPE = dict(rope_type='llama3', rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=32)
GEMMA3 = dict(head_dim=12, sliding_window=7, sliding_window_pattern=2, query_pre_attn_scalar=20, pad_token_id=0)


def hf_config(family):
    """Return a small configuration of a family for the transformers library."""
    return {
        'llama2': lambda: transformers.LlamaConfig(**SMALL | dict(num_key_value_heads=4), tie_word_embeddings=False),
        'llama3.1': lambda: transformers.LlamaConfig(**SMALL, rope_parameters=LLAMA3_ROPE, tie_word_embeddings=False),
        'llama, scaled linearly': lambda: transformers.LlamaConfig(
            **SMALL, rope_parameters=dict(rope_type='linear', rope_theta=500.0, factor=4.0)),
        'smollm2': lambda: transformers.LlamaConfig(
            **SMALL, rope_parameters=dict(rope_type='default', rope_theta=1e5), tie_word_embeddings=True),
        'mistral': lambda: transformers.MistralConfig(**SMALL, head_dim=8, sliding_window=7, rms_norm_eps=1e-3),
        'qwen2': lambda: transformers.Qwen2Config(**SMALL, tie_word_embeddings=True),
        'qwen3': lambda: transformers.Qwen3Config(**SMALL, head_dim=20, tie_word_embeddings=False),
        'smollm3': lambda: transformers.SmolLM3Config(**SMALL, no_rope_layer_interval=2, pad_token_id=0),
        'gemma3': lambda: transformers.Gemma3TextConfig(**SMALL, **GEMMA3),
        'gemma3, scaled': lambda: transformers.Gemma3TextConfig(
            **SMALL, **GEMMA3, final_logit_softcapping=6.0, tie_word_embeddings=False, rope_parameters={
                'full_attention': dict(rope_type='linear', rope_theta=5e4, factor=4.0),
                'sliding_attention': dict(rope_type='default', rope_theta=100.0)}),
    }[family]()


FAMILIES = ('llama2', 'llama3.1', 'llama, scaled linearly', 'smollm2', 'mistral', 'qwen2', 'qwen3', 'smollm3', 'gemma3',
            'gemma3, scaled')


def random_model(config):
    """Return a model whose parameters are all random; new models have zero biases and unit norm scales."""
    generator = torch.Generator().manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(1 + 0.3 * noise if 'norm' in name else noise / (p.shape[-1] ** 0.5 if p.ndim > 1 else 2))
    return model


def reference(model, ids):
    with torch.no_grad():
        return model(torch.tensor(ids)).logits.numpy()


def ours(config, params, ids):
    """Return the logits f32[B, K, V] of a full forward pass of epo_jax's decoder, in either layout."""
    model = decoder(config, stacked='layers' in params)
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)

    def logits(params, ids):
        hidden, _ = model.apply({'params': params}, ids, positions)
        return model.apply({'params': params}, hidden, method='logits')
    return np.asarray(jax.jit(logits)(params, jnp.asarray(ids)))


def assert_close(actual, expected, name):
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    print(f'{name}: {error:.1e} of the largest logit, {np.abs(expected).max():.2f}')
    assert error <= TOLERANCE


@pytest.mark.parametrize('family', FAMILIES)
def test_small_checkpoint(family, tmp_path):
    model = random_model(hf_config(family))
    model.save_pretrained(tmp_path / 'one')
    model.save_pretrained(tmp_path / 'sharded', max_shard_size='20KB')
    assert (tmp_path / 'sharded' / 'model.safetensors.index.json').exists()
    ids = np.random.default_rng(0).integers(0, 211, (2, 96))  # longer than the window and the unscaled rotary range
    expected = reference(model, ids)
    for stacked in (False, True):
        config, params = weights.load(tmp_path / 'one', stacked=stacked)
        assert ('layers' in params) == stacked
        assert_close(ours(config, params, ids), expected, f'{family} stacked={stacked}')
        assert weights.load(tmp_path / 'sharded')[0] == config
        jax.tree.map(np.testing.assert_array_equal, weights.load(tmp_path / 'sharded', stacked=stacked)[1], params)

        ours_again = tmp_path / f'ours {stacked}'
        weights.save(ours_again, config, params, max_file_bytes=20_000 if stacked else 5_000_000_000)
        again, info = transformers.AutoModelForCausalLM.from_pretrained(
            ours_again, attn_implementation='eager', output_loading_info=True)
        assert not any(info.values()), info
        assert np.array_equal(reference(again, ids), expected)
        assert weights.load(ours_again)[0] == config


def smollm2_state(file):
    """Return the state dict for the transformers library, with tensors dequantized independently of epo_jax."""
    tensors = {}
    for tensor in gguf.GGUFReader(file).tensors:
        shape, kind = tuple(int(n) for n in tensor.shape[::-1]), tensor.tensor_type.name
        raw = np.ascontiguousarray(tensor.data).view(np.uint8).reshape(-1)
        if kind == 'Q4_1':  # a block has scale, minimum, and 32 weights: low nibbles, then high nibbles
            block = raw.reshape(-1, 20)
            scale, low = block[:, :4].copy().view(np.float16).astype(np.float32).T[:, :, None]
            x = np.concatenate([block[:, 4:] & 15, block[:, 4:] >> 4], axis=1) * scale + low
        elif kind == 'Q8_0':
            block = raw.reshape(-1, 34)
            x = block[:, 2:].view(np.int8) * block[:, :2].copy().view(np.float16).astype(np.float32)
        else:
            assert kind == 'F32'
            x = raw.view(np.float32)
        x = x.reshape(shape).astype(np.float32)
        if 'attn_q.' in tensor.name or 'attn_k.' in tensor.name:  # in every head, even rows before odd rows
            x = np.concatenate([part for head in np.split(x, len(x) // 64) for part in (head[::2], head[1::2])])
        tensors[tensor.name] = torch.tensor(x)
    names = {'attn_norm': 'input_layernorm', 'ffn_norm': 'post_attention_layernorm', 'attn_q': 'self_attn.q_proj',
             'attn_k': 'self_attn.k_proj', 'attn_v': 'self_attn.v_proj', 'attn_output': 'self_attn.o_proj',
             'ffn_gate': 'mlp.gate_proj', 'ffn_up': 'mlp.up_proj', 'ffn_down': 'mlp.down_proj'}
    table = tensors['token_embd.weight']
    state = {'model.embed_tokens.weight': table, 'lm_head.weight': table,
             'model.norm.weight': tensors['output_norm.weight']}
    for name, tensor in tensors.items():
        if name.startswith('blk.'):
            _, layer, part, _ = name.split('.')
            state[f'model.layers.{layer}.{names[part]}.weight'] = tensor
    return state


def test_smollm2(smollm2_gguf):
    with torch.device('meta'):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
            vocab_size=49152, hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
            intermediate_size=1536, max_position_embeddings=8192, rms_norm_eps=1e-5, tie_word_embeddings=True,
            rope_parameters=dict(rope_type='default', rope_theta=1e5)))
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)  # its buffers are not in the state dict
    model.load_state_dict(smollm2_state(smollm2_gguf), assign=True)
    # <|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n, then random ids
    prompt = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198]
    ids = np.array([prompt + np.random.default_rng(0).integers(0, 49152, 40).tolist()])
    expected = reference(model.eval(), ids)
    del model
    config, params = weights.load(smollm2_gguf)
    actual = ours(config, params, ids)
    assert_close(actual, expected, 'smollm2 gguf')
    assert actual[0, len(prompt) - 1].argmax() == expected[0, len(prompt) - 1].argmax() == 504  # 'The'
    assert_close(ours(config, stack(params), ids), expected, 'smollm2 gguf stacked')
