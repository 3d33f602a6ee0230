"""The display form of an episode: one dict for the reader of the report, whose scripts name the same keys.

    run, file, iteration, episode, scenario, category, condition, score, truncated      for the list and its filters
    situation, facts, failure, seats, turns                                             for the reader

A seat has name, goal, strategist, outcome, tested, and `notes` of the judge. A turn has seat, line and strategy, and,
where they are known, reward, return, advantage, the judge's numbers, and tokens: ids and log-probabilities.
Missing is None or absent, never 0.
"""

import collections
from typing import Any, Mapping, Optional, Sequence

from ml_collections import ConfigDict

from epo_jax.report.sources import EpisodeFile

TURN_NOTES = ('critical', 'graded')  # the judge's numbers on every turn of a seat
RETURNS = ('discounted', 'epo')      # credit methods that are based on discounted returns
KNOWN = {'episode', 'scenario', 'category', 'situation', 'environment', 'seats', 'turns', 'events', 'truncated',
         'failure', 'condition', 'tested', 'repetition', 'partner'}


def display(record: Mapping[str, Any], run: int, file: EpisodeFile, config: Optional[ConfigDict]) -> dict[str, Any]:
    """Return the display form of a record (see `records.episode_records`), which may lack any field.

    Args:
      record: the record.
      run: number of its run in the report.
      file: where it comes from.
      config: of the run; its credit method says what the return of a turn is.
    """
    seats = [_seat(seat, s in record.get('tested', ())) for s, seat in enumerate(record.get('seats', ()))]
    turns = [{'seat': turn.get('seat', 0), 'strategy': turn.get('strategy'), 'line': turn.get('line')}
             for turn in record['turns']]
    for s, seat in enumerate(record.get('seats', ())):
        _add_numbers([turn for turn in turns if turn['seat'] == s], seat, _discount(config))
    facts = {name: value for name, value in record.items() if name not in KNOWN}
    if record.get('events'):
        facts['events'] = dict(collections.Counter(record['events']).most_common())
    return {
        'run': run, 'file': file.label, 'iteration': file.iteration, 'episode': record.get('episode'),
        'scenario': record.get('scenario'), 'category': record.get('category'), 'condition': _condition(record),
        'score': _score(record), 'truncated': bool(record.get('truncated')), 'failure': record.get('failure'),
        'keys': _keys(record), 'situation': record.get('situation'), 'facts': facts, 'seats': seats, 'turns': turns}


def _condition(record: Mapping[str, Any]) -> str:
    """Return the condition of an evaluation, or the strategists of the seats."""
    if 'condition' in record:
        names = [record['condition']]
        if record.get('partner') is not None:
            names.append(f'pool {record["partner"]}')
    else:
        names = list(dict.fromkeys(seat.get('strategist', '') for seat in record.get('seats', ())))
    return ' against '.join(filter(None, names))


def _keys(record: Mapping[str, Any]) -> Optional[list[Any]]:
    """Return what distinguishes the random keys of an episode of an evaluation, which all conditions share."""
    if 'condition' not in record:
        return None
    return [record['scenario'], record['episode'], record['repetition'], record['tested'], record.get('partner')]


def _score(record: Mapping[str, Any]) -> Optional[float]:
    """Return the mean outcome, in [0, 1], of the seats that were tested, else trained, else of all; None if missing."""
    seats = record.get('seats', ())
    of_interest = ([seats[s] for s in record.get('tested', ())] or [seat for seat in seats if 'reward' in seat]
                   or list(seats))
    outcomes = [seat['outcome'] for seat in of_interest if seat.get('outcome') is not None]
    return sum(outcomes) / len(outcomes) if outcomes else None


def _seat(seat: Mapping[str, Any], tested: bool) -> dict[str, Any]:
    judge = seat.get('judge') or {}
    about = {name: value for name, value in seat.items()
             if name not in ('judge', 'reward', 'advantage', 'ids', 'turn', 'logprob')}
    notes = {name: value for name, value in judge.items() if name not in (*TURN_NOTES, 'potential')}
    return about | {'tested': tested, 'notes': notes}


def _discount(config: Optional[ConfigDict]) -> Optional[float]:
    """Return the discount of the returns on which advantages are based, or None if they are based on something else."""
    if config is None or config.get('credit', {}).get('name') not in RETURNS:
        return None
    return config.credit.gamma


def _add_numbers(turns: Sequence[dict[str, Any]], seat: Mapping[str, Any], gamma: Optional[float]) -> None:
    """Add the numbers of a seat to its turns, in order."""
    judge = seat.get('judge') or {}
    columns = {'reward': seat.get('reward'), 'advantage': seat.get('advantage')}
    if gamma is not None and seat.get('reward'):
        columns['return'] = returns(seat['reward'], gamma)
    columns |= {name: judge.get(name) for name in TURN_NOTES}
    for name, values in columns.items():
        for turn, value in zip(turns, values or ()):
            turn[name] = value
    potential = judge.get('potential') or ()
    for turn, before, after in zip(turns, potential, potential[1:]):
        turn['potential'] = [before, after]
    if 'logprob' in seat:
        tokens = collections.defaultdict(lambda: ([], []))
        for token, number, logprob in zip(seat['ids'], seat['turn'], seat['logprob']):
            if number >= 0:
                tokens[number][0].append(token)
                tokens[number][1].append(logprob)
        for number, turn in enumerate(turns):
            if number in tokens:
                turn['tokens'] = list(tokens[number])


def returns(reward: Sequence[Optional[float]], gamma: float) -> list[Optional[float]]:
    """Return the discounted return of every turn, None where the reward is missing, as in `rl.credit.turns.returns`."""
    later, found = 0.0, []
    for r in reversed(reward):
        if r is not None:
            later = r + gamma * later
        found.append(None if r is None else round(later, 6))
    return found[::-1]
