"""Tables of evaluations, from their JSON (see `scores.to_json`)."""

from typing import Any, Mapping, NamedTuple, Optional, Sequence

import numpy as np

from epo_jax import scores
from epo_jax.report.sources import ReportError, Source


class Table(NamedTuple):
    """A table of text.

    Attributes:
      title: of the table.
      columns: titles of the columns.
      cells: rows of text; the first column names the row.
    """

    title: str
    columns: Sequence[str]
    cells: Sequence[Sequence[str]]


class Evaluation(NamedTuple):
    """An evaluation of a run.

    Attributes:
      title: what was evaluated.
      tables: conditions with intervals and paired differences; dimensions of the judge; categories.
      protocol: what must be the same where scores are compared.
    """

    title: str
    tables: Sequence[Table]
    protocol: Mapping[str, Any]


def evaluations(source: Source) -> list[Evaluation]:
    """Return the evaluations of a run, the final one first.

    Raises:
      ReportError: one is damaged.
    """
    return [_evaluation(source, name, found) for name, found in source.evaluations.items()]


def _evaluation(source: Source, name: str, found: Mapping[str, Any]) -> Evaluation:
    number = name.removeprefix('evaluation').strip('_').lstrip('0')
    try:
        tables = [Table('Goal scores', *scores.table_of([_row(row) for row in found['table']]))]
        if found.get('dimensions'):
            tables.append(Table("Dimensions of the judge", *scores.by_dimension(
                {name: [_row(row) for row in rows] for name, rows in found['dimensions'].items()})))
        if len(set(found['categories'])) > 1:
            values = {name: np.array(part, float) for name, part in found['scores'].items()}
            tables.append(Table('By category', *scores.by_category(values, [(c,) for c in found['categories']])))
        return Evaluation(f'after iteration {number}' if number else 'final', tables, found.get('protocol', {}))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ReportError(f'{source.path / name}.json is damaged ({type(error).__name__}: {error}); remove it, or '
                          'evaluate again') from error


def _row(row: Mapping[str, Any]) -> scores.Row:
    number = lambda value: np.nan if value is None else value
    difference = row['difference'] and tuple(map(number, row['difference']))
    return scores.Row(row['condition'], number(row['mean']), number(row['low']), number(row['high']), difference,
                      row['scored'], row['missing'])


def protocol_warning(found: Sequence[Evaluation]) -> Optional[str]:
    """Return why the scores of evaluations must not be compared, or None."""
    protocols = [dict(evaluation.protocol) for evaluation in found]
    differ = sorted({name for one in protocols for name in one if any(one[name] != o.get(name) for o in protocols)})
    if not differ:
        return None
    return f'Scores of different runs cannot be compared: their protocols differ in {", ".join(differ)}.'


def arms(outcomes: Mapping[str, Sequence[float]]) -> Optional[Table]:
    """Return the table of recorded traffic by arm; None without outcomes."""
    from epo_jax.serve.results import compare_arms

    found = {arm: values for arm, values in outcomes.items() if values}
    return Table('Outcomes by arm', *scores.table_of(compare_arms(found))) if found else None
