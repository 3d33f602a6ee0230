"""A whole self-play iteration as one compiled program: collect, judge, assign credit, update.

It calls the same functions as the host loop of iteration.py. All agents, the environment and the judge must be on the
device; texts are decoded from the returned episodes afterwards.

Axis letters: E episodes of a match, S seats, N trained conversations, T turns of one seat, B conversations of one
gradient step.
"""

import dataclasses
import functools
from typing import Any, Optional, Sequence

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Int
import numpy as np

from epo_jax.branching import rollout_branched, values
from epo_jax.iteration import Experiment
from epo_jax.models.decoder import Decoder
from epo_jax.models.layout import sampling_params
from epo_jax.results import IterationResult, MatchResult, mean_metrics
from epo_jax.rewards.judge import Judge
from epo_jax.rewards.process import Verdict, assess_episodes
from epo_jax.rewards.prompts import gather_prompts
from epo_jax.rl.batching import orders, take
from epo_jax.rl.credit.assign import Credit, CreditRules, assign
from epo_jax.rl.learner import Batch, Learner, TrainState
from epo_jax.rl.observe import observe
from epo_jax.rl.selfplay import Match
from epo_jax.rl.trajectory import Trajectory, trained_rows, trained_seats, trajectories
from epo_jax.rollout import Episodes, Table, encode, episode_keys, rollout_compiled
from epo_jax.runtime.errors import InputError
from epo_jax.runtime.hosts import fetch


@dataclasses.dataclass(frozen=True)
class ProgramConfig:
    """Settings that do not change during a run; static.

    Attributes:
      learner: the gradient step.
      sampler: the decoder that samples.
      dtype: dtype in which the policy samples.
      slots: number of episodes played at once.
      group: number of episodes of one scenario.
      process: method of the process reward, see `process.assess`.
      rate: whether the judge rates conversations without a reward.
      credit: see rl/credit.py.
    """

    learner: Learner
    sampler: Decoder
    dtype: Any
    slots: int
    group: int
    process: str
    rate: bool
    credit: CreditRules


@struct.dataclass
class ProgramResult:
    """The results of the program besides the new state.

    Attributes:
      episodes, verdicts: of every match; verdicts are on all seats, seat-major.
      rows, verdict, credit: of the trained conversations of all matches.
      memory: of the credit method after the iteration.
      metrics: of every gradient step.
    """

    episodes: tuple[Episodes, ...]
    verdicts: tuple[Verdict, ...]
    rows: Trajectory
    verdict: Verdict
    credit: Credit
    memory: Any
    metrics: dict[str, jax.Array]


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def iteration_program(
        config: ProgramConfig, train: TrainState, tables: Sequence[Table], queues: Sequence[Any],
        keys: Sequence[jax.Array], numbers: Sequence[Int[jax.Array, ' E']], judge: Optional[Judge],
        process_judge: Optional[Judge], order: Int[jax.Array, 'steps B'], base: Any = None, reference: Any = None,
        memory: Any = ()) -> tuple[TrainState, ProgramResult]:
    """Run one iteration.

    Args:
      config: the settings of the program.
      train: the learner's state; donated.
      tables: of every match. Trained seats come without weights and get them from `train`.
      queues: the encoded scenarios of every match.
      keys: key[E] of every match.
      numbers: numbers of the episodes of every match within the iteration.
      judge: the judge of outcomes; None where it is not asked.
      process_judge: the judge of the process; None where it is not asked, or is the judge of outcomes.
      order: rows of every gradient step, see `batching.orders`.
      base: the frozen parameters under an adapter.
      reference: the parameters that a divergence compares with; None where there is none.
      memory: of the credit method before the iteration.

    Returns:
      The new state and the result.
    """
    policy = sampling_params(train.params, config.learner.lora, config.dtype, base)
    episodes, verdicts, rows, trained, outcomes, tokens = [], [], [], [], [], []
    for table, queue, key, number in zip(tables, queues, keys, numbers, strict=True):
        table = table.replace(seats=tuple(
            seat.replace(strategist=seat.strategist.replace(params=policy)) if seat.trained else seat
            for seat in table.seats))
        if config.credit.needs('value'):
            played, siblings, sampled = rollout_branched(table, queue, key, config.slots, config.credit.siblings)
            outcomes += [siblings[:, s] for s in trained_seats(table)]
            tokens.append(sampled)
        else:
            played = rollout_compiled(table, queue, key, config.slots)
        episodes.append(played)
        verdicts.append(assess_episodes(
            lambda judge, method, read: gather_prompts(judge, table, queue, episodes[-1], method, read),
            judge, process_judge, config.process, config.rate))
        rows.append(trajectories(table, episodes[-1], number, config.group))
        trained.append(verdicts[-1][trained_rows(table, len(number))])
    join = lambda *xs: jnp.concatenate(xs)
    rows, verdict = jax.tree.map(join, *rows), jax.tree.map(join, *trained)

    objective = config.learner.objective
    observed = observe(config.sampler, rows, config.credit, objective, policy, reference, config.learner.chunk,
                       config.learner.micro_batch)
    if outcomes:
        observed['value'] = values(join(*outcomes))
    credit, memory = assign(verdict, rows, config.credit, {**observed, 'memory': memory})

    data = Batch(rows.ids, rows.turn, rows.logprob, credit.advantage, credit.valid,
                 observed['reference'] if objective.needs('reference') else None)
    train, metrics = jax.lax.scan(
        lambda train, at: config.learner.step(train, take(data, at), base), train, order)
    if tokens:
        metrics['sibling_tokens'] = jnp.full(len(order), sum(tokens))
    return train, ProgramResult(tuple(episodes), tuple(verdicts), rows, verdict, credit, memory, metrics)


def run_program(exp: Experiment, train: TrainState, memory: Any, matches: Sequence[tuple[Match, Table]],
                scenarios: Sequence[Any], iteration: int) -> tuple[TrainState, Any, IterationResult]:
    """Run one iteration as a program, and read its result.

    Args:
      exp: the parts of the run.
      train: the learner's state; donated.
      memory: of the credit method.
      matches: see `Experiment.matches`.
      scenarios: those of the whole iteration.
      iteration: its number, from 0.

    Returns:
      The new state, the new memory, and the result.

    Raises:
      InputError: an agent is not on the device.
    """
    config, seed = exp.config, exp.config.seed
    matches, tables = zip(*matches, strict=True)
    if not all(table.on_device for table in tables):
        raise InputError('rollout.compiled=True needs local models with one tokenizer in every seat and an environment '
                         'on the device; set rollout.compiled=False')
    numbers = [np.array(match.episodes, np.int32) for match in matches]
    parts = [[scenarios[i] for i in match.episodes] for match in matches]
    program = ProgramConfig(
        exp.learner, exp.roles.strategist_agent.model, exp.roles.strategist.dtype, config.rollout.batch,
        config.rollout.group, config.reward.process, config.reward.outcome == 'judge', exp.credit_rules)
    count = sum(len(number) * len(trained_seats(table)) for number, table in zip(numbers, tables, strict=True))
    judge = exp.roles.judge if program.rate or program.process != 'none' else None
    other = exp.roles.process_judge is not exp.roles.judge and program.process != 'none'
    process_judge = exp.roles.process_judge if other else None
    with exp.watch('program'), exp.progress.phase('iteration', unit='episodes') as phase:
        queues, on_device, order = jax.device_put((
            tuple(encode(table, part) for table, part in zip(tables, parts, strict=True)), tuple(numbers),
            orders(count, config.learner.batch, config.learner.epochs, (seed, iteration))))
        keys = tuple(episode_keys(seed, iteration, number) for number in numbers)
        train, result = iteration_program(
            program, train, tables, queues, keys, on_device, judge, process_judge, order, exp.base, exp.reference,
            memory)
        memory, result = result.memory, jax.tree.map(np.asarray, fetch(result))
        phase.advance(sum(map(len, numbers)))

    steps = [dict(zip(result.metrics, values)) for values in zip(*result.metrics.values())]
    return train, memory, IterationResult(
        [MatchResult(table, match, part, episodes, verdict=verdict) for table, match, part, episodes, verdict in zip(
            tables, matches, parts, result.episodes, result.verdicts, strict=True)],
        result.rows, result.verdict, result.credit, mean_metrics(steps, iteration))
