"""Agents that are no models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epo_jax.agents.scripted import Echo
from epo_jax.text.tokens import pack


@pytest.mark.parametrize('width, said', [(4, [[5, 6, 7], [], [8, 9, 10, 11]]), (2, [[5, 6], [], [8, 9]])])
def test_an_echo_says_what_comes_after_the_news_as_far_as_it_fits(width, said):
    echo, nothing = Echo(width), pack([[]] * 3, 0)
    live, keys = jnp.array([True, False, True]), jax.random.split(jax.random.key(0), 3)
    memory = echo.begin(None, echo.start(3), nothing, live, 1)
    news, parts = pack([[1], [2], [3, 4]]), [pack([[5], [5], []]), pack([[6, 7], [6], [8, 9, 10, 11, 12]])]
    memory, reply = echo.respond(None, memory, [news, *parts], nothing, None, keys, 0, live)
    assert reply.ids.shape == (3, width) and reply.rows() == said
    assert not np.asarray(echo.failed(memory)).any() and list(echo.reasons(memory)) == [''] * 3
    _, silence = echo.respond(None, memory, [news], nothing, None, keys, 0, live)
    assert silence.rows() == [[]] * 3
