"""Random streams differ between purposes and positions, and from the keys of iterations."""

import itertools

import jax
import numpy as np

from epo_jax.rollout import episode_keys
from epo_jax.runtime import streams


def test_no_two_uses_share_a_stream():
    positions = [position for size in range(4) for position in itertools.product((0, 1, 2), repeat=size)]
    drawn = {tuple(streams.generator(purpose, *position).integers(0, 2**32, 4))
             for purpose in ('scenarios', 'evaluation', 'bootstrap') for position in positions}
    assert len(drawn) == 3 * len(positions)
    again = streams.generator('scenarios', 1, 2).integers(0, 2**32, 4)
    assert tuple(again) in drawn and (again == streams.generator('scenarios', 1, 2).integers(0, 2**32, 4)).all()


def test_the_key_of_an_adapter_is_not_that_of_an_iteration():
    adapter = jax.random.key_data(streams.key('adapter', 5))
    parts = {tuple(np.asarray(jax.random.key_data(jax.random.fold_in(streams.key('adapter', 5), i)))) for i in range(7)}
    for iteration in (*range(50), 2**31 - 1):
        key = jax.random.fold_in(jax.random.key(5), iteration)
        assert tuple(np.asarray(jax.random.key_data(key))) not in parts
        assert (np.asarray(jax.random.key_data(key)) != np.asarray(adapter)).any()
    assert len(episode_keys(5, 0, np.arange(3))) == 3


def test_every_seed_that_a_configuration_allows_has_its_own_keys():
    keys = {seed: np.asarray(jax.random.key_data(episode_keys(seed, 3, np.arange(2))))
            for seed in (0, 1, 2**31 - 1, 2**31, 2**32 - 1)}
    assert len({tuple(key.ravel()) for key in keys.values()}) == len(keys)
    for seed, key in keys.items():
        alone = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 3), 1)
        np.testing.assert_array_equal(key[1], jax.random.key_data(alone))
