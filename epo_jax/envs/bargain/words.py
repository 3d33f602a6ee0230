"""The sentences of bargaining in English, which are the same in its text form and in its form on the device.

A sentence is made of pieces that begin with a space or a line break, so that it has the same tokens as its pieces.
Numbers are words, which are one token each.
"""

import re
from typing import Sequence

from epo_jax.envs.bargain.language import INTENTS, ITEMS
from epo_jax.envs.bargain.records import NAMES
from epo_jax.envs.bargain.scenarios import Scenario

NUMBERS = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine', 'ten')
CONTINUES = '\n'  # between an opening and an observation that follows it in the same message
ADVICE_CUE, MOVE_CUE = 'Advice:', 'Move:'
ADVICE = (f'\n{ADVICE_CUE}', '')  # around a strategy in what the actor reads
LAST_TURN = ' It is the last turn.'
UNCLEAR = 'said nothing clear'  # of a reply that is not a possible move

_OTHER_MOVES = {'accept': 'Accept the offer.', 'wait': 'Wait.', 'walk': 'Walk away.'}
_DONE = {'accept': UNCLEAR, 'wait': 'waited', 'walk': UNCLEAR}
_SPOKEN = re.compile(
    rf"(?<!not )(?<!n't )(?<!never )\b(?:"
    rf"ask(?:s|ed|ing)?(?: for)?(?: at least)? (?P<points>\d{{1,2}}|{'|'.join(NUMBERS)})\b|"
    r'(?P<word>accept|wait|walk))', re.IGNORECASE)


def move(intent: str) -> str:
    """Return an intent (see language.py) as a sentence, such as 'Ask for seven points.'."""
    kind, _, points = intent.partition(':')
    return f'Ask for {NUMBERS[int(points)]} points.' if kind == 'ask' else _OTHER_MOVES[intent]


MOVES = tuple(map(move, INTENTS))


def read_move(reply: str) -> int:
    """Return the index in INTENTS of the first move that a reply names; -1 if it names none."""
    found = _SPOKEN.search(reply)
    if found is None:
        return -1
    word, points = (found[name] and found[name].lower() for name in ('word', 'points'))
    intent = word or f'ask:{NUMBERS.index(points) if points in NUMBERS else int(points)}'
    return INTENTS.index(intent) if intent in INTENTS else -1


def strategist_opening(scenario: Scenario, seat: int) -> str:
    """Return what a strategist reads first; the examples show a small model the form of an advice."""
    examples = ''.join(f'\n{ADVICE_CUE} {move(intent)}' for intent in ('ask:8', 'accept', 'ask:5', 'wait'))
    return f'{_situation(scenario, seat)} Advise {NAMES[seat]}.{examples}'


def actor_opening(scenario: Scenario, seat: int, advised: bool) -> str:
    """Return what an actor reads first."""
    rule = f' Do what the advice to {NAMES[seat]} says.' if advised else ''
    return f'{_situation(scenario, seat)}{rule} Say the move of {NAMES[seat]}.'


def _situation(scenario: Scenario, seat: int) -> str:
    """Return what a seat knows."""
    name, other = NAMES[seat], NAMES[1 - seat]
    values = ', '.join(f'{item[:-1]} {NUMBERS[value]}' for item, value in zip(ITEMS, scenario.values[seat]))
    return (f'{name} bargains with {other} over {items(scenario.counts)}. Points for each {values}. Without a deal, '
            f'{name} gets nothing.')


def items(counts: Sequence[int]) -> str:
    """Return numbers of items in words, such as 'two books and one hat'."""
    named = [f'{NUMBERS[n]} {item if n != 1 else item[:-1]}' for n, item in zip(counts, ITEMS) if n]
    return ' and '.join([', '.join(named[:-1]), named[-1]] if len(named) > 1 else named) or 'nothing'


def answer(seat: int, offered: Sequence[int], worth: int) -> str:
    """Return what a seat reads of the partner's offer: the items that it would get, and their points to it."""
    return f'{NAMES[1 - seat]} offers {items(offered)}, {NUMBERS[worth]} points.'


def silence(seat: int) -> str:
    """Return what a seat reads of a partner who makes no offer."""
    return f'{NAMES[1 - seat]} says nothing.'


def done(seat: int, intent: int) -> str:
    """Return what the strategist of a seat reads of the actor's last move, an index in INTENTS or -1."""
    name = INTENTS[intent] if intent >= 0 else ''
    said = f'asked for {NUMBERS[int(name[4:])]} points' if name.startswith('ask:') else _DONE.get(name, UNCLEAR)
    return f'{NAMES[seat]} {said}.'
