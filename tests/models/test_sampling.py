"""Sessions against a full forward pass, and properties of the compiled programs."""

import re

import jax
import jax.numpy as jnp
from little_model import (
    CLOSING,
    CONFIG,
    ENDLESS,
    STOP,
    TOLERANCE,
    B,
    K,
    L,
    V,
    assert_same_row,
    draw,
    extend,
    full_logits,
    generate,
    make_keys,
    make_model,
    make_params,
    next_logits,
    peek,
    score,
    started_session,
    text,
)
import numpy as np
import pytest

from epo_jax.models import sampling
from epo_jax.models.transformer import Transformer
from epo_jax.runtime.timing import CompileCounter
from epo_jax.testing import dummy_config
from epo_jax.text.tokens import pack


def play(model, params):
    """Run three conversations for three rounds, with rows that are not live and with peeks between the messages.

    Returns:
      The session, and the messages of every round.
    """
    rng, session, messages = np.random.default_rng(1), sampling.open_session(model, B, L), []
    for turn, (lengths, live) in enumerate((((3, 1, 9), (1, 1, 1)), ((0, 4, 2), (0, 1, 1)), ((7, 2, 0), (1, 0, 1)))):
        session = extend(model, params, session, text(rng, *lengths), 4)
        session, _ = peek(model, params, session, text(rng, 2, 12, 5), 4)
        session, message = generate(model, params, session, make_keys(turn), jnp.array(live, bool), CONFIG)
        messages.append(message.rows())
        session, _ = peek(model, params, session, text(rng, 7, 0, 11), 4)
    return session, messages


# Sessions

@pytest.mark.parametrize('window, layers', ((None, 2), (6, 1)))
def test_recorded_logprobs_and_cache_agree_with_a_full_pass(window, layers):
    model, params = make_model(window, layers), make_params(layers)
    session, rounds = play(model, params)
    lengths, turns, ids = np.asarray(session.length), np.asarray(session.turn), np.asarray(session.ids)
    assert not session.overflow.any() and session.turns.tolist() == [2, 2, 3]
    assert any(len(m) == CONFIG.max_tokens for messages in rounds for m in messages)  # cut off
    assert any(0 < len(m) < CONFIG.max_tokens for messages in rounds for m in messages)  # complete

    expected = np.asarray(score(model, params, session.ids, 16))
    is_sampled = turns >= 0
    assert np.abs(np.asarray(session.logprob) - expected)[is_sampled].max() <= TOLERANCE
    assert not np.asarray(session.logprob)[~is_sampled].any()
    assert np.ptp(expected[is_sampled]) > 2  # otherwise, the comparison would prove little

    expected_logits = np.asarray(full_logits(model, params, session.ids))
    _, logits = next_logits(model, params, session)
    np.testing.assert_allclose(logits, expected_logits[np.arange(B), lengths - 1], atol=TOLERANCE)
    for b in range(B):
        assert turns[b, lengths[b]:].max() == -1
        messages = iter(m[b] for m in rounds if m[b])
        for t in range(int(session.turns[b])):
            message = next(messages)
            sampled = ids[b][turns[b] == t].tolist()
            assert sampled in (message, message + [STOP])
            assert sampled[-1] in (STOP, CLOSING) or len(sampled) == CONFIG.max_tokens


def test_in_bfloat16_log_probabilities_are_those_of_a_full_pass_up_to_rounding():
    """Ids may differ between batches in bfloat16; what is recorded of a sampled id is still its log-probability."""
    model = Transformer(dummy_config(V), jnp.bfloat16)
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), make_params())
    session = started_session(model, params)
    session, _ = generate(model, params, session, make_keys(0), jnp.ones(B, bool), ENDLESS)
    sampled = np.asarray(session.turn) >= 0
    gap = np.abs(np.asarray(session.logprob) - np.asarray(score(model, params, session.ids, 16)))[sampled]
    exact = np.asarray(score(make_model(), make_params(), session.ids, 16))[sampled]
    assert sampled.sum() == 8 * B and np.ptp(exact) > 2
    assert gap.max() < 0.2 and gap.mean() < 0.05
    assert np.abs(np.asarray(session.logprob)[sampled] - exact).mean() < 0.2


def test_a_sliding_window_changes_the_logits_after_its_size():
    ids = jnp.asarray(np.random.default_rng(0).integers(0, V, (B, L)))
    near, far = (np.asarray(full_logits(make_model(window, 1), make_params(1), ids)) for window in (6, None))
    assert np.abs(near - far)[:, :6].max() < TOLERANCE < np.abs(near - far)[:, 6:].max()


def test_extend_does_not_depend_on_pieces_and_chunks():
    model, params, rng = make_model(), make_params(), np.random.default_rng(0)
    rows = [rng.integers(0, V, n).tolist() for n in (20, 13, 2)]
    sessions = []
    for cuts, chunk in (((10, 20), 4), ((1, 2, 12, 20), 4), ((12, 13, 14, 20), 7)):
        session, start = sampling.open_session(model, B, L), 0
        for end in cuts:
            session = extend(model, params, session, pack([r[start:end] for r in rows], K), chunk)
            start = end
        sessions.append(session)
        assert [session.ids[b, :n].tolist() for b, n in enumerate(session.length)] == rows
        assert (session.turn == -1).all() and not session.overflow.any()
    expected = np.asarray(full_logits(model, params, sessions[0].ids))[np.arange(B), [19, 12, 1]]
    for session in sessions:
        np.testing.assert_allclose(next_logits(model, params, session)[1], expected, atol=TOLERANCE)


def test_peek_does_not_change_the_conversation():
    model, params, rng = make_model(), make_params(), np.random.default_rng(2)
    session = started_session(model, params)
    question = text(rng, 12, 0, 5)
    after, logits = peek(model, params, session, question, 4)
    for b in range(B):
        assert_same_row(after, session, b)
    extended = extend(model, params, session, question, 4)
    np.testing.assert_allclose(logits, next_logits(model, params, extended)[1], atol=1e-5)

    more, live = text(rng, 2, 3, 0), jnp.ones(B, bool)
    results = []
    for start in (session, after):
        extended = extend(model, params, start, more, 4)
        results.append(generate(model, params, extended, make_keys(3), live, CONFIG))
    (without_peek, message), (with_peek, message_with_peek) = results
    assert message.rows() == message_with_peek.rows()
    for b in range(B):
        assert_same_row(with_peek, without_peek, b)


def test_peek_that_stays_equals_extend():
    model, params, rng = make_model(), make_params(), np.random.default_rng(4)
    session, tokens = started_session(model, params), text(rng, 7, 0, 12)
    for stay in (False, True):
        after, logits = peek(model, params, session, tokens, 4, stay)
        expected = extend(model, params, session, tokens, 4) if stay else session
        for b in range(B):
            assert_same_row(after, expected, b)
    _, after_extending = next_logits(model, params, expected)
    np.testing.assert_allclose(logits, after_extending, atol=1e-5)
    np.testing.assert_allclose(next_logits(model, params, after)[1], after_extending, atol=1e-5)


def test_peek_returns_nan_if_the_tokens_do_not_fit():
    model, params = make_model(), make_params()
    session = started_session(model, params, lengths=(5, 1, 9))
    session = session.replace(length=jnp.array([5, L - 4, 9]))
    _, logits = peek(model, params, session, pack([[2] * 4, [2] * 4, []], K), 4)
    assert np.isnan(logits).all(axis=1).tolist() == [False, True, False]
    assert not np.isnan(logits)[::2].any()


def test_peek_returns_nan_for_a_frozen_row():
    model, params = make_model(), make_params()
    session = started_session(model, params)
    frozen = session.replace(overflow=jnp.array([False, True, False]))
    _, logits = peek(model, params, frozen, pack([[2]] * B, K), 4)
    assert np.isnan(logits).all(axis=1).tolist() == [False, True, False]


def test_extend_beyond_the_capacity_freezes_only_that_row():
    model, params, rng = make_model(), make_params(), np.random.default_rng(3)
    session = started_session(model, params, lengths=(12, 12, 9))
    for lengths in ((12, 12, 9), (12, 12, 12), (12, 12, 12)):
        session = extend(model, params, session, text(rng, *lengths), 4)
    assert session.length.tolist() == [48, 48, 42]
    session = extend(model, params, session, text(rng, 10, 9, 1), 4)
    assert session.length.tolist() == [58, 57, 43]
    more = text(rng, 6, 6, 2)  # at most 5 would fit into the first row, which must have space for one more token
    after = extend(model, params, session, more, 4)
    assert after.overflow.tolist() == [True, False, False] and after.length.tolist() == [58, 63, 45]
    assert_same_row(after.replace(overflow=session.overflow), session, 0)
    expected = extend(model, params, session, more.replace(length=more.length * jnp.array([0, 1, 1])), 4)
    for b in (1, 2):
        assert_same_row(after, expected, b)

    again = extend(model, params, after, text(rng, 1, 0, 1), 4)  # would fit, but the row is frozen
    assert again.overflow.tolist() == [True, False, False] and again.length.tolist() == [58, 63, 46]
    again, message = generate(model, params, after, make_keys(0), jnp.array([True, False, False]), CONFIG)
    assert message.rows()[0] == [] and again.turns[0] == session.turns[0]
    assert_same_row(again, after, 0)


def test_generate_beyond_the_capacity_freezes_only_that_row():
    model, params = make_model(), make_params()
    session, live = started_session(model, params, lengths=(5, 1, 9)), jnp.ones(B, bool)
    expected, _ = generate(model, params, session, make_keys(0), jnp.array([True, False, True]), ENDLESS)
    full = session.replace(length=jnp.array([5, L - 3, 9]))
    after, message = generate(model, params, full, make_keys(0), live, ENDLESS)
    assert after.overflow.tolist() == [False, True, False] and after.length.tolist() == [13, L, 17]
    assert [len(m) for m in message.rows()] == [8, 3, 8]
    assert message.rows()[1] == after.ids[1, -3:].tolist() and (np.asarray(after.turn)[1, -3:] == 0).all()
    for b in (0, 2):
        assert_same_row(after, expected, b)
    again = extend(model, params, after, pack([[2]] * B, K), 4)
    again, message = generate(model, params, again, make_keys(1), live, ENDLESS)
    assert again.length[1] == L and again.overflow.tolist() == [False, True, False] and message.rows()[1] == []


def full_session(model, params):
    """Return a session whose first row is full and ends with a stop id."""
    session = started_session(model, params)
    return session.replace(ids=session.ids.at[0, -1].set(STOP), length=session.length.at[0].set(L))


def test_a_full_row_does_not_change_or_overflow_while_the_others_continue():
    model, params = make_model(), make_params()
    session = full_session(model, params)
    after = extend(model, params, session, pack([[], [2], [3]], K), 4)
    assert not after.overflow.any() and after.length.tolist() == [L, 2, 10]
    after, message = generate(model, params, after, make_keys(0), jnp.array([False, True, True]), CONFIG)
    assert not after.overflow.any() and after.length[0] == L and message.rows()[0] == []


def test_generate_freezes_a_full_row():
    model, params = make_model(), make_params()
    session = full_session(model, params)
    after, message = generate(model, params, session, make_keys(0), jnp.ones(B, bool), CONFIG)
    assert after.overflow.tolist() == [True, False, False]
    assert after.length[0] == L and message.rows()[0] == []


def test_a_message_does_not_depend_on_other_rows():
    model, params, live = make_model(), make_params(), jnp.ones(B, bool)
    keys = make_keys(7)
    session, message = generate(model, params, started_session(model, params), keys, live, CONFIG)
    other = started_session(model, params, seed=5, lengths=(2, 8, 9))
    take = lambda a, b: jnp.concatenate([a[:1], b[1:]])
    mixed = jax.tree.map(take, started_session(model, params), other)
    key_data = take(jax.random.key_data(keys), jax.random.key_data(make_keys(8)))
    _, mixed_message = generate(model, params, mixed, jax.random.wrap_key_data(key_data), live, CONFIG)
    assert mixed_message.rows()[0] == message.rows()[0] and mixed_message.rows()[1:] != message.rows()[1:]
    reverse = jax.tree.map(lambda x: x[::-1], started_session(model, params))
    _, reversed_message = generate(model, params, reverse, keys[::-1], live, CONFIG)
    assert reversed_message.rows() == message.rows()[::-1]
    last_row = jax.tree.map(lambda x: x[2:], started_session(model, params))
    alone, message_alone = generate(model, params, last_row, keys[2:], live[2:], CONFIG)
    assert message_alone.rows() == message.rows()[2:]
    np.testing.assert_allclose(alone.logprob[0], session.logprob[2], atol=1e-4)
    _, one_live = generate(model, params, started_session(model, params), keys, jnp.array([False, False, True]), CONFIG)
    assert one_live.rows() == [[], [], message.rows()[2]]
    _, other_keys = generate(model, params, started_session(model, params), make_keys(9), live, CONFIG)
    assert other_keys.rows() != message.rows()


def test_each_token_is_sampled_with_the_key_of_its_position():
    model, params, keys = make_model(), make_params(), make_keys(4)
    session, _ = generate(model, params, started_session(model, params), keys, jnp.ones(B, bool), ENDLESS)
    logits, turns = full_logits(model, params, session.ids), np.asarray(session.turn)
    banned = jnp.zeros((B, V), bool).at[:, [STOP, CLOSING]].set(True)
    for p in range(1, int(session.length.max())):
        at = jax.vmap(lambda key: jax.random.fold_in(key, p))(keys)
        again, _ = draw(logits[:, p - 1], at, ENDLESS, banned)
        for b in np.flatnonzero(turns[:, p] == 0):
            assert session.ids[b, p] == again[b]
    assert (turns == 0).sum() == 8 * B


def test_an_empty_conversation_generates_no_message():
    model, params = make_model(), make_params()
    empty = sampling.open_session(model, B, L)
    session, message = generate(model, params, empty, make_keys(0), jnp.ones(B, bool), CONFIG)
    assert message.rows() == [[]] * B and session.length.tolist() == [0] * B
    assert sampling.last_id(session).tolist() == [-1] * B


@pytest.mark.parametrize('window, layers', ((None, 2), (6, 1)))
def test_a_cleared_row_equals_a_new_one_and_the_others_do_not_change(window, layers):
    model, params, rng = make_model(window, layers), make_params(layers), np.random.default_rng(6)
    old = extend(model, params, started_session(model, params, lengths=(12, 9, 3)), text(rng, 12, 12, 12), 4)
    old, _ = generate(model, params, old, make_keys(0), jnp.ones(B, bool), CONFIG)
    old = old.replace(overflow=jnp.array([True, False, False]))
    rows = jnp.array([True, False, True])
    cleared, fresh = sampling.clear(old, rows), sampling.open_session(model, B, L)
    for name in ('ids', 'length', 'turn', 'logprob', 'turns', 'overflow'):
        for b, new in enumerate(rows):
            np.testing.assert_array_equal(getattr(cleared, name)[b], getattr(fresh if new else old, name)[b])
    assert_same_row(cleared, old, 1)
    opening = text(rng, 4, 0, 7)
    reused, new = (extend(model, params, session, opening, 4) for session in (cleared, fresh))
    (reused, message), (new, new_message) = (
        generate(model, params, session, make_keys(1), rows, CONFIG) for session in (reused, new))
    assert message.rows() == new_message.rows() and message.rows()[0]
    for b in (0, 2):
        assert_same_row(reused, new, b)
    assert_same_row(reused, old, 1)


# Compiled programs

def test_the_cache_is_updated_in_place():
    model, params = make_model(), make_params()
    session = sampling.open_session(model, B, L)
    donating = jax.jit(sampling.generate, static_argnums=(0, 5), donate_argnums=2)
    compiled = donating.lower(model, params, session, make_keys(0), jnp.ones(B, bool), CONFIG).compile()
    size = sum(x.nbytes for x in jax.tree.leaves(session))
    layer = session.cache[0][0].nbytes
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= size
    assert memory.temp_size_in_bytes < layer + sum(x.nbytes for x in jax.tree.leaves(session.cache)) / 2
    program = compiled.as_text()
    shapes = {'f32[{}]'.format(','.join(map(str, x.shape))) for x in jax.tree.leaves(session.cache)}
    assert len(re.findall(r'may-alias|must-alias', program)) >= len(jax.tree.leaves(session))
    assert any(shape in program for shape in shapes)
    copies = [line for line in program.splitlines() if re.search(r'= \S+ copy(-start)?\(', line)]
    assert not [line for line in copies if any(f'= {shape}' in line for shape in shapes)]


def test_other_lengths_do_not_compile_again():
    model, params = make_model(), make_params()
    play(model, params)
    before = [f._cache_size() for f in (extend, generate, peek)]
    rng, keys = np.random.default_rng(9), [make_keys(i) for i in range(2)]
    live, others = jnp.array([True, False, True]), jnp.array([False, True, False])
    with CompileCounter() as compiles:
        session = started_session(model, params, seed=4, lengths=(1, 12, 3))
        session, _ = generate(model, params, session, keys[0], live, CONFIG)
        session = extend(model, params, session, text(rng, 0, 0, 11), 4)
        session, _ = peek(model, params, session, text(rng, 5, 7, 1), 4)
        session, _ = generate(model, params, session, keys[1], others, CONFIG)
    assert compiles.count == 0
    assert [f._cache_size() for f in (extend, generate, peek)] == before
