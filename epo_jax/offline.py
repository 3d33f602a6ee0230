"""Offline training, top to bottom: gradient steps on a file of prepared conversations, without rollouts.

A run passes through these stages:

    data -> order of the rows -> tokens and weights -> gradient steps -> checkpoints
"""

import math
import pathlib
from typing import Any, Iterator, Optional

import jax.numpy as jnp
from ml_collections import ConfigDict

from epo_jax.config import ConfigError, Key, defaults_of, open_workdir, validate_keys
from epo_jax.data.dataset import Dataset, Example, Order, collate
from epo_jax.data.sharegpt import find_source
from epo_jax.defaults import MODEL_KEYS
from epo_jax.language import Language, activation_dtype, capacity_warnings, load_language, pinned
from epo_jax.models.transformer import REMAT
from epo_jax.rl.learner import SCHEDULES, Batch, Learner, TrainState, from_config, learner_keys
from epo_jax.rl.losses import official_scale
from epo_jax.runtime.checkpoint import Checkpoints, Preemption
from epo_jax.runtime.errors import TrainingError
from epo_jax.runtime.metrics import MetricsWriter
from epo_jax.runtime.parallel import check_rows, make_mesh
from epo_jax.runtime.progress import Progress
from epo_jax.runtime.timing import CompileCounter, Stopwatch

# Configuration keys that may change when a run resumes.
MAY_DIFFER = ('checkpoint', 'mesh')


def keys() -> dict[str, Any]:
    """Return the nested keys of the configuration, with the defaults of the released recipe."""
    return {
        'data': Key('', 'prepared conversations: a file, a folder, or a dataset_info.json; see data/sharegpt.py'),
        'skip_bad': Key(False, 'whether to skip and count bad rows instead of stopping'),
        'seed': Key(42, 'seed of the order of the rows'),
        'capacity': Key(4096, 'longest conversation, in tokens; turns that do not fit are dropped'),
        'mesh': Key((-1, 1, 1), 'number of devices along the mesh axes data, fsdp and tensor; -1 takes all that are '
                                'left'),
        'model': {name: MODEL_KEYS[name] for name in ('path', 'chat_template', 'dtype', 'remat')},
        'learner': learner_keys(exclude=('entropy', 'chunk', 'offload')) | {
            'batch': Key(32, 'number of conversations of a gradient step'),
            'epochs': Key(3, 'number of passes over the file'),
            'length_bucket': Key(256, 'batches are padded to a multiple of this many tokens'),
            'window': Key(16, 'number of shuffled batches that are sorted by length together; 0 is a plain shuffle'),
            'summation': Key('mean', 'loss of a batch: mean, or official (scales with micro_batch, see rl/losses.py)')},
        'checkpoint': {
            'every': Key(50, 'number of steps from one checkpoint to the next'),
            'keep': Key(2, 'number of checkpoints to keep')},
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
    c = config.learner
    problems = [f'{name} must be one of {", ".join(options)}, not {value!r}' for name, value, options in (
        ('model.dtype', config.model.dtype, ('auto', 'float32', 'bfloat16')),
        ('model.remat', config.model.remat, tuple(REMAT)),
        ('learner.schedule', c.schedule, SCHEDULES),
        ('learner.summation', c.summation, ('mean', 'official'))) if value not in options]
    problems += [f'{name} must be positive, not {value}' for name, value in (
        ('capacity', config.capacity), ('learner.batch', c.batch), ('learner.epochs', c.epochs),
        ('learner.micro_batch', c.micro_batch), ('learner.length_bucket', c.length_bucket),
        ('checkpoint.every', config.checkpoint.every), ('checkpoint.keep', config.checkpoint.keep)) if value < 1]
    if not config.data:
        problems.append('data must name a file of prepared conversations')
    if c.micro_batch > 0 and c.batch % c.micro_batch:
        problems.append('learner.batch must be a multiple of learner.micro_batch')
    if problems:
        raise ConfigError('\n'.join(problems))


def run(config: ConfigDict, workdir: str) -> Optional[TrainState]:
    """Train, or resume from the last checkpoint in the workdir to the same numbers.

    Args:
      config: Configuration of the run.
      workdir: Directory of the run.

    Returns:
      The final state, or None if the process was asked to stop early.

    Raises:
      InputError: If the configuration, the data or the model cannot be used; nothing has been trained then.
      TrainingError: If a loss or gradient is not finite; the last checkpoint is kept.
    """
    validate(config)
    config = config.copy_and_resolve_references()
    config.model.path = pinned(config.model.path)
    c, mesh = config.learner, make_mesh(config.mesh)
    check_rows(mesh, {'learner.micro_batch': c.micro_batch})
    workdir = pathlib.Path(workdir)
    metrics_file = workdir / 'metrics.jsonl'
    started = metrics_file.exists() and metrics_file.stat().st_size > 0
    open_workdir(workdir, config, MAY_DIFFER if started else tuple(config))
    with (Progress(1) as progress, CompileCounter() as compilations, Preemption() as preemption,
          Checkpoints(workdir, keep=config.checkpoint.keep, every=config.checkpoint.every) as checkpoints):
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
        start, extra = checkpoints.latest() or 0, {'shortened': 0, 'dropped_turns': 0}
        if start:
            state, extra = checkpoints.restore(start, learner.abstract_state())
            progress.line(f'resumed from step {start} of {total}')
        else:
            with watch('load'):
                state = learner.init(language.with_params(jnp.float32).params)

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
                checkpoints.save(step + 1, state, extra, force=preemption.requested or step + 1 == total)
                phase.advance(1, int(metrics['data/tokens']))
                if (step + 1) % order.steps == 0:
                    progress.line(summary((step + 1) // order.steps, metrics, extra, config.capacity))
                if preemption.requested:
                    checkpoints.wait()
                    progress.line('stopped on request after saving a checkpoint; run the command again to resume')
                    return None
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
