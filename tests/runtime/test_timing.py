"""Counts of compilations, the compilation cache, and the stopwatch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epo_jax.runtime import timing


def test_compile_counter_counts_new_programs_only():
    inputs = [np.ones(n, np.float32) for n in (5, 6)]
    with timing.CompileCounter() as compiles:
        f = jax.jit(lambda x: jnp.sin(x) * 3)
        f(inputs[0])
        assert (compiles.count, compiles.cache_hits) == (1, 0) and compiles.seconds > 0
        f(inputs[0])
        assert compiles.count == 1
        f(inputs[1])
        assert compiles.count == 2
    f(np.ones(7, np.float32))
    assert compiles.count == 2
    with compiles:
        f(np.ones(8, np.float32))
    assert compiles.count == 3


def test_persistent_cache_hits_are_not_compilations(tmp_path):
    names = ('jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs',
             'jax_persistent_cache_min_entry_size_bytes')
    before = {name: getattr(jax.config, name) for name in names}
    x = np.ones(5, np.float32)

    def g(x):
        return jnp.cos(x) * 7

    try:
        timing.enable_compilation_cache(tmp_path / 'cache')
        with timing.CompileCounter() as compiles:
            jax.jit(g)(x)
            assert (compiles.count, compiles.cache_hits) == (1, 0)
            jax.clear_caches()
            jax.jit(g)(x)
        assert (compiles.count, compiles.cache_hits) == (1, 1)
        assert any((tmp_path / 'cache').iterdir())
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        timing.compilation_cache.reset_cache()


def test_stopwatch_adds_up_and_resets():
    watch = timing.Stopwatch()
    for _ in range(2):
        with watch('rollout'):
            pass
    with pytest.raises(RuntimeError), watch('update'):
        raise RuntimeError
    metrics = watch.metrics()
    assert list(metrics) == ['time/rollout', 'time/update'] and all(0 < value < 1 for value in metrics.values())
    assert watch.metrics() == {}


def test_a_cache_directory_in_the_environment_is_respected(tmp_path, monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path / 'users'))
    timing.enable_compilation_cache(tmp_path / 'other')
    assert jax.config.jax_compilation_cache_dir == before
