"""The judge: a language model that reads a finished episode and answers by its probabilities.

Nothing is sampled and nothing is parsed: a question is a short text put behind what was read so far, and the
answer is the distribution over a few tokens. Reading goes on from the cache; a question leaves no trace.

Axis letters: N readings (one an episode and seat), T turns of that seat, V vocabulary.
"""

import dataclasses
import functools
from typing import Any, Sequence

import jax
import numpy as np

from epo_jax import sampling
from epo_jax.models.transformer import Transformer
from epo_jax.text import tokenizer as text
from epo_jax.text.chat import ChatSegments
from epo_jax.text.tokens import Tokens, pack

RATING = (
    '\n\nHow well has the goal been reached, from 0 (not at all) to 10 (completely)? '
    'Answer with the number only.')
REACHED = '\n\nHas the goal been reached by now? Answer Yes or No.'


@dataclasses.dataclass(frozen=True)
class Judge:
    """A judging model.

    Attributes:
      model, params, tokenizer, chat: the model (unstacked layout) and its text.
      capacity: longest reading with its question, in tokens; what is longer overflows and has no verdict.
      chunk: tokens of a row run at once.
    """

    model: Transformer
    params: Any
    tokenizer: Any
    chat: ChatSegments
    capacity: int
    chunk: int = 64

    def start(self, batch: int) -> sampling.Session:
        """Empty readings."""
        return _start(self.model, batch, self.capacity)

    def encode(self, parts: Sequence[str], first: bool = False) -> Tokens:
        """Pieces of a user message as Tokens [N, capacity]; the `first` pieces open the chat."""
        begin = list(self.chat.open) if first else []
        rows = [begin + text.encode(self.tokenizer, part) if part else [] for part in parts]
        return pack([row[:self.capacity] for row in rows], self.capacity)  # a cut row fills it, and overflows

    def question(self, part: str, batch: int, prefill: str = '') -> Tokens:
        """The end of the user message and the beginning of the answer."""
        ids = text.encode(self.tokenizer, part) + list(self.chat.close) + text.encode(self.tokenizer, prefill)
        return pack([ids] * batch)

    def ask(self, session: sampling.Session, question: Tokens) -> tuple[sampling.Session, jax.Array]:
        """(session as it was, f32[N, V] log-probabilities of the first token of the answer); session is donated."""
        return _ask(self.model, self.params, session, question, self.chunk)

    def read(self, session: sampling.Session, piece: Tokens) -> sampling.Session:
        """The session with a piece read; the former one is donated."""
        return _read(self.model, self.params, session, piece, self.chunk)

    def first_ids(self, word: str) -> set[int]:
        """Ids with which a word can begin an answer: as it is, in lower case, and behind a space."""
        forms = (word, word.lower(), f' {word}', f' {word.lower()}')
        return {text.encode(self.tokenizer, form)[0] for form in forms}


_start = jax.jit(sampling.open_session, static_argnums=(0, 1, 2))


@functools.partial(jax.jit, static_argnums=(0, 4), donate_argnums=2)
def _read(model, params, session, piece, chunk):
    return sampling.extend(model, params, session, piece, chunk)


@functools.partial(jax.jit, static_argnums=(0, 4), donate_argnums=2)
def _ask(model, params, session, question, chunk):
    session, logits = sampling.peek(model, params, session, question, chunk)
    return session, jax.nn.log_softmax(logits, axis=-1)


def probability_of_yes(judge: Judge, logprob) -> np.ndarray:
    """f64[N] p(Yes) / (p(Yes) + p(No)) by the first token of the answer; NaN where the question did not fit."""
    yes, no = judge.first_ids('Yes'), judge.first_ids('No')
    logprob = np.asarray(logprob, np.float64)
    with np.errstate(invalid='ignore'):  # NaN is the answer to a question that did not fit
        yes, no = (np.logaddexp.reduce(logprob[:, sorted(ids)], axis=1) for ids in (yes - no, no - yes))
    return 1 / (1 + np.exp(no - yes))


def expected_rating(judge: Judge, session: sampling.Session) -> tuple[sampling.Session, np.ndarray]:
    """The mean of the judge's rating from 0 to 10, f64[N], over its probabilities of the eleven numbers.

    Most tokenizers spell 10 as '1', '0'; then what follows a '1' is asked too, and p('1') is split between 1 and
    10 by it. NaN where the question did not fit.
    """
    batch = session.length.shape[0]
    session, logprob = judge.ask(session, judge.question(RATING, batch))
    digits = [text.encode(judge.tokenizer, str(number)) for number in range(11)]
    if any(len(ids) != 1 for ids in digits[:10]):
        raise ValueError("the judge's tokenizer has no single token for some digit")
    mass = np.exp(np.asarray(logprob, np.float64)[:, [ids[0] for ids in digits[:10]]])
    if len(digits[10]) == 1:
        ten = np.exp(np.asarray(logprob, np.float64)[:, digits[10][0]])
    else:
        session, after = judge.ask(session, judge.question(RATING, batch, prefill='1'))
        ten = mass[:, 1] * np.exp(np.asarray(after, np.float64)[:, digits[0][0]])
        mass[:, 1] -= ten
    mass = np.concatenate([mass, ten[:, None]], axis=1)
    return session, mass @ np.arange(11) / mass.sum(axis=1)
