"""Evaluation: the same held-out scenarios and random keys under every condition, such as with and without a strategist.

Every finished episode is written at once, so that an evaluation that was stopped continues where it was.

Axis letters: E episodes (scenarios times repetitions), S seats.
"""

import collections
import dataclasses
import hashlib
import json
import pathlib
from typing import Any, Callable, Hashable, Mapping, Optional, Sequence

import jax
from ml_collections import ConfigDict
import numpy as np

from epo_jax import scores as statistics
from epo_jax.cases import Case, EpisodeLog, batches, cases, partner_strategist
from epo_jax.config import to_json
from epo_jax.defaults import MAY_DIFFER
from epo_jax.envs.base import Domain
from epo_jax.iteration import Experiment
from epo_jax.rewards.rubric import overall
from epo_jax.rl.selfplay import Match
from epo_jax.runtime import hosts, streams
from epo_jax.runtime.errors import InputError
from epo_jax.runtime.files import read_jsonl, write_atomically, write_jsonl
from epo_jax.runtime.secrets import redact

KEYS = 2**31 - 1  # repetition r of an evaluation uses KEYS - r in place of an iteration number in its random keys
# Keys of a configuration that do not change what an evaluation finds.
WITHOUT_EFFECT = (*(name for name in MAY_DIFFER if name != 'evaluation'), 'evaluation.every', 'evaluation.bootstrap')


@dataclasses.dataclass(frozen=True)
class Result:
    """The scores of an evaluation.

    Attributes:
      rows: the table.
      dimensions: the table of every dimension that a judge rated, and of their mean, 'overall'.
      records: of all episodes.
      protocol: what must be the same where scores are compared, see `describe_protocol`.
    """

    rows: Sequence[statistics.Row]
    dimensions: Mapping[str, Sequence[statistics.Row]]
    records: Sequence[Mapping[str, Any]]
    protocol: Mapping[str, Any]


def run_evaluation(exp: Experiment, policy: Any, snapshots: Sequence[Any], scenarios: Sequence[Any],
                   workdir: pathlib.Path, name: str, policy_name: str, conditions: Sequence[str],
                   stop: Callable[[], None] = lambda: None) -> Result:
    """Play scenarios under every condition with the same keys; write the episodes and the scores.

    Args:
      exp: the parts of the run.
      policy: the parameters of the condition 'policy', in the form in which a strategist samples.
      snapshots: those of the partner 'pool'; every condition plays against each of them.
      scenarios: see `select`.
      workdir: gets episodes/NAME.jsonl and NAME.json.
      name: of the evaluation.
      policy_name: what `policy` is, such as the number of an iteration. Episodes of another policy are played again.
      conditions: the strategists to compare.
      stop: called before every batch; it may raise an error to stop the evaluation.
    """
    config, domain = exp.config, exp.domain
    protocol = describe_protocol(config, domain, scenarios)
    key = _digest([relevant(config), policy_name, list(conditions), protocol])
    finished, summary = workdir / 'episodes' / f'{name}.jsonl', workdir / f'{name}.json'
    records = _finished(finished, summary, key)
    if records is None:
        log = EpisodeLog(workdir / 'episodes' / f'{name}.partial.jsonl', key)
        planned = list(cases(config, domain.seats, conditions, len(snapshots)))
        together = exp.remote is not None and jax.process_count() == 1
        for batch in batches(planned, log, len(scenarios), config.rollout.batch, together):
            stop()
            log.add(_play(exp, batch, policy, snapshots, scenarios))
        records = log.sorted(planned)
        if hosts.is_primary():
            write_jsonl(finished, records)
    result = summarize(records, conditions, scenarios, config, domain, protocol)
    if hosts.is_primary():
        write_atomically(summary, statistics.to_json(
            {'key': key, 'environment': protocol['environment'], 'protocol': protocol}, result.rows,
            scores_of(records, conditions, len(scenarios) * config.evaluation.repetitions, domain.seats),
            [scenario.category for scenario in scenarios] * config.evaluation.repetitions, result.dimensions))
        (workdir / 'episodes' / f'{name}.partial.jsonl').unlink(missing_ok=True)
    return result


def _finished(episodes: pathlib.Path, summary: pathlib.Path, key: str) -> Optional[list[dict[str, Any]]]:
    """Return the records of an evaluation with this key that was completed; None if there is none."""
    def read() -> dict[int, Any]:
        try:
            saved = json.loads(summary.read_text(encoding='utf-8')).get('key')
            return {0: read_jsonl(episodes) if saved == key else None}
        except (OSError, ValueError, AttributeError, RecursionError):
            return {0: None}

    return hosts.share_all(read if hosts.is_primary() else dict)[0]


def _play(exp: Experiment, batch: Sequence[tuple[Case, tuple[int, ...]]], policy: Any, snapshots: Sequence[Any],
          scenarios: Sequence[Any]) -> list[dict[str, Any]]:
    """Play and judge a batch; return the records of its episodes."""
    exp.progress.stage('evaluation: ' + ', '.join(dict.fromkeys(redact(case.condition) for case, _ in batch)))
    matches = []
    for case, episodes in batch:
        snapshot = () if case.partner is None else (snapshots[case.partner],)
        table = exp.table(tuple(
            dataclasses.replace(exp.seat(kind, seat in case.tested, policy, snapshot, 0), trained=False)
            for seat, kind in enumerate(case.kinds)))
        matches.append((Match(case.kinds, episodes), table))
    results = exp.collect(matches, scenarios, [KEYS - case.repetition for case, _ in batch])
    results = exp.judge(results, 'none', every=True)
    return [case.label() | record for (case, _), result in zip(batch, results, strict=True)
            for record in result.records()]


def select(held_out: Sequence[Any], config: ConfigDict, domain: Domain) -> list[Any]:
    """Return the scenarios of an evaluation.

    Args:
      held_out: the held-out scenarios.
      config: its `evaluation.set` names those to choose from, and `evaluation.episodes` their number, at most; a panel
        or a file gives all its scenarios in its order.
      domain: the environment.

    Raises:
      InputError: there are none, or the file of `evaluation.set` names unknown ones.
    """
    which, count = config.evaluation.set, config.evaluation.episodes
    if which == 'all':
        return choose(held_out, domain.situation, count, config.seed)
    if which == 'hard':
        hard = [scenario for scenario in held_out if getattr(scenario, 'hard', False)]
        if not hard:
            raise InputError("evaluation.set='hard': no held-out scenario is marked as hard")
        return choose(hard, domain.situation, count, config.seed)
    try:
        text = pathlib.Path(domain.panels.get(which, which)).read_text(encoding='utf-8-sig')
    except (OSError, ValueError) as error:
        known = ', '.join(map(repr, ('all', 'hard', *domain.panels)))
        raise InputError(f'evaluation.set must be {known} or a file with the id of a scenario in every line, not '
                         f'{which!r} ({error})') from None
    ids = [line.strip() for line in text.splitlines() if line.strip()]
    known = {scenario.id: scenario for scenario in held_out}
    unknown = [name for name in ids if name not in known]
    if unknown or not ids or len(set(ids)) < len(ids):
        raise InputError(f'evaluation.set: {which} must name held-out scenarios, each once; '
                         + (f'there is no {unknown[0]!r}' if unknown else 'it is empty or names one twice'))
    return [known[name] for name in ids]


def choose(scenarios: Sequence[Any], situation: Callable[[Any], Hashable], count: int, seed: int) -> list[Any]:
    """Choose scenarios at random, so that every situation occurs once before any occurs again.

    Args:
      scenarios: the set.
      situation: see `Domain.situation`.
      count: number of scenarios, at most; all of them if there are fewer.
      seed: of the choice.
    """
    shuffled = [scenarios[i] for i in streams.generator('evaluation', seed).permutation(len(scenarios))]
    seen, rank = collections.Counter(), []
    for scenario in shuffled:
        rank.append(seen[situation(scenario)])
        seen[situation(scenario)] += 1
    return [shuffled[i] for i in np.argsort(rank, kind='stable')[:count]]


def scores_of(records: Sequence[Mapping[str, Any]], conditions: Sequence[str], episodes: int, seats: int,
              dimension: Optional[str] = None) -> dict[str, np.ndarray]:
    """Return the scores of the tested seats in records, by condition.

    Args:
      records: of episodes, with the fields of `Case.label`.
      conditions: the conditions.
      episodes: E, scenarios times repetitions; an episode's number is that of its scenario plus repetition * scenarios.
      seats: S.
      dimension: of a judge's scores; None for ten times the outcome.

    Returns:
      {condition: f[E, S * partners]}, NaN where there is no score.
    """
    partners = 1 + max((record.get('partner', 0) for record in records), default=0)
    repetitions = 1 + max((record['repetition'] for record in records), default=0)
    scores = {name: np.full((episodes, partners, seats), np.nan) for name in conditions}
    by_label = {redact(name): name for name in conditions}
    for record in records:
        e = record['episode'] + record['repetition'] * (episodes // repetitions)
        for seat in record['tested']:
            about = record['seats'][seat]
            if dimension is None:
                value = None if about['outcome'] is None else 10 * about['outcome']
            else:
                value = about['judge'].get('scores', {}).get(dimension)
            if value is not None:
                scores[by_label[record['condition']]][e, record.get('partner', 0), seat] = value
    return {name: values.reshape(episodes, -1) for name, values in scores.items()}


def summarize(records: Sequence[Mapping[str, Any]], conditions: Sequence[str], scenarios: Sequence[Any],
              config: ConfigDict, domain: Domain, protocol: Mapping[str, Any]) -> Result:
    """Return the scores in the records of an evaluation."""
    repetitions = config.evaluation.repetitions
    episodes = len(scenarios) * repetitions
    situations = [domain.situation(scenario) for scenario in scenarios] * repetitions
    rows = statistics.compare(scores_of(records, conditions, episodes, domain.seats), situations,
                              config.evaluation.bootstrap, config.seed)
    rated = {name for record in records for seat in record['seats'] for name in seat['judge'].get('scores', {})}
    names = [dimension.name for dimension in domain.rubric if dimension.name in rated]
    scores = {name: scores_of(records, conditions, episodes, domain.seats, name) for name in names}
    if len(names) > 1:
        scores['overall'] = {
            condition: overall({name: scores[name][condition] for name in names}) for condition in conditions}
    return Result(rows, {name: statistics.compare(values, situations, config.evaluation.bootstrap, config.seed)
                         for name, values in scores.items() if len(names) > 1}, records, protocol)


def print_result(exp: Experiment, result: Result, scenarios: Sequence[Any]) -> None:
    """Print the tables of an evaluation."""
    config, domain, line, protocol = exp.config, exp.domain, exp.progress.line, result.protocol
    conditions = [row.condition for row in result.rows]
    exp.progress.table(f'Goal scores on held-out scenarios of {protocol["environment"]}',
                       *statistics.table_of(result.rows))
    line('protocol: ' + ', '.join(f'{name} {value}' for name, value in protocol.items() if name != 'environment'))
    if result.dimensions:
        exp.progress.table(f"Scores of the judge's dimensions, and differences to {redact(conditions[0])}",
                           *statistics.by_dimension(result.dimensions))
    repetitions = config.evaluation.repetitions
    groups = [(scenario.category, *(('hard',) if getattr(scenario, 'hard', False) else ()))
              for scenario in scenarios] * repetitions
    if 1 < len({name for group in groups for name in group}) <= statistics.MAX_CATEGORIES:
        scores = scores_of(result.records, conditions, len(groups), domain.seats)
        exp.progress.table('By category', *statistics.by_category(scores, groups))


def describe_protocol(config: ConfigDict, domain: Domain, scenarios: Sequence[Any]) -> dict[str, Any]:
    """Return what must be the same in two evaluations whose scores are compared, without secrets.

    The panel is a hash of the ids of the scenarios in their order; the prompts are a hash of the first texts that the
    models read in the first scenario, and of the judge's dimensions.
    """
    base = config.model.path
    actor = config.actor.model or base
    judge = config.judge.model or base if config.reward.outcome == 'judge' else config.reward.outcome
    openings: Any = domain.variant(config.environment)
    if domain.text_environment is not None:
        env = domain.text_environment(config.environment)
        openings = env.reset(scenarios[0], (True,) * domain.seats)[1]
    rubric = [dataclasses.astuple(dimension) for dimension in domain.rubric]
    named = {
        'environment': domain.variant(config.environment), 'set': config.evaluation.set, 'judge': judge,
        'actor': actor, 'partner': config.partner.model or actor, "partner's strategist": partner_strategist(config)}
    return {name: redact(value) for name, value in named.items()} | {
        'repetitions': config.evaluation.repetitions, 'scenarios': len(scenarios),
        'panel': _digest([scenario.id for scenario in scenarios])[:8], 'prompts': _digest([openings, rubric])[:8]}


def relevant(config: ConfigDict) -> dict[str, Any]:
    """Return the part of a configuration that an evaluation depends on, as plain values."""
    tree = json.loads(redact(to_json(config)))
    for name in WITHOUT_EFFECT:
        group, _, key = name.rpartition('.')
        (tree[group] if group else tree).pop(key, None)
    return tree


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
