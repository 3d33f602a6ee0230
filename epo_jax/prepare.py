"""Turn labeled conversations into trainable ones: compute the rewards, returns and weight of every turn.

    python -m epo_jax.prepare --data=labeled.json --out=prepared.json --domain=sotopia
    python -m epo_jax.prepare --data=labeled.json --out=prepared.json --domain=sotopia --mode=official

In both modes, R_t = sum over t' >= t of gamma^(t' - t) r_t', over the assistant's turns. The modes differ in the
rewards r_t and in how the returns R_t become weights:

  official   r_t is 1 if the turn was selected, else the score if it is the last turn, else 0. The weight is
             R_t / max |R| over the conversation. The numbers equal those of the released code bit for bit, with its
             oddities: a selected last turn loses the score; a conversation without a selected turn has the same
             weights whether its score was 1 or 10; an unlabeled one counts as having no critical turn.
  corrected  r_t = weight * (1 if selected), plus the score at the last turn. The weight of the turn is R_t, so better
             conversations weigh more. Rows without a valid label are left out, and the canned "OK" at the start of
             WebShop and ALFWorld conversations is not trained.

A summary (`.summary.json`) and histograms of scores and weights (`.svg`) are written next to the output.
"""

import argparse
import collections
import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence

from epo_jax.data import sharegpt
from epo_jax.data.rows import BadRows, RowError, read_rows, row_writer
from epo_jax.runtime import command
from epo_jax.runtime.files import write_atomically
from epo_jax.runtime.locks import claim
from epo_jax.runtime.rows import whole_number

MODES = ('official', 'corrected')

# Oddities of a row: what it is, what official mode does with it, and what corrected mode does.
FINDINGS = {
    'last_turn_selected': ('the last turn was selected', 'its score is lost', 'reward and score are added'),
    'nothing_selected': ('no turn was selected', 'the score does not influence the weights',
                         'the weights are proportional to the score'),
    'not_labelled': ('the row was never labeled', 'counts as nothing selected', 'left out'),
    'odd_location': ("'location' names a message that is not a strategy", 'ignored', 'left out'),
    'number_as_text': ("'location' holds numbers as text", 'ignored', 'read as numbers'),
    'acknowledgement': ('the conversation starts with a canned "OK"', 'trained like a strategy', 'not trained'),
    'all_zero': ('every weight is 0', 'kept', 'kept'),
    'score_out_of_range': ('the score is out of range', 'used as it is', 'a bad row'),
}


@dataclasses.dataclass(frozen=True)
class Prepared:
    """The result of preparing a row.

    Attributes:
      row: The row to write, or None if it is left out.
      weights: Weights of the assistant's turns.
      untrained: Number of turns at the beginning that are not trained; their weights are 0.
      score: Score of the conversation in [0, 1].
      findings: Keys of `FINDINGS`.
    """

    row: Optional[dict[str, Any]]
    weights: tuple[float, ...]
    score: float
    findings: tuple[str, ...]
    untrained: int = 0


def official_rewards(score: float, location: Sequence[Any], count: int) -> list[float]:
    """Return the rewards of `count` turns by the released code (LLaMA-Factory/data/utils/preprocessing.py).

    Turn t is message 2 t + 1. Selection takes precedence over the score, so a selected last turn loses the score.
    """
    selected = set(location)
    return [1.0 if 2 * t + 1 in selected else score if t == count - 1 else 0.0 for t in range(count)]


def corrected_rewards(score: float, location: Sequence[int], count: int, weight: float) -> list[float]:
    """Return r_t = weight * selected_t, plus the score at the last turn."""
    return [weight * (2 * t + 1 in location) + (score if t == count - 1 else 0.0) for t in range(count)]


def returns(rewards: Sequence[float], gamma: float) -> list[float]:
    """Compute R_t = r_t + gamma R_(t+1) in float64, in the released code's order of operations."""
    total, reversed_returns = 0, []
    for reward in reversed(rewards):
        total = gamma * total + reward
        reversed_returns.append(total)
    return reversed_returns[::-1]


def normalized(values: Sequence[float]) -> list[float]:
    """Divide by the largest absolute value, as the released code does; if all values are 0, they stay 0."""
    largest = max(abs(value) for value in values)
    return [value / largest if largest != 0 else 0.0 for value in values]


def prepare_row(row: Mapping[str, Any], domain: str, mode: str, gamma: float, weight: float = 1.0,
                layout: sharegpt.Layout = sharegpt.Layout()) -> Prepared:
    """Prepare one labeled row without changing it.

    Args:
      row: A labeled row, see `epo_jax.data.sharegpt`.
      domain: One of `sharegpt.DOMAINS`.
      mode: One of `MODES`.
      gamma: Discount factor.
      weight: Reward of a selected turn in corrected mode. With 0, rows need no label.
      layout: Names of the keys of the row.

    Raises:
      ValueError: If the row is bad; says why.
    """
    messages = sharegpt.messages(row, layout)
    raw = sharegpt.trajectory_score(row)
    score = raw / 10 if domain == 'sotopia' else raw
    acknowledged = sharegpt.is_acknowledgement(messages, layout, domain)
    findings = ['acknowledgement'] if acknowledged else []
    if not 0 <= raw <= sharegpt.BEST[domain]:
        if mode == 'corrected':
            raise ValueError(f'the score is {raw}, but a score of {domain} is between 0 and {sharegpt.BEST[domain]}')
        findings.append('score_out_of_range')
    count = len(messages) // 2
    selected, label_findings = _selected_turns(row, count, acknowledged, mode)
    findings += label_findings
    untrained = int(acknowledged and mode == 'corrected')
    if mode == 'official':
        weights = normalized(returns(official_rewards(score, selected, count), gamma))
    elif selected is None and weight != 0:
        return Prepared(None, (), score, tuple(findings))
    else:
        weights = returns(corrected_rewards(score, selected or (), count, weight), gamma)
        weights = [0.0] * untrained + weights[untrained:]
    if not any(weights):
        findings.append('all_zero')
    kept = {key: value for key, value in row.items() if key not in ('score', 'location', 'location_missing')}
    out = [{key: value for key, value in message.items() if key not in ('index', 'score')} for message in messages]
    for t, message in enumerate(out[1::2]):
        message['score'] = None if t < untrained else str(weights[t])
    return Prepared(kept | {layout.messages: out}, tuple(weights), score, tuple(findings), untrained)


def _selected_turns(row: Mapping[str, Any], count: int, acknowledged: bool,
                    mode: str) -> tuple[Optional[tuple[int, ...]], list[str]]:
    """Return the indexes of the messages that the label selects, and the findings about the label.

    Official mode selects what the released code selects: the messages whose index equals an entry. Corrected mode reads
    entries as whole numbers and takes a label as a whole or not at all.

    Args:
      row: The row.
      count: Number of turns; turn t is message 2 t + 1.
      acknowledged: Whether message 1 is the canned "OK".
      mode: One of `MODES`.

    Returns:
      The indexes, None in corrected mode if the label is missing or invalid, and keys of `FINDINGS`.

    Raises:
      ValueError: If official mode cannot read the label.
    """
    official = mode == 'official'
    strategies = range(1 if official or not acknowledged else 3, 2 * count, 2)
    location = row.get('location')
    if location is None and (not official or 'location' not in row):
        return () if official else None, ['not_labelled']
    entries = location if isinstance(location, list) or official else [location]
    try:
        entries = list(set(entries)) if official else list(entries)
    except TypeError as error:
        raise ValueError(f"'location' is {location!r:.100}, not a list of numbers") from error
    as_text = [isinstance(entry, str) and whole_number(entry) is not None for entry in entries]
    numbers = entries if official else [whole_number(entry) for entry in entries]
    selected = tuple(i for i in strategies if i in numbers)
    findings = ['number_as_text'] if any(as_text) else []
    if any(number not in strategies and not (official and text) for number, text in zip(numbers, as_text)):
        findings.append('odd_location')
        if not official:
            return None, findings
    if not selected:
        findings.append('nothing_selected')
    elif selected[-1] == strategies[-1]:
        findings.append('last_turn_selected')
    return selected, findings


def prepare_file(data: str, out: str, domain: str, mode: str = 'corrected', gamma: float = 0.99, weight: float = 1.0,
                 skip_bad: bool = False) -> dict[str, Any]:
    """Prepare a file row by row and write its summary and histograms next to it.

    Args:
      data: Labeled conversations, see `sharegpt.find_source`.
      out: File to write.
      domain: One of `sharegpt.DOMAINS`.
      mode: One of `MODES`.
      gamma: Discount factor.
      weight: Reward of a selected turn in corrected mode. With 0, rows need no label.
      skip_bad: Whether to skip bad rows instead of raising.

    Returns:
      The summary: numbers of rows read, written, left out and skipped, of turns, and of rows with each finding.

    Raises:
      DataError: If the data cannot be found, if there is nothing to train on, or if an output cannot be written.
      RowError: For the first bad row, unless bad rows are skipped.
    """
    source, path, bad = sharegpt.find_source(data), Path(out), BadRows(skip_bad)
    sharegpt.refuse_overwriting(source.path, path, path.with_suffix('.summary.json'), path.with_suffix('.svg'))
    findings, scores, weights = collections.Counter(), collections.Counter(), collections.Counter()
    rows = written = turns = 0
    with claim(path), row_writer(path) as write:
        for span, row in read_rows(source.path, bad):
            try:
                prepared = prepare_row(row, domain, mode, gamma, weight, source.layout)
            except ValueError as error:
                bad.add(RowError(source.path, span.number, str(error)))
                continue
            rows += 1
            findings.update(prepared.findings)
            if prepared.row is None:
                continue
            write(prepared.row)
            trained = prepared.weights[prepared.untrained:]
            written, turns = written + 1, turns + len(trained)
            scores[round(prepared.score, 3)] += 1
            weights.update(round(value, 3) for value in trained)
        if not written:
            raise sharegpt.DataError(
                f'{source.path} has nothing to train on ({bad.count} bad rows skipped, {rows} left out)'
                + ''.join(f'\n  {findings[name]:6d}  {what}' for name, (what, *_) in FINDINGS.items()
                          if findings[name]))
    summary = {
        'domain': domain, 'mode': mode, 'gamma': gamma, 'weight': weight if mode == 'corrected' else None,
        'rows': rows, 'written': written, 'left_out': rows - written, 'bad': bad.count,
        'bad_reasons': dict(bad.reasons), 'turns': turns,
        'findings': {name: {'rows': findings[name], 'what': what, 'done': done[MODES.index(mode)]}
                     for name, (what, *done) in FINDINGS.items() if findings[name]}}
    write_atomically(path.with_suffix('.summary.json'), json.dumps(summary, indent=2, ensure_ascii=False) + '\n')
    write_atomically(path.with_suffix('.svg'), draw_histograms(
        (('score of a conversation', scores), ('weight of a turn', weights)), f'{path.name}: {domain}, {mode}'))
    return summary


def draw_histograms(panels: Sequence[tuple[str, Mapping[float, int]]], title: str, bins: int = 24) -> bytes:
    """Draw histograms side by side and return the SVG file. Equal arguments give equal bytes.

    Args:
      panels: For every histogram its caption and how often each value occurred.
      title: Title of the figure.
      bins: Number of bins of every histogram.
    """
    # Imported here because only this function needs it.
    import matplotlib
    from matplotlib.figure import Figure

    # Text stays text, and the ids of SVG elements are hashed with a fixed salt instead of a random one.
    with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'epo_jax'}):
        figure = Figure(figsize=(4.5 * len(panels), 3.5), layout='constrained')
        figure.suptitle(title, fontsize='large', parse_math=False)
        for axes, (caption, counts) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
            total = sum(counts.values())
            mean = sum(value * count for value, count in counts.items()) / total
            deviation = math.sqrt(sum(count * (value - mean) ** 2 for value, count in counts.items()) / total)
            axes.hist(list(counts), bins, weights=list(counts.values()), rwidth=0.9)
            axes.set_title(f'{caption} (n = {total:,})', fontsize='medium')
            axes.set_xlabel(f'mean {mean:.3f}, standard deviation {deviation:.3f}')
            axes.spines[['top', 'right']].set_visible(False)
        file = io.BytesIO()
        figure.savefig(file, format='svg', metadata={'Date': None})
    return file.getvalue()


def describe(summary: Mapping[str, Any]) -> str:
    """Format the summary as lines of text."""
    lines = [f'prepared {summary["written"]} of {summary["rows"]} conversations in {summary["mode"]} mode: '
             f'{summary["turns"]} turns, {summary["left_out"]} conversations left out, '
             f'{summary["bad"]} bad rows skipped']
    lines += [f'  {finding["rows"]:6d}  {finding["what"]}: {finding["done"]}'
              for finding in summary['findings'].values()]
    return '\n'.join(lines)


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Run the command, see the module docstring."""
    parser = argparse.ArgumentParser(prog='python -m epo_jax.prepare', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--data', required=True, help='labeled conversations: file, folder or dataset_info.json')
    add('--out', required=True, help='.json or .jsonl file to write')
    add('--domain', required=True, choices=sharegpt.DOMAINS, help='environment of the conversations')
    add('--mode', default='corrected', choices=MODES, help='how to compute the weights (default: corrected)')
    add('--gamma', type=float, default=0.99, help='discount factor (default: 0.99)')
    add('--weight', type=float, default=1.0,
        help='reward of a selected turn in corrected mode; with 0, rows need no label (default: 1)')
    add('--skip_bad', action='store_true', help='skip and count bad rows instead of stopping')
    args = parser.parse_args(argv)
    if not (0 <= args.gamma <= 1 and math.isfinite(args.weight)):
        parser.error('--gamma must be between 0 and 1, and --weight must be finite')
    with command.one_line_errors():
        summary = prepare_file(args.data, args.out, args.domain, args.mode, args.gamma, args.weight, args.skip_bad)
    out = Path(args.out)
    print(describe(summary))
    print(f'wrote {out}, {out.with_suffix(".summary.json")}, {out.with_suffix(".svg")}')


if __name__ == '__main__':
    command.run(main)
