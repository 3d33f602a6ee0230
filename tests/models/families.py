"""Small models of every supported family with random parameters, and their comparison."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from epo_jax.models.config import LinearScaling, ModelConfig, RopeScaling
from epo_jax.models.families import decoder
from epo_jax.models.gemma_config import GemmaConfig

LLAMA = ModelConfig(vocab_size=40, width=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, mlp_width=96)
LLAMA3_SCALING = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_positions=8192)
GEMMA = GemmaConfig(**vars(LLAMA) | dict(
    qk_norm=True, tied=True, head_dim=24, rope_theta=1e6, rope_scaling=LinearScaling(8.0), norm_eps=1e-6,
    sliding_window=5, local_layers=(True, False), query_scale=20.0, logit_cap=4.0))
CONFIGS = {
    'llama': LLAMA,
    'tied, scaled': dataclasses.replace(LLAMA, tied=True, rope_theta=5e5, rope_scaling=LLAMA3_SCALING),
    'scaled linearly': dataclasses.replace(LLAMA, rope_scaling=LinearScaling(4.0)),
    'mistral': dataclasses.replace(LLAMA, sliding_window=9),
    'qwen2': dataclasses.replace(LLAMA, qkv_bias=True, tied=True, norm_eps=1e-6),
    'qwen2 with a window': dataclasses.replace(LLAMA, qkv_bias=True, sliding_window=9),
    'qwen3': dataclasses.replace(LLAMA, qk_norm=True, head_dim=24),
    'smollm3': dataclasses.replace(LLAMA, rope_layers=(True, False), rope_theta=2e6),
    'gemma3': GEMMA,
    'gemma3, global, not tied': dataclasses.replace(
        GEMMA, sliding_window=None, local_layers=(False, False), tied=False, logit_cap=None, rope_scaling=None),
}


def random_params(config, dtype=np.float32):
    """Return random parameters in the stacked layout."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(decoder(config, stacked=True).init_params, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), dtype), shapes)


def assert_equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
