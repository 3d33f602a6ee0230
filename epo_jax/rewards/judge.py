"""The judge: a language model that reads an episode and answers by its probabilities.

Nothing is sampled and nothing is parsed: a question is a short text put behind what was read so far, and the
answer is the distribution over a few tokens. Reading goes on from the cache; a question leaves no trace. One
compiled program reads, asks and goes on, so a judge can be part of a larger program.

Axis letters: N readings (one an episode and seat), T turns of that seat, K tokens, V vocabulary, I answer ids.
"""

import functools
from typing import Any, Sequence

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from epo_jax.models import sampling
from epo_jax.models.transformer import Transformer
from epo_jax.text import tokenizer as text
from epo_jax.text.chat import ChatSegments
from epo_jax.text.tokens import Tokens, concat, keep, pack, repeat

RATING = (
    '\n\nHow well has the goal been reached, from 0 (not at all) to 10 (completely)? '
    'Answer with the number only.')
REACHED = '\n\nHas the goal been reached by now? Answer Yes or No.'


@struct.dataclass
class Judge:
    """A judging model. A pytree of its weights.

    Attributes:
      model, params, tokenizer, chat: the model (unstacked layout) and its text.
      capacity: longest reading with its question, in tokens; what is longer overflows and has no verdict.
      batch: readings judged at once.
      chunk: tokens of a row run at once.
    """

    model: Transformer = struct.field(pytree_node=False)
    params: Any
    tokenizer: Any = struct.field(pytree_node=False)
    chat: ChatSegments = struct.field(pytree_node=False)
    capacity: int = struct.field(pytree_node=False)
    batch: int = struct.field(pytree_node=False, default=8)
    chunk: int = struct.field(pytree_node=False, default=64)

    def encode(self, part: str, first: bool = False) -> list[int]:
        """Ids of a piece of the user message; the `first` piece opens the chat. A piece that is too long fills the
        capacity, and so overflows."""
        begin = list(self.chat.open) if first else []
        return (begin + text.encode(self.tokenizer, part))[:self.capacity] if part else []

    def question(self, part: str, begun: str = '') -> list[int]:
        """The end of the user message, and the beginning of the answer."""
        return text.encode(self.tokenizer, part) + list(self.chat.close) + text.encode(self.tokenizer, begun)

    def answers(self) -> dict[str, list[int]]:
        """Ids with which an answer begins: 'yes', 'no', 'digits' (of 0 to 9) and 'ten'.

        A word counts as it is, in lower case, and behind a space; an id in both words is in neither.

        Raises:
          ValueError: some digit is not one token.
        """
        forms = lambda word: (word, word.lower(), f' {word}', f' {word.lower()}')
        yes, no = ({text.encode(self.tokenizer, form)[0] for form in forms(word)} for word in ('Yes', 'No'))
        digits = [text.encode(self.tokenizer, str(number)) for number in range(11)]
        if any(len(ids) != 1 for ids in digits[:10]):
            raise ValueError("the judge's tokenizer has no single token for some digit")
        return {'yes': sorted(yes - no), 'no': sorted(no - yes), 'digits': [ids[0] for ids in digits[:10]],
                'ten': digits[10] if len(digits[10]) == 1 else []}


def probability_of_yes(judge: Judge, logprob: jax.Array) -> jax.Array:
    """f32[...] p(Yes) / (p(Yes) + p(No)) from log-probabilities [..., V] of an answer's first token."""
    answers = judge.answers()
    yes, no = (jax.nn.logsumexp(logprob[..., jnp.array(answers[word])], axis=-1) for word in ('yes', 'no'))
    return jax.nn.sigmoid(yes - no)


@functools.partial(jax.jit, static_argnames='rate')
def follow(judge: Judge, stages: Tokens, ask, rate: bool) -> tuple[jax.Array, jax.Array]:
    """Reads in stages; after each, the probability that the goal has been reached; at the end, a rating.

    The rating is the mean over the probabilities of the eleven numbers from 0 to 10. Most tokenizers spell 10 as
    '1', '0'; then what follows a '1' is asked too, and p('1') is split between 1 and 10 by it.

    Args:
      stages: Tokens [T + 1, N, K] (lengths [T + 1, N]); stage 0 opens the chat.
      ask: bool[] whether to ask after every stage.
      rate: whether to ask for the rating.

    Returns:
      (f32[N, T + 1] probabilities, f32[N] ratings). NaN where nothing was asked (no row has anything to read in
      that stage or later), and where something did not fit the capacity.
    """
    model, params, (total, count) = judge.model, judge.params, stages.length.shape
    answers = judge.answers()
    ids = jnp.array(answers['digits'] + answers['ten'])
    texts = [judge.question(REACHED), judge.question(RATING), judge.question(RATING, '1')]
    width = max(stages.ids.shape[2], *map(len, texts))
    questions = jax.tree.map(jnp.asarray, pack(texts, width))
    stages = stages.replace(ids=jnp.pad(stages.ids, ((0, 0), (0, 0), (0, width - stages.ids.shape[2]))))
    needed = jnp.max(jnp.where(stages.length.any(axis=1), jnp.arange(total) + 1, 0))
    ratings = 0 if not rate else (1 if answers['ten'] else 2)  # questions of the rating
    steps = 1 + ask  # of a stage: it is read, and the first question is asked
    told = steps * needed

    def step(i, carry):
        session, reached, numbers = carry
        stage = jnp.minimum(i // steps, total - 1)
        question = jnp.maximum(i - told + 1, 0)  # 0: after a stage; then those of the rating
        reading = (i % steps == 0) & (question == 0)
        tokens = jax.tree.map(
            lambda read, asked: jnp.where(reading, read[stage], asked[question]), stages, questions)
        session, logits = sampling.peek(model, params, session, tokens, judge.chunk, stay=reading)
        logprob = jax.nn.log_softmax(logits, axis=-1)
        answered = jnp.where(~reading & (question == 0), stage, total)
        reached = reached.at[answered].set(probability_of_yes(judge, logprob), mode='drop')
        numbers = numbers.at[jnp.where(question > 0, question - 1, 2)].set(logprob[:, ids], mode='drop')
        return session, reached, numbers

    carry = (
        sampling.open_session(model, count, judge.capacity),
        jnp.full((total, count), jnp.nan), jnp.full((2, count, len(ids)), jnp.nan))
    session, reached, numbers = jax.lax.fori_loop(0, told + ratings, step, carry)
    mass = jnp.exp(numbers[0])
    if not answers['ten']:
        ten = mass[:, 1] * jnp.exp(numbers[1, :, 0])
        mass = jnp.concatenate([mass.at[:, 1].add(-ten), ten[:, None]], axis=1)
    rating = mass @ jnp.arange(11, dtype=mass.dtype) / mass.sum(axis=1)
    return jnp.where(session.overflow[:, None], jnp.nan, reached.T), jnp.where(session.overflow, jnp.nan, rating)


@jax.jit
def name_turns(judge: Judge, opening: Tokens, had) -> jax.Array:
    """Goes through the strategies 'Strategy 1:', 'Strategy 2:', ... and says Yes or No to each, with the answers
    before it in view.

    Args:
      opening: Tokens [N, K], the whole message to the judge.
      had: bool[N, T] turns that took place.

    Returns:
      f32[N, T] probability of naming each; NaN where there is no turn or something did not fit.
    """
    model, params, (count, turns) = judge.model, judge.params, had.shape
    labels = [judge.encode(f'{answer}Strategy {t + 1}:') for t in range(turns)
              for answer in ((' No\n', ' Yes\n') if t else ('', ''))]
    width = opening.ids.shape[1] + len(judge.chat.close) + max(map(len, labels))
    first = concat([opening, repeat(judge.chat.close, count), keep(repeat(labels[0], count), had[:, 0])], width)
    labels = jax.tree.map(jnp.asarray, pack(labels, width))

    def step(t, carry):
        session, chances = carry
        yes = chances.at[jnp.maximum(t - 1, 0)].get() >= 0.5
        label = keep(jax.tree.map(lambda x: x[2 * t + yes], labels), had[:, t])
        label = jax.tree.map(lambda whole, one: jnp.where(t == 0, whole, one), first, label)
        session, logits = sampling.peek(model, params, session, label, judge.chunk, stay=True)
        chance = probability_of_yes(judge, jax.nn.log_softmax(logits, axis=-1))
        return session, chances.at[t].set(jnp.where(had[:, t], chance, jnp.nan))

    session = sampling.open_session(model, count, judge.capacity)
    session, chances = jax.lax.fori_loop(0, turns, step, (session, jnp.full((turns, count), jnp.nan)))
    return jnp.where(session.overflow[:, None], jnp.nan, chances.T)


def pad(rows: Sequence[Sequence[int]], count: int, width: int) -> Tokens:
    """Rows packed, and filled up with empty ones to `count`."""
    return pack([*rows, *[()] * (count - len(rows))], width)


def stacked(parts: Sequence[Tokens]) -> Tokens:
    """Tokens [T, N, K] from T of them (NumPy)."""
    return Tokens(np.stack([part.ids for part in parts]), np.stack([part.length for part in parts]))
