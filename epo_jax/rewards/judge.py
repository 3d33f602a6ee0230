"""The judge: a language model that reads an episode and answers with its probabilities.

Nothing is sampled and nothing is parsed. A question is a short text appended to what was read so far; the answer is the
distribution over a few tokens. Reading continues from the key/value cache, and a question leaves no trace in it. All
functions are array code: a host loop calls them batch by batch, and a compiled iteration contains them.

Axis letters: N judged conversations (one per episode and seat), T turns of that seat, K tokens, V vocabulary, I answer
ids.
"""

import functools
from typing import Any, Callable, Sequence

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


    def grades(self) -> tuple[list[int], list[int]]:
        """Return the ids of a space before a digit, [] if it belongs to the digit, and the ids of the digits 0 to 9.

        Raises:
          JudgeError: some digit after a space has no token of its own.
        """
        spelled = [self.encode(f' {digit}') for digit in range(10)]
        before, digits = spelled[0][:-1], [ids[-1] for ids in spelled]
        if any(ids[:-1] != before for ids in spelled) or len(set(digits)) < 10:
            raise JudgeError("the judge's tokenizer has no single token for some digit; choose another judge.model, or "
                             "reward.process='critical'")
        return before, digits


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
    def read(logprob):
        chance = probability_of_yes(judge, logprob)
        return chance, (chance >= 0.5).astype(jnp.int32)

    return _ask_one_by_one(judge, prompt, turn_mask, (' No\n', ' Yes\n'), [], read)


@jax.jit
def grade_strategies(judge: Judge, prompt: Tokens, turn_mask: Bool[Array, 'N T']) -> jax.Array:
    """Ask for every strategy of finished conversations how much it contributed to the outcome, from 0 to 9.

    The answer is built strategy by strategy, as in `name_critical`, with the most probable number of each. The grade is
    the mean number under the judge's probabilities, divided by 9.

    Args:
      judge, prompt, turn_mask: as in `name_critical`.

    Returns:
      f32[N, T], grades in [0, 1]; NaN where there is no turn or the conversation did not fit the capacity.
    """
    before, digits = judge.grades()

    def read(logprob):
        chance = jax.nn.softmax(logprob[:, jnp.array(digits)], axis=-1)
        return chance @ jnp.arange(10, dtype=chance.dtype) / 9, jnp.argmax(chance, axis=-1).astype(jnp.int32)

    return _ask_one_by_one(judge, prompt, turn_mask, [f' {digit}\n' for digit in range(10)], before, read)


def _ask_one_by_one(judge: Judge, prompt: Tokens, turn_mask: Bool[Array, 'N T'], answers: Sequence[str],
                    before: Sequence[int], read: Callable[[jax.Array], tuple[jax.Array, jax.Array]]) -> jax.Array:
    """Ask about one strategy after the other, each after the answers to the earlier ones.

    Args:
      judge, prompt, turn_mask: as in `name_critical`.
      answers: the texts of the possible answers.
      before: ids that begin all of them.
      read: log-probabilities f32[N, V] of the next id -> the value f32[N] and the number i32[N] of the answer.

    Returns:
      f32[N, T], the values; NaN where there is no turn or the conversation did not fit the capacity.
    """
    model, params, (count, turns) = judge.model, judge.params, turn_mask.shape
    labels = [[*(judge.encode(f'{answer}Strategy {t + 1}:') if t else judge.begin_answer('Strategy 1:')), *before]
              for t in range(turns) for answer in answers]
    if before:  # the question ended with these ids, so they do not begin the answer again
        skip = lambda t, ids: ids[len(before):] if t and ids[:len(before)] == list(before) else ids
        labels = [skip(i // len(answers), ids) for i, ids in enumerate(labels)]
    width = prompt.ids.shape[1] + len(judge.chat.close) + max(map(len, labels))
    first = concat(
        [prompt, repeat(judge.chat.close, count), keep(repeat(labels[0], count), turn_mask[:, 0])], width)
    labels = jax.tree.map(jnp.asarray, pack(labels, width))

    def step(t, carry):
        session, values, answer = carry
        label = keep(jax.tree.map(lambda x: x[len(answers) * t + answer], labels), turn_mask[:, t])
        label = jax.tree.map(lambda opening, later: jnp.where(t == 0, opening, later), first, label)
        session, logits = sampling.peek(model, params, session, label, judge.chunk, stay=True)
        value, answer = read(jax.nn.log_softmax(logits, axis=-1))
        return session, values.at[t].set(jnp.where(turn_mask[:, t], value, jnp.nan)), answer

    carry = (sampling.open_session(model, count, judge.capacity), jnp.full((turns, count), jnp.nan),
             jnp.zeros(count, jnp.int32))
    session, values, _ = jax.lax.fori_loop(0, turns, step, carry)
    return jnp.where(session.overflow[:, None], jnp.nan, values.T)
