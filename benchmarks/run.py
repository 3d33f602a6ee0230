"""Measure speed and memory in one table: epo_jax, its peers on the same work, and the limits of the machine.

    python -m benchmarks.run --out=results.json              about an hour; it needs the machine to itself
    python -m benchmarks.run --out=results.json --quick      minutes: less work, two samples
    python -m benchmarks.run --out=results.json --only=decode_b8,train
    python -m benchmarks.run --out=results.json --gpu        bfloat16 on an NVIDIA GPU, 1B and 8B shapes too

Writes results.json and, next to it, results.md. Both are written after every group of rows, so that a killed run keeps
what it has measured. Samples during which anything else used the cores are taken again; --allow_contention keeps them
and marks them.
"""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import signal
import subprocess
import sys
import tempfile
from typing import Any, Mapping, Optional, Sequence

from absl import app, flags

from benchmarks import limits, measure, plan, table

_OUT = flags.DEFINE_string('out', None, 'The JSON file to write; the markdown table goes next to it.')
_QUICK = flags.DEFINE_bool('quick', False, 'Less work and two samples.')
_GPU = flags.DEFINE_bool('gpu', False, 'Measure on an NVIDIA GPU, in bfloat16.')
_ONLY = flags.DEFINE_list('only', [], 'Names of rows; default: all.')
_MODEL = flags.DEFINE_string('model', 'smollm2', "A model as in config.model.path, or 'dummy' to try the harness.")
_EXTRA = flags.DEFINE_bool('extra', False, 'Also measure peers in other precisions; they are shown but not compared.')
_SAMPLES = flags.DEFINE_integer('samples', None, 'Clean samples of every contender.')
_CONTENTION = flags.DEFINE_bool('allow_contention', False, 'Keep contended samples and mark them.')
_RETRIES = flags.DEFINE_integer('retries', 10, 'Refused samples after which a contender is skipped in a group.')
_PATIENCE = flags.DEFINE_float('patience', 30.0, 'Seconds to wait for a quiet machine before a sample.')
_CHUNK = flags.DEFINE_integer('chunk', None, 'Tokens of a row that our sampler reads at once.')
_MICRO_BATCH = flags.DEFINE_integer('micro_batch', None, 'Rows our gradient step runs through the model at once.')
_REMAT = flags.DEFINE_enum('remat', None, ['none', 'dots', 'full'], 'What our backward pass keeps.')

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'torch', 'transformers', 'llama-cpp-python')
RATES = 'rates of '  # beginning of the names of contenders that measure the machine


def machine(devices: Sequence[str]) -> dict[str, Any]:
    """Return a description of the machine."""
    cpu = platform.processor()
    with contextlib.suppress(OSError, StopIteration), open('/proc/cpuinfo', encoding='utf-8') as file:
        cpu = next(line.split(':', 1)[1].strip() for line in file if line.startswith('model name'))
    memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9
    return {'cpu': cpu, 'cores': measure.cores(), 'memory_gb': memory, 'system': platform.platform(),
            'devices': list(devices), 'malloc': os.environ.get('GLIBC_TUNABLES', '')}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the measured packages, if installed."""
    found = {'python': platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def commit() -> str:
    """Return the commit, with '-dirty' if files differ from it; 'unknown' outside a repository."""
    def git(*command: str) -> str:
        return subprocess.run(['git', *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git('rev-parse', 'HEAD') + ('-dirty' if git('status', '--porcelain') else '')
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'


def write(out: pathlib.Path, result: Mapping[str, Any]) -> None:
    """Write the JSON file and the Markdown table beside it."""
    from epo_jax.runtime.files import write_atomically
    write_atomically(out, json.dumps(result, indent=2, allow_nan=False) + '\n')
    write_atomically(out.with_suffix('.md'), table.markdown(result))


def run_group(group: plan.Group, rate_children: Mapping[str, measure.Child],
              policy: measure.Policy) -> list[dict[str, Any]]:
    """Start the contenders of a group, measure them and the machine in turn, and stop them."""
    missing = {}
    with contextlib.ExitStack() as stack:
        children = {}
        for name, entry in group.entries.items():
            try:
                children[name] = stack.enter_context(measure.Child(entry.factory, entry.options, policy.allowed))
            except measure.Unavailable as error:
                missing[name] = str(error)
        if not group.work:
            rate_children = {}

        def tell(name: str, sample: Optional[measure.Sample]) -> None:
            said = 'skipped, because the machine was never quiet'
            if sample is not None:
                said = f'{sample.seconds:.3g} s, {100 * sample.foreign:.0f} % foreign'
                said += ' CONTENDED' if sample.contended else ''
            print(f'  {group.rows[0].name}  {name}: {said}', flush=True)

        measured = measure.alternate(children | dict(rate_children), policy, tell)
    medians = [{field: m.median(lambda s: s.values[field]) for field in limits.Rates._fields}
               for name, m in measured.items() if name.startswith(RATES) and m.samples]
    rates = limits.rates_of(medians) if medians else None
    return table.rows_of(group, measured, rates, policy, missing)


def settings_from_flags() -> plan.Settings:
    """Return the sizes of the command line."""
    settings = plan.GPU if _GPU.value else plan.Settings()
    if _QUICK.value:
        # The matrix that saturates a device does not become smaller with the work.
        settings = dataclasses.replace(
            plan.QUICK, rate_size=settings.rate_size, rate_megabytes=settings.rate_megabytes)
    given = {
        'samples': _SAMPLES.value, 'chunk': _CHUNK.value, 'micro_batch': _MICRO_BATCH.value, 'remat': _REMAT.value}
    return dataclasses.replace(settings, **{name: x for name, x in given.items() if x is not None})


def prepare(settings: plan.Settings, folder: str) -> list[plan.Group]:
    """Export the models for the peers into `folder`, and plan all groups."""
    dtype, device = ('bfloat16', 'cuda') if _GPU.value else ('float32', 'cpu')
    wanted = [(_MODEL.value, '', ('decode', 'prefill', 'train', 'episodes', 'serve', 'compile'))]
    if _GPU.value:  # a learner's float32 parameters and moments of the 8B model exceed one GPU
        wanted += [('1b', '_1b', ('decode', 'prefill', 'train')), ('8b', '_8b', ('decode', 'prefill'))]
    planned = []
    for model, suffix, parts in wanted:
        peer = measure.call('benchmarks.models:export', model=model, folder=folder)
        planned += plan.groups(settings, model, peer, dtype, device, suffix, parts, _EXTRA.value)
    return planned


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'unexpected arguments: {" ".join(argv[1:])}')
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that children end and the exported weights are removed
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')
    os.environ.setdefault('GLIBC_TUNABLES', 'glibc.malloc.hugetlb=1')  # for all: as launch/quickstart.sh sets it
    if _GPU.value:
        os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'  # the contenders share the device
    else:
        os.environ['JAX_PLATFORMS'] = 'cpu'
    devices = measure.call('benchmarks.limits:devices')
    if _GPU.value and not any(name.startswith(('gpu', 'cuda')) for name in devices):
        sys.exit(f'error: no GPU found, JAX has {", ".join(devices)}; install jax[cuda12], or leave out --gpu')
    settings, out = settings_from_flags(), pathlib.Path(_OUT.value)
    policy = measure.Policy(
        settings.samples, retries=_RETRIES.value, patience=_PATIENCE.value, accept=_CONTENTION.value)
    result = {
        'machine': machine(devices), 'versions': versions(), 'commit': commit(),
        'date': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'), 'model': _MODEL.value,
        'precision': 'bfloat16' if _GPU.value else 'float32', 'quick': _QUICK.value,
        'settings': dataclasses.asdict(settings) | {'allow_contention': policy.accept}, 'rows': []}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        try:
            groups = plan.only(prepare(settings, folder), _ONLY.value)
        except ValueError as error:
            sys.exit(f'error: --only: {error}')
        rate = {'dtype': result['precision'], 'size': settings.rate_size, 'megabytes': settings.rate_megabytes,
                'budget': settings.rate_seconds}
        rate_children = {}
        if any(group.work for group in groups):
            for library in ('xla',) if _GPU.value else ('xla', 'torch'):
                with contextlib.suppress(measure.Unavailable):
                    rate_children[RATES + library] = stack.enter_context(
                        measure.Child(f'benchmarks.limits:{library}_rates', rate, policy.allowed))
        for group in groups:
            print(f'{", ".join(row.name for row in group.rows)}: {group.what}', flush=True)
            rows = run_group(group, rate_children, policy)
            print(table.show(rows), flush=True)
            result['rows'] += rows
            write(out, result)
    print(f'\n{table.markdown(result)}\n{out} and {out.with_suffix(".md")}')


if __name__ == '__main__':
    flags.mark_flag_as_required('out')
    app.run(main)
