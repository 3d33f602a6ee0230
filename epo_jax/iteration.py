"""One self-play iteration: rollout -> judge -> credit -> gradient steps.

Twice, with the same parts: `step_by_step` from a host loop, for any table, and `one_program` compiled as a whole
(compiled.py), where everybody is on the device. Both leave a `Lesson`.

Axis letters: E episodes of a match, S seats, N trained conversations, T turns of one seat.
"""

import dataclasses
import math
from typing import Any, Mapping, Optional, Sequence

import jax
from ml_collections import ConfigDict
import numpy as np

from epo_jax import compiled, records
from epo_jax.agents.base import Player, Seat
from epo_jax.envs.base import Account, Domain, Environment
from epo_jax.envs.host import HostEnvironment
from epo_jax.rewards.outcome import load_outcome, scored
from epo_jax.rewards.process import Verdict, assess
from epo_jax.rewards.reading import Reading, readings
from epo_jax.rl import credit, learner as learning, selfplay
from epo_jax.rl.trajectory import Trajectory, trajectory
from epo_jax.roles import Roles, for_sampling
from epo_jax.rollout import Archive, Table, episode_keys, rollout, turns_of
from epo_jax.runtime.errors import InputError
from epo_jax.runtime.hosts import everywhere
from epo_jax.runtime.telemetry import Progress, Stopwatch


@dataclasses.dataclass
class Run:
    """Everything that is built once and then only used; `shardings` are those of parameters that sample."""

    config: ConfigDict
    domain: Domain
    roles: Roles
    learner: learning.Learner
    progress: Progress
    watch: Stopwatch
    shardings: Any


@dataclasses.dataclass(frozen=True)
class Played:
    """The finished episodes of one match with what the judge said of every seat.

    Attributes:
      table: who played; kinds: their strategists.
      scenarios, numbers: of the episodes, the latter within the iteration.
      archive, reasons: what happened, and why episodes were cut off.
      verdict: of every seat, seat-major.
    """

    table: Table
    kinds: tuple[str, ...]
    scenarios: Sequence[Any]
    numbers: Sequence[int]
    archive: Archive
    reasons: Mapping[int, str]
    verdict: Verdict

    def accounts(self) -> list[Account]:
        """The episodes in text."""
        return self.table.env.accounts(self.scenarios, self.archive.env, self.archive.messages)

    def records(self) -> list[dict[str, Any]]:
        """See records.episode_records."""
        accounts = self.accounts()
        return records.episode_records(
            self.kinds, self.archive, accounts, self.reasons, readings(self.table, self.archive, accounts),
            self.verdict, self.numbers)


@dataclasses.dataclass(frozen=True)
class Lesson:
    """What an iteration leaves besides the new state.

    Attributes:
      played: by match.
      rows, verdict: the trained conversations, and what the judge said of them.
      reward, valid, advantage: [N, T].
      learned: metrics of the gradient steps.
    """

    played: Sequence[Played]
    rows: Trajectory
    verdict: Verdict
    reward: np.ndarray
    valid: np.ndarray
    advantage: np.ndarray
    learned: Mapping[str, float]

    def records(self) -> list[dict[str, Any]]:
        """One record an episode, with what was trained on."""
        saved = [record for played in self.played for record in played.records()]
        by_number = {record['episode']: record for record in saved}
        rows = self.rows
        for n in range(len(rows.ids)):
            records.add_credit(
                by_number[int(rows.episode[n])], int(rows.seat[n]), rows.ids[n], rows.turn[n], rows.logprob[n],
                int(rows.length[n]), int(rows.turn_mask[n].sum()), self.reward[n], self.valid[n], self.advantage[n])
        return saved


def sampled_by(this: Run, trained):
    """What was trained, in the form in which a strategist samples."""
    params = for_sampling(trained, this.learner.lora, this.roles.strategist.dtype, base(this))
    return params if this.learner.lora else jax.device_put(params, this.shardings)


@jax.jit
def keys_of(seed, iteration, episodes) -> jax.Array:
    """key[E] of the episodes of an iteration."""
    return episode_keys(jax.random.key(seed), iteration, episodes)


def credit_rules(config: ConfigDict) -> credit.Rules:
    """How the configuration assigns credit."""
    return credit.Rules(config.reward.combine, config.reward.weight, config.credit.gamma, config.credit.baseline,
                        config.credit.normalise)


def base(this: Run):
    """The frozen parameters under an adapter; None where there is none."""
    return this.roles.strategist.params if this.learner.lora else None


def seat(this: Run, kind: str, policy, snapshots: Sequence[Any], iteration: int) -> Seat:
    """A seat with a strategist of the given kind; `policy`: its parameters, None where a program adds them."""
    roles = this.roles
    actor = Player(roles.player, roles.actor.params, roles.actor.tokenizer)
    if kind == 'none':
        return Seat(actor)
    params = {'policy': policy, 'prompted': roles.strategist.params}.get(kind)
    if kind in ('snapshot', 'pool'):
        last = len(snapshots) - 1
        if last < 0:  # before the first iteration, the last snapshot is the model as it was
            params = roles.strategist.params
        else:
            index = last if kind == 'snapshot' else selfplay.draw_snapshot(this.config.seed, iteration, last + 1)
            params = sampled_by(this, snapshots[index])
    return Seat(actor, Player(roles.adviser, params, roles.strategist.tokenizer), trained=kind == 'policy')


def environment(this: Run, seats: tuple[Seat, ...]) -> Environment:
    """The environment for a table of these seats: on the device, or text on the host."""
    c, domain = this.config, this.domain
    if c.rollout.compiled or domain.environment is None:
        return domain.tokens(c.environment, seats[0].actor.tokenizer, c.rollout.view_tokens)
    return HostEnvironment(
        domain.environment(c.environment), seats, c.rollout.view_tokens, c.environment.timeout or None)


def table(this: Run, seats: tuple[Seat, ...], group: int = 1) -> Table:
    """A table of these seats."""
    return Table(environment(this, seats), seats, group, this.roles.adviser.width)


def tables(this: Run, train: learning.TrainState, snapshots: Sequence[Any],
           iteration: int) -> list[tuple[selfplay.Match, Table]]:
    """The matches of an iteration and who sits at their tables."""
    config = this.config
    policy = None if config.rollout.compiled else sampled_by(this, train.params)  # a program takes it from the state
    found = []
    for match in selfplay.matches(config.seats, config.rollout.episodes):
        seats = tuple(seat(this, kind, policy, snapshots, iteration) for kind in match.kinds)
        found.append((match, table(this, seats, config.rollout.group)))
    return found


def step_by_step(this: Run, train: learning.TrainState, tables: Sequence[tuple[selfplay.Match, Table]],
                 scenarios: Sequence[Any], iteration: int) -> tuple[learning.TrainState, Lesson]:
    """An iteration from a host loop, for any table."""
    config = this.config
    played = [play(this, table, match.kinds, [scenarios[i] for i in match.episodes], match.episodes,
                   keys_of(config.seed, iteration, np.array(match.episodes)), config.reward.process)
              for match, table in tables]
    rows, verdict = join([gather(p, config.rollout.group) for p in played])
    reward, valid, advantage = map(np.asarray, credit.assign(
        verdict.process, verdict.valid, verdict.outcome, verdict.outcome_valid, rows.turn_mask, rows.group,
        credit_rules(config)))
    with this.watch('learn'):
        train, learned = learn(this, train, rows, advantage, valid, iteration)
    return train, Lesson(played, rows, verdict, reward, valid, advantage, learned)


def one_program(this: Run, train: learning.TrainState, tables: Sequence[tuple[selfplay.Match, Table]],
                scenarios: Sequence[Any], iteration: int) -> tuple[learning.TrainState, Lesson]:
    """The same, compiled as a whole.

    Raises:
      InputError: somebody is not on the device.
    """
    config = this.config
    matches, tables = zip(*tables)
    if not all(table.on_device for table in tables):
        raise InputError('rollout.compiled: somebody at the table is not on the device, or speaks in other tokens')
    numbers = [np.array(match.episodes, np.int32) for match in matches]
    parts = [[scenarios[i] for i in match.episodes] for match in matches]
    settings = compiled.Settings(
        this.learner, this.roles.strategist.dtype, config.rollout.batch, config.reward.process, config.reward.outcome,
        credit_rules(config))
    trained = [[s for s, seat in enumerate(table.seats) if seat.trained] for table in tables]
    count = sum(len(n) * len(seats) for n, seats in zip(numbers, trained))
    order = compiled.order(count, config.learner.batch, config.learner.epochs, (config.seed, iteration))
    asks = config.reward.outcome == 'judge' or config.reward.process != 'none'
    with this.watch('program'), this.progress.phase('iteration', unit='episodes') as phase:
        queues, groups, order = jax.device_put((
            tuple(table.env.encode(part) for table, part in zip(tables, parts)),
            tuple(n // config.rollout.group for n in numbers), order))
        keys = tuple(keys_of(config.seed, iteration, n) for n in numbers)
        train, result = compiled.iterate(
            settings, train, tables, queues, keys, groups,
            this.roles.judge if asks else None, order, base(this))
        result = jax.tree.map(np.asarray, everywhere(result))
        phase.advance(sum(map(len, numbers)))

    played = [
        Played(table, match.kinds, part, match.episodes, archive, {}, verdict_of(judged))
        for match, table, part, archive, judged in zip(matches, tables, parts, result.archives, result.judged)]
    episode = np.concatenate([np.tile(n, len(seats)) for n, seats in zip(numbers, trained)])
    steps = [dict(zip(result.metrics, values)) for values in zip(*result.metrics.values())]
    _, verdict = join([gather(p, config.rollout.group) for p in played])
    return train, Lesson(played, result.rows.replace(episode=episode), verdict, result.reward, result.valid,
                         result.advantage, average(steps, iteration))


def verdict_of(judged: compiled.Judged) -> Verdict:
    """What the program's judge said, with notes for the record."""
    number = lambda value: round(float(value), 6)
    note = tuple({'rating': number(10 * outcome) if ok else None,
                  'potential': [number(p) for p in potential if np.isfinite(p)],
                  'critical': [number(p) for p in critical if np.isfinite(p)]}
                 for outcome, ok, potential, critical in zip(
                     judged.outcome, judged.outcome_valid, judged.potential, judged.critical))
    return Verdict(judged.process, judged.valid, judged.outcome, judged.outcome_valid, note)


def play(this: Run, table: Table, kinds: tuple[str, ...], scenarios: Sequence[Any], numbers: Sequence[int], keys,
         process: str) -> Played:
    """Plays and judges scenarios.

    Args:
      kinds: of the strategists at the table.
      numbers: of the episodes; keys: key[E]; process: method of the process reward.
    """
    env = table.env
    tokens = lambda said: 0 if said is None else int(np.sum(np.asarray(said.length)))
    with this.watch('rollout'), this.progress.phase('rollout', unit='turns') as phase:
        archive, reasons = rollout(
            table, env.encode(scenarios), keys, this.config.rollout.batch, on_turn=lambda turn: phase.advance(
                int(np.sum(turn.live)), tokens(turn.strategy) + tokens(turn.message)))
    with this.watch('judge'), this.progress.phase('judge', unit='turns'):
        accounts = env.accounts(scenarios, archive.env, archive.messages)
        read = with_outcome(this.config.reward.outcome, readings(table, archive, accounts), archive)
        verdict = assess(this.roles.judge, read, turns_of(env), process)
    return Played(table, kinds, scenarios, numbers, archive, reasons, verdict)


def with_outcome(name: str, read: list[Reading], archive: Archive) -> list[Reading]:
    """The readings with their score set by what config.reward.outcome names, where it is not the judge."""
    if name == 'judge':
        return read
    if name == 'environment':
        return [dataclasses.replace(reading, score=10 * float(value))
                for reading, value in zip(read, np.asarray(archive.reward).T.reshape(-1))]
    return scored(read, load_outcome(name))


def gather(played: Played, group: int) -> tuple[Trajectory, Verdict]:
    """The trained rows of a match and their verdicts."""
    numbers = np.array(played.numbers)
    rows = trajectory(played.table, played.archive, numbers // group)
    at = rows.seat * len(numbers) + rows.episode
    v = played.verdict
    return rows.replace(episode=numbers[rows.episode]), Verdict(
        v.process[at], v.valid[at], v.outcome[at], v.outcome_valid[at], tuple(v.note[n] for n in at))


def join(parts: Sequence[tuple[Trajectory, Verdict]]) -> tuple[Trajectory, Verdict]:
    """Puts the rows of several matches into one."""
    rows = jax.tree.map(lambda *xs: np.concatenate(xs), *(rows for rows, _ in parts))
    verdicts = [verdict for _, verdict in parts]
    field = lambda name: np.concatenate([getattr(verdict, name) for verdict in verdicts])
    return rows, Verdict(field('process'), field('valid'), field('outcome'), field('outcome_valid'),
                         sum((verdict.note for verdict in verdicts), ()))


def learn(this: Run, train: learning.TrainState, rows: Trajectory, advantage, valid,
          iteration: int) -> tuple[learning.TrainState, dict[str, float]]:
    """All gradient steps of an iteration: (state, metrics averaged over the steps)."""
    c = this.config.learner
    data = learning.Batch(rows.ids, rows.turn, rows.logprob, advantage, valid)
    batches = [
        batch for epoch in range(c.epochs) for batch in learning.batches(
            data, c.batch, np.random.default_rng((this.config.seed, iteration, epoch)), c.length_bucket)]
    steps = []
    with this.progress.phase('learn', len(batches), 'steps') as phase:
        for batch in batches:
            train, metrics = this.learner.step(train, batch, base(this))
            steps.append(metrics)
            phase.advance(1, batch.ids.size)
    return train, average(steps, iteration)


def average(steps: Sequence[Mapping[str, Any]], iteration: int) -> dict[str, float]:
    """Metrics of an iteration's gradient steps.

    Raises:
      FloatingPointError: a loss or gradient is not finite.
    """
    steps = [{name: float(value) for name, value in step.items()} for step in steps]
    for step in steps:
        if not math.isfinite(step['loss'] + step['gradient_norm']):
            raise FloatingPointError(
                f'iteration {iteration + 1}: loss {step["loss"]}, gradient norm {step["gradient_norm"]}; the '
                'checkpoint of the iteration before stands')
    mean = {f'learner/{name}': float(np.mean([step[name] for step in steps])) for name in steps[0]}
    # Only before the first step does the policy equal the one that sampled: there the gap is numerical error.
    return mean | {'learner/logprob_gap': steps[0]['logprob_gap'], 'learner/steps': len(steps)}


def describe(lesson: Lesson, saved: Optional[Sequence[dict]]) -> dict[str, float]:
    """Metrics of an iteration's episodes; what has to be read from texts only where there are records."""
    mean = lambda values: float(np.mean(values)) if len(values) else math.nan
    rows, verdict, reward, valid = lesson.rows, lesson.verdict, lesson.reward, lesson.valid
    field = lambda name: np.concatenate([np.asarray(getattr(played.archive, name)) for played in lesson.played])
    turns = int(rows.turn_mask.sum())
    metrics = dict(lesson.learned) | {
        'outcome/mean': mean(verdict.outcome[verdict.outcome_valid]),
        'outcome/missing': int((~verdict.outcome_valid).sum()),
        'reward/process': mean(verdict.process[verdict.valid]),
        'reward/per_turn': mean(reward[valid]),
        'reward/missing_turns': turns - int(valid.sum()),
        'episodes/count': len(field('cause')),
        'episodes/turns': mean(field('actions')),
        'episodes/truncated': int((field('cause') != 0).sum()),
        'strategy/tokens': int((rows.turn >= 0).sum()) / max(turns, 1),
        'strategy/logprob': mean(rows.logprob[rows.turn >= 0]),
    }
    if saved is None:
        return metrics
    texts = [turn['strategy'] for record in saved for turn in record['turns'] if turn['strategy']]
    events = [event for record in saved for event in record['events']]
    kinds = set(events) | {'action/repaired', 'action/unparsable'}
    return metrics | {'strategy/distinct': len(set(texts)) / max(len(texts), 1)} | {
        name: events.count(name) for name in sorted(kinds)}
