"""Ask a chat model which strategies of a finished conversation were critical, and parse its answer.

Messages are numbered from 0, as in `location`. The question shows the numbers of the strategies in brackets.
"""

import re
from typing import Any, NamedTuple, Sequence

from epo_jax.envs.replies import cut_reasoning, find_objects


class Wording(NamedTuple):
    """How the question is worded for an environment.

    Attributes:
      noun, nouns: what a message of the strategist is called, and its plural.
      setting: who advises whom.
      scale: the meaning of the score.
      best: the score of an outcome of 1.
    """

    noun: str
    nouns: str
    setting: str
    scale: str
    best: int


WORDINGS = {
    'sotopia': Wording(
        'strategy', 'strategies',
        'An adviser privately gives one of two people who talk with each other a strategy before each turn of that '
        'person.', "how well that person's goal was reached, from 0 (not at all) to 10 (completely)", 10),
    'webshop': Wording(
        'thought', 'thoughts', 'An adviser gives an agent that shops online a thought before each of its actions.',
        'how well what was bought fits what was asked for, from 0 (not at all) to 1 (completely)', 1),
    'alfworld': Wording(
        'thought', 'thoughts',
        'An adviser gives an agent that does a household task a thought before each of its actions.',
        '1 if the task was done, else 0', 1),
    'general': Wording(
        'strategy', 'strategies',
        'An adviser privately gives an agent a strategy before each of its messages in a conversation.',
        'how well the goal was reached, from 0 (not at all) to 1 (completely)', 1),
}


class AnswerError(ValueError):
    """An answer that does not identify the critical strategies."""


def wording(environment: str) -> Wording:
    """Return the wording for an environment, which may be one that only its user knows."""
    return WORDINGS.get(environment, WORDINGS['general'])


def question(texts: Sequence[str], score: float, words: Wording, strategies: Sequence[int]) -> str:
    """Return the prompt that asks a judge for the critical strategies of a conversation.

    Args:
      texts: the messages, alternately to the strategist and by it.
      score: score of the conversation on the scale of its environment.
      words: see `wording`.
      strategies: indexes of the messages to choose from.
    """
    lines = [f'[{i}] {words.noun}: {text}' if i in strategies else text for i, text in enumerate(texts)]
    return '\n'.join((
        words.setting + f' Here is all of it. The {words.nouns} have a number in brackets; between them stands what '
        'the adviser was told and what happened.', '-----', *lines, '-----',
        f'The final score is {score:g}: {words.scale}.',
        f'Which of the {words.nouns} were critical for the outcome, so that without them it would have been clearly '
        'different? Answer with a JSON object and nothing else: {"reasoning": "why, in a few sentences", '
        f'"indexes": [the numbers in brackets of the critical {words.nouns}]}}. The numbers to choose from are '
        f'{", ".join(map(str, strategies))}; an empty list means that none was critical.'))


def schema(strategies: Sequence[int]) -> dict[str, Any]:
    """Return the JSON schema of an answer, in the subset that endpoints support for strict structured output."""
    return {
        'type': 'object', 'required': ['reasoning', 'indexes'], 'additionalProperties': False,
        'properties': {'reasoning': {'type': 'string'},
                       'indexes': {'type': 'array', 'items': {'type': 'integer', 'enum': list(strategies)}}}}


def read_answer(text: str, strategies: Sequence[int]) -> tuple[tuple[int, ...], str]:
    """Parse which messages an answer names.

    Args:
      text: The answer. Its JSON object may be inside a code fence or between other text; the last one counts, and none
        that is part of the model's reasoning.
      strategies: Indexes of the messages to choose from.

    Returns:
      The indexes of the chosen messages in order, and how the answer numbered them (see `resolve`).

    Raises:
      AnswerError: If there is no such object, or if its numbers do not identify strategies.
    """
    answers, position = [], 0
    for value, begin, end in find_objects(cut_reasoning(text)[0]):
        if begin >= position and 'indexes' in value:
            answers.append(value['indexes'])
            position = end
    if not answers:
        raise AnswerError('no JSON object with "indexes" in the answer')
    return resolve(_numbers(answers[-1]), strategies)


def _numbers(value: Any) -> tuple[int, ...]:
    """Return the value of "indexes" as sorted integers; raise AnswerError if it is not an integer or a list of them."""
    if isinstance(value, str):
        value = re.split(r'[,;\s]+', value.strip('[] \n')) if value.strip('[] \n') else []
    numbers = []
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, str) and re.fullmatch(r'\s*\[?\d{1,6}\]?\s*', number):
            number = int(number.strip(' []\n'))
        if isinstance(number, float) and number.is_integer():
            number = int(number)
        if isinstance(number, bool) or not isinstance(number, int):
            raise AnswerError(f'"indexes" holds {number!r:.40}, which is not an integer')
        numbers.append(number)
    return tuple(sorted(set(numbers)))


def resolve(numbers: Sequence[int], strategies: Sequence[int]) -> tuple[tuple[int, ...], str]:
    """Map the numbers of an answer to messages. Models do not always number messages as the question does.

    The first of these interpretations that fits all numbers is taken:
      1. 'message': indexes of messages, as asked;
      2. 'from 0': numbers of strategies from 0, if a 0 is among them;
      3. 'from 1': numbers of strategies from 1;
      4. 'message from 1': numbers of messages from 1.

    Args:
      numbers: Sorted numbers of the answer, each once.
      strategies: Indexes of the messages to choose from.

    Returns:
      The indexes of the chosen messages and the name of the interpretation.

    Raises:
      AnswerError: If no interpretation fits, or if only the canned "OK" before the strategies is named.
    """
    messages, count = set(strategies) | set(range(1, min(strategies), 2)), len(strategies)
    if set(numbers) <= messages:
        kept = tuple(number for number in numbers if number in strategies)
        if numbers and not kept:
            raise AnswerError(f'the answer names {list(numbers)}, which is not a strategy')
        return kept, 'message'
    if 0 in numbers and max(numbers) < count:
        return tuple(strategies[number] for number in numbers), 'from 0'
    if min(numbers) >= 1 and max(numbers) <= count:
        return tuple(strategies[number - 1] for number in numbers), 'from 1'
    if {number - 1 for number in numbers} <= set(strategies):
        return tuple(number - 1 for number in numbers), 'message from 1'
    raise AnswerError(f'the answer names {list(numbers)}, but the strategies are messages {list(strategies)}')
