"""The judge: a language model that reads an episode and answers with its probabilities.

Nothing is sampled and nothing is parsed. A question is a short text appended to what was read so far; the answer is the
distribution over a few tokens. Reading continues from the key/value cache, and a question leaves no trace in it. All
functions are array code: a host loop calls them batch by batch, and a compiled iteration contains them.

Axis letters: N judged conversations (one per episode and seat), T turns of that seat, K tokens, V vocabulary, I answer
ids.
"""

import functools
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from epo_jax.models import sampling
from epo_jax.models.decoder import Decoder
from epo_jax.runtime.errors import InputError
from epo_jax.text import tokenizer as text
from epo_jax.text.chat import ChatSegments
from epo_jax.text.tokens import Array, Tokens, concat, keep, pack, repeat

RATING = (
    '\n\nHow well has the goal been reached, from 0 (not at all) to 10 (completely)? '
    'Answer with the number only.')
REACHED = '\n\nHas the goal been reached by now? Answer Yes or No.'


class JudgeError(InputError):
    """A model cannot answer as a judge."""


@struct.dataclass
class Judge:
    """A judging model. A pytree of its weights.

    Attributes:
      model, params: the decoder and its (unstacked) parameters.
      tokenizer, chat: its tokenizer and chat template.
      capacity: longest conversation with its question, in tokens. A longer one overflows and gets no verdict.
      batch: number of conversations judged at once.
      chunk: number of tokens of a row that are run through the model at once.
    """

    model: Decoder = struct.field(pytree_node=False)
    params: Any
    tokenizer: Any = struct.field(pytree_node=False)
    chat: ChatSegments = struct.field(pytree_node=False)
    capacity: int = struct.field(pytree_node=False)
    batch: int = struct.field(pytree_node=False, default=8)
    chunk: int = struct.field(pytree_node=False, default=64)

    def encode(self, part: str, first: bool = False) -> list[int]:
        """Return the ids of a piece of the user message; the `first` piece opens the chat.

        A piece that is too long is cut to the capacity, which it then overflows.
        """
        begin, lead = (list(self.chat.open), self.chat.user_lead) if first else ([], text.CONTINUATION)
        return (begin + text.encode(self.tokenizer, part, lead))[:self.capacity] if part else []

    def question(self, part: str, begun: str = '') -> list[int]:
        """Return the ids of the end of the user message and of the beginning of the answer."""
        return text.encode(self.tokenizer, part) + list(self.chat.close) + self.begin_answer(begun)

    def begin_answer(self, begun: str) -> list[int]:
        """Return the ids of the beginning of an answer."""
        return text.encode(self.tokenizer, begun, self.chat.reply_lead)

    def check(self) -> None:
        """Raise JudgeError if the model cannot answer the questions, or if they do not fit the capacity."""
        self.answers()
        longest = len(self.chat.open) + max(len(self.question(part)) for part in (REACHED, RATING)) + 2
        if longest >= self.capacity:
            raise JudgeError(f'a question to the judge takes {longest} tokens, which leaves nothing of its capacity of '
                             f'{self.capacity} tokens; raise the capacity of the judge')

    def answers(self) -> dict[str, list[int]]:
        """Return the ids that begin an answer: 'yes', 'no', 'digits' (0 to 9) and 'ten', which is [] if it is spelled.

        A word counts as it is, in lower case, and after a space. An id that begins both words counts for neither.
        Some tokenizers spell a space before a digit at the beginning of an answer; its ids are 'before'.

        Raises:
          JudgeError: some digit has no token of its own, or the words do not differ in their first tokens.
        """
        forms = lambda word: (word, word.lower(), f' {word}', f' {word.lower()}')
        first = lambda form: {text.encode(self.tokenizer, form)[0], self.begin_answer(form)[0]}
        yes, no = (set().union(*map(first, forms(word))) for word in ('Yes', 'No'))
        if not yes - no or not no - yes:
            raise JudgeError("the judge's tokenizer begins Yes and No with the same tokens; choose another judge.model")
        *numbers, ten = (self.begin_answer(str(number)) for number in range(11))
        before, digits = numbers[0][:-1], [ids[-1] for ids in numbers]
        if any(ids[:-1] != before for ids in numbers) or len(set(digits)) < 10:
            raise JudgeError("the judge's tokenizer has no single token for some digit; choose another judge.model")
        return {'yes': sorted(yes - no), 'no': sorted(no - yes), 'digits': digits, 'before': before,
                'ten': ten[-1:] if len(ten) == len(before) + 1 else []}


def probability_of_yes(judge: Judge, logprob: Float[Array, '... V']) -> Float[Array, '...']:
    """Return p(Yes) / (p(Yes) + p(No)) from the log-probabilities of the first token of an answer."""
    answers = judge.answers()
    yes, no = (jax.nn.logsumexp(logprob[..., jnp.array(answers[word])], axis=-1) for word in ('yes', 'no'))
    return jax.nn.sigmoid(yes - no)


@functools.partial(jax.jit, static_argnames='rate')
def read_stages(judge: Judge, stages: Tokens, ask: Bool[Array, ''], rate: bool) -> tuple[jax.Array, jax.Array]:
    """Read conversations in stages; return the probability that the goal is reached after each, and a final rating.

    The rating is the mean of the eleven numbers from 0 to 10 under the judge's probabilities. Most tokenizers spell
    10 as '1', '0'; then the judge is also asked what follows a '1', and p('1') is split between 1 and 10.

    Args:
      judge: the judge.
      stages: Tokens [T + 1, N, K] (lengths [T + 1, N]); stage 0 opens the chat.
      ask: whether to ask after every stage.
      rate: whether to ask for the rating; static.

    Returns:
      (probabilities f32[N, T + 1], ratings f32[N]). NaN where nothing was asked, because no row reads anything in that
      stage or later, and where a conversation did not fit the capacity.
    """
    model, params, (total, count) = judge.model, judge.params, stages.length.shape
    answers = judge.answers()
    ids = jnp.array(answers['digits'] + answers['ten'])
    texts = [judge.question(REACHED), judge.question(RATING) + answers['before'], judge.question(RATING, '1')]
    width = max(stages.ids.shape[2], *map(len, texts))
    questions = jax.tree.map(jnp.asarray, pack(texts, width))
    stages = stages.replace(ids=jnp.pad(stages.ids, ((0, 0), (0, 0), (0, width - stages.ids.shape[2]))))
    num_stages = jnp.max(jnp.where(stages.length.any(axis=1), jnp.arange(total) + 1, 0))
    num_ratings = 0 if not rate else (1 if answers['ten'] else 2)
    steps = 1 + ask  # of a stage: read it, and ask whether the goal is reached
    stage_steps = steps * num_stages

    def step(i, carry):
        session, reached, numbers = carry
        stage = jnp.minimum(i // steps, total - 1)
        question = jnp.maximum(i - stage_steps + 1, 0)  # 0: after a stage; 1 and 2: of the rating
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
    session, reached, numbers = jax.lax.fori_loop(0, stage_steps + num_ratings, step, carry)
    mass = jnp.exp(numbers[0])
    if not answers['ten']:
        ten = mass[:, 1] * jnp.exp(numbers[1, :, 0])
        mass = jnp.concatenate([mass.at[:, 1].add(-ten), ten[:, None]], axis=1)
    rating = mass @ jnp.arange(11, dtype=mass.dtype) / mass.sum(axis=1)
    return jnp.where(session.overflow[:, None], jnp.nan, reached.T), jnp.where(session.overflow, jnp.nan, rating)


@jax.jit
def name_critical(judge: Judge, prompt: Tokens, turn_mask: Bool[Array, 'N T']) -> jax.Array:
    """Ask for every strategy of finished conversations whether it was critical.

    The answer is built strategy by strategy: 'Strategy 1:' Yes, 'Strategy 2:' No, and so on; each question
    follows the answers to the earlier ones.

    Args:
      judge: the judge.
      prompt: Tokens [N, K], the whole user message.
      turn_mask: turns that took place.

    Returns:
      f32[N, T], the probability of Yes; NaN where there is no turn or the conversation did not fit the capacity.
    """
    model, params, (count, turns) = judge.model, judge.params, turn_mask.shape
    labels = [judge.encode(f'{answer}Strategy {t + 1}:') if t else judge.begin_answer('Strategy 1:')
              for t in range(turns) for answer in (' No\n', ' Yes\n')]
    width = prompt.ids.shape[1] + len(judge.chat.close) + max(map(len, labels))
    first = concat(
        [prompt, repeat(judge.chat.close, count), keep(repeat(labels[0], count), turn_mask[:, 0])], width)
    labels = jax.tree.map(jnp.asarray, pack(labels, width))

    def step(t, carry):
        session, chances = carry
        yes = chances.at[jnp.maximum(t - 1, 0)].get() >= 0.5
        label = keep(jax.tree.map(lambda x: x[2 * t + yes], labels), turn_mask[:, t])
        label = jax.tree.map(lambda opening, later: jnp.where(t == 0, opening, later), first, label)
        session, logits = sampling.peek(model, params, session, label, judge.chunk, stay=True)
        chance = probability_of_yes(judge, jax.nn.log_softmax(logits, axis=-1))
        return session, chances.at[t].set(jnp.where(turn_mask[:, t], chance, jnp.nan))

    session = sampling.open_session(model, count, judge.capacity)
    session, chances = jax.lax.fori_loop(0, turns, step, (session, jnp.full((turns, count), jnp.nan)))
    return jnp.where(session.overflow[:, None], jnp.nan, chances.T)
