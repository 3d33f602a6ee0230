"""Messages that must be one of a few choices, against a walk over their prefix tree.

At every node of the tree, the model's probabilities of the ids that can follow, and of the stop id where a choice is
complete, are normalized to a sum of one.
"""

import dataclasses

import jax
import jax.numpy as jnp
from little_model import (
    CLOSING,
    CONFIG,
    STOP,
    TOLERANCE,
    B,
    L,
    V,
    extend,
    full_logits,
    generate,
    make_keys,
    make_model,
    make_params,
    score,
    started_session,
)
import numpy as np
import pytest

from epo_jax.models import sampling
from epo_jax.text.tokens import Tokens, pack

WIDTH, COUNT = 4, 7
# One choice is a prefix of another, two have the same end, one occurs twice, and one has the full width.
TREE = ((5, 6), (5, 6, 7), (5, 9), (8, 6), (10,), (10,), (11, 12, 13, 14))
OTHERS = ((20, 21), (30,), (), (5, 6))
ROWS = [[], list(TREE), list(OTHERS)]


def packed(rows):
    """Return the choices of every row as Tokens [B, COUNT, WIDTH]; missing choices are empty."""
    packed_rows = [pack([*row, *[()] * (COUNT - len(row))], WIDTH) for row in rows]
    return Tokens(jnp.stack([p.ids for p in packed_rows]), jnp.stack([p.length for p in packed_rows]))


def last_message(session, b):
    """Return all ids of the last message in row b, including the stop id."""
    turn = np.asarray(session.turn)[b]
    return np.asarray(session.ids)[b][turn == turn.max()].tolist()


def following(choices, prefix):
    """Return the ids that can follow a prefix, in ascending order; STOP follows a complete choice."""
    n = len(prefix)
    ids = {c[n] if len(c) > n else STOP for c in choices if len(c) and tuple(c[:n]) == tuple(prefix)}
    return sorted(ids)


def choice_probabilities(logits, choices, temperature=1.0):
    """Return the probability of every choice; logits(prefix) returns the logits f64[V] of the id after a prefix."""
    probabilities, nodes = {}, [((), 1.0)]
    while nodes:
        prefix, probability = nodes.pop()
        ids = following(choices, prefix)
        p = np.exp(logits(prefix)[ids] / temperature)
        for i, conditional in zip(ids, p / p.sum()):
            if i == STOP:
                probabilities[prefix] = probability * conditional
            else:
                nodes.append((prefix + (i,), probability * conditional))
    return probabilities


def logits_after(prompt):
    """Return a function from a prefix to the logits after prompt and prefix, computed by a full forward pass."""
    model, params = make_model(layers=1), make_params(1)

    def logits(prefix):
        ids = np.zeros((1, L), np.int32)
        ids[0, :len(prompt) + len(prefix)] = (*prompt, *prefix)
        return np.asarray(full_logits(model, params, ids), np.float64)[0, len(prompt) + len(prefix) - 1]
    return logits


@pytest.mark.parametrize('settings', [
    {}, dict(temperature=0.6), dict(top_k=2), dict(top_p=0.5), dict(min_tokens=8), dict(no_repeat=1),
    dict(temperature=0.0), dict(stop=(STOP, 6, 10), closing=(13, 14))], ids=str)
def test_messages_are_choices_and_log_probabilities_are_those_of_the_free_model(settings):
    model, params = make_model(layers=1), make_params(1)
    config = dataclasses.replace(CONFIG, **settings)
    sampled_choices = [set(), set()]
    for seed in range(4):
        session, message = generate(
            model, params, started_session(model, params, seed), make_keys(seed), jnp.ones(B, bool), config, packed(ROWS))
        expected = np.asarray(score(model, params, session.ids, 16))
        for b, choices in ((1, TREE), (2, OTHERS)):
            reply = tuple(message.rows()[b])
            assert reply in choices and reply
            assert last_message(session, b) == [*reply, STOP]
            sampled_choices[b - 1].add(reply)
        sampled = np.asarray(session.turn) >= 0
        np.testing.assert_allclose(np.asarray(session.logprob)[sampled], expected[sampled], atol=TOLERANCE)
        assert session.turns.tolist() == [1] * B and not session.overflow.any()
    assert len(sampled_choices[0]) > 1 or settings.get('temperature') == 0


@pytest.mark.parametrize('temperature', [1.0, 2.5])
def test_a_choice_has_the_probability_of_its_path_in_the_tree(temperature):
    n, prompt = 4000, (3, 14, 15, 9)
    model, params = make_model(layers=1), make_params(1)
    config = dataclasses.replace(CONFIG, temperature=temperature)
    session = extend(model, params, sampling.open_session(model, n, 16), pack([prompt] * n), 4)
    choices = jax.tree.map(lambda x: jnp.broadcast_to(x[1], (n, *x.shape[1:])), packed(ROWS))
    _, message = generate(model, params, session, make_keys(1, n), jnp.ones(n, bool), config, choices)
    probabilities = choice_probabilities(logits_after(prompt), TREE, temperature)
    assert set(probabilities) == set(TREE) and sum(probabilities.values()) == pytest.approx(1)
    replies = [tuple(row) for row in message.rows()]
    assert set(replies) <= set(TREE)
    for choice, p in probabilities.items():
        assert abs(replies.count(choice) / n - p) <= 5 * np.sqrt(p * (1 - p) / n) + 1e-3, (choice, p)
    assert sorted(probabilities.values())[-3] > 0.02  # at least three choices occur often enough


def test_temperature_zero_takes_the_most_probable_id_at_every_node():
    model, params = make_model(layers=1), make_params(1)
    session = started_session(model, params)
    config = dataclasses.replace(CONFIG, temperature=0.0)
    _, message = generate(model, params, session, make_keys(0), jnp.ones(B, bool), config, packed(ROWS))
    for b in (1, 2):
        logits, prefix = logits_after(session.ids[b, :session.length[b]].tolist()), ()
        while not prefix or prefix[-1] != STOP:
            ids = following(ROWS[b], prefix)
            prefix += (ids[int(np.argmax(logits(prefix)[ids]))],)
        assert message.rows()[b] == list(prefix[:-1])


def test_rows_without_choices_sample_freely():
    model, params = make_model(layers=1), make_params(1)
    for seed in range(4):
        session, keys, live = started_session(model, params, seed), make_keys(seed), jnp.ones(B, bool)
        free, message = generate(model, params, session, keys, live, CONFIG)
        restricted, replies = generate(model, params, session, keys, live, CONFIG, packed(ROWS))
        assert replies.rows()[0] == message.rows()[0] and replies.rows()[1] in map(list, TREE)
        np.testing.assert_array_equal(restricted.ids[0], free.ids[0])
        np.testing.assert_allclose(restricted.logprob[0], free.logprob[0], atol=1e-5)
        _, unrestricted = generate(model, params, session, keys, live, CONFIG, packed([[]] * B))
        assert unrestricted.rows() == message.rows()


def test_rows_that_are_not_live_and_full_rows_sample_no_choice():
    model, params = make_model(layers=1), make_params(1)
    session = started_session(model, params)
    session = session.replace(length=session.length.at[1].set(L))
    live = jnp.array([True, True, False])
    after, message = generate(model, params, session, make_keys(0), live, CONFIG, packed(ROWS))
    assert message.rows()[1:] == [[], []] and after.overflow.tolist() == [False, True, False]
    assert after.length[2] == session.length[2] and after.turns.tolist() == [1, 0, 0]


def test_a_choice_that_exceeds_the_capacity_overflows():
    model, params = make_model(layers=1), make_params(1)
    session = started_session(model, params)
    session = session.replace(length=session.length.at[1].set(L - 1))
    after, message = generate(
        model, params, session, make_keys(0), jnp.ones(B, bool), CONFIG, packed([[], [(11, 12, 13)], []]))
    assert after.overflow.tolist() == [False, True, False] and message.rows()[1] == [11]


def test_order_and_duplicates_of_choices_do_not_matter():
    model, params = make_model(layers=1), make_params(1)
    session, live = started_session(model, params), jnp.ones(B, bool)
    for seed in range(4):
        keys = make_keys(seed)
        replies = [generate(model, params, session, keys, live, CONFIG, packed([[], row, OTHERS]))[1].rows()
                   for row in (TREE, TREE[::-1], (*TREE[:5], TREE[6], TREE[0]))]
        assert replies[0] == replies[1] == replies[2]
        assert CLOSING not in replies[0][1] and max(map(max, replies[0][1:])) < V
