"""Tokenizers from the vocabularies of GGUF files: byte-level BPE, and SentencePiece's BPE."""

from typing import Sequence

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from epo_jax.models.gguf import GGUFFile
from epo_jax.text.tokenizer import SPLIT, TokenizerError

# Names of pre-tokenizers that llama.cpp treats alike (llama-vocab.cpp).
PRE_TOKENIZERS = {
    'gpt-2': ('gpt-2', 'phi-2', 'jina-es', 'jina-de', 'gigachat', 'jina-v2-es', 'jina-v2-de', 'a.x-4.0', 'mellum',
              'exaone4', 'jina-v1-en', 'jina-v2-code', 'roberta-bpe'),
    'smollm': ('smollm',),
    'llama-bpe': ('llama-bpe', 'llama3', 'llama-v3', 'falcon3', 'falcon-h1', 'pixtral', 'midm-2.0', 'lfm2',
                  'jina-v5-nano'),
    'qwen2': ('qwen2', 'deepseek-r1-qwen', 'kormo', 'megrez'),
}

# Token types in GGUF.
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
SPACE = '\u2581'  # stands for a space in SentencePiece vocabularies


def gguf_tokenizer(file: GGUFFile) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a GGUF file with its chat template.

    Raises:
      TokenizerError, GGUFError: the vocabulary is missing, damaged or not supported.
    """
    kind = file.require('tokenizer.ggml.model')
    if kind not in ('gpt2', 'llama'):
        raise TokenizerError(f"{file.path}: tokenizer model {kind!r} is not supported, only 'gpt2' (byte-level BPE) "
                             "and 'llama' (SentencePiece)")
    tokens = _list(file, 'tokens', str)
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) < len(tokens):
        raise TokenizerError(f'{file.path}: the vocabulary contains a token twice')
    types = _list(file, 'token_type', int, len(tokens))
    names = {'bos_token': 'bos', 'eos_token': 'eos', 'unk_token': 'unknown', 'pad_token': 'padding'}
    ids = {name: file.metadata.get(f'tokenizer.ggml.{key}_token_id') for name, key in names.items()}
    ids = {name: i for name, i in ids.items() if i is not None}
    for name, i in ids.items():
        if not isinstance(i, int) or not 0 <= i < len(tokens):
            raise TokenizerError(f'{file.path}: {name} is {i}, but the vocabulary has only {len(tokens)} tokens')
    template = file.metadata.get('tokenizer.chat_template')
    if not isinstance(template, (str, type(None))):
        raise TokenizerError(f'{file.path}: tokenizer.chat_template is not text')
    special = {i for i, of_type in enumerate(types) if of_type == CONTROL}
    if kind == 'gpt2':
        tokenizer = _byte_level(file, vocab)
    else:
        special |= {i for i, of_type in enumerate(types) if of_type == UNKNOWN} | set(ids.values())
        tokenizer = _sentencepiece(file, vocab, tokens[ids['unk_token']] if 'unk_token' in ids else None)
    tokenizer.add_tokens([AddedToken(tokens[i], special=i in special, normalized=False)
                          for i, of_type in enumerate(types) if i in special or of_type == USER_DEFINED])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=template, clean_up_tokenization_spaces=False,
        **{name: tokens[i] for name, i in ids.items()})


def _list(file: GGUFFile, key: str, kind: type | tuple[type, ...], length: int | None = None) -> list:
    """Return a list of the metadata; raise TokenizerError if it has other values or another length."""
    values = file.require(f'tokenizer.ggml.{key}')
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise TokenizerError(f'{file.path}: tokenizer.ggml.{key} has values of the wrong type')
    if length is not None and len(values) != length:
        raise TokenizerError(f'{file.path}: tokenizer.ggml.{key} has {len(values)} values for {length} tokens')
    return values


def _byte_level(file: GGUFFile, vocab: dict[str, int]) -> tokenizers.Tokenizer:
    """Return a byte-level BPE tokenizer without its control tokens."""
    name = file.require('tokenizer.ggml.pre')
    pre = next((pre for pre, names in PRE_TOKENIZERS.items() if name in names), None)
    if pre is None:
        raise TokenizerError(f'{file.path}: pre-tokenizer {name!r} is not supported; supported pre-tokenizers are '
                             f'{", ".join(PRE_TOKENIZERS)} and their aliases in llama.cpp')
    merges = [tuple(merge.split(' ')) for merge in _list(file, 'merges', str)]
    # Llama 3 encodes a word in the vocabulary as one token even if no merges produce it.
    tokenizer = tokenizers.Tokenizer(_bpe(file, vocab, merges, ignore_merges=pre == 'llama-bpe'))
    tokenizer.normalizer = normalizers.NFC() if pre == 'qwen2' else None
    byte_level = lambda use_regex: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    split = lambda digits: pre_tokenizers.Split(Regex(SPLIT.format(digits=digits)), behavior='isolated')
    steps = {
        'gpt-2': lambda: [byte_level(True)],
        'smollm': lambda: [pre_tokenizers.Digits(individual_digits=True), byte_level(True)],
        'llama-bpe': lambda: [split('{1,3}'), byte_level(False)],
        'qwen2': lambda: [split(''), byte_level(False)]}
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps[pre]())
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(file: GGUFFile, vocab: dict[str, int], unknown: str | None) -> tokenizers.Tokenizer:
    """Return a tokenizer of SentencePiece's BPE without its control tokens, as transformers converts it."""
    if 'tokenizer.ggml.merges' in file.metadata:
        merges = [tuple(merge.split(' ')) for merge in _list(file, 'merges', str)]
    else:
        merges = _merges(vocab, _list(file, 'scores', (int, float), len(vocab)))
    tokenizer = tokenizers.Tokenizer(_bpe(file, vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefix = file.metadata.get('tokenizer.ggml.add_space_prefix', True)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement=SPACE, prepend_scheme='first' if prefix else 'never', split=False)
    strip = [decoders.Strip(content=' ', left=1)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, ' '), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return tokenizer


def _merges(vocab: dict[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Return the merges that a SentencePiece vocabulary implies: pairs of pieces, in the order of their scores."""
    merges = []
    for piece, i in vocab.items():
        halves = ((piece[:at], piece[at:]) for at in range(1, len(piece)))
        pairs = sorted((vocab[left], vocab[right], left, right) for left, right in halves
                       if left in vocab and right in vocab)
        merges += [(scores[i], len(left), len(right), left, right) for _, _, left, right in pairs]
    merges.sort(key=lambda merge: merge[:3], reverse=True)
    return [merge[3:] for merge in merges]


def _bpe(file: GGUFFile, vocab: dict[str, int], merges: Sequence[tuple[str, ...]], **options) -> models.BPE:
    try:
        return models.BPE(vocab, merges, **options)
    except Exception as error:  # the tokenizers library has no exceptions of its own
        raise TokenizerError(f'{file.path}: the merges do not match the vocabulary ({error})') from error
