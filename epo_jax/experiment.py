"""The outer loop of EPO: self-play iterations, checkpoints, and an evaluation at the end.

`run_iteration` is the algorithm; the rest of the module prepares it and saves its results.
"""

import contextlib
import dataclasses
import functools
import math
import pathlib
from typing import Any, Iterator, Optional, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from epo_jax import evaluation, records
from epo_jax.agents.remote import Remote, remote_options
from epo_jax.compiled import run_program
from epo_jax.config import has_results
from epo_jax.defaults import MAY_DIFFER, validate
from epo_jax.envs.base import Domain, check_environment, load_domain
from epo_jax.iteration import Experiment
from epo_jax.models.layout import stack
from epo_jax.results import IterationResult, check_trained, iteration_metrics
from epo_jax.rl import objective, selfplay
from epo_jax.rl.learner import Learner, TrainState, from_config
from epo_jax.rl.selfplay import RunState, empty_memory, pool_size, uses_pool
from epo_jax.roles import Roles, adapter, addresses, build_roles, pin_models, with_adapter_shape
from epo_jax.runtime import hosts, streams
from epo_jax.runtime.checkpoint import Checkpoints
from epo_jax.runtime.errors import InputError
from epo_jax.runtime.files import write_jsonl
from epo_jax.runtime.metrics import MetricsWriter
from epo_jax.runtime.parallel import check_rows, make_mesh, named_sharding, param_shardings
from epo_jax.runtime.progress import Progress
from epo_jax.runtime.stopping import StopSignals
from epo_jax.runtime.timing import CompileCounter, Stopwatch
from epo_jax.scores import Row
from epo_jax.workdir import own_workdir, stop_if_requested


def run_iteration(exp: Experiment, state: RunState, scenarios: Sequence[Any],
                  iteration: int) -> tuple[RunState, IterationResult]:
    """Run one self-play iteration: collect, judge, assign credit, update.

    Args:
      exp: the parts of the run.
      state: the state before the iteration; its training state is donated.
      scenarios: one for each of the iteration's episodes.
      iteration: its number, from 0.

    Returns:
      The state after the iteration, and its result.
    """
    matches = exp.matches(state, iteration)  # who plays whom
    snapshots = next_snapshots(exp.config, state, iteration)
    if exp.config.rollout.compiled:  # the same four steps as one program
        train, memory, result = run_program(exp, state.train, state.memory, matches, scenarios, iteration)
        return RunState(train, snapshots, replicated(memory, exp.roles.strategist.mesh)), result
    results = exp.collect(matches, scenarios, [iteration] * len(matches))
    results = exp.judge(results, exp.config.reward.process)
    rows, verdict = exp.trained(results)
    observed = exp.observe(state.train, rows)
    credit, memory = exp.assign_credit(rows, verdict, state.memory, observed)
    train, metrics = exp.update(state.train, rows, credit, observed, iteration)
    return (RunState(train, snapshots, replicated(memory, exp.roles.strategist.mesh)),
            IterationResult(results, rows, verdict, credit, metrics))


def run(config: ConfigDict, workdir: str) -> list[Row]:
    """Train and evaluate; resume from the last checkpoint in the workdir, if there is one.

    Returns:
      The rows of the evaluation; [] without an evaluation.

    Raises:
      Stopped: SIGTERM or SIGINT arrived before the run was finished; the same call continues it.
      ConfigError, ProfileError, WeightsError, ...: the input is bad; nothing has been trained.
      NoAccess, BudgetSpent, ReplayMiss: an endpoint cannot be used any further.
      TrainingError: a loss or gradient is not finite, or an iteration trains nothing.
    """
    config, domain = prepare(config)
    train, held_out = splits(domain.scenarios(config.scenarios, config.environment), config.evaluation.episodes > 0)
    tested = evaluation.select(held_out, config, domain) if config.evaluation.episodes else []
    mesh = make_mesh(config.mesh)
    check_rows(mesh, {'rollout.batch': config.rollout.batch, 'learner.micro_batch': config.learner.micro_batch})
    workdir = pathlib.Path(workdir).absolute()
    begun = has_results(workdir)  # before the first result, any configuration may replace another
    with (Progress(config.iterations) as progress, CompileCounter() as compilations,
          own_workdir(workdir, config, MAY_DIFFER if begun else tuple(config)) as save_config,
          contextlib.ExitStack() as stack):
        exp = build_experiment(config, mesh, domain, stack.enter_context(open_remote(config, workdir)), progress)
        save_config()  # the inputs can be used
        signals = stack.enter_context(StopSignals(progress.line, 'this iteration'))
        checkpoints = stack.enter_context(
            Checkpoints(workdir, keep=config.checkpoint.keep, every=config.checkpoint.every))
        stop = functools.partial(stop_if_requested, signals, checkpoints)

        # State: new, or restored from the last checkpoint
        roles = exp.roles
        fresh = jax.jit(functools.partial(initial_state, exp.learner, mesh, config.seed))

        memory = replicated(empty_memory(config), mesh)

        def abstract_state(step: int) -> RunState:
            train_state = fresh.lower(roles.strategist.params, roles.adapter).compile().out_info
            return RunState(train_state, (train_state.params,) * pool_size(config, step), memory)

        restored = checkpoints.resume(abstract_state, progress.line)
        if restored:
            start, state, _ = restored
            progress.line(f'resumed after iteration {start} of {config.iterations}')
        else:
            start, state = 0, RunState(fresh(roles.strategist.params, roles.adapter), (), memory)
            if begun:
                progress.line('the workdir holds no checkpoint yet: starting from the beginning')

        # Iterations
        with MetricsWriter(workdir, resume_step=start) as writer:
            stop()
            for iteration in range(start, config.iterations):
                progress.start_iteration(iteration + 1)
                chosen = draw_scenarios(
                    train, config.rollout.episodes, config.rollout.group, iteration, config.seed)
                state, result = run_iteration(exp, state, chosen, iteration)
                saved = write_episodes(exp, result, iteration, workdir)
                check_trained(result, saved, iteration, config.reward.outcome == 'judge')
                last, stopping = iteration + 1 == config.iterations, hosts.any_process(signals.requested)
                evaluated = {}
                due = config.evaluation.every and (iteration + 1) % config.evaluation.every == 0
                if due and not last and not stopping:
                    evaluated = evaluate_policy(exp, state, tested, workdir, iteration + 1)
                metrics = iteration_metrics(result, saved) | evaluated | exp.request_metrics() | exp.watch.metrics() | {
                    'time/compilations': compilations.count, 'time/compile': compilations.seconds}
                writer.write(iteration + 1, metrics)
                checkpoints.save(iteration + 1, state, {}, force=last or stopping)
                progress.line(summary(iteration + 1, metrics))
                if stopping and not last:
                    stop()
        checkpoints.wait()

        # Evaluation
        if not tested:
            return []
        result = evaluation.run_evaluation(
            exp, exp.sampling_params(state.train.params), state.snapshots, tested, workdir, 'evaluation',
            f'iteration {config.iterations}', config.evaluation.conditions, stop)
        evaluation.print_result(exp, result, tested)
        exp.print_requests()
        progress.line(f'episodes: {workdir / "episodes"}')
        return list(result.rows)


def prepare(config: ConfigDict) -> tuple[ConfigDict, Domain]:
    """Check a configuration; return it with commits and adapter shapes filled in, and its environment.

    Raises:
      InputError: the configuration or its environment cannot be used.
    """
    validate(config)
    config = with_adapter_shape(pin_models(config))
    domain = load_domain(config.environment.name)
    check_environment(domain, config.environment)
    return config, domain


@contextlib.contextmanager
def open_remote(config: ConfigDict, workdir: pathlib.Path) -> Iterator[Optional[Remote]]:
    """Yield the client of the endpoints that a configuration names; None if it names none.

    The answers are kept in the folder `remote.cache`, by default the one named answers in the workdir.
    """
    named = addresses(config)
    if not named:
        yield None
        return
    options = remote_options(config.remote)
    options = dataclasses.replace(options, cache=options.cache or str(workdir / 'answers'))
    with Remote(options, process=jax.process_index(), processes=jax.process_count()) as remote:
        for address in named:
            remote.check(address)
        yield remote


def build_experiment(config: ConfigDict, mesh: Mesh, domain: Domain, remote: Optional[Remote],
                     progress: Progress) -> Experiment:
    """Load the models and build the parts of a run.

    Raises:
      InputError: a model cannot be used.
    """
    watch = Stopwatch()
    with watch('load'):
        roles = build_roles(config, mesh, domain, remote)
    progress.line(f'strategist: {roles.strategist.config.num_params:,} parameters on {mesh.size} '
                  f'{jax.default_backend()} device(s), {roles.strategist.dtype}')
    for warning in roles.warnings:
        progress.line(warning)
    return Experiment(config, domain, roles, make_learner(config, roles), progress, watch,
                      param_shardings(roles.strategist.sampler(), mesh), remote)


def evaluate_policy(exp: Experiment, state: RunState, scenarios: Sequence[Any], workdir: pathlib.Path,
                    step: int) -> dict[str, float]:
    """Evaluate the policy during training; return the metrics. Its episodes go into episodes/evaluation_STEP.jsonl."""
    result = evaluation.run_evaluation(
        exp, exp.sampling_params(state.train.params), state.snapshots, scenarios, workdir, f'evaluation_{step:05d}',
        f'iteration {step}', ('policy',))
    row = result.rows[0]
    return {'evaluation/outcome': row.mean / 10, 'evaluation/missing': row.missing} | {
        f'evaluation/{name}': rows[0].mean for name, rows in result.dimensions.items()}


def splits(scenarios: Sequence[Any], evaluate: bool) -> tuple[list[Any], list[Any]]:
    """Return the scenarios to train on and those that are held out.

    Raises:
      InputError: there are none to train on, or none to evaluate with, or one lacks the attributes of
        `envs.base.Scenario`.
    """
    for scenario in scenarios:
        if not all(isinstance(getattr(scenario, name, None), str) for name in ('id', 'category', 'split')):
            raise InputError('a scenario must have the attributes of epo_jax.envs.base.Scenario, unlike '
                             f'{scenario!r:.80}')
    found = ', '.join(sorted({scenario.split for scenario in scenarios})) or 'none'
    train, held_out = ([s for s in scenarios if s.split == split] for split in ('train', 'held_out'))
    if not train:
        raise InputError(f"no scenario has split 'train' (found: {found})")
    if evaluate and not held_out:
        raise InputError(f"no scenario has split 'held_out' (found: {found}): give some of them split='held_out', or "
                         'set evaluation.episodes=0')
    return train, held_out


def make_learner(config: ConfigDict, roles: Roles) -> Learner:
    """Build the learner, with the length of its learning rate schedule."""
    c = config.learner
    trained = sum(sum(kind == 'policy' for kind in match.kinds) * len(match.episodes)
                  for match in selfplay.matches(config.seats, config.rollout.episodes, config.rollout.group))
    steps = config.iterations * c.epochs * math.ceil(trained / c.batch)
    return from_config(c, roles.strategist.learner(config.model.remat), steps, adapter(config),
                       objective.from_config(config.loss))


def initial_state(learner: Learner, mesh: Mesh, seed: int, params: Any, adapter: Any = None) -> TrainState:
    """Return the state before training: all of the strategist's parameters, or a given or a new adapter."""
    if learner.lora is None:
        trained = stack(params)
    elif adapter is not None:
        trained = jax.tree.map(jnp.copy, adapter)  # the state is donated, and the adapter is also a strategist
    else:
        trained = learner.lora.init(learner.model, streams.key('adapter', seed))
    shardings = param_shardings(learner.model, mesh, learner.lora)
    return learner.init(jax.lax.with_sharding_constraint(trained, shardings))


def draw_scenarios(scenarios: Sequence[Any], count: int, group: int, iteration: int, seed: int) -> list[Any]:
    """Return the scenarios of an iteration.

    Scenarios are drawn in passes over the whole set, each in a new random order; every scenario is repeated `group`
    times in a row.
    """
    passes, chosen = {}, []
    for position in range(iteration * (count // group), (iteration + 1) * (count // group)):
        number, at = divmod(position, len(scenarios))
        if number not in passes:
            passes[number] = streams.generator('scenarios', seed, number).permutation(len(scenarios))
        chosen += [scenarios[passes[number][at]]] * group
    return chosen


def next_snapshots(config: ConfigDict, state: RunState, iteration: int) -> tuple[Any, ...]:
    """Return the pool after an iteration; a new snapshot holds the parameters with which the iteration began."""
    if not uses_pool(config) or iteration % config.pool_every:
        return state.snapshots
    return selfplay.add_snapshot(state.snapshots, copy(state.train.params), config.pool_size)


def replicated(tree: Any, mesh: Mesh) -> Any:
    """Return a tree of small arrays with a copy of each on every device of the run."""
    return jax.tree.map(lambda x: jax.device_put(x, named_sharding(mesh, x.shape)), tree)


@jax.jit
def copy(params: Any) -> Any:
    """Copy parameters, so that they outlive the donation of the originals."""
    return jax.tree.map(jnp.copy, params)


def write_episodes(exp: Experiment, result: IterationResult, iteration: int,
                   workdir: pathlib.Path) -> list[dict[str, Any]] | None:
    """Write the episodes of an iteration if they are due, and report the first that was cut off.

    Returns:
      The records, or None if they are not due.
    """
    number = iteration + 1
    if number % exp.config.rollout.record_every and number != exp.config.iterations:
        return None
    saved = result.records()
    if hosts.is_primary():
        folder = workdir / 'episodes'
        folder.mkdir(exist_ok=True)
        write_jsonl(folder / f'iteration_{number:05d}.jsonl', saved)
    reason = records.failure_reason(saved)
    if reason:
        exp.progress.line(f'{sum(record["truncated"] for record in saved)} episodes were cut off; the first: {reason}')
    return saved


def summary(iteration: int, metrics: dict[str, float]) -> str:
    """Return one line about an iteration."""
    seconds = sum(metrics.get(f'time/{name}', 0) for name in ('rollout', 'judge', 'learn', 'program'))
    outcome = 'missing' if math.isnan(metrics['outcome/mean']) else f'{metrics["outcome/mean"]:.3f}'
    return (f'iteration {iteration}: outcome {outcome}  loss {metrics["learner/loss"]:+.4f}  '
            f'gradient {metrics["learner/gradient_norm"]:.2f}  gap {metrics["learner/logprob_gap"]:.1e}  '
            f'turns {metrics["episodes/turns"]:.1f}  {seconds:.0f} s')
