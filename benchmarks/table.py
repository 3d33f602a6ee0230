"""Convert samples to rows of the table, and rows to Markdown."""

from typing import Any, Mapping, Optional, Sequence

from benchmarks import limits
from benchmarks.limits import Rates
from benchmarks.measure import Measured, Policy, Sample
from benchmarks.plan import OURS, Group, Row

LARGER_IS_BETTER = {'tokens/s': True, 'episodes/min': True, 's': False, 'MB': False}


def in_unit(unit: str, number: float, amount: float) -> float:
    """Convert `number`, the seconds of a run of `amount` units of work or a number of bytes, to the unit of a row."""
    return {'tokens/s': lambda: amount / number, 'episodes/min': lambda: 60 * amount / number,
            's': lambda: number, 'MB': lambda: number / 1e6}[unit]()


def value(row: Row, amount: float, sample: Sample) -> Optional[float]:
    """Return the value of a sample in a row, or None."""
    number = sample.seconds if row.field == 'seconds' else sample.values.get(row.field)
    return None if number is None else in_unit(row.unit, number, amount)


def ratio(unit: str, ours: Optional[float], other: Optional[float]) -> Optional[float]:
    """Return how many times better ours is than the other, or None if one is missing."""
    if not ours or not other:
        return None
    return ours / other if LARGER_IS_BETTER[unit] else other / ours


def best(unit: str, values: Mapping[str, Optional[float]]) -> Optional[str]:
    """Return the name of the best value, or None."""
    known = {name: x for name, x in values.items() if x is not None}
    choose = max if LARGER_IS_BETTER[unit] else min
    return choose(known, key=known.get) if known else None


def rows_of(group: Group, measured: Mapping[str, Measured], rates: Optional[Rates], policy: Policy,
            missing: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the finished rows of a group.

    Args:
      measured: samples by the name of the contender, and of those that measured the machine.
      rates: rates of the machine, measured at the same time; None if they are not known.
      policy: the policy for samples.
      missing: contenders that could not run, and why.
    """
    present = {name: measured.get(name, Measured()) for name in group.entries if name not in missing}
    least = limits.seconds(group.work, rates) if group.work and rates else None
    trouble = [f'{name}: {why}' for name, why in missing.items()]
    counted = present | {name: m for name, m in measured.items() if name not in group.entries}
    for name, m in counted.items():
        if len(m.samples) < policy.samples:
            trouble.append(f'{name}: only {len(m.samples)} of {policy.samples} clean samples, {m.refused} refused')
        if m.contended:
            trouble.append(f'{name}: {m.contended} of {len(m.samples)} samples CONTENDED')
    clean = not any(len(m.samples) < policy.samples or m.contended for m in counted.values())
    rows = []
    for row in group.rows:
        amount = lambda entry: entry.amount or group.amount
        values = {name: m.median(lambda s: value(row, amount(group.entries[name]), s)) for name, m in present.items()}
        ours = values.pop(OURS, None)
        equal = {n: x for n, x in values.items() if group.entries[n].equal and x is not None}
        top, limit = best(row.unit, equal), None
        if row.limit and row.limit[0] == 'work':
            limit = None if least is None else in_unit(row.unit, least, group.amount)
        elif row.limit:
            number = present.get(OURS, Measured()).median(lambda s: s.values.get(row.limit[0]))
            limit = None if number is None else in_unit(row.unit, row.limit[1] * number, 1)
        rows.append({
            'name': row.name, 'ours': ours, 'unit': row.unit, 'peers': equal,
            'ratio_to_peer': ratio(row.unit, ours, equal.get(top)), 'limit': limit,
            'ratio_to_limit': ratio(row.unit, ours, limit), 'best_peer': top,
            'other_precision': {n: x for n, x in values.items() if not group.entries[n].equal and x is not None},
            'clean': clean, 'notes': trouble, 'work': group.what,
            'samples': {name: _account(row, amount(group.entries[name]), m) for name, m in present.items()},
            'details': _details(group, row, present, least, rates)})
    return rows


def _account(row: Row, amount: float, m: Measured) -> dict[str, Any]:
    """Return how the value of a contender was measured."""
    values = [x for x in (value(row, amount, s) for s in m.samples) if x is not None]
    return {'count': len(m.samples), 'refused': m.refused, 'contended': m.contended, 'values': values,
            'foreign_share': [round(s.foreign, 4) for s in m.samples]}


def _details(group: Group, row: Row, present: Mapping[str, Measured], least: Optional[float],
             rates: Optional[Rates]) -> dict[str, Any]:
    """Return seconds of a run, milliseconds a step, share of the matrix product rate, and what our runs reported."""
    details = {}
    if row.field == 'seconds':
        # For a contender that does only a part of the work, show the seconds that all of it would take.
        scale = {name: group.amount / (group.entries[name].amount or group.amount) for name in present}
        seconds = {name: m.median(lambda s: s.seconds * scale[name]) for name, m in present.items()}
        seconds['limit'] = least
        seconds = {name: x for name, x in seconds.items() if x is not None}
        details['seconds'] = seconds
        if group.steps:
            details['ms_per_step'] = {name: 1000 * x / group.steps for name, x in seconds.items()}
        if group.work and rates:
            details['share_of_gemm_rate'] = {
                name: limits.flops(group.work) / x / rates.gemm for name, x in seconds.items()}
            details |= {'flops': limits.flops(group.work), 'bytes': sum(step.bytes for step in group.work),
                        'rates': rates._asdict()}
    samples = present.get(OURS, Measured()).samples
    names = {name for sample in samples for name in sample.values}
    ours = {name: present[OURS].median(lambda s: s.values.get(name)) for name in sorted(names)}
    return details | ({'ours': ours} if ours else {})


def markdown(result: Mapping[str, Any]) -> str:
    """Return the table, followed by the machine, the versions and remarks on every row."""
    show = lambda x: '–' if x is None else f'{x:,.0f}' if x >= 1000 else f'{x:.3g}'
    times = lambda x: '–' if x is None else f'{x:.2f}'
    lines = [
        '# Benchmarks', '',
        f'{result["machine"]["cpu"]}, {result["machine"]["cores"]} cores, {result["machine"]["memory_gb"]:.0f} GB; '
        f'{", ".join(result["machine"]["devices"])}. Commit {result["commit"]}, {result["date"]}. '
        + ', '.join(f'{name} {version}' for name, version in result['versions'].items()) + '.', '',
        f'{result["precision"]}; medians of {result["settings"]["samples"]} samples, contenders alternating'
        f'{" (quick: less work)" if result["quick"] else ""}. A ratio above 1 means that epo_jax is '
        'better, in every unit. Peer ratios compare with the best peer at equal precision, limit ratios with '
        'max(bytes / measured bandwidth, operations / measured matrix product rate).', '',
        '| row | ours | unit | peers | × best peer | limit | × limit | ms a step: ours, best peer, limit | clean |',
        '| --- | ---: | --- | --- | ---: | ---: | ---: | ---: | --- |']
    for row in result['rows']:
        peers = [f'{name} {show(x)}' for name, x in row['peers'].items()]
        peers += [f'({name} {show(x)})' for name, x in row['other_precision'].items()]
        steps = row['details'].get('ms_per_step', {})
        ms = ' / '.join(show(steps.get(name)) for name in (OURS, row['best_peer'], 'limit')) if steps else ''
        lines.append('| ' + ' | '.join([
            row['name'], show(row['ours']), row['unit'], ', '.join(peers) or '–', times(row['ratio_to_peer']),
            show(row['limit']), times(row['ratio_to_limit']), ms, 'yes' if row['clean'] else 'NO']) + ' |')
    lines += ['', 'Rows:', '']
    for row in result['rows']:
        reported = ', '.join(f'{name} {show(x)}' for name, x in row['details'].get('ours', {}).items())
        notes = ''.join(f' **{note}.**' for note in row['notes'])
        lines.append(f'- `{row["name"]}`: {row["work"]}.{f" Reported: {reported}." if reported else ""}{notes}')
    return '\n'.join(lines) + '\n'


def show(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return one line a row, for the terminal."""
    number = lambda x: '-' if x is None else f'{x:.4g}'
    return '\n'.join(
        f'{r["name"]}: {number(r["ours"])} {r["unit"]}  best peer {number(r["peers"].get(r["best_peer"]))} '
        f'(x{number(r["ratio_to_peer"])})  limit {number(r["limit"])} (x{number(r["ratio_to_limit"])})'
        + ('' if r['clean'] else '  NOT CLEAN') for r in rows)
