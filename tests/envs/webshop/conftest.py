"""Shops for the tests: the packaged one, and the official 1,000 products where their data is available."""

import pathlib

import pytest

from epo_jax.envs.webshop.variants import load_shop

OFFICIAL = pathlib.Path(__file__).parents[4] / 'shared' / 'data' / 'webshop'


@pytest.fixture(scope='session')
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp('webshop')


@pytest.fixture(scope='session')
def small(cache):
    return load_shop('webshop-small-synth-15', cache=cache)


@pytest.fixture(scope='session')
def official_data():
    if not (OFFICIAL / 'products_1000.jsonl').is_file():
        pytest.skip('the data of the official 1,000 products is not available')
    return OFFICIAL


@pytest.fixture(scope='session')
def official(official_data, cache):
    return load_shop('webshop-1k-synth-15', str(official_data), cache=cache)
