"""Asking a chat model which strategies of a finished conversation were critical, and reading what it answers.

Messages are numbered from 0, as in `location`, and the question shows the numbers of the strategies in brackets.
"""

import json
import re
from typing import Any, Mapping, Sequence

from epo_jax.data import sharegpt

# What the assistant writes, what the user does, and how the score is to be read.
WORDS = {
    'sotopia': ('strategy', 'strategies',
                'An adviser privately gives one of two people who talk with each other a strategy before each turn '
                'of that person.', "how well that person's goal was reached, from 0 (not at all) to 10 (completely)"),
    'webshop': ('thought', 'thoughts',
                'An adviser gives an agent that shops online a thought before each of its actions.',
                'how well what was bought fits what was asked for, from 0 (not at all) to 1 (completely)'),
    'alfworld': ('thought', 'thoughts',
                 'An adviser gives an agent that does a household task a thought before each of its actions.',
                 '1 if the task was done, else 0'),
}


_OBJECT = re.compile(r'\{\s*"')


class AnswerError(ValueError):
    """An answer that does not say which strategies were critical."""


def strategy_indexes(found: Sequence[Mapping[str, Any]], layout: sharegpt.Layout, domain: str) -> tuple[int, ...]:
    """Which messages are strategies."""
    first = 3 if sharegpt.is_acknowledgement(found, layout, domain) else 1
    return tuple(range(first, len(found), 2))


def question(found: Sequence[Mapping[str, Any]], score: float, layout: sharegpt.Layout, domain: str) -> str:
    """The question about a conversation of checked messages."""
    noun, nouns, setting, scale = WORDS[domain]
    strategies = strategy_indexes(found, layout, domain)
    lines = [f'[{i}] {noun}: {message[layout.content]}' if i in strategies else message[layout.content]
             for i, message in enumerate(found)]
    return '\n'.join((
        setting + f' Here is all of it. The {nouns} have a number in brackets; between them stands what the adviser '
        'was told and what happened.', '-----', *lines, '-----', f'The final score is {score}: {scale}.',
        f'Which of the {nouns} were critical for the outcome, so that without them it would have been clearly '
        'different? Answer with a JSON object and nothing else: {"reasoning": "why, in a few sentences", '
        f'"indexes": [the numbers in brackets of the critical {nouns}]}}. The numbers to choose from are '
        f'{", ".join(map(str, strategies))}; an empty list means that none was critical.'))


def read_answer(text: str, strategies: Sequence[int]) -> tuple[tuple[int, ...], str]:
    """Which messages an answer names.

    Args:
      text: the answer; the object may stand in a code fence and between other text, and the last one counts.
      strategies: the messages to choose from.

    Returns:
      (messages in order, how they were numbered: see `resolve`).

    Raises:
      AnswerError: there is no such object, or its numbers name no strategies.
    """
    decoder, answers, at = json.JSONDecoder(strict=False), [], 0  # line breaks inside strings are let pass
    while begin := _OBJECT.search(text, at):
        at = begin.start() + 1  # what is wanted may stand further inside
        try:
            value, end = decoder.raw_decode(text, begin.start())
        except (ValueError, RecursionError):
            continue
        if 'indexes' in value:
            answers.append(value['indexes'])
            at = end
    if not answers:
        raise AnswerError('no JSON object with "indexes" in the answer')
    return resolve(_numbers(answers[-1]), strategies)


def _numbers(value: Any) -> tuple[int, ...]:
    """Raises AnswerError: the value is no whole number, nor a list of them."""
    if isinstance(value, str):
        value = re.split(r'[,;\s]+', value.strip('[] \n')) if value.strip('[] \n') else []
    numbers = []
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, str) and re.fullmatch(r'\s*\[?\d{1,6}\]?\s*', number):
            number = int(number.strip(' []\n'))
        if isinstance(number, float) and number.is_integer():
            number = int(number)
        if isinstance(number, bool) or not isinstance(number, int):
            raise AnswerError(f'"indexes" holds {number!r:.40}, which is no whole number')
        numbers.append(number)
    return tuple(sorted(set(numbers)))


def resolve(numbers: Sequence[int], strategies: Sequence[int]) -> tuple[tuple[int, ...], str]:
    """The messages that numbers mean. Models do not always number as they were asked to.

    The first of these that fits all of them: numbers of messages ('message'), as asked; numbers of strategies from 0
    ('from 0', where a 0 shows it) or from 1 ('from 1'); numbers of messages counted from 1 ('message from 1').

    Raises:
      AnswerError: none fits, or nothing but the canned "OK" before the strategies is meant.
    """
    messages, count = set(strategies) | set(range(1, min(strategies), 2)), len(strategies)
    if set(numbers) <= messages:
        kept = tuple(number for number in numbers if number in strategies)
        if numbers and not kept:
            raise AnswerError(f'the answer names {list(numbers)}, which is no strategy')
        return kept, 'message'
    if 0 in numbers and max(numbers) < count:
        return tuple(strategies[number] for number in numbers), 'from 0'
    if min(numbers) >= 1 and max(numbers) <= count:
        return tuple(strategies[number - 1] for number in numbers), 'from 1'
    if {number - 1 for number in numbers} <= set(strategies):
        return tuple(number - 1 for number in numbers), 'message from 1'
    raise AnswerError(f'the answer names {list(numbers)}, but the strategies are messages {list(strategies)}')
