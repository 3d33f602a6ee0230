"""Offline training, top to bottom: gradient steps on a file of prepared conversations, without rollouts.

A run passes through these stages:

    data -> order of the rows -> tokens and weights -> gradient steps -> checkpoints
"""

import contextlib
import math
import pathlib
from typing import Any, Iterator, Optional

import jax.numpy as jnp
from ml_collections import ConfigDict

from epo_jax.config import (
    COUNT,
    DEVICES,
    POSITIVE,
    SEEDS,
    ConfigError,
    Key,
    defaults_of,
    has_results,
    validate_keys,
    value_problems,
)
from epo_jax.data.dataset import Dataset, Example, Order, collate
from epo_jax.data.sharegpt import find_source
from epo_jax.defaults import MODEL_KEYS
from epo_jax.language import Language, activation_dtype, capacity_warnings, load_language, pinned
from epo_jax.rl.aggregation import official_scale
from epo_jax.rl.learner import Batch, Learner, TrainState, from_config, learner_keys
from epo_jax.runtime import hosts
from epo_jax.runtime.checkpoint import Checkpoints
from epo_jax.runtime.errors import TrainingError
from epo_jax.runtime.metrics import MetricsWriter
from epo_jax.runtime.parallel import check_rows, make_mesh
from epo_jax.runtime.progress import Progress
from epo_jax.runtime.stopping import StopSignals
from epo_jax.runtime.timing import CompileCounter, Stopwatch
from epo_jax.workdir import own_workdir, stop_if_requested

# Configuration keys that may change when a run resumes.
MAY_DIFFER = ('checkpoint', 'mesh')


def keys() -> dict[str, Any]:
    """Return the nested keys of the configuration, with the defaults of the released recipe."""
    return {
        'data': Key('', 'prepared conversations: a file, a folder, or a dataset_info.json; see data/sharegpt.py'),
        'skip_bad': Key(False, 'whether to skip and count bad rows instead of stopping'),
        'seed': Key(42, 'seed of the order of the rows', SEEDS),
        'capacity': Key(4096, 'longest conversation, in tokens; turns that do not fit are dropped', POSITIVE),
        'mesh': Key((-1, 1, 1), 'number of devices along the mesh axes data, fsdp and tensor; -1 uses the remaining '
                                'devices', DEVICES),
        'model': {name: MODEL_KEYS[name] for name in ('path', 'chat_template', 'dtype', 'remat')},
        'learner': learner_keys(exclude=('entropy', 'chunk', 'offload')) | {
            'batch': Key(32, 'number of conversations of a gradient step', POSITIVE),
            'epochs': Key(3, 'number of passes over the file', POSITIVE),
            'length_bucket': Key(256, 'batches are padded to a multiple of this many tokens', POSITIVE),
            'window': Key(16, 'number of shuffled batches that are sorted by length together; 0 is a plain shuffle',
                          COUNT),
            'summation': Key('mean', 'loss of a batch: mean, or official (grows with micro_batch; rl/aggregation.py)',
                             ('mean', 'official'))},
        'checkpoint': {
            'every': Key(50, 'number of steps from one checkpoint to the next', POSITIVE),
            'keep': Key(2, 'number of checkpoints to keep', POSITIVE)},
    }


def default_config() -> ConfigDict:
    """Return the configuration of the released recipe, with every key."""
    return ConfigDict(defaults_of(keys()))


def validate(config: ConfigDict) -> None:
    """Check the configuration for unknown keys, wrong types and impossible combinations.

    Raises:
      ConfigError: If anything is wrong; lists all problems, one per line.
    """
    validate_keys(config, default_config())
    c, problems = config.learner, list(value_problems(config, keys()))
    if not config.data:
        problems.append('data must name a file of prepared conversations')
    if c.micro_batch > 0 and c.batch % c.micro_batch:
        problems.append('learner.batch must be a multiple of learner.micro_batch')
    if problems:
        raise ConfigError('\n'.join(problems))


def run(config: ConfigDict, workdir: str) -> TrainState:
    """Train, or resume from the last checkpoint in the workdir to the same numbers.

    Args:
      config: Configuration of the run.
      workdir: Directory of the run.

    Returns:
      The final state.

    Raises:
      Stopped: If SIGTERM or SIGINT arrived before the run was finished; the same call continues it.
      InputError: If the configuration, the data or the model cannot be used; nothing has been trained then.
      TrainingError: If a loss or gradient is not finite; the last checkpoint is kept.
    """
    validate(config)
    config = config.copy_and_resolve_references()
    config.model.path = pinned(config.model.path)
    c, mesh = config.learner, make_mesh(config.mesh)
    check_rows(mesh, {'learner.micro_batch': c.micro_batch})
    workdir = pathlib.Path(workdir).absolute()
    begun = has_results(workdir)  # before the first result, any configuration may replace another
    with (Progress(1) as progress, CompileCounter() as compilations,
          own_workdir(workdir, config, MAY_DIFFER if begun else tuple(config)) as save_config,
          contextlib.ExitStack() as stack):
        # Data
        watch = Stopwatch()
        with watch('load'):
            language = load_language(config.model.path, config.model.chat_template,
                                     activation_dtype(config.model.dtype), mesh, stacked=True)
            data = Dataset(find_source(config.data), language.tokenizer, language.chat, config.capacity,
                           config.skip_bad)
        order = Order(data.size, c.batch, config.seed, c.window)
        total = c.epochs * order.steps
        progress.line(f'{total} steps in {c.epochs} epochs: {len(data)} conversations of at most {data.turns} turns, '
                      f'{data.bad.count} bad rows skipped')
        for warning in capacity_warnings({'capacity': (config.capacity, language.config)}):
            progress.line(warning)

        # State: fresh, or from the last checkpoint
        learner = make_learner(config, language, total)

        def initial_state() -> TrainState:
            with watch('load'):
                return learner.init(language.with_params(jnp.float32).params)

        state = None if begun else initial_state()
        save_config()  # the inputs can be used
        signals = stack.enter_context(StopSignals(progress.line, 'this step'))
        checkpoints = stack.enter_context(
            Checkpoints(workdir, keep=config.checkpoint.keep, every=config.checkpoint.every))
        start, extra = 0, {'shortened': 0, 'dropped_turns': 0}
        if begun:
            abstract_state = learner.abstract_state()
            restored = checkpoints.resume(lambda _: abstract_state, progress.line)
            start, state, extra = restored or (0, initial_state(), extra)
            progress.line(f'resumed from step {start} of {total}' if restored else
                          'the workdir holds no checkpoint yet: starting from the beginning')
        stop_if_requested(signals, checkpoints)

        # Steps
        with MetricsWriter(workdir, resume_step=start) as writer, progress.phase('learn', total, 'steps') as phase:
            phase.done, upcoming = start, stream(data, order, config, start, total)
            prefetched = next(upcoming, None)
            for step in range(start, total):
                examples, batch = prefetched
                with watch('learn'):
                    state, learned = learner.step(state, batch)
                    prefetched = next(upcoming, None)  # prepared while the device computes the step
                    metrics = describe(learned, examples, batch)
                if not math.isfinite(metrics['learner/loss'] + metrics['learner/gradient_norm']):
                    raise TrainingError(
                        f'step {step + 1} is not finite: loss {metrics["learner/loss"]}, gradient norm '
                        f'{metrics["learner/gradient_norm"]}; the last checkpoint is kept')
                extra = {name: extra[name] + metrics[f'data/{name}'] for name in extra}
                writer.write(step + 1, metrics | watch.metrics() | {
                    'time/compilations': compilations.count, 'time/compile': compilations.seconds})
                last, stopping = step + 1 == total, hosts.any_process(signals.requested)
                checkpoints.save(step + 1, state, extra, force=last or stopping)
                phase.advance(1, int(metrics['data/tokens']))
                if (step + 1) % order.steps == 0:
                    progress.line(summary((step + 1) // order.steps, metrics, extra, config.capacity))
                if stopping and not last:
                    stop_if_requested(signals, checkpoints)
        checkpoints.wait()
        data.close()
        return state


def stream(data: Dataset, order: Order, config: ConfigDict, start: int,
           stop: int) -> Iterator[tuple[list[Optional[Example]], Batch]]:
    """Yield the conversations and the batch of every step from `start` to `stop`."""
    c = config.learner
    for step in range(start, stop):
        epoch, within = divmod(step, order.steps)
        if within == 0 or step == start:
            rows = order.epoch(epoch)
        examples = [data[i] if i < len(data) else None for i in rows[within]]
        yield examples, collate(examples, data.turns, c.length_bucket, config.capacity, scale_of(c, examples))


def summary(epoch: int, metrics: dict[str, float], extra: dict[str, float], capacity: int) -> str:
    """Summarize an epoch in one line."""
    return (f'epoch {epoch}: loss {metrics["learner/loss"]:+.4f}  gradient {metrics["learner/gradient_norm"]:.2f}  '
            f'(last step); so far, {extra["dropped_turns"]} turns of {extra["shortened"]} conversations were dropped '
            f'to fit into {capacity} tokens')


def scale_of(c: ConfigDict, examples: list[Optional[Example]]) -> float:
    """Return the factor for the weights of a batch. The learner's loss is a mean and linear in the weights."""
    if c.summation == 'mean':
        return 1.0
    return official_scale(sum(example is not None for example in examples), c.batch, c.micro_batch)


def describe(learned: dict[str, Any], examples: list[Optional[Example]], batch: Batch) -> dict[str, float]:
    """Return the metrics of a step.

    The learner's metrics that compare with log-probabilities at sampling are left out, because a file has none.
    """
    used = [example for example in examples if example is not None]
    tokens = sum(len(example.ids) for example in used)
    return {f'learner/{name}': float(learned[name]) for name in ('loss', 'gradient_norm', 'learning_rate')} | {
        'data/conversations': len(used),
        'data/turns': sum(len(example.weights) for example in used),
        'data/tokens': tokens,
        'data/trained_tokens': int((batch.turn >= 0).sum()),
        'data/padding': 1 - tokens / batch.ids.size,
        'data/shortened': sum(example.dropped > 0 for example in used),
        'data/dropped_turns': sum(example.dropped for example in used)}


def make_learner(config: ConfigDict, language: Language, steps: int) -> Learner:
    """Build the learner of an offline run with this many steps."""
    return from_config(config.learner, language.learner(config.model.remat), steps)
