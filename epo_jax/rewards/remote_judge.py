"""Chat models as judges: ratings in the dimensions of a rubric, and critical turns.

A judge that gives a bad answer is told why and asked again. What is still missing then stays missing, with its reason;
it never becomes a score.

Axis letters: E episodes, S seats, N judged conversations (one per episode and seat), T turns of one seat.
"""

import collections
import dataclasses
import threading
from typing import Any, Callable, Mapping, Sequence, Union

from jaxtyping import Float
import numpy as np

from epo_jax.agents.address import Address
from epo_jax.agents.remote import Answer, Remote, Request
from epo_jax.envs.base import Dimension, EpisodeText
from epo_jax.rewards import critical, rubric
from epo_jax.rewards.process import Readings
from epo_jax.rewards.rubric import BadAnswer, Rating
from epo_jax.runtime import hosts
from epo_jax.runtime.errors import InputError
from epo_jax.runtime.hostcalls import Failure
from epo_jax.text.tokens import Array


@dataclasses.dataclass(frozen=True)
class Missing:
    """There is no rating, for this reason."""

    reason: str


NOT_ASKED = Missing('not asked')


@dataclasses.dataclass(frozen=True)
class Question:
    """A question to a judge.

    Attributes:
      prompt: the question; it determines everything else.
      schema: JSON schema of the answer.
      read: parses an answer, or raises BadAnswer.
    """

    prompt: str
    schema: Mapping[str, Any]
    read: Callable[[str], Any]


@dataclasses.dataclass
class _Asked:
    """What came of a question: the answer as parsed, or Missing, and the kinds of the bad answers before it."""

    answer: Any = NOT_ASKED
    bad: tuple[str, ...] = ()


@dataclasses.dataclass
class RemoteJudge:
    """A chat model behind an endpoint that judges finished episodes. Several threads may use it at once.

    Attributes:
      remote: the client.
      address: the model and its endpoint.
      role: 'judge' or 'process'; requests and metrics go by this name.
      rubric: the dimensions of `rate`.
      attempts: number of answers to ask for, at most, until one is good.
      max_tokens: longest answer; 0 means the limit of the endpoint.
      temperature: sampling temperature.
      problem: why the last missing answer is missing; '' if none is.

    Raises:
      InputError: a number is out of range.
    """

    remote: Remote
    address: Address
    role: str = 'judge'
    rubric: tuple[Dimension, ...] = ()
    attempts: int = 3
    max_tokens: int = 4096
    temperature: float = 0.0
    problem: str = dataclasses.field(default='', init=False)
    _counts: collections.Counter = dataclasses.field(default_factory=collections.Counter, init=False)
    _lock: Any = dataclasses.field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self):
        if self.attempts < 1 or self.max_tokens < 0 or not 0 <= self.temperature < float('inf'):
            raise InputError(f'{self.role}: attempts must be positive, and max_tokens and temperature not negative; '
                             f'they are {self.attempts}, {self.max_tokens} and {self.temperature}')

    def check(self) -> None:
        """Check that the model can be asked, without asking it; raise InputError if it cannot."""
        self.remote.check(self.address)

    def rate(self, episodes: Sequence[EpisodeText],
             wanted: Sequence[bool]) -> list[list[Union[Rating, Missing]]]:
        """Rate all seats of episodes, with one question for each episode. All processes must call this together.

        Args:
          episodes: the E episodes.
          wanted: which of them to rate.

        Returns:
          By episode and seat, the rating or why there is none.
        """
        seats = [rubric.names(episode) for episode in episodes]
        questions = [Question(
            rubric.question(episode, self.rubric), rubric.schema(self.rubric, len(names)),
            lambda text, names=names: rubric.read_answer(text, self.rubric, names)) if want else None
            for episode, names, want in zip(episodes, seats, wanted, strict=True)]
        return [[answer] * len(names) if isinstance(answer, Missing) else answer
                for answer, names in zip(self._answers(questions), seats, strict=True)]

    def critical(self, conversations: Sequence[Sequence[str]], outcomes: Float[Array, ' N'], environment: str,
                 turns: int) -> tuple[Float[Array, 'N T'], np.ndarray]:
        """Ask which turns were critical, as `epo_jax.label` does. All processes must call this together.

        Args:
          conversations: N of them, each alternately texts to the strategist and by it; () is not asked about.
          outcomes: how well the goals were reached, in [0, 1]; a NaN is not asked about.
          environment: name of the environment, for the wording.
          turns: T.

        Returns:
          1 for critical turns, 0 for others, NaN where there is no turn or no answer; and comments for the record of
          every conversation, object[N], with the reason why there is no answer.
        """
        words = critical.wording(environment)

        def question(texts, outcome):
            strategies = range(1, len(texts), 2)

            def read(answer):
                try:
                    return critical.read_answer(answer, strategies)[0]
                except critical.AnswerError as error:
                    raise BadAnswer('unreadable', str(error)) from None

            return Question(critical.question(texts, words.best * outcome, words, strategies),
                            critical.schema(strategies), read)

        answers = self._answers([
            question(texts, outcome) if len(texts) and np.isfinite(outcome) else None
            for texts, outcome in zip(conversations, outcomes, strict=True)])
        values, comments = np.full((len(answers), turns), np.nan), np.empty(len(answers), object)
        for n, (texts, answer) in enumerate(zip(conversations, answers, strict=True)):
            comments[n] = {}
            if not isinstance(answer, Missing):
                values[n, :len(texts) // 2] = 0
                values[n, [index // 2 for index in answer]] = 1
            elif answer != NOT_ASKED:
                comments[n] = {'critical_missing': answer.reason}
        return values, comments

    def take_metrics(self) -> dict[str, int]:
        """Return what was counted since the last call; the numbers are the same in all processes.

        `asked` counts requests, `bad_answers` the unusable ones among their answers, `bad/KIND` those of one kind, and
        `missing` the episodes or conversations that have no verdict.
        """
        with self._lock:
            counts, self._counts = self._counts, collections.Counter()
        names = ('asked', 'bad_answers', 'missing')
        return {f'{self.role}/{name}': counts[name] for name in (*names, *sorted(set(counts) - set(names)))}

    def _answers(self, questions: Sequence[Any]) -> list[Any]:
        """Return the answers to questions, each parsed or Missing; None is no question.

        Equal questions are asked once. Every process asks some of them and gets the answers to all.
        """
        unique = list({question.prompt: question for question in questions if question}.values())
        local = np.flatnonzero(hosts.local_slots(len(unique))).tolist()
        shared = hosts.share_all(lambda: dict(zip(local, self._ask([unique[i] for i in local]), strict=True)))
        asked = {question.prompt: shared[i] for i, question in enumerate(unique)}
        answers = [asked[question.prompt].answer if question else NOT_ASKED for question in questions]
        missing = [answer.reason for answer in answers if isinstance(answer, Missing) and answer != NOT_ASKED]
        with self._lock:
            self._counts['missing'] += len(missing)
            self.problem = missing[-1] if missing else self.problem
            for result in asked.values():
                self._counts['asked'] += len(result.bad) + (not isinstance(result.answer, Missing))
                self._counts['bad_answers'] += len(result.bad)
                self._counts.update(f'bad/{kind}' for kind in result.bad)
        return answers

    def _ask(self, questions: Sequence[Question]) -> list[_Asked]:
        """Ask questions until every one has a good answer, the client gives up on it, or all attempts are used up."""
        results = [_Asked() for _ in questions]
        messages = [(('user', question.prompt),) for question in questions]
        left = list(range(len(questions)))
        for attempt in range(self.attempts):
            answers = self.remote.complete([Request(
                address=self.address, role=self.role, messages=messages[i], temperature=self.temperature,
                max_tokens=self.max_tokens, seed=attempt, attempt=attempt, schema=questions[i].schema)
                for i in left]) if left else []
            again = []
            for i, answer in zip(left, answers, strict=True):
                try:
                    results[i].answer = _read(answer, questions[i], self.max_tokens)
                    continue
                except BadAnswer as error:
                    kind, reason = error.kind, str(error)
                results[i] = _Asked(Missing(reason), (*results[i].bad, kind))
                if kind == 'failed':  # the client has tried several times
                    continue
                again.append(i)
                messages[i] = messages[i][:1]
                if kind not in ('declined', 'cut_off'):
                    messages[i] += (('assistant', answer.text), (
                        'user', f'This answer cannot be used: {reason}. Answer again, with the JSON object only.'))
            left = again
        return results


def _read(answer: Union[Answer, Failure], question: Question, max_tokens: int) -> Any:
    """Return the answer as parsed; raise BadAnswer if it is not good."""
    if isinstance(answer, Failure):
        raise BadAnswer('failed', answer.reason)
    if not (answer.text or '').strip():
        raise BadAnswer('cut_off' if answer.cut else 'declined', answer.problem or 'the answer is empty')
    try:
        return question.read(answer.text)
    except BadAnswer as error:
        if answer.cut:
            limit = f'{max_tokens} tokens' if max_tokens else 'the limit of the endpoint'
            raise BadAnswer('cut_off', f'the answer was cut off at {limit} ({error})') from None
        raise


def to_readings(ratings: Sequence[Sequence[Union[Rating, Missing]]], dimensions: Sequence[Dimension]) -> Readings:
    """Return ratings by episode and seat in the form that `process.assess` takes, seat-major.

    Args:
      ratings: from `RemoteJudge.rate`.
      dimensions: the rubric.
    """
    rows = [rating for seat in zip(*ratings, strict=True) for rating in seat]
    scores = {dimension.name: np.array([
        np.nan if isinstance(rating, Missing) else rating.scores[dimension.name] for rating in rows], np.float64)
        for dimension in dimensions}
    comments = np.empty(len(rows), object)
    for n, rating in enumerate(rows):
        if isinstance(rating, Missing):
            comments[n] = {} if rating == NOT_ASKED else {'missing': rating.reason}
        else:
            comments[n] = {'reasoning': dict(rating.reasoning)} if rating.reasoning else {}
    return Readings(rubric.outcome(dimensions, scores), None, scores, comments)
