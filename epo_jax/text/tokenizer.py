"""Loading tokenizers from Hugging Face folders and GGUF files, encoding and decoding."""

import os
import pathlib
from typing import Sequence

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from epo_jax.models.gguf import GGUFError, GGUFFile
from epo_jax.runtime.errors import InputError

# Pattern that splits text before byte pairs are merged. Qwen splits numbers into digits, and Llama 3 into groups of up
# to three digits.
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
         r'|\s*[\r\n]+|\s+(?!\S)|\s+')

# Token types in GGUF.
CONTROL, USER_DEFINED = 3, 4


class TokenizerError(InputError):
    """A tokenizer cannot be loaded, or encodes ordinary text as control tokens."""


def load_tokenizer(path: str | os.PathLike) -> PreTrainedTokenizerFast:
    """Load a tokenizer with its chat template and its begin- and end-of-sequence tokens.

    Args:
      path: a Hugging Face folder with `tokenizer.json` (and optionally `tokenizer_config.json` and
        `chat_template.jinja`), or a .gguf file with a byte-level BPE vocabulary.

    Raises:
      TokenizerError: the tokenizer is missing, damaged or not supported.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        if not (path / 'tokenizer.json').exists():
            raise TokenizerError(f'{path}: this folder has no tokenizer.json')
        try:
            return PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)
        except Exception as error:  # the tokenizers library raises Exception for invalid files
            raise TokenizerError(f'{path}: tokenizer.json or its configuration is damaged ({error})') from error
    if path.suffix != '.gguf' or not path.exists():
        raise TokenizerError(f'{path}: this path is neither a folder with tokenizer.json nor a .gguf file')
    try:
        return _from_gguf(GGUFFile(path))
    except GGUFError as error:
        raise TokenizerError(str(error)) from error


def _from_gguf(file: GGUFFile) -> PreTrainedTokenizerFast:
    kind = file.require('tokenizer.ggml.model')
    if kind != 'gpt2':
        raise TokenizerError(f"{file.path}: tokenizer model {kind!r} is not supported, only 'gpt2' (byte-level BPE)")
    tokens = file.require('tokenizer.ggml.tokens')
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) < len(tokens):
        raise TokenizerError(f'{file.path}: the vocabulary contains a token twice')
    pre = file.require('tokenizer.ggml.pre')
    try:
        merges = [tuple(merge.split(' ')) for merge in file.require('tokenizer.ggml.merges')]
        # Llama 3 encodes a word in the vocabulary as one token even if no merges produce it.
        tokenizer = tokenizers.Tokenizer(models.BPE(vocab, merges, ignore_merges=pre == 'llama-bpe'))
    except Exception as error:  # the tokenizers library has no exceptions of its own
        raise TokenizerError(f'{file.path}: the merges do not match the vocabulary ({error})') from error
    tokenizer.normalizer = normalizers.NFC() if pre == 'qwen2' else None
    tokenizer.pre_tokenizer = _pre_tokenizer(file, pre)
    tokenizer.decoder = decoders.ByteLevel()
    types = file.require('tokenizer.ggml.token_type')
    tokenizer.add_tokens([AddedToken(token, special=of_type == CONTROL, normalized=False)
                          for token, of_type in zip(tokens, types) if of_type in (CONTROL, USER_DEFINED)])
    names = {'bos_token': 'bos', 'eos_token': 'eos', 'unk_token': 'unknown', 'pad_token': 'padding'}
    ids = {name: file.metadata.get(f'tokenizer.ggml.{key}_token_id') for name, key in names.items()}
    for name, i in ids.items():
        if i is not None and not i < len(tokens):
            raise TokenizerError(f'{file.path}: {name} is {i}, but the vocabulary has only {len(tokens)} tokens')
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=file.metadata.get('tokenizer.chat_template'),
        clean_up_tokenization_spaces=False, **{name: tokens[i] for name, i in ids.items() if i is not None})


def _pre_tokenizer(file: GGUFFile, name: str) -> pre_tokenizers.PreTokenizer:
    """Return the pre-tokenizer that llama.cpp calls `name`."""
    byte_level = lambda use_regex: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    split = lambda digits: pre_tokenizers.Split(Regex(SPLIT.format(digits=digits)), behavior='isolated')
    known = {
        'gpt-2': lambda: byte_level(True),
        'smollm': lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level(True)]),
        'llama-bpe': lambda: pre_tokenizers.Sequence([split('{1,3}'), byte_level(False)]),
        'qwen2': lambda: pre_tokenizers.Sequence([split(''), byte_level(False)]),
    }
    if name not in known:
        raise TokenizerError(f'{file.path}: pre-tokenizer {name!r} is not supported; '
                             f'supported pre-tokenizers are {", ".join(known)}')
    return known[name]()


def special_ids(tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    """Return the ids of all control tokens."""
    return frozenset(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Encode text without adding tokens. Text that looks like a control token is encoded as ordinary text.

    Raises:
      TokenizerError: the tokenizer encodes ordinary text as a control token.
    """
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)['input_ids']
    if control := set(ids) & (special_ids(tokenizer) - {tokenizer.unk_token_id}):
        token = tokenizer.convert_ids_to_tokens(min(control))
        raise TokenizerError(f'this tokenizer encodes ordinary text as the control token {token!r} and cannot be used')
    return ids


def decode(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    """Decode ids, skip control tokens, and do not clean up spaces.

    An embedding table may have more rows than the tokenizer has tokens. Such ids become U+FFFD, like invalid UTF-8.
    """
    text, run = '', []
    for i in (*map(int, ids), None):
        if i is not None and tokenizer.convert_ids_to_tokens(i) is not None:
            run.append(i)
            continue
        text += tokenizer.decode(run, skip_special_tokens=True, clean_up_tokenization_spaces=False) if run else ''
        text += '' if i is None else '\ufffd'
        run = []
    return text


def ids_containing(tokenizer: PreTrainedTokenizerFast, substring: str) -> tuple[int, ...]:
    """Return the ids whose text contains `substring`, in ascending order and without control tokens.

    A token that contains only some of the bytes of a character does not contain this character.
    """
    # Decode each id after another token, because some decoders remove a leading space.
    prefix = encode(tokenizer, 'a')
    offset = len(decode(tokenizer, prefix))
    ids = sorted(set(tokenizer.get_vocab().values()) - special_ids(tokenizer))
    texts = tokenizer.batch_decode([[*prefix, i] for i in ids], clean_up_tokenization_spaces=False)
    return tuple(i for i, text in zip(ids, texts) if substring in text[offset:])
