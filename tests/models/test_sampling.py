"""Sessions against a full forward pass, and the compiled program."""

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
    begun,
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
    text,
)
import numpy as np
import pytest

from epo_jax.models import sampling
from epo_jax.runtime.timing import CompileCounter
from epo_jax.text.tokens import pack


def play(model, params):
    """Three conversations of three rounds each, with silent rows and questions in between: (session, messages)."""
    rng, session, said = np.random.default_rng(1), sampling.open_session(model, B, L), []
    for turn, (lengths, live) in enumerate((((3, 1, 9), (1, 1, 1)), ((0, 4, 2), (0, 1, 1)), ((7, 2, 0), (1, 0, 1)))):
        session = extend(model, params, session, text(rng, *lengths), 4)
        session, _ = peek(model, params, session, text(rng, 2, 12, 5), 4)
        session, message = generate(model, params, session, make_keys(turn), jnp.array(live, bool), CONFIG)
        said.append(message.rows())
        session, _ = peek(model, params, session, text(rng, 7, 0, 11), 4)
    return session, said


# Sessions.

@pytest.mark.parametrize('window, layers', ((None, 2), (6, 1)))
def test_recorded_logprobs_and_cache_agree_with_a_full_pass(window, layers):
    model, params = make_model(window, layers), make_params(layers)
    session, said = play(model, params)
    lengths, turns, ids = np.asarray(session.length), np.asarray(session.turn), np.asarray(session.ids)
    assert not session.overflow.any() and session.turns.tolist() == [2, 2, 3]
    assert any(len(m) == CONFIG.max_tokens for messages in said for m in messages)  # one was cut off
    assert any(0 < len(m) < CONFIG.max_tokens for messages in said for m in messages)  # one was not

    want = np.asarray(score(model, params, session.ids, 16))
    sampled = turns >= 0
    assert np.abs(np.asarray(session.logprob) - want)[sampled].max() <= TOLERANCE
    assert not np.asarray(session.logprob)[~sampled].any()
    assert np.ptp(want[sampled]) > 2  # the model has opinions, so that agreement means something

    whole = np.asarray(full_logits(model, params, session.ids))
    _, logits = next_logits(model, params, session)
    np.testing.assert_allclose(logits, whole[np.arange(B), lengths - 1], atol=TOLERANCE)
    for b in range(B):
        assert turns[b, lengths[b]:].max() == -1
        spoken = iter(m[b] for m in said if m[b])
        for t in range(int(session.turns[b])):
            message = next(spoken)
            own = ids[b][turns[b] == t].tolist()
            assert own in (message, message + [STOP])
            assert own[-1] in (STOP, CLOSING) or len(own) == CONFIG.max_tokens


def test_a_sliding_window_changes_what_is_said():
    ids = jnp.asarray(np.random.default_rng(0).integers(0, V, (B, L)))
    near, far = (np.asarray(full_logits(make_model(window, 1), make_params(1), ids)) for window in (6, None))
    assert np.abs(near - far)[:, :6].max() < TOLERANCE < np.abs(near - far)[:, 6:].max()


def test_extend_in_any_pieces_and_chunks_is_the_same():
    model, params, rng = make_model(), make_params(), np.random.default_rng(0)
    rows = [rng.integers(0, V, n).tolist() for n in (20, 13, 2)]
    ways = []
    for cuts, chunk in (((10, 20), 4), ((1, 2, 12, 20), 4), ((12, 13, 14, 20), 7)):
        session, begin = sampling.open_session(model, B, L), 0
        for end in cuts:
            session = extend(model, params, session, pack([r[begin:end] for r in rows], K), chunk)
            begin = end
        ways.append(session)
        assert [session.ids[b, :n].tolist() for b, n in enumerate(session.length)] == rows
        assert (session.turn == -1).all() and not session.overflow.any()
    whole = np.asarray(full_logits(model, params, ways[0].ids))[np.arange(B), [19, 12, 1]]
    for session in ways:
        np.testing.assert_allclose(next_logits(model, params, session)[1], whole, atol=TOLERANCE)


def test_peek_leaves_no_trace():
    model, params, rng = make_model(), make_params(), np.random.default_rng(2)
    session = begun(model, params)
    question = text(rng, 12, 0, 5)
    after, logits = peek(model, params, session, question, 4)
    for b in range(B):
        assert_same_row(after, session, b)
    asked = extend(model, params, session, question, 4)
    np.testing.assert_allclose(logits, next_logits(model, params, asked)[1], atol=1e-5)

    more, live = text(rng, 2, 3, 0), jnp.ones(B, bool)
    futures = []
    for start in (session, after):
        longer = extend(model, params, start, more, 4)
        futures.append(generate(model, params, longer, make_keys(3), live, CONFIG))
    (with_peek, said), (without, also_said) = futures
    assert said.rows() == also_said.rows()
    for b in range(B):
        assert_same_row(with_peek, without, b)


def test_what_stays_of_a_peek_is_as_if_it_had_come():
    model, params, rng = make_model(), make_params(), np.random.default_rng(4)
    session, news = begun(model, params), text(rng, 7, 0, 12)
    for stay in (False, True):
        after, logits = peek(model, params, session, news, 4, stay)
        expected = extend(model, params, session, news, 4) if stay else session
        for b in range(B):
            assert_same_row(after, expected, b)
    _, after_extending = next_logits(model, params, expected)
    np.testing.assert_allclose(logits, after_extending, atol=1e-5)
    np.testing.assert_allclose(next_logits(model, params, after)[1], after_extending, atol=1e-5)


def test_peek_of_what_does_not_fit_is_nan():
    model, params = make_model(), make_params()
    session = begun(model, params, lengths=(5, 1, 9))
    session = session.replace(length=jnp.array([5, L - 4, 9]))
    _, logits = peek(model, params, session, pack([[2] * 4, [2] * 4, []], K), 4)
    assert np.isnan(logits).all(axis=1).tolist() == [False, True, False]
    assert not np.isnan(logits)[::2].any()


def test_peek_of_a_frozen_row_is_nan():
    model, params = make_model(), make_params()
    session = begun(model, params)
    frozen = session.replace(overflow=jnp.array([False, True, False]))
    _, logits = peek(model, params, frozen, pack([[2]] * B, K), 4)
    assert np.isnan(logits).all(axis=1).tolist() == [False, True, False]


def test_extend_that_does_not_fit_freezes_the_row_and_no_other():
    model, params, rng = make_model(), make_params(), np.random.default_rng(3)
    session = begun(model, params, lengths=(12, 12, 9))
    for lengths in ((12, 12, 9), (12, 12, 12), (12, 12, 12)):
        session = extend(model, params, session, text(rng, *lengths), 4)
    assert session.length.tolist() == [48, 48, 42]
    session = extend(model, params, session, text(rng, 10, 9, 1), 4)
    assert session.length.tolist() == [58, 57, 43]
    more = text(rng, 6, 6, 2)  # with room for one more token only a 5 would fit into the first row
    after = extend(model, params, session, more, 4)
    assert after.overflow.tolist() == [True, False, False] and after.length.tolist() == [58, 63, 45]
    assert_same_row(after.replace(overflow=session.overflow), session, 0)
    calm = extend(model, params, session, more.replace(length=more.length * jnp.array([0, 1, 1])), 4)
    for b in (1, 2):
        assert_same_row(after, calm, b)

    again = extend(model, params, after, text(rng, 1, 0, 1), 4)  # what would fit by itself comes too late
    assert again.overflow.tolist() == [True, False, False] and again.length.tolist() == [58, 63, 46]
    again, message = generate(model, params, after, make_keys(0), jnp.array([True, False, False]), CONFIG)
    assert message.rows()[0] == [] and again.turns[0] == session.turns[0]
    assert_same_row(again, after, 0)


def test_generate_past_the_capacity_freezes_the_row_and_no_other():
    model, params = make_model(), make_params()
    session, live = begun(model, params, lengths=(5, 1, 9)), jnp.ones(B, bool)
    calm, _ = generate(model, params, session, make_keys(0), jnp.array([True, False, True]), ENDLESS)
    full = session.replace(length=jnp.array([5, L - 3, 9]))
    after, message = generate(model, params, full, make_keys(0), live, ENDLESS)
    assert after.overflow.tolist() == [False, True, False] and after.length.tolist() == [13, L, 17]
    assert [len(m) for m in message.rows()] == [8, 3, 8]
    assert message.rows()[1] == after.ids[1, -3:].tolist() and (np.asarray(after.turn)[1, -3:] == 0).all()
    for b in (0, 2):
        assert_same_row(after, calm, b)
    again = extend(model, params, after, pack([[2]] * B, K), 4)
    again, message = generate(model, params, again, make_keys(1), live, ENDLESS)
    assert again.length[1] == L and again.overflow.tolist() == [False, True, False] and message.rows()[1] == []


def full_but_ended(model, params):
    """A session whose first row has a finished message up to its very last place."""
    session = begun(model, params)
    return session.replace(ids=session.ids.at[0, -1].set(STOP), length=session.length.at[0].set(L))


def test_a_row_that_ended_in_the_last_place_stays_as_it_is_while_others_go_on():
    model, params = make_model(), make_params()
    session = full_but_ended(model, params)
    after = extend(model, params, session, pack([[], [2], [3]], K), 4)
    assert not after.overflow.any() and after.length.tolist() == [L, 2, 10]
    after, message = generate(model, params, after, make_keys(0), jnp.array([False, True, True]), CONFIG)
    assert not after.overflow.any() and after.length[0] == L and message.rows()[0] == []


def test_generate_without_room_for_a_token_freezes_the_row():
    model, params = make_model(), make_params()
    session = full_but_ended(model, params)
    after, message = generate(model, params, session, make_keys(0), jnp.ones(B, bool), CONFIG)
    assert after.overflow.tolist() == [True, False, False]
    assert after.length[0] == L and message.rows()[0] == []


def test_a_message_does_not_depend_on_its_neighbours():
    model, params, live = make_model(), make_params(), jnp.ones(B, bool)
    keys = make_keys(7)
    session, message = generate(model, params, begun(model, params), keys, live, CONFIG)
    other = begun(model, params, seed=5, lengths=(2, 8, 9))
    take = lambda a, b: jnp.concatenate([a[:1], b[1:]])
    mixed = jax.tree.map(take, begun(model, params), other)
    key_data = take(jax.random.key_data(keys), jax.random.key_data(make_keys(8)))
    _, beside_others = generate(model, params, mixed, jax.random.wrap_key_data(key_data), live, CONFIG)
    assert beside_others.rows()[0] == message.rows()[0] and beside_others.rows()[1:] != message.rows()[1:]
    back = jax.tree.map(lambda x: x[::-1], begun(model, params))
    _, turned = generate(model, params, back, keys[::-1], live, CONFIG)
    assert turned.rows() == message.rows()[::-1]
    one = jax.tree.map(lambda x: x[2:], begun(model, params))
    alone, message_alone = generate(model, params, one, keys[2:], live[2:], CONFIG)
    assert message_alone.rows() == message.rows()[2:]
    np.testing.assert_allclose(alone.logprob[0], session.logprob[2], atol=1e-4)
    _, quiet = generate(model, params, begun(model, params), keys, jnp.array([False, False, True]), CONFIG)
    assert quiet.rows() == [[], [], message.rows()[2]]
    _, redrawn = generate(model, params, begun(model, params), make_keys(9), live, CONFIG)
    assert redrawn.rows() != message.rows()


def test_the_token_at_a_position_is_drawn_with_the_key_of_the_position():
    model, params, keys = make_model(), make_params(), make_keys(4)
    session, _ = generate(model, params, begun(model, params), keys, jnp.ones(B, bool), ENDLESS)
    logits, turns = full_logits(model, params, session.ids), np.asarray(session.turn)
    barred = jnp.zeros((B, V), bool).at[:, [STOP, CLOSING]].set(True)
    for p in range(1, int(session.length.max())):
        at = jax.vmap(lambda key: jax.random.fold_in(key, p))(keys)
        again, _ = draw(logits[:, p - 1], at, ENDLESS, barred)
        for b in np.flatnonzero(turns[:, p] == 0):
            assert session.ids[b, p] == again[b]
    assert (turns == 0).sum() == 8 * B


def test_an_empty_conversation_says_nothing():
    model, params = make_model(), make_params()
    empty = sampling.open_session(model, B, L)
    session, message = generate(model, params, empty, make_keys(0), jnp.ones(B, bool), CONFIG)
    assert message.rows() == [[]] * B and session.length.tolist() == [0] * B
    assert sampling.last_id(session).tolist() == [-1] * B


@pytest.mark.parametrize('window, layers', ((None, 2), (6, 1)))
def test_a_cleared_row_is_as_good_as_new_and_the_others_stay(window, layers):
    model, params, rng = make_model(window, layers), make_params(layers), np.random.default_rng(6)
    old = extend(model, params, begun(model, params, lengths=(12, 9, 3)), text(rng, 12, 12, 12), 4)
    old, _ = generate(model, params, old, make_keys(0), jnp.ones(B, bool), CONFIG)
    old = old.replace(overflow=jnp.array([True, False, False]))
    rows = jnp.array([True, False, True])
    cleared, fresh = sampling.clear(old, rows), sampling.open_session(model, B, L)
    for name in ('ids', 'length', 'turn', 'logprob', 'turns', 'overflow'):
        for b, new in enumerate(rows):
            np.testing.assert_array_equal(getattr(cleared, name)[b], getattr(fresh if new else old, name)[b])
    assert_same_row(cleared, old, 1)
    opening = text(rng, 4, 0, 7)
    again, new = (extend(model, params, session, opening, 4) for session in (cleared, fresh))
    (again, said), (new, also_said) = (
        generate(model, params, session, make_keys(1), rows, CONFIG) for session in (again, new))
    assert said.rows() == also_said.rows() and said.rows()[0]
    for b in (0, 2):
        assert_same_row(again, new, b)
    assert_same_row(again, old, 1)


# The compiled program.

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


def test_other_lengths_are_the_same_program():
    model, params = make_model(), make_params()
    play(model, params)
    before = [f._cache_size() for f in (extend, generate, peek)]
    rng, keys = np.random.default_rng(9), [make_keys(i) for i in range(2)]
    live, others = jnp.array([True, False, True]), jnp.array([False, True, False])
    with CompileCounter() as compiles:
        session = begun(model, params, seed=4, lengths=(1, 12, 3))
        session, _ = generate(model, params, session, keys[0], live, CONFIG)
        session = extend(model, params, session, text(rng, 0, 0, 11), 4)
        session, _ = peek(model, params, session, text(rng, 5, 7, 1), 4)
        session, _ = generate(model, params, session, keys[1], others, CONFIG)
    assert compiles.count == 0
    assert [f._cache_size() for f in (extend, generate, peek)] == before
