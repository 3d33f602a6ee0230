"""The outer loop of EPO, top to bottom. The only file that knows all the others.

    scenarios -> rollout -> judge -> credit -> gradient steps -> the next self-play iteration -> evaluation
"""

import dataclasses
import math
import pathlib
from typing import Any, Sequence

from flax import struct
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from epo_jax import evaluate, learner as learning, records, selfplay
from epo_jax.agents.base import Player, Seat
from epo_jax.checkpoint import Checkpoints, Preemption
from epo_jax.config import open_workdir
from epo_jax.defaults import MAY_DIFFER, validate
from epo_jax.envs.host import HostEnvironment
from epo_jax.envs.sotopia.dialogue import Sotopia
from epo_jax.envs.sotopia.profiles import Scenario, load_scenarios
from epo_jax.files import write_atomically, write_jsonl
from epo_jax.models.transformer import stack
from epo_jax.parallel import make_mesh, param_shardings
from epo_jax.rewards.outcome import load_outcome, scored
from epo_jax.rewards.process import Verdict, assess
from epo_jax.rewards.reading import Reading, readings
from epo_jax.rl import credit
from epo_jax.roles import Roles, build_roles, for_sampling
from epo_jax.rollout import Episodes, Table, Trajectory, episode_keys, rollout, trajectory
from epo_jax.telemetry import CompileCounter, MetricsWriter, Progress, Stopwatch


@struct.dataclass
class RunState:
    """What a run carries from one iteration to the next, and what a checkpoint holds."""

    train: learning.TrainState
    snapshots: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Played:
    """A batch of finished episodes with what the judge said of every seat."""

    table: Table
    kinds: tuple[str, ...]
    numbers: tuple[int, ...]
    episodes: Episodes
    readings: Sequence[Reading]
    verdict: Verdict


@dataclasses.dataclass
class Run:
    """Everything that is built once and then only used."""

    config: ConfigDict
    workdir: pathlib.Path
    roles: Roles
    learner: learning.Learner
    train: Sequence[Scenario]
    held_out: Sequence[Scenario]
    progress: Progress
    watch: Stopwatch


def run(config: ConfigDict, workdir: str) -> list[evaluate.Row]:
    """Trains and evaluates; resumes where the workdir holds a checkpoint.

    Returns:
      The evaluation, [] where none was asked for or the run was told to stop early.

    Raises:
      ConfigError, ProfileError, WeightsError, ...: before anything is trained, where the input is bad.
      FloatingPointError: a loss or gradient is not finite; the last checkpoint stands.
    """
    validate(config)
    scenarios = load_scenarios(config.scenarios)
    mesh = make_mesh(config.mesh)
    workdir = pathlib.Path(workdir)
    metrics = workdir / 'metrics.jsonl'
    begun = metrics.exists() and metrics.stat().st_size > 0  # before the first result, any configuration may replace another
    open_workdir(workdir, config, MAY_DIFFER if begun else tuple(config))
    with (Progress(config.iterations) as progress, CompileCounter() as compilations, Preemption() as preemption,
          Checkpoints(workdir, keep=config.checkpoint.keep, every=config.checkpoint.every) as checkpoints):
        # Models and learner
        watch = Stopwatch()
        with watch('load'):
            roles = build_roles(config, mesh)
        progress.line(f'strategist: {roles.strategist.config.num_params / 1e6:.1f}M parameters on {mesh.size} '
                      f'{jax.default_backend()} device(s), {roles.strategist.dtype}')
        this = Run(
            config, workdir, roles, make_learner(config, roles),
            [s for s in scenarios if s.split == 'train'], [s for s in scenarios if s.split == 'held_out'],
            progress, watch)

        # State: fresh, or as it was after the last iteration that was saved
        shardings = param_shardings(this.learner.model, mesh)
        start = checkpoints.latest() or 0
        fresh = jax.jit(lambda params: this.learner.init(jax.lax.with_sharding_constraint(stack(params), shardings)))
        if start:
            abstract = fresh.lower(roles.strategist.params).compile().out_info
            state, _ = checkpoints.restore(start, RunState(abstract, (abstract.params,) * pool_size(config, start)))
            progress.line(f'resumed after iteration {start} of {config.iterations}')
        else:
            state = RunState(fresh(roles.strategist.params), ())
            if begun:
                progress.line('the workdir holds no checkpoint yet: starting from the beginning')

        # Iterations
        with MetricsWriter(workdir, resume_step=start) as writer:
            for iteration in range(start, config.iterations):
                progress.start_iteration(iteration + 1)
                state, metrics = iterate(this, state, iteration)
                metrics |= {'time/compilations': compilations.count, 'time/compile': compilations.seconds}
                writer.write(iteration + 1, metrics)
                checkpoints.save(
                    iteration + 1, state, {}, force=preemption.requested or iteration + 1 == config.iterations)
                progress.line(summary(iteration + 1, metrics))
                if preemption.requested:
                    checkpoints.wait()
                    progress.line('asked to stop: saved, start again to go on')
                    return []
        checkpoints.wait()

        # Evaluation
        if not config.evaluation.episodes:
            return []
        rows = compare(this, state)
        columns, cells = evaluate.table(rows)
        progress.table('Goal scores on held-out scenarios', columns, cells)
        progress.line(f'episodes: {workdir / "episodes"}')
        return rows


def make_learner(config: ConfigDict, roles: Roles) -> learning.Learner:
    """The learner, with the length of its schedule."""
    c = config.learner
    trained = sum(sum(kind == 'policy' for kind in match.kinds) * len(match.episodes)
                  for match in selfplay.matches(config.seats, config.rollout.episodes))
    steps = config.iterations * c.epochs * math.ceil(trained / c.batch)
    return learning.Learner(
        roles.strategist.learner(config.model.remat), c.learning_rate, steps, c.schedule, c.warmup_ratio, c.clip,
        c.weight_decay, c.b1, c.b2, c.micro_batch)


def iterate(this: Run, state: RunState, iteration: int) -> tuple[RunState, dict[str, float]]:
    """One self-play iteration: (the state after it, its metrics). Writes its episodes."""
    config, watch = this.config, this.watch
    key = jax.random.key(config.seed)
    params = for_sampling(state.train.params, this.roles.strategist.dtype)
    chosen = draw(this.train, config.rollout.episodes, config.rollout.group, iteration, config.seed)

    # Rollout and judge
    played = []
    for match in selfplay.matches(config.seats, config.rollout.episodes):
        seats = tuple(seat(this, kind, params, state.snapshots, iteration) for kind in match.kinds)
        played += play(this, seats, match.kinds, [chosen[i] for i in match.episodes], match.episodes,
                       episode_keys(key, iteration, np.array(match.episodes)), config.reward.process)
    del params

    # Credit
    rows, verdict = join([gather(p, config.rollout.group) for p in played])
    reward, valid = credit.combine(
        verdict.process, verdict.valid, verdict.outcome, verdict.outcome_valid, rows.turn_mask,
        config.reward.combine, config.reward.weight)
    advantage = credit.advantages(
        reward, valid, rows.group, config.credit.gamma, config.credit.baseline, config.credit.normalise)
    reward, valid, advantage = map(np.asarray, (reward, valid, advantage))

    # Learning
    snapshots = ()
    if uses_pool(config):
        snapshots = selfplay.remember(state.snapshots, copy(state.train.params), config.pool_size)
    with watch('learn'):
        train, learned = learn(this, state.train, rows, advantage, valid, iteration)

    # Record
    saved = [record for p in played for record in records.episode_records(
        p.table, p.kinds, p.episodes, p.readings, p.verdict, p.numbers)]
    by_number = {record['episode']: record for record in saved}
    for n in range(len(rows.ids)):
        records.add_credit(
            by_number[int(rows.episode[n])], int(rows.seat[n]), rows.ids[n], rows.turn[n], rows.logprob[n],
            int(rows.length[n]), int(rows.turn_mask[n].sum()), reward[n], valid[n], advantage[n])
    folder = this.workdir / 'episodes'
    folder.mkdir(exist_ok=True)
    write_jsonl(folder / f'iteration_{iteration + 1:05d}.jsonl', saved)
    reason = records.failure_reason(saved)
    if reason:
        this.progress.line(f'{sum(r["truncated"] for r in saved)} episodes were cut off, the first because: {reason}')
    metrics = learned | describe(saved, rows, verdict, reward, valid) | watch.metrics()
    return RunState(train, snapshots), metrics


def seat(this: Run, kind: str, policy, snapshots: Sequence[Any], iteration: int) -> Seat:
    """A seat with a strategist of the given kind; `policy` are parameters for sampling."""
    roles = this.roles
    actor = Player(roles.player, roles.actor.params, roles.actor.tokenizer)
    if kind == 'none':
        return Seat(actor)
    params = {'policy': policy, 'prompted': roles.strategist.params}.get(kind)
    if params is None:
        last = len(snapshots) - 1
        if last < 0:  # before the first iteration, the last snapshot is the model as it was
            params = roles.strategist.params
        else:
            index = last if kind == 'snapshot' else selfplay.draw_snapshot(this.config.seed, iteration, last + 1)
            params = for_sampling(snapshots[index], roles.strategist.dtype)
    return Seat(actor, Player(roles.adviser, params, roles.strategist.tokenizer), trained=kind == 'policy')


def play(this: Run, seats: tuple[Seat, ...], kinds: tuple[str, ...], scenarios: Sequence[Scenario],
         numbers: Sequence[int], keys, process: str) -> list[Played]:
    """Plays and judges scenarios in batches of one size; the last batch is filled up with what is not played.

    Args:
      numbers: of the episodes; keys: key[episodes]; process: method of the process reward.
    """
    config, batch = this.config, this.config.rollout.batch
    c = config.environment
    sotopia = Sotopia(c.max_turns, c.max_stale, tuple(c.allowed), c.short, c.begun)
    env = HostEnvironment(sotopia, seats, config.rollout.view_tokens, c.timeout or None)
    table = Table(env, seats)
    outcome = None if config.reward.outcome == 'judge' else load_outcome(config.reward.outcome)
    played = []
    for i in range(0, len(scenarios), batch):
        own = tuple(numbers[i:i + batch])
        part = [*scenarios[i:i + batch], *[scenarios[0]] * (batch - len(own))]
        filled = np.minimum(np.arange(i, i + batch), len(scenarios) - 1)
        with this.watch('rollout'), this.progress.phase('rollout', env.max_turns, 'turns') as phase:
            episodes = rollout(table, part, keys[filled], count=len(own), on_turn=lambda turn: phase.advance(
                1, int(np.sum(turn.message.length)) + (int(np.sum(turn.strategy.length)) if turn.strategy else 0)))
        with this.watch('judge'), this.progress.phase('judge', unit='turns'):
            read = readings(table, episodes)
            read = scored(read, outcome) if outcome else read
            verdict = assess(this.roles.judge, read, episodes.max_turns, process)
        played.append(Played(table, kinds, own, episodes, read, verdict))
    return played


def gather(played: Played, group: int) -> tuple[Trajectory, Verdict]:
    """The trained rows of a batch, without its padding, and their verdicts."""
    batch, own = len(played.episodes.scenarios), len(played.numbers)
    numbers = np.array([*played.numbers, *[0] * (batch - own)])
    rows = trajectory(played.table, played.episodes, numbers // group)
    kept = rows.episode < own
    at = (rows.seat * batch + rows.episode)[kept]
    rows = jax.tree.map(lambda x: x[kept], rows)
    v = played.verdict
    return rows.replace(episode=numbers[rows.episode]), Verdict(
        v.process[at], v.valid[at], v.outcome[at], v.outcome_valid[at], tuple(v.note[n] for n in at))


def join(parts: Sequence[tuple[Trajectory, Verdict]]) -> tuple[Trajectory, Verdict]:
    """Puts the rows of several batches into one."""
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
            train, metrics = this.learner.step(train, batch)
            steps.append({name: float(value) for name, value in metrics.items()})
            if not math.isfinite(steps[-1]['loss'] + steps[-1]['gradient_norm']):
                raise FloatingPointError(
                    f'iteration {iteration + 1}: loss {steps[-1]["loss"]}, gradient norm '
                    f'{steps[-1]["gradient_norm"]}; the checkpoint of the iteration before stands')
            phase.advance(1, batch.ids.size)
    mean = {f'learner/{name}': float(np.mean([step[name] for step in steps])) for name in steps[0]}
    # Only before the first step does the policy equal the one that sampled: there the gap is numerical error.
    return train, mean | {'learner/logprob_gap': steps[0]['logprob_gap'], 'learner/steps': len(steps)}


def describe(saved: Sequence[dict], rows: Trajectory, verdict: Verdict, reward, valid) -> dict[str, float]:
    """Metrics of an iteration's episodes."""
    mean = lambda values: float(np.mean(values)) if len(values) else math.nan
    texts = [turn['strategy'] for record in saved for turn in record['turns'] if turn['strategy']]
    events = [event for record in saved for event in record['events']]
    kinds = {name for name in events if not name.startswith('action/none')} | {'action/repaired', 'action/unparsable'}
    turns = int(rows.turn_mask.sum())
    return {
        'outcome/mean': mean(verdict.outcome[verdict.outcome_valid]),
        'outcome/missing': int((~verdict.outcome_valid).sum()),
        'reward/process': mean(verdict.process[verdict.valid]),
        'reward/per_turn': mean(reward[valid]),
        'reward/missing_turns': turns - int(valid.sum()),
        'episodes/count': len(saved),
        'episodes/turns': mean([len(record['turns']) for record in saved]),
        'episodes/truncated': sum(record['truncated'] for record in saved),
        'strategy/tokens': int((rows.turn >= 0).sum()) / max(turns, 1),
        'strategy/distinct': len(set(texts)) / max(len(texts), 1),
        'strategy/logprob': mean(rows.logprob[rows.turn >= 0]),
    } | {name: events.count(name) for name in sorted(kinds)}


def summary(iteration: int, metrics: dict[str, float]) -> str:
    """One line on an iteration."""
    seconds = sum(metrics.get(f'time/{name}', 0) for name in ('rollout', 'judge', 'learn'))
    return (f'iteration {iteration}: outcome {metrics["outcome/mean"]:.3f}  loss {metrics["learner/loss"]:+.4f}  '
            f'gradient {metrics["learner/gradient_norm"]:.2f}  gap {metrics["learner/logprob_gap"]:.1e}  '
            f'turns {metrics["episodes/turns"]:.1f}  {seconds:.0f} s')


def compare(this: Run, state: RunState) -> list[evaluate.Row]:
    """Plays the held-out scenarios under every condition, with the same keys, and writes evaluation.json."""
    config = this.config
    if not this.held_out:
        raise ValueError('no scenario is held out: evaluation.episodes must be 0')
    order = np.random.default_rng(config.seed).permutation(len(this.held_out))
    scenarios = [this.held_out[i] for i in order[:config.evaluation.episodes]]
    numbers = tuple(range(len(scenarios)))
    keys = episode_keys(jax.random.key(config.seed), 2**31 - 1, np.array(numbers))
    policy = for_sampling(state.train.params, this.roles.strategist.dtype)
    scores, saved = {}, []
    for kind in config.evaluation.conditions:
        this.progress.stage(f'evaluation: {kind}')
        scores[kind] = np.full((len(scenarios), 2), np.nan)
        plays = [((kind, kind), (0, 1))] if config.evaluation.partner == 'self' or kind == 'none' else [
            ((kind, 'none'), (0,)), (('none', kind), (1,))]
        for kinds, tested in plays:
            seats = tuple(
                dataclasses.replace(seat(this, k, policy, (), 0), trained=False) for k in kinds)
            for played in play(this, seats, kinds, scenarios, numbers, keys, process='none'):
                batch = len(played.episodes.scenarios)
                for b, number in enumerate(played.numbers):
                    for s in tested:
                        if played.verdict.outcome_valid[s * batch + b]:
                            scores[kind][number, s] = 10 * played.verdict.outcome[s * batch + b]
                saved += [{'condition': kind} | record for record in records.episode_records(
                    played.table, kinds, played.episodes, played.readings, played.verdict, played.numbers)]
    rows = evaluate.compare(scores, config.evaluation.bootstrap, config.seed)
    write_jsonl(this.workdir / 'episodes' / 'evaluation.jsonl', saved)
    write_atomically(this.workdir / 'evaluation.json', evaluate.to_json(rows, scores))
    return rows


def draw(scenarios: Sequence[Scenario], count: int, group: int, iteration: int, seed: int) -> list[Scenario]:
    """The scenarios of an iteration: the set in a new random order each time through, each `group` times."""
    if not scenarios:
        raise ValueError("no scenario has split 'train'")
    chosen = []
    for position in range(iteration * (count // group), (iteration + 1) * (count // group)):
        order = np.random.default_rng((seed, position // len(scenarios))).permutation(len(scenarios))
        chosen += [scenarios[order[position % len(scenarios)]]] * group
    return chosen


@jax.jit
def copy(params):
    """Parameters in buffers of their own, which outlive the donation of the originals."""
    return jax.tree.map(jnp.copy, params)


def uses_pool(config: ConfigDict) -> bool:
    """Whether any seat plays a snapshot."""
    return bool({'snapshot', 'pool'} & set(config.seats))


def pool_size(config: ConfigDict, iterations: int) -> int:
    """Snapshots held after so many iterations."""
    return min(iterations, config.pool_size) if uses_pool(config) else 0
