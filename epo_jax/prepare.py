"""Turns labelled conversations into trainable ones: rewards, returns, a weight for every turn.

    python -m epo_jax.prepare --data=labelled.json --out=prepared.json --domain=sotopia
    python -m epo_jax.prepare --data=labelled.json --out=prepared.json --domain=sotopia --mode=official

In both modes R_t = sum over t' >= t of gamma^(t' - t) r_t', over the assistant's turns. The modes differ in r and in
what becomes of R:

  official   r_t = 1 where a turn was selected, else the score at the last turn, else 0; weight R_t / max |R| of the
             conversation. The numbers are those of the released code, bit for bit, with what is odd about it: a
             selected last turn loses the score; a conversation without a selected turn weighs the same whether its
             score was 1 or 10; one that was never labelled counts as one in which nothing was critical.
  corrected  r_t = weight * (1 where selected), plus the score at the last turn; weight R_t, so that better
             conversations weigh more. What was not labelled, or not understandably, is left out, and the canned "OK"
             that WebShop and ALFWorld begin with gets no weight.

Next to the output lie a summary (`.summary.json`) and the distribution of scores and weights (`.svg`).
"""

import argparse
import collections
import dataclasses
import json
import math
from pathlib import Path
import sys
from typing import Any, Mapping, Optional, Sequence

from epo_jax.data import sharegpt
from epo_jax.data.histogram import histogram_svg
from epo_jax.data.rows import BadRows, RowError, read_rows, row_writer
from epo_jax.runtime.files import write_atomically

MODES = ('official', 'corrected')

# What can be odd about a row: (what it is, what official mode does with it, what corrected mode does).
FINDINGS = {
    'last_turn_selected': ('the last turn was selected', 'its score is lost', 'selection and score are added'),
    'nothing_selected': ('no turn was selected', 'the score has no influence on the weights',
                         'the weights are in proportion to the score'),
    'not_labelled': ('the row was never labelled', 'counts as nothing selected', 'left out'),
    'odd_location': ("'location' names what is no strategy", 'ignored', 'left out'),
    'number_as_text': ("'location' holds numbers as text", 'ignored', 'read as numbers'),
    'acknowledgement': ('the conversation begins with a canned "OK"', 'trained like a strategy', 'gets no weight'),
    'all_zero': ('every weight is 0', 'kept', 'kept'),
    'score_out_of_range': ('the score is out of its range', 'used as it is', 'a bad row'),
}


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What a row became.

    Attributes:
      row: to be written; None: left out.
      weights: of the assistant's turns, as floats.
      score: of the trajectory in [0, 1].
      findings: keys of FINDINGS.
    """

    row: Optional[dict[str, Any]]
    weights: tuple[float, ...]
    score: float
    findings: tuple[str, ...]


def official_rewards(score: float, location: Sequence[Any], count: int) -> list[float]:
    """Rewards of `count` turns (released code, LLaMA-Factory/data/utils/preprocessing.py).

    Turn t is message 2 t + 1; whether it was selected is asked first, so a selected last turn has no score.
    """
    selected = set(location)
    return [1.0 if 2 * t + 1 in selected else score if t == count - 1 else 0.0 for t in range(count)]


def corrected_rewards(score: float, location: Sequence[int], count: int, weight: float) -> list[float]:
    """r_t = weight * selected_t, plus the score at the last turn."""
    return [weight * (2 * t + 1 in location) + (score if t == count - 1 else 0.0) for t in range(count)]


def returns(rewards: Sequence[float], gamma: float) -> list[float]:
    """R_t = r_t + gamma R_(t+1), in float64 and in the released code's order of operations."""
    total, found = 0, []
    for reward in reversed(rewards):
        total = gamma * total + reward
        found.append(total)
    return found[::-1]


def normalised(values: Sequence[float]) -> list[float]:
    """Divided by the largest absolute value (released code); zeros stay 0."""
    largest = max(abs(value) for value in values)
    return [value / largest if largest != 0 else 0.0 for value in values]


def prepare_row(row: Mapping[str, Any], domain: str, mode: str, gamma: float, weight: float = 1.0,
                layout: sharegpt.Layout = sharegpt.Layout()) -> Prepared:
    """Prepares one labelled row; the row itself stays as it is.

    Args:
      row: see `epo_jax.data.sharegpt`.
      domain, mode: one of DOMAINS, one of MODES.
      gamma: discount.
      weight: of a selected turn in corrected mode. With 0 labels are not needed.

    Raises:
      ValueError: the row is bad; says why.
    """
    found = sharegpt.messages(row, layout)
    raw = sharegpt.trajectory_score(row)
    score = raw / 10 if domain == 'sotopia' else raw
    acknowledged = sharegpt.is_acknowledgement(found, layout, domain)
    findings = ['acknowledgement'] if acknowledged else []
    if not 0 <= raw <= sharegpt.BEST[domain]:
        if mode == 'corrected':
            raise ValueError(f'the score is {raw}; that of {domain} lies between 0 and {sharegpt.BEST[domain]}')
        findings.append('score_out_of_range')
    count = len(found) // 2
    strategies = [i for i in range(1, len(found), 2) if not (acknowledged and i == 1)]
    location, found_in_it = _location(row, strategies)
    findings += found_in_it
    if location is not None and not location:
        findings.append('nothing_selected')
    if location and strategies[-1] in location:
        findings.append('last_turn_selected')

    if mode == 'official':
        given = row.get('location', [])
        try:
            rewards = official_rewards(score, given, count)
        except TypeError as error:
            raise ValueError(f"'location' is {given!r}, not a list of numbers") from error
        weights = normalised(returns(rewards, gamma))
    elif location is None and weight != 0:
        return Prepared(None, (), score, tuple(findings))
    else:
        weights = returns(corrected_rewards(score, location or (), count, weight), gamma)
        weights = [0.0] + weights[1:] if acknowledged else weights
    if not any(weights):
        findings.append('all_zero')
    kept = {key: value for key, value in row.items() if key not in ('score', 'location', 'location_missing')}
    out = [{key: value for key, value in message.items() if key not in ('index', 'score')} for message in found]
    for message, value in zip(out[1::2], weights):
        message['score'] = str(value)
    return Prepared(kept | {layout.messages: out}, tuple(weights), score, tuple(findings))


def _location(row: Mapping[str, Any], strategies: Sequence[int]) -> tuple[Optional[tuple[int, ...]], list[str]]:
    """(messages selected, None where that is not known; findings)."""
    if row.get('location') is None:
        return None, ['not_labelled']
    given = row['location'] if isinstance(row['location'], list) else [row['location']]
    numbers = [int(x) if isinstance(x, str) and x.strip().isdecimal() else x for x in given]
    findings = ['number_as_text'] if numbers != given else []
    if any(isinstance(x, bool) or not isinstance(x, int) or x not in strategies for x in numbers):
        return None, findings + ['odd_location']
    return tuple(sorted(set(numbers))), findings


def prepare_file(data: str, out: str, domain: str, mode: str = 'corrected', gamma: float = 0.99, weight: float = 1.0,
                 skip_bad: bool = False) -> dict[str, Any]:
    """Prepares a file, row by row, and writes its summary and plot beside it.

    Returns:
      the summary: rows read, written, left out and skipped, turns, and how often each finding occurred.

    Raises:
      DataError: no such data, or nothing to train on in it.
      RowError: the first bad row, unless they are skipped.
    """
    source, path, bad = sharegpt.find_source(data), Path(out), BadRows(skip_bad)
    refuse_overwriting(source.path, path, path.with_suffix('.summary.json'), path.with_suffix('.svg'))
    found, scores, weights = collections.Counter(), collections.Counter(), collections.Counter()
    rows = written = turns = 0
    with row_writer(path) as write:
        for span, row in read_rows(source.path, bad):
            try:
                prepared = prepare_row(row, domain, mode, gamma, weight, source.layout)
            except ValueError as error:
                bad.add(RowError(source.path, span.number, str(error)))
                continue
            rows += 1
            found.update(prepared.findings)
            if prepared.row is None:
                continue
            write(prepared.row)
            written, turns = written + 1, turns + len(prepared.weights)
            scores[round(prepared.score, 3)] += 1
            weights.update(round(value, 3) for value in prepared.weights)
        if not written:
            raise sharegpt.DataError(
                f'{source.path}: nothing to train on ({bad.count} bad rows, {rows} left out)'
                + ''.join(f'\n  {found[name]:6d}  {what}' for name, (what, *_) in FINDINGS.items() if found[name]))
    summary = {
        'domain': domain, 'mode': mode, 'gamma': gamma, 'weight': weight if mode == 'corrected' else None,
        'rows': rows, 'written': written, 'left_out': rows - written, 'bad': bad.count,
        'bad_reasons': dict(bad.reasons), 'turns': turns,
        'findings': {name: {'rows': found[name], 'what': what, 'done': done[MODES.index(mode)]}
                     for name, (what, *done) in FINDINGS.items() if found[name]}}
    write_atomically(path.with_suffix('.summary.json'), json.dumps(summary, indent=2, ensure_ascii=False) + '\n')
    write_atomically(path.with_suffix('.svg'), histogram_svg(
        (('score of a conversation', scores), ('weight of a turn', weights)), f'{path.name}: {domain}, {mode}'))
    return summary


def refuse_overwriting(data: Path, *outs: Path) -> None:
    """Raises DataError where an output would replace the input, is a directory, or has none to go to."""
    for out in outs:
        if out.is_dir():
            raise sharegpt.DataError(f'{out} is a directory; --out names a file')
        if out.exists() and out.samefile(data):
            raise sharegpt.DataError(f'{out} is the input file {data}, which is never changed')
        if not out.parent.is_dir():
            raise sharegpt.DataError(f'there is no directory {out.parent} to write {out.name} to')


def describe(summary: Mapping[str, Any]) -> str:
    """The summary as lines of text."""
    lines = [f'{summary["written"]} of {summary["rows"]} conversations prepared ({summary["mode"]}), '
             f'{summary["turns"]} turns, {summary["left_out"]} left out, {summary["bad"]} bad rows skipped']
    lines += [f'  {finding["rows"]:6d}  {finding["what"]}: {finding["done"]}'
              for finding in summary['findings'].values()]
    return '\n'.join(lines)


def main(argv: Optional[Sequence[str]] = None) -> None:
    """The command; see the module."""
    parser = argparse.ArgumentParser(prog='python -m epo_jax.prepare', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--data', required=True, help='labelled conversations: a file, or see epo_jax/data/sharegpt.py')
    add('--out', required=True, help='file to write: .json, or .jsonl')
    add('--domain', required=True, choices=sharegpt.DOMAINS, help='where the conversations come from')
    add('--mode', default='corrected', choices=MODES)
    add('--gamma', type=float, default=0.99, help='discount of later rewards')
    add('--weight', type=float, default=1.0, help='reward of a selected turn (corrected); 0: labels are not needed')
    add('--skip_bad', action='store_true', help='leave bad rows out, and count them, instead of stopping')
    args = parser.parse_args(argv)
    if not (0 <= args.gamma <= 1 and math.isfinite(args.weight)):
        parser.error('--gamma lies between 0 and 1, and --weight is finite')
    try:
        summary = prepare_file(args.data, args.out, args.domain, args.mode, args.gamma, args.weight, args.skip_bad)
    except (sharegpt.DataError, RowError, OSError) as error:
        sys.exit(f'error: {error}')
    out = Path(args.out)
    print(describe(summary))
    print(f'wrote {out}, {out.with_suffix(".summary.json")}, {out.with_suffix(".svg")}')


if __name__ == '__main__':
    main()
