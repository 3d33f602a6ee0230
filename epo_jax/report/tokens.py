"""Texts of tokens, for the reader of episodes."""

from typing import Any, Iterable, Mapping, Optional

from ml_collections import ConfigDict

from epo_jax import testing
from epo_jax.envs.base import load_domain
from epo_jax.language import find_model
from epo_jax.models import hub
from epo_jax.runtime.errors import InputError
from epo_jax.text.tokenizer import load_tokenizer


def token_texts(config: Optional[ConfigDict], episodes: Iterable[Mapping[str, Any]]) -> dict[int, str]:
    """Return the text of every token in the strategies of a run's episodes; {} where its tokenizer is not at hand.

    A token that is only a part of a character is written in the tokenizer's own form.
    """
    ids = {i for episode in episodes for turn in episode['turns'] for i in turn.get('tokens', ((),))[0]}
    if not ids or config is None:
        return {}
    try:
        tokenizer = _tokenizer(config)
    except (InputError, ValueError, OSError, AttributeError, ImportError):
        return {}  # the model was moved, or the Hub cannot be reached; the page shows ids
    texts = {}
    for i in sorted(ids):
        text = tokenizer.decode([i])
        texts[i] = tokenizer.convert_ids_to_tokens(i) or '\ufffd' if '\ufffd' in text or not text else text
    return texts


def _tokenizer(config: ConfigDict) -> Any:
    path = config.model.path
    if path == 'dummy':
        return testing.byte_tokenizer()
    if path == 'scratch':
        return load_domain(config.environment.name).scratch_model()[1]
    return load_tokenizer(find_model(path, hub.TEXT_FILES))
