"""The outer loop of EPO, top to bottom. The only file that knows all the others.

    scenarios -> rollout -> judge -> credit -> gradient steps -> the next self-play iteration -> evaluation
"""

import dataclasses
import functools
import math
import pathlib
from typing import Any, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from epo_jax import evaluate, iteration as iterating, records
from epo_jax.config import open_workdir
from epo_jax.defaults import MAY_DIFFER, validate
from epo_jax.envs.base import load_domain
from epo_jax.iteration import Run
from epo_jax.models.transformer import stack
from epo_jax.rl import learner as learning, selfplay
from epo_jax.rl.selfplay import RunState, pool_size, uses_pool
from epo_jax.roles import Roles, adapter, build_roles
from epo_jax.runtime import hosts
from epo_jax.runtime.checkpoint import Checkpoints, Preemption
from epo_jax.runtime.errors import InputError
from epo_jax.runtime.files import write_atomically, write_jsonl
from epo_jax.runtime.parallel import check_rows, make_mesh, param_shardings
from epo_jax.runtime.telemetry import CompileCounter, MetricsWriter, Progress, Stopwatch

MOST_CATEGORIES = 12  # of which a table is still read


def run(config: ConfigDict, workdir: str) -> list[evaluate.Row]:
    """Trains and evaluates; resumes where the workdir holds a checkpoint.

    Returns:
      The evaluation, [] where none was asked for or the run was told to stop early.

    Raises:
      ConfigError, ProfileError, WeightsError, ...: before anything is trained, where the input is bad.
      FloatingPointError: a loss or gradient is not finite; the last checkpoint stands.
    """
    validate(config)
    domain = load_domain(config.environment.name)
    scenarios = domain.scenarios(config.scenarios, config.environment)
    mesh = make_mesh(config.mesh)
    check_rows(mesh, {'rollout.batch': config.rollout.batch, 'learner.micro_batch': config.learner.micro_batch})
    workdir = pathlib.Path(workdir).absolute()
    metrics = workdir / 'metrics.jsonl'
    # Before the first result, any configuration may replace another.
    begun = metrics.exists() and metrics.stat().st_size > 0
    claim = lambda _: open_workdir(workdir, config, MAY_DIFFER if begun else tuple(config))
    hosts.share([0] if hosts.first() else [], claim)
    with (Progress(config.iterations) as progress, CompileCounter() as compilations, Preemption() as preemption,
          Checkpoints(workdir, keep=config.checkpoint.keep, every=config.checkpoint.every) as checkpoints):
        # Models and learner
        watch = Stopwatch()
        with watch('load'):
            roles = build_roles(config, mesh, domain)
        progress.line(f'strategist: {roles.strategist.config.num_params:,} parameters on {mesh.size} '
                      f'{jax.default_backend()} device(s), {roles.strategist.dtype}')
        this = Run(config, domain, roles, make_learner(config, roles), progress, watch,
                   param_shardings(roles.strategist.sampler(), mesh))
        train, held_out = ([s for s in scenarios if s.split == split] for split in ('train', 'held_out'))

        # State: fresh, or as it was after the last iteration that was saved
        start = checkpoints.latest() or 0
        fresh = jax.jit(functools.partial(initial_state, this.learner, mesh, config.seed))
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
                state, metrics = iterate(this, state, train, iteration, workdir)
                metrics |= {'time/compilations': compilations.count, 'time/compile': compilations.seconds}
                writer.write(iteration + 1, metrics)
                stop = hosts.agree(preemption.requested)
                checkpoints.save(iteration + 1, state, {}, force=stop or iteration + 1 == config.iterations)
                progress.line(summary(iteration + 1, metrics))
                if stop:
                    checkpoints.wait()
                    progress.line('asked to stop: saved, start again to go on')
                    return []
        checkpoints.wait()

        # Evaluation
        if not config.evaluation.episodes:
            return []
        rows = compare(this, state, held_out, workdir)
        progress.line(f'episodes: {workdir / "episodes"}')
        return rows


def make_learner(config: ConfigDict, roles: Roles) -> learning.Learner:
    """The learner, with the length of its schedule."""
    c = config.learner
    trained = sum(sum(kind == 'policy' for kind in match.kinds) * len(match.episodes)
                  for match in selfplay.matches(config.seats, config.rollout.episodes))
    steps = config.iterations * c.epochs * math.ceil(trained / c.batch)
    return learning.from_config(c, roles.strategist.learner(config.model.remat), steps, adapter(config))


def iterate(this: Run, state: RunState, scenarios: Sequence[Any], iteration: int,
            workdir: pathlib.Path) -> tuple[RunState, dict[str, float]]:
    """One self-play iteration: (the state after it, its metrics). Writes its episodes."""
    config = this.config
    chosen = draw(scenarios, config.rollout.episodes, config.rollout.group, iteration, config.seed)
    tables = iterating.tables(this, state.train, state.snapshots, iteration)
    snapshots = state.snapshots
    if uses_pool(config) and iteration % config.pool_every == 0:
        snapshots = selfplay.remember(state.snapshots, copy(state.train.params), config.pool_size)
    step = iterating.one_program if config.rollout.compiled else iterating.step_by_step
    train, lesson = step(this, state.train, tables, chosen, iteration)

    saved = None
    if (iteration + 1) % config.rollout.record_every == 0 or iteration + 1 == config.iterations:
        saved = lesson.records()
        if hosts.first():
            folder = workdir / 'episodes'
            folder.mkdir(exist_ok=True)
            write_jsonl(folder / f'iteration_{iteration + 1:05d}.jsonl', saved)
        reason = records.failure_reason(saved)
        if reason:
            this.progress.line(
                f'{sum(r["truncated"] for r in saved)} episodes were cut off, the first because: {reason}')
    return RunState(train, snapshots), iterating.describe(lesson, saved) | this.watch.metrics()


def initial_state(learner: learning.Learner, mesh: Mesh, seed: int, params) -> learning.TrainState:
    """The state before training: all of the strategist's parameters, or a fresh adapter."""
    if learner.lora is None:
        trained = stack(params)
    else:
        trained = learner.lora.init(learner.model, jax.random.key(seed))
    shardings = param_shardings(learner.model, mesh, learner.lora)
    return learner.init(jax.lax.with_sharding_constraint(trained, shardings))


def summary(iteration: int, metrics: dict[str, float]) -> str:
    """One line on an iteration."""
    seconds = sum(metrics.get(f'time/{name}', 0) for name in ('rollout', 'judge', 'learn', 'program'))
    return (f'iteration {iteration}: outcome {metrics["outcome/mean"]:.3f}  loss {metrics["learner/loss"]:+.4f}  '
            f'gradient {metrics["learner/gradient_norm"]:.2f}  gap {metrics["learner/logprob_gap"]:.1e}  '
            f'turns {metrics["episodes/turns"]:.1f}  {seconds:.0f} s')


def compare(this: Run, state: RunState, held_out: Sequence[Any], workdir: pathlib.Path) -> list[evaluate.Row]:
    """Plays held-out scenarios under every condition, with the same keys; prints and writes (evaluation.json) scores.

    Where the partners are the pool, everything is played once against each of its snapshots.
    """
    config = this.config
    if not held_out:
        raise InputError('no scenario is held out: evaluation.episodes must be 0')
    order = np.random.default_rng(config.seed).permutation(len(held_out))
    scenarios = [held_out[i] for i in order[:config.evaluation.episodes]]
    numbers = tuple(range(len(scenarios)))
    keys = iterating.keys_of(config.seed, 2**31 - 1, np.array(numbers))
    policy = iterating.sampled_by(this, state.train.params)
    partners = state.snapshots if config.evaluation.partner == 'pool' else (None,)
    scores, saved = {}, []
    for kind in config.evaluation.conditions:
        this.progress.stage(f'evaluation: {kind}')
        against = []
        for number, partner in enumerate(partners):
            found = np.full((len(scenarios), this.domain.seats), np.nan)
            for kinds, tested in pairings(kind, this.domain.seats, config.evaluation.partner):
                seats = tuple(
                    dataclasses.replace(iterating.seat(this, k, policy, (partner,), 0), trained=False) for k in kinds)
                played = iterating.play(
                    this, iterating.table(this, seats), kinds, scenarios, numbers, keys, process='none')
                outcome = np.where(played.verdict.outcome_valid, 10 * played.verdict.outcome, np.nan)
                for s in tested:
                    found[:, s] = outcome[s * len(scenarios):(s + 1) * len(scenarios)]
                label = {'condition': kind} | ({} if partner is None else {'partner': number})
                saved += [label | record for record in played.records()]
            against.append(found)
        scores[kind] = np.concatenate(against, axis=1)
    variant, categories = this.domain.variant(config.environment), [scenario.category for scenario in scenarios]
    rows = evaluate.compare(scores, config.evaluation.bootstrap, config.seed)
    if hosts.first():
        write_jsonl(workdir / 'episodes' / 'evaluation.jsonl', saved)
        write_atomically(workdir / 'evaluation.json', evaluate.to_json(rows, scores, variant, categories))
    this.progress.table(f'Goal scores on held-out scenarios of {variant}', *evaluate.table(rows))
    if 1 < len(set(categories)) <= MOST_CATEGORIES:
        this.progress.table('By category', *evaluate.by_category(scores, categories))
    return rows


def pairings(kind: str, seats: int, partner: str) -> list[tuple[tuple[str, ...], tuple[int, ...]]]:
    """Tables at which a kind of strategist is evaluated: (strategists by seat, seats that are tested)."""
    other = kind if partner == 'self' else partner
    if kind == other:
        return [((kind,) * seats, tuple(range(seats)))]
    return [(tuple(kind if s == tested else other for s in range(seats)), (tested,)) for tested in range(seats)]


def draw(scenarios: Sequence[Any], count: int, group: int, iteration: int, seed: int) -> list[Any]:
    """The scenarios of an iteration: the set in a new random order each time through, each `group` times."""
    if not scenarios:
        raise InputError("no scenario has split 'train'")
    passes, chosen = {}, []
    for position in range(iteration * (count // group), (iteration + 1) * (count // group)):
        number, at = divmod(position, len(scenarios))
        if number not in passes:
            passes[number] = np.random.default_rng((seed, number)).permutation(len(scenarios))
        chosen += [scenarios[passes[number][at]]] * group
    return chosen


@jax.jit
def copy(params):
    """Parameters in buffers of their own, which outlive the donation of the originals."""
    return jax.tree.map(jnp.copy, params)
