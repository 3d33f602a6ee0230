"""Agents without a language model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epo_jax.agents.scripted import Echo
from epo_jax.text.tokens import pack


@pytest.mark.parametrize('width, expected', [(4, [[5, 6, 7], [], [8, 9, 10, 11]]), (2, [[5, 6], [], [8, 9]])])
def test_echo_repeats_the_strategy_up_to_its_width(width, expected):
    echo, empty = Echo(width), pack([[]] * 3, 0)
    live, keys = jnp.array([True, False, True]), jax.random.split(jax.random.key(0), 3)
    memory = echo.begin(None, echo.start(3), empty, live, 1)
    observation = pack([[1], [2], [3, 4]])
    strategy = [pack([[5], [5], []]), pack([[6, 7], [6], [8, 9, 10, 11, 12]])]
    memory, reply = echo.respond(None, memory, [observation, *strategy], empty, None, keys, 0, live)
    assert reply.ids.shape == (3, width) and reply.rows() == expected
    assert not np.asarray(echo.failed(memory)).any() and list(echo.reasons(memory)) == [''] * 3
    _, reply = echo.respond(None, memory, [observation], empty, None, keys, 0, live)
    assert reply.rows() == [[]] * 3
