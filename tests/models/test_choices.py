"""Replies that must be one of a few: against a walk over the tree of choices by hand.

A choice is spelt along the tree that all of them form: at every node the model's probabilities of the ids that can
follow, and of the end where a choice is complete, are made to add up to one.
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
    begun,
    extend,
    full_logits,
    generate,
    make_keys,
    make_model,
    make_params,
    score,
)
import numpy as np
import pytest

from epo_jax.models import sampling
from epo_jax.text.tokens import Tokens, pack

WIDTH, COUNT = 4, 7
# One begins another, two end alike, one stands twice, one is as long as there is room.
TREE = ((5, 6), (5, 6, 7), (5, 9), (8, 6), (10,), (10,), (11, 12, 13, 14))
OTHERS = ((20, 21), (30,), (), (5, 6))
ROWS = [[], list(TREE), list(OTHERS)]


def packed(rows):
    """Tokens [B, COUNT, WIDTH] of the choices of every row, those that are missing empty."""
    parts = [pack([*row, *[()] * (COUNT - len(row))], WIDTH) for row in rows]
    return Tokens(jnp.stack([p.ids for p in parts]), jnp.stack([p.length for p in parts]))


def said(session, b):
    """Every id of the last message in row b, the one that ended it included."""
    turn = np.asarray(session.turn)[b]
    return np.asarray(session.ids)[b][turn == turn.max()].tolist()


def following(choices, prefix):
    """Ids that can follow a prefix, in order; STOP where a choice is complete."""
    n = len(prefix)
    ids = {c[n] if len(c) > n else STOP for c in choices if len(c) and tuple(c[:n]) == tuple(prefix)}
    return sorted(ids)


def walk(logits, choices, temperature=1.0):
    """Probability of every choice; logits(prefix) are those of what follows it, f64[V]."""
    chances, open_nodes = {}, [((), 1.0)]
    while open_nodes:
        prefix, chance = open_nodes.pop()
        ids = following(choices, prefix)
        p = np.exp(logits(prefix)[ids] / temperature)
        for i, share in zip(ids, p / p.sum()):
            if i == STOP:
                chances[prefix] = chance * share
            else:
                open_nodes.append((prefix + (i,), chance * share))
    return chances


def reader(prompt):
    """Prefix -> logits behind the prompt and the prefix, by a full pass."""
    model, params = make_model(layers=1), make_params(1)

    def logits(prefix):
        ids = np.zeros((1, L), np.int32)
        ids[0, :len(prompt) + len(prefix)] = (*prompt, *prefix)
        return np.asarray(full_logits(model, params, ids), np.float64)[0, len(prompt) + len(prefix) - 1]
    return logits


@pytest.mark.parametrize('settings', [
    {}, dict(temperature=0.6), dict(top_k=2), dict(top_p=0.5), dict(min_tokens=8), dict(no_repeat=1),
    dict(temperature=0.0), dict(stop=(STOP, 6, 10), closing=(13, 14))], ids=str)
def test_every_message_is_one_of_the_choices_and_its_logprob_the_models_own(settings):
    model, params = make_model(layers=1), make_params(1)
    config = dataclasses.replace(CONFIG, **settings)
    heard = [set(), set()]
    for seed in range(4):
        session, message = generate(
            model, params, begun(model, params, seed), make_keys(seed), jnp.ones(B, bool), config, packed(ROWS))
        want = np.asarray(score(model, params, session.ids, 16))
        for b, choices in ((1, TREE), (2, OTHERS)):
            reply = tuple(message.rows()[b])
            assert reply in choices and reply
            assert said(session, b) == [*reply, STOP]
            heard[b - 1].add(reply)
        sampled = np.asarray(session.turn) >= 0
        np.testing.assert_allclose(np.asarray(session.logprob)[sampled], want[sampled], atol=TOLERANCE)
        assert session.turns.tolist() == [1] * B and not session.overflow.any()
    assert len(heard[0]) > 1 or settings.get('temperature') == 0


@pytest.mark.parametrize('temperature', [1.0, 2.5])
def test_a_choice_has_the_probability_of_its_way_through_the_tree(temperature):
    n, prompt = 4000, (3, 14, 15, 9)
    model, params = make_model(layers=1), make_params(1)
    config = dataclasses.replace(CONFIG, temperature=temperature)
    session = extend(model, params, sampling.open_session(model, n, 16), pack([prompt] * n), 4)
    every = jax.tree.map(lambda x: jnp.broadcast_to(x[1], (n, *x.shape[1:])), packed(ROWS))
    _, message = generate(model, params, session, make_keys(1, n), jnp.ones(n, bool), config, every)
    chances = walk(reader(prompt), TREE, temperature)
    assert set(chances) == set(TREE) and sum(chances.values()) == pytest.approx(1)
    replies = [tuple(row) for row in message.rows()]
    assert set(replies) <= set(TREE)
    for choice, p in chances.items():
        assert abs(replies.count(choice) / n - p) <= 5 * np.sqrt(p * (1 - p) / n) + 1e-3, (choice, p)
    assert sorted(chances.values())[-3] > 0.02  # more than two of them are likely


def test_the_most_probable_id_at_every_node_is_taken_at_temperature_zero():
    model, params = make_model(layers=1), make_params(1)
    session = begun(model, params)
    config = dataclasses.replace(CONFIG, temperature=0.0)
    _, message = generate(model, params, session, make_keys(0), jnp.ones(B, bool), config, packed(ROWS))
    for b in (1, 2):
        logits, prefix = reader(session.ids[b, :session.length[b]].tolist()), ()
        while not prefix or prefix[-1] != STOP:
            ids = following(ROWS[b], prefix)
            prefix += (ids[int(np.argmax(logits(prefix)[ids]))],)
        assert message.rows()[b] == list(prefix[:-1])


def test_rows_without_choices_say_what_they_would_have_said():
    model, params = make_model(layers=1), make_params(1)
    for seed in range(4):
        session, keys, live = begun(model, params, seed), make_keys(seed), jnp.ones(B, bool)
        free, message = generate(model, params, session, keys, live, CONFIG)
        bound, replies = generate(model, params, session, keys, live, CONFIG, packed(ROWS))
        assert replies.rows()[0] == message.rows()[0] and replies.rows()[1] in map(list, TREE)
        np.testing.assert_array_equal(bound.ids[0], free.ids[0])
        np.testing.assert_allclose(bound.logprob[0], free.logprob[0], atol=1e-5)
        _, none = generate(model, params, session, keys, live, CONFIG, packed([[]] * B))
        assert none.rows() == message.rows()


def test_rows_that_do_not_speak_and_rows_without_room_take_no_choice():
    model, params = make_model(layers=1), make_params(1)
    session = begun(model, params)
    session = session.replace(length=session.length.at[1].set(L))
    live = jnp.array([True, True, False])
    after, message = generate(model, params, session, make_keys(0), live, CONFIG, packed(ROWS))
    assert message.rows()[1:] == [[], []] and after.overflow.tolist() == [False, True, False]
    assert after.length[2] == session.length[2] and after.turns.tolist() == [1, 0, 0]


def test_a_choice_that_the_capacity_cuts_off_is_flagged():
    model, params = make_model(layers=1), make_params(1)
    session = begun(model, params)
    session = session.replace(length=session.length.at[1].set(L - 1))
    after, message = generate(
        model, params, session, make_keys(0), jnp.ones(B, bool), CONFIG, packed([[], [(11, 12, 13)], []]))
    assert after.overflow.tolist() == [False, True, False] and message.rows()[1] == [11]


def test_the_same_tree_is_walked_whatever_the_order_and_the_repeats():
    model, params = make_model(layers=1), make_params(1)
    session, live = begun(model, params), jnp.ones(B, bool)
    for seed in range(4):
        keys = make_keys(seed)
        ways = [generate(model, params, session, keys, live, CONFIG, packed([[], row, OTHERS]))[1].rows()
                for row in (TREE, TREE[::-1], (*TREE[:5], TREE[6], TREE[0]))]
        assert ways[0] == ways[1] == ways[2]
        assert CLOSING not in ways[0][1] and max(map(max, ways[0][1:])) < V
