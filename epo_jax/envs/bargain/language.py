"""The small language of the table: a word is a token, and every fact of the game is a word.

An opening reads 'books:1 hats:2 balls:3 books=4 hats=0 balls=2' (how many there are, what one is worth to the
reader), news 'turn:2 books:0 hats:1 balls:3 worth:6' (what the partner's offer gives the reader), an intent 'ask:7',
'accept', 'wait' or 'walk'.

Axis letters: B rows, I = 3 items.
"""

import jax.numpy as jnp
import tokenizers
from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from epo_jax.models.config import ModelConfig
from epo_jax.text.chat import ChatSegments
from epo_jax.text.tokens import Tokens

ITEMS = ('books', 'hats', 'balls')
MAX_COUNT, TOTAL, MAX_ROUNDS = 5, 10, 9    # of one item; value of everything to one side; actions of one side
ASKS = tuple(range(3, TOTAL + 1))          # of the own value

END, UNKNOWN = '<end>', '<unknown>'
INTENTS = (*(f'ask:{k}' for k in ASKS), 'accept', 'wait', 'walk')
WORDS = (
    END, UNKNOWN, *INTENTS, 'silent', *(f'turn:{t}' for t in range(1, MAX_ROUNDS + 1)),
    *(f'worth:{v}' for v in range(TOTAL + 1)),
    *(f'{item}:{n}' for item in ITEMS for n in range(MAX_COUNT + 1)),
    *(f'{item}={v}' for item in ITEMS for v in range(TOTAL + 1)))

IDS = {word: i for i, word in enumerate(WORDS)}
INTENT_IDS = tuple(IDS[word] for word in INTENTS)
OPENING_WIDTH, NEWS_WIDTH = 2 * len(ITEMS), 2 + len(ITEMS)


def tokenizer() -> PreTrainedTokenizerFast:
    """The vocabulary as a tokenizer: words are what stands between spaces."""
    core = tokenizers.Tokenizer(models.WordLevel(IDS, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, unk_token=UNKNOWN)


def chat() -> ChatSegments:
    """A conversation is openings and news, intents, and the token between them."""
    return ChatSegments(open=(), close=(), between=(), end=IDS[END], stop=(IDS[END],))


def model() -> ModelConfig:
    """A decoder of some 20,000 parameters."""
    return ModelConfig(
        vocab_size=len(WORDS), width=32, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=32, mlp_width=64,
        tied=False, max_positions=128)


def opening(counts, values, rows) -> Tokens:
    """What a side knows: counts i32[B, I] and its own values i32[B, I], in the rows bool[B]."""
    items = jnp.arange(len(ITEMS))
    ids = jnp.concatenate([
        IDS[f'{ITEMS[0]}:0'] + (MAX_COUNT + 1) * items + counts,
        IDS[f'{ITEMS[0]}=0'] + (TOTAL + 1) * items + values], axis=1)
    return Tokens(ids, rows * OPENING_WIDTH)


def news(turn, gives, worth, silent, rows) -> Tokens:
    """What the partner has done.

    Args:
      turn: i32[B], which of its actions the reader is about to choose, from 1.
      gives: i32[B, I], what the partner's offer gives the reader.
      worth: i32[B], the value of that.
      silent: bool[B], there was no offer.
      rows: bool[B] rows with news.

    Returns:
      Tokens [B, OPENING_WIDTH]: all views are of one width.
    """
    first = jnp.where(silent, IDS['silent'], IDS[f'{ITEMS[0]}:0'] + gives[:, 0])
    rest = IDS[f'{ITEMS[0]}:0'] + (MAX_COUNT + 1) * jnp.arange(1, len(ITEMS)) + gives[:, 1:]
    ids = jnp.concatenate([
        (IDS['turn:1'] - 1 + turn)[:, None], first[:, None], rest, (IDS['worth:0'] + worth)[:, None]], axis=1)
    ids = jnp.pad(ids, ((0, 0), (0, OPENING_WIDTH - NEWS_WIDTH)))
    return Tokens(ids, rows * jnp.where(silent, 2, NEWS_WIDTH))


def intent(message: Tokens):
    """i32[B] place in INTENTS of the first word of a message; -1: it is none."""
    first = message.ids[:, 0] - INTENT_IDS[0]
    known = (message.length > 0) & (first >= 0) & (first < len(INTENTS))
    return jnp.where(known, first, -1)
