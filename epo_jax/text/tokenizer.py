"""Loading tokenizers from Hugging Face folders and GGUF files, encoding and decoding.

Tokenizers of the SentencePiece kind (Llama 2, Mistral 7B) put a space in front of a text. A conversation is tokenized
piece by piece, and only some pieces begin a text, so `encode` and `decode` treat a piece as the continuation of a text
unless a `Lead` says what precedes it.
"""

import os
import pathlib
from typing import NamedTuple, Sequence

from tokenizers import models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from epo_jax.models.gguf import GGUFFile, is_gguf
from epo_jax.models.gguf_reader import GGUFError
from epo_jax.runtime.errors import InputError

# Pattern that splits text before byte pairs are merged. Qwen splits numbers into digits, and Llama 3 into groups of up
# to three digits.
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
         r'|\s*[\r\n]+|\s+(?!\S)|\s+')

# A character that precedes a piece while it is encoded. No merge contains it, so its tokens can be cut off again.
ANCHOR = '\x00'


class TokenizerError(InputError):
    """A tokenizer cannot be loaded, or encodes ordinary text as control tokens."""


class Lead(NamedTuple):
    """What precedes a piece of text.

    Attributes:
      space: spaces in front of the piece that belong to its first token.
      fresh: whether the tokenizer treats the piece as the beginning of a text, as some do after a control token.
    """

    space: str = ''
    fresh: bool = False


CONTINUATION = Lead()


def load_tokenizer(source: str | os.PathLike | GGUFFile) -> PreTrainedTokenizerFast:
    """Load a tokenizer with its chat template and its begin- and end-of-sequence tokens.

    Args:
      source: a Hugging Face folder with `tokenizer.json` (and optionally `tokenizer_config.json` and
        `chat_template.jinja`), or a GGUF file, as a path or opened.

    Raises:
      TokenizerError: the tokenizer is missing, damaged or not supported.
    """
    from epo_jax.text.vocabulary import gguf_tokenizer  # which needs TokenizerError
    if isinstance(source, GGUFFile):
        return gguf_tokenizer(source)
    path = pathlib.Path(source)
    if path.is_dir():
        if not (path / 'tokenizer.json').exists():
            raise TokenizerError(f'{path}: this folder has no tokenizer.json')
        try:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)
            if adds_space(tokenizer) and isinstance(tokenizer.backend_tokenizer.model, models.BPE):
                # Where the space goes depends on more than tokenizer.json, such as `legacy` in tokenizer_config.json.
                tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
            return tokenizer
        except Exception as error:  # the tokenizers library raises Exception for invalid files
            raise TokenizerError(f'{path}: tokenizer.json or its configuration is damaged ({error})') from error
    if not is_gguf(path):
        raise TokenizerError(f'{path}: this path is neither a folder with tokenizer.json nor a .gguf file')
    try:
        return gguf_tokenizer(GGUFFile(path))
    except GGUFError as error:
        raise TokenizerError(str(error)) from error


def adds_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokenizer puts a space in front of the beginning of a text."""
    backend = tokenizer.backend_tokenizer
    return any(
        isinstance(part, normalizers.Prepend)
        or isinstance(part, pre_tokenizers.Metaspace) and part.prepend_scheme != 'never'
        or isinstance(part, pre_tokenizers.ByteLevel) and part.add_prefix_space
        for part in (*_parts(backend.normalizer), *_parts(backend.pre_tokenizer)))


def _parts(step) -> list:
    """Return the parts of a normalizer or pre-tokenizer."""
    if isinstance(step, (normalizers.Sequence, pre_tokenizers.Sequence)):
        return [part for inner in step for part in _parts(inner)]
    return [] if step is None else [step]


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids of all control tokens."""
    return frozenset(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)


def encode(tokenizer: PreTrainedTokenizerBase, text: str, lead: Lead = CONTINUATION) -> list[int]:
    """Encode a piece of text without adding tokens. Text that looks like a control token is encoded as ordinary text.

    Args:
      tokenizer: the tokenizer.
      text: the piece; '' has no ids, whatever precedes it.
      lead: what precedes the piece.

    Raises:
      TokenizerError: the tokenizer encodes ordinary text as a control token.
    """
    if not text:
        return []
    ids = tokenize(tokenizer, lead.space + text, lead.fresh, ordinary=True)
    if control := set(ids) & (special_ids(tokenizer) - {tokenizer.unk_token_id}):
        token = tokenizer.convert_ids_to_tokens(min(control))
        raise TokenizerError(f'this tokenizer encodes ordinary text as the control token {token!r} and cannot be used')
    return ids


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str, fresh: bool, ordinary: bool) -> list[int]:
    """Return the ids of a piece of text.

    Args:
      tokenizer: the tokenizer.
      text: the piece.
      fresh: whether the piece begins a text; otherwise it continues one.
      ordinary: whether what looks like a control token is ordinary text.
    """
    options = dict(add_special_tokens=False, split_special_tokens=ordinary, verbose=False)
    if fresh or not adds_space(tokenizer):
        return tokenizer(text, **options)['input_ids']
    encoded = tokenizer(ANCHOR + text, return_offsets_mapping=True, **options)
    return [i for i, (_, end) in zip(encoded['input_ids'], encoded['offset_mapping'], strict=True) if end > len(ANCHOR)]


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], lead: Lead = CONTINUATION) -> str:
    """Decode ids, skip control tokens, and do not clean up spaces.

    An embedding table may have more rows than the tokenizer has tokens. Such ids become U+FFFD, like invalid UTF-8.

    Args:
      tokenizer: the tokenizer.
      ids: the ids of a piece of text.
      lead: what precedes the piece. Its spaces are not part of the text.
    """
    # Decoders remove a space in front of a text, but not after another token.
    anchor = encode(tokenizer, 'a') if adds_space(tokenizer) and not lead.fresh else []
    text, run = '', []
    for i in (*map(int, ids), None):
        if i is not None and tokenizer.convert_ids_to_tokens(i) is not None:
            run.append(i)
            continue
        if run:
            part = tokenizer.decode([*anchor, *run], skip_special_tokens=True, clean_up_tokenization_spaces=False)
            text += part[len('a'):] if anchor else part
        text += '' if i is None else '\ufffd'
        run = []
    return text.removeprefix(lead.space)


def ids_containing(tokenizer: PreTrainedTokenizerBase, substring: str) -> tuple[int, ...]:
    """Return the ids whose text contains `substring`, in ascending order and without control tokens.

    A token that contains only some of the bytes of a character does not contain this character.
    """
    # Decode each id after another token, because some decoders remove a leading space.
    prefix = encode(tokenizer, 'a')
    offset = len(decode(tokenizer, prefix))
    ids = sorted(set(tokenizer.get_vocab().values()) - special_ids(tokenizer))
    texts = tokenizer.batch_decode([[*prefix, i] for i in ids], clean_up_tokenization_spaces=False)
    return tuple(i for i, text in zip(ids, texts) if substring in text[offset:])
