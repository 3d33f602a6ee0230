"""Finished bargains in words, for the records of episodes."""

from typing import Sequence

import numpy as np

from epo_jax.envs.bargain import optimum
from epo_jax.envs.bargain.language import ITEMS, TOTAL
from epo_jax.envs.bargain.scenarios import ACCEPTED, BOARDS, NOTHING, PASSED, SPLITS, WALKED, Scenario
from epo_jax.envs.base import EpisodeText

NAMES = ('Ada', 'Ben')


def episode_text(scenario: Scenario, actions: Sequence[int], invalid: Sequence[int], num_seats: int) -> EpisodeText:
    """Return a finished episode in text.

    Args:
      scenario: what was bargained over.
      actions: the actions of both sides in order, see game.State.
      invalid: for each side, the number of messages that were not a possible action.
      num_seats: 1 if the environment plays the second side, whose answers then are part of the lines of seat 0; else 2.
    """
    actions = [action for action in actions if action != NOTHING]
    texts = [_line(scenario, actions, i) for i in range(len(actions))]
    if num_seats == 1:
        lines = [(0, ' '.join(texts[i:i + 2])) for i in range(0, len(texts), 2)]
    else:
        lines = [(i % 2, text) for i, text in enumerate(texts)]
    deal = _accepted_split(actions, len(actions) - 1) if actions and actions[-1] == ACCEPTED else None
    solutions = optimum.solutions(scenario)
    goals = [_goal(scenario, seat) for seat in range(num_seats)]
    ended = 'deal' if deal is not None else 'walked' if actions and actions[-1] == WALKED else 'no deal'
    facts = {
        'scenario': scenario.id, 'environment': 'bargain', 'category': scenario.category,
        'situation': f'{NAMES[0]} and {NAMES[1]} divide {_items(scenario.counts)}.',
        'seats': [{'name': NAMES[seat], 'goal': goal} for seat, goal in enumerate(goals)],
        'ended': ended, 'points': [_points(scenario, seat, deal) for seat in (0, 1)],
        'points_at_nash': list(solutions.nash), 'most_points_together': solutions.max_joint_points}
    return EpisodeText(
        facts=facts, lines=lines, events=[f'bargain/{ended}', *['action/invalid'] * sum(invalid[:num_seats])])


def _accepted_split(actions: Sequence[int], i: int) -> int:
    """Return the split that action number i accepts: the last offer of the partner."""
    return next(actions[k] for k in range(i - 1, -1, -2) if actions[k] >= 0)


def _items_of(scenario: Scenario, seat: int, split: int) -> np.ndarray:
    """Return how many items of each kind a split gives to a seat, i32[I]."""
    board = int((BOARDS == scenario.counts).all(axis=1).argmax())
    items = SPLITS[board, :, split]
    return items if seat == 0 else BOARDS[board] - items


def _points(scenario: Scenario, seat: int, split) -> int:
    """Return the points that a split, or None for no deal, gives to a seat."""
    return 0 if split is None else int(np.dot(_items_of(scenario, seat, split), scenario.values[seat]))


def _items(counts: Sequence[int]) -> str:
    """Return numbers of items in words, such as '2 books and 1 hat'."""
    named = [f'{n} {item if n != 1 else item[:-1]}' for n, item in zip(counts, ITEMS) if n]
    return ' and '.join([', '.join(named[:-1]), named[-1]] if len(named) > 1 else named) or 'nothing'


def _goal(scenario: Scenario, seat: int) -> str:
    """Return the goal of a seat in words."""
    worth = ', '.join(f'{value} for {item}' for value, item in zip(scenario.values[seat], ITEMS))
    return (f'Get as many of {TOTAL} points as possible, and waste none of what both could have: each of '
            f'{_items(scenario.counts)} is worth {worth}.')


def _line(scenario: Scenario, actions: Sequence[int], i: int) -> str:
    """Return action number i in words."""
    seat, action = i % 2, actions[i]
    name, other = NAMES[seat], NAMES[1 - seat]
    if action == ACCEPTED:
        return f'{name} accepts ({_points(scenario, seat, _accepted_split(actions, i))} points).'
    if action in (WALKED, PASSED):
        return f'{name} walks away.' if action == WALKED else f'{name} says nothing.'
    return (f'{name} offers {other} {_items(_items_of(scenario, 1 - seat, action))} and keeps '
            f'{_items(_items_of(scenario, seat, action))} ({_points(scenario, seat, action)} points).')
