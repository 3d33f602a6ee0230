"""Compilation: what the quickstart compiles in a fresh process, with an empty cache and with a filled one.

    python -m benchmarks.compiling CACHE WORKDIR [MODEL]    prints nothing, writes WORKDIR/compilations.json

The quickstart is shortened so that it compiles the same programs and computes little: fewer episodes of fewer and
shorter messages. Its conversations stay within one length bucket of the learner; those of a full run may need a
program for each of several.
"""

import json
import pathlib
import runpy
import subprocess
import sys
import tempfile
from typing import Any

from benchmarks.measure import Contender

ROOT = pathlib.Path(__file__).resolve().parents[1]

# JAX's own names of what comes before XLA; a program traced inside another one counts in both.
BEFORE_XLA = {
    '/jax/core/compile/jaxpr_trace_duration': 'tracing',
    '/jax/core/compile/jaxpr_to_mlir_module_duration': 'lowering',
}


def shortened(model: str):
    """Return the configuration of the quickstart, shortened as far as all programs are still compiled."""
    config = runpy.run_path(str(ROOT / 'configs' / 'sotopia.py'))['get_config']('quickstart')
    config.model.path = model
    config.iterations = 2
    config.environment.max_turns = 2
    config.strategist.update(max_tokens=2, min_tokens=0)
    config.actor.update(max_tokens=2, min_tokens=0)
    config.rollout.update(episodes=2, batch=2)
    config.learner.update(batch=2, micro_batch=1)
    config.evaluation.episodes = 2
    config.checkpoint.every = config.iterations  # a checkpoint comes after the metrics that count its program
    if model == 'dummy':  # its tokenizer is of bytes
        config.strategist.capacity = config.actor.capacity = config.judge.capacity = 4096
        config.rollout.view_tokens = 3072
    return config


def run(cache: str, workdir: str, model: str) -> dict[str, Any]:
    """Run the shortened quickstart in this process with a persistent compilation cache.

    Returns:
      seconds of compiling (reading the cache included), number of programs compiled, of programs found in the cache,
      of programs compiled after the first iteration (evaluation not counted), seconds of tracing and of lowering.
    """
    import jax

    from epo_jax import experiment
    from epo_jax.runtime import files, timing

    before = dict.fromkeys(BEFORE_XLA.values(), 0.0)

    def listen(event, seconds, **_):  # JAX passes whatever metadata the event has
        if event in BEFORE_XLA:
            before[BEFORE_XLA[event]] += seconds

    timing.enable_compilation_cache(cache)
    jax.monitoring.register_event_duration_secs_listener(listen)
    with timing.CompileCounter() as compilations:
        experiment.run(shortened(model), workdir)
    first, *_, last = [
        row['time/compilations'] for row in files.read_jsonl(pathlib.Path(workdir) / 'metrics.jsonl')
        if 'time/compilations' in row]
    return {'seconds': compilations.seconds, 'programs': compilations.count, 'cache_hits': compilations.cache_hits,
            'programs_after_first_iteration': last - first, **before}


def quickstart(model: str) -> Contender:
    """Measure two new processes, the second with the cache that the first one filled."""

    def fresh(cache: pathlib.Path, workdir: pathlib.Path) -> dict[str, Any]:
        command = [sys.executable, '-m', 'benchmarks.compiling', str(cache), str(workdir), model]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f'{" ".join(command)} failed:\n{done.stderr[-4000:]}')
        return json.loads((workdir / 'compilations.json').read_text())

    def both():
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            cold, warm = (fresh(folder / 'cache', folder / name) for name in ('cold', 'warm'))
        return {f'cold_{name}': x for name, x in cold.items()} | {f'warm_{name}': x for name, x in warm.items()}

    return Contender(both, warm_up=False)


def main(cache: str, workdir: str, model: str = 'smollm2') -> None:
    pathlib.Path(workdir).mkdir(parents=True)
    result = run(cache, workdir, model)
    (pathlib.Path(workdir) / 'compilations.json').write_text(json.dumps(result))


if __name__ == '__main__':
    main(*sys.argv[1:])
