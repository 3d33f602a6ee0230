"""A dummy model, a byte tokenizer and an outcome that is easy to learn, for tests and smoke runs."""

from typing import Sequence

import jax
import tokenizers
from tokenizers import decoders, models, pre_tokenizers
import transformers

from epo_jax.models.config import ModelConfig
from epo_jax.models.families import decoder
from epo_jax.models.layout import unstack
from epo_jax.rewards.prompts import JudgePrompt

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def byte_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer of 256 bytes and three control tokens, with the ChatML template; <|im_end|> ends a turn."""
    vocab = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    control = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']
    core.add_special_tokens(control)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token='<|im_end|>', bos_token='<|endoftext|>', additional_special_tokens=control)
    tokenizer.chat_template = CHATML
    return tokenizer


def dummy_config(vocab_size: int = 259) -> ModelConfig:
    """Return the shape of a decoder that compiles and runs fast."""
    return ModelConfig(
        vocab_size=vocab_size, width=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_width=64,
        tied=True, max_positions=8192)


def dummy_params(config: ModelConfig, stacked: bool, seed: int = 0):
    """Return random parameters in a layout; the numbers are the same in both layouts."""
    params = jax.jit(decoder(config, stacked=True).init_params)(jax.random.key(seed))
    return params if stacked else unstack(params)


def share_of_e(prompts: Sequence[JudgePrompt]) -> list[float]:
    """Return the share of the letter e in the strategies, in [0, 1]: an outcome that is easy to learn."""
    texts = [''.join(prompt.strategies) for prompt in prompts]
    return [text.count('e') / max(len(text), 1) for text in texts]
