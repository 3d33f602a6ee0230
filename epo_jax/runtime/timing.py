"""Counts of compilations, a stopwatch, and the persistent compilation cache."""

import collections
import contextlib
import os
from pathlib import Path
import threading
import time
from typing import Any, Iterator, Union

import jax
from jax.experimental.compilation_cache import compilation_cache


class CompileCounter:
    """Counts XLA compilations inside `with CompileCounter() as compilations: ...`.

    Attributes:
      count: programs that XLA compiled.
      cache_hits: programs that were read from the persistent compilation cache.
      seconds: total time of compilations and cache reads.
    """

    def __init__(self):
        self.count = 0
        self.cache_hits = 0
        self.seconds = 0.0
        self._lock = threading.Lock()  # several threads may compile at once

    def __enter__(self) -> 'CompileCounter':
        jax.monitoring.register_event_listener(self._on_event)
        jax.monitoring.register_event_duration_secs_listener(self._on_duration)
        return self

    def __exit__(self, *exception: Any) -> None:
        jax.monitoring.unregister_event_listener(self._on_event)
        jax.monitoring.unregister_event_duration_listener(self._on_duration)

    def _on_event(self, event: str, **_: Any) -> None:  # JAX passes further metadata
        if event == '/jax/compilation_cache/cache_hits':
            with self._lock:
                self.cache_hits += 1
                self.count -= 1  # JAX also reports a cache read as a compilation, in the next event

    def _on_duration(self, event: str, seconds: float, **_: Any) -> None:
        if event == '/jax/core/compile/backend_compile_duration':
            with self._lock:
                self.count += 1
                self.seconds += seconds


def enable_compilation_cache(path: Union[str, Path]) -> None:
    """Cache every compiled program in a directory, for this process and later ones.

    This does nothing if the environment variable JAX_COMPILATION_CACHE_DIR is set.
    """
    if os.environ.get('JAX_COMPILATION_CACHE_DIR'):
        return
    jax.config.update('jax_compilation_cache_dir', str(path))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
    jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
    # JAX decides at its first compilation whether to use a cache; this makes it reconsider.
    compilation_cache.reset_cache()


class Stopwatch:
    """Measures time by name: `with watch('rollout'): ...`, then `watch.metrics()`."""

    def __init__(self):
        self._seconds = collections.defaultdict(float)

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the time spent in the context to `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] += time.perf_counter() - start

    def metrics(self) -> dict[str, float]:
        """Return the seconds since the last call, such as {'time/rollout': 1.5}, and reset."""
        metrics = {f'time/{name}': seconds for name, seconds in self._seconds.items()}
        self._seconds.clear()
        return metrics
