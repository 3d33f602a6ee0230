"""The vocabulary of bargaining: every fact of the game is a word, and every word is a token.

The first observation says how many items of each kind there are and what one of them is worth to the reader:
'books:1 hats:2 balls:3 books=4 hats=0 balls=2'. Later observations say what the partner's offer would give the reader,
'turn:2 books:0 hats:1 balls:3 worth:6', or that there was no offer, 'turn:2 silent'. A strategist writes intents:
'ask:3' to 'ask:10', 'accept', 'wait' or 'walk'.

Axis letters: B rows, I = 3 kinds of items.
"""

import jax.numpy as jnp
import tokenizers
from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from epo_jax.models.config import ModelConfig
from epo_jax.text.chat import ChatSegments
from epo_jax.text.tokens import Tokens

ITEMS = ('books', 'hats', 'balls')
MAX_COUNT = 5  # largest number of items of one kind
TOTAL = 10  # points of all items together, to either side
MAX_ROUNDS = 9  # largest number of actions of one side
ASKS = tuple(range(3, TOTAL + 1))  # points that a side may ask for

END, UNKNOWN = '<end>', '<unknown>'
INTENTS = (*(f'ask:{k}' for k in ASKS), 'accept', 'wait', 'walk')
WORDS = (
    END, UNKNOWN, *INTENTS, 'silent', *(f'turn:{t}' for t in range(1, MAX_ROUNDS + 1)),
    *(f'worth:{v}' for v in range(TOTAL + 1)),
    *(f'{item}:{n}' for item in ITEMS for n in range(MAX_COUNT + 1)),
    *(f'{item}={v}' for item in ITEMS for v in range(TOTAL + 1)))

IDS = {word: i for i, word in enumerate(WORDS)}
INTENT_IDS = tuple(IDS[word] for word in INTENTS)
OPENING_WIDTH, OBSERVATION_WIDTH = 2 * len(ITEMS), 2 + len(ITEMS)


def tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer of the vocabulary, which splits text at spaces."""
    core = tokenizers.Tokenizer(models.WordLevel(IDS, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, unk_token=UNKNOWN)


def chat() -> ChatSegments:
    """Return the chat template: observations and intents follow each other, and <end> ends an intent."""
    return ChatSegments(open=(), close=(), between=(), end=IDS[END], stop=(IDS[END],))


def model() -> ModelConfig:
    """Return the shape of a small decoder (about 16,000 parameters) that is trained from scratch."""
    return ModelConfig(
        vocab_size=len(WORDS), width=32, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=32, mlp_width=64,
        tied=False, max_positions=128)


def opening(counts, values, rows) -> Tokens:
    """Return the first observation of a side.

    Args:
      counts: i32[B, I], number of items of each kind.
      values: i32[B, I], points of one item of each kind to the reader.
      rows: bool[B], rows that get one; the others are empty.

    Returns:
      Tokens [B, OPENING_WIDTH].
    """
    items = jnp.arange(len(ITEMS))
    ids = jnp.concatenate([
        IDS[f'{ITEMS[0]}:0'] + (MAX_COUNT + 1) * items + counts,
        IDS[f'{ITEMS[0]}=0'] + (TOTAL + 1) * items + values], axis=1)
    return Tokens(ids, rows * OPENING_WIDTH)


def observation(turn, offered, worth, silent, rows) -> Tokens:
    """Return the observation of what the partner did.

    Args:
      turn: i32[B], number of the action that the reader is about to choose, from 1.
      offered: i32[B, I], the items that the partner's offer gives the reader.
      worth: i32[B], points of these items to the reader.
      silent: bool[B], whether the partner made no offer.
      rows: bool[B], rows that get an observation; the others are empty.

    Returns:
      Tokens [B, OPENING_WIDTH]; all observations have the same width.
    """
    first = jnp.where(silent, IDS['silent'], IDS[f'{ITEMS[0]}:0'] + offered[:, 0])
    rest = IDS[f'{ITEMS[0]}:0'] + (MAX_COUNT + 1) * jnp.arange(1, len(ITEMS)) + offered[:, 1:]
    ids = jnp.concatenate([
        (IDS['turn:1'] - 1 + turn)[:, None], first[:, None], rest, (IDS['worth:0'] + worth)[:, None]], axis=1)
    ids = jnp.pad(ids, ((0, 0), (0, OPENING_WIDTH - OBSERVATION_WIDTH)))
    return Tokens(ids, rows * jnp.where(silent, 2, OBSERVATION_WIDTH))


def intent(message: Tokens):
    """Return the index in INTENTS of the first word of each message, i32[B]; -1 if it is not an intent."""
    first = message.ids[:, 0] - INTENT_IDS[0]
    known = (message.length > 0) & (first >= 0) & (first < len(INTENTS))
    return jnp.where(known, first, -1)
