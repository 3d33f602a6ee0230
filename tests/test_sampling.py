"""Sessions against a full forward pass, draws against the distribution they are drawn from."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epo_jax import sampling
from epo_jax.models.transformer import Transformer
from epo_jax.sampling import SamplingConfig
from epo_jax.telemetry import CompileCounter
from epo_jax.testing import dummy_config
from epo_jax.text.tokens import pack

B, L, K, V = 3, 64, 12, 61
STOP, CLOSING = 0, 1
CONFIG = SamplingConfig(max_tokens=8, stop=(STOP,), closing=(CLOSING,))
ENDLESS = dataclasses.replace(CONFIG, min_tokens=8)
TOLERANCE = 1e-3  # of a log-probability, in nats; float32

extend = jax.jit(sampling.extend, static_argnums=(0, 4))
generate = jax.jit(sampling.generate, static_argnums=(0, 5))
peek = jax.jit(sampling.peek, static_argnums=(0, 4))
next_logits = jax.jit(sampling.next_logits, static_argnums=0)
score = jax.jit(sampling.score, static_argnums=(0, 3))
draw = jax.jit(sampling.sample, static_argnums=2)


def make_model(window=None, layers=2):
    return Transformer(dataclasses.replace(dummy_config(V), sliding_window=window, num_layers=layers))


@functools.cache
def make_params(layers=2):
    """Random numbers everywhere, large enough that the most probable tokens differ from place to place."""
    shapes = jax.eval_shape(make_model(layers=layers).init_params, jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape), jnp.float32), shapes)


def make_keys(seed, batch=B):
    return jax.vmap(lambda row: jax.random.fold_in(jax.random.key(seed), row))(jnp.arange(batch))


def text(rng, *lengths):
    """Random ids that end no message, one row of each length."""
    return pack([rng.integers(2, V, n).tolist() for n in lengths], K)


@functools.partial(jax.jit, static_argnums=0)
def full_logits(model, params, ids):
    """f32[B, L, V] by one pass over whole conversations, without a cache."""
    hidden, _ = model.apply({'params': params}, ids, jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape))
    return model.apply({'params': params}, hidden, method='logits')


def begun(model, params, seed=0, lengths=(5, 1, 9)):
    """A session of three conversations of different lengths."""
    return extend(model, params, sampling.open_session(model, B, L), text(np.random.default_rng(seed), *lengths), 4)


def row(session, b):
    """All that a session says of one conversation; the cache as far as it counts."""
    n = int(session.length[b])
    said = [np.asarray(x)[b] for x in (session.ids, session.turn, session.logprob)]
    cache = [(np.asarray(k)[b, :, :, :n - 1], np.asarray(v)[b, :, :n - 1]) for k, v in session.cache]
    flags = [np.asarray(x)[b] for x in (session.length, session.turns, session.overflow)]
    return [x[:n] for x in said], flags, cache


def assert_same_row(a, b, at):
    jax.tree.map(np.testing.assert_array_equal, row(a, at), row(b, at))


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


def test_an_empty_conversation_says_nothing():
    model, params = make_model(), make_params()
    empty = sampling.open_session(model, B, L)
    session, message = generate(model, params, empty, make_keys(0), jnp.ones(B, bool), CONFIG)
    assert message.rows() == [[]] * B and session.length.tolist() == [0] * B
    assert sampling.last_id(session).tolist() == [-1] * B


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


# Draws.

def literal_distribution(logits, config, barred=None):
    """float64 probabilities by sorting, as the documentation of SamplingConfig says it."""
    logits = np.asarray(logits, np.float64).copy()
    if barred is not None:
        logits[barred] = -np.inf
    if config.temperature == 0:
        return np.eye(len(logits))[logits.argmax()]
    p = np.exp((logits - logits.max()) / config.temperature)
    order = np.argsort(-p, kind='stable')
    if config.top_k:
        p[order[config.top_k:]] = 0
    p /= p.sum()
    held, kept = 0.0, np.zeros(len(p), bool)
    for i in order:
        if held >= config.top_p:
            break
        kept[i], held = True, held + p[i]
    p = np.where(kept, p, 0) if config.top_p < 1 else p
    return p / p.sum()


def chi_square_bound(dof):
    """The 1 - 1e-6 quantile of chi-square (Wilson-Hilferty)."""
    return dof * (1 - 2 / (9 * dof) + 4.75 * (2 / (9 * dof)) ** 0.5) ** 3


DRAWS = {
    'plain': {},
    'temperature': dict(temperature=0.6),
    'top_k': dict(top_k=5),
    'top_p': dict(top_p=0.7),
    'both': dict(top_k=12, top_p=0.8, temperature=1.5),
    'greedy': dict(temperature=0.0),
    'one': dict(top_k=1),
    'k_above_vocabulary': dict(top_k=10 * V),
}


@pytest.mark.parametrize('name', DRAWS)
def test_frequencies_follow_the_distribution(name):
    config, n = SamplingConfig(1, (STOP,), **DRAWS[name]), 20_000
    logits = np.random.default_rng(0).normal(size=V).astype(np.float32) * 1.5
    barred = np.zeros(V, bool)
    barred[np.argsort(logits)[[-1, -4, 0]]] = True  # the likeliest, and another two
    keys = jax.random.split(jax.random.key(1), n)
    for bars in (np.zeros(V, bool), barred):
        every = lambda x: np.broadcast_to(x, (n, V))
        tokens, logprob = draw(every(logits), keys, config, every(bars))
        p = literal_distribution(logits, config, bars)
        count = np.bincount(tokens, minlength=V)
        assert not count[p == 0].any()
        full = logits - np.log(np.exp(logits.astype(np.float64)).sum())
        np.testing.assert_allclose(logprob, full[np.asarray(tokens)], atol=1e-5)  # of the untruncated model
        likely = n * p >= 5
        expected, observed = np.append((n * p)[likely], (n * p)[~likely].sum()), np.append(
            count[likely], count[~likely].sum())
        expected, observed = expected[expected > 0], observed[expected > 0]
        chi_square = ((observed - expected) ** 2 / expected).sum()
        assert chi_square <= chi_square_bound(max(len(expected) - 1, 1)), (name, chi_square)


def test_the_nucleus_is_that_of_a_sort():
    rng, n = np.random.default_rng(0), 200
    scale = rng.uniform(0.1, 6, (n, 1))
    logits = jnp.asarray(rng.normal(size=(n, V)) * scale, jnp.float32)
    weights = jnp.exp(logits - logits.max(axis=1, keepdims=True))
    for top_p in (0.05, 0.5, 0.9, 0.999):
        kept = np.asarray(weights >= sampling._nucleus(weights, top_p))
        p = np.asarray(weights, np.float64)
        p /= p.sum(axis=1, keepdims=True)
        for b in range(n):
            ordered = np.sort(p[b])[::-1]
            mass = np.cumsum(ordered)
            size = int((mass < top_p).sum()) + 1
            if np.abs(mass - top_p).min() < 1e-6:
                continue  # float32 may see this sum on the other side
            assert kept[b].tolist() == (p[b] >= ordered[size - 1]).tolist()


def test_equally_probable_tokens_share_their_place_in_the_nucleus():
    weights = jnp.array([[1.0, 0.5, 0.5, 0.25]])
    assert (weights >= sampling._nucleus(weights, 0.6)).tolist() == [[True, True, True, False]]


def test_a_token_without_weight_is_never_drawn():
    """Float32 running sums may grow by a rounding error where nothing is added; draws that land there are sought."""
    batch, size, rng = 64, 3000, np.random.default_rng(0)
    logits = rng.normal(size=(batch, size)).astype(np.float32)
    barred = rng.random((batch, size)) > 0.1
    weights = np.where(barred, 0, np.exp(logits - np.max(logits, axis=1, where=~barred, initial=-10, keepdims=True)))
    total = np.asarray(jax.jit(lambda w: jnp.cumsum(w, axis=-1))(weights))
    keys = jax.random.split(jax.random.key(0), 400_000)
    uniform = np.asarray(jax.jit(jax.vmap(jax.random.uniform))(keys))
    order = np.argsort(uniform)
    chosen = np.zeros(batch, int)
    for b in range(batch):
        for j in np.flatnonzero(barred[b, 1:] & (np.diff(total[b]) > 0)) + 1:
            near = np.searchsorted(uniform[order], total[b, [j - 1, j]] / total[b, -1] + [-2e-7, 2e-7])
            for i in order[slice(*near)]:
                if barred[b, np.sum(total[b] <= uniform[i] * total[b, -1])]:
                    chosen[b] = i
    if not chosen.any():
        pytest.skip('the running sums of this backend do not grow where nothing is added')
    tokens, _ = draw(logits, keys[chosen], SamplingConfig(1, (STOP,)), barred)
    assert not barred[np.arange(batch), np.asarray(tokens)].any()


def test_a_message_has_its_least_length():
    model, params = make_model(), make_params()
    config = dataclasses.replace(CONFIG, stop=tuple(range(1, V, 2)), closing=(0, 2, 4), min_tokens=6)
    for seed in range(12):
        session, message = generate(model, params, begun(model, params), make_keys(seed), jnp.ones(B, bool), config)
        for said in message.rows():
            assert len(said) >= 6 and not set(said[:-1]) & set(config.closing) and not set(said) & set(config.stop)


def test_would_repeat_is_a_search_of_the_row():
    rng, capacity, vocab = np.random.default_rng(0), 24, 5
    repeats = jax.jit(sampling.would_repeat, static_argnums=(1, 2))
    for size in (1, 2, 3, 5):
        for trial in range(4):
            ids, length = rng.integers(0, vocab, (16, capacity)), rng.integers(1, capacity + 1, 16)
            length[:2] = 1, capacity
            session = sampling.Session(jnp.asarray(ids), jnp.asarray(length), *[None] * 5)
            want = np.zeros((16, vocab), bool)
            for b in range(16):
                said = ids[b, :length[b]].tolist()
                stands = {tuple(said[i:i + size]) for i in range(len(said) - size + 1)}
                for v in range(vocab):
                    end = (said + [v])[len(said) + 1 - size:] if len(said) + 1 >= size else None
                    want[b, v] = end is not None and tuple(end) in stands
            assert np.asarray(repeats(session, size, vocab)).tolist() == want.tolist()


def test_no_sequence_of_the_given_size_is_said_twice():
    model, params = make_model(), make_params()
    session, live = begun(model, params), jnp.ones(B, bool)

    def repeated(no_repeat):
        """Pairs of tokens that the longest of many messages say again."""
        config, count = dataclasses.replace(ENDLESS, no_repeat=no_repeat), 0
        for seed in range(20):
            after, _ = generate(model, params, session, make_keys(seed), live, config)
            for ids, n in zip(np.asarray(after.ids).tolist(), after.length.tolist()):
                count += n - 1 - len(set(zip(ids[:n], ids[1:n])))
        return count

    assert repeated(0) > 0 and repeated(2) == 0


@pytest.mark.parametrize('settings', (
    dict(max_tokens=0), dict(min_tokens=-1), dict(no_repeat=-1), dict(temperature=-0.1), dict(top_k=-1),
    dict(top_p=0.0), dict(top_p=1.1), dict(stop=())))
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError):
        SamplingConfig(**dict(max_tokens=4, stop=(STOP,)) | settings)


# score.

def literal_score(model, params, ids):
    logprob = jax.nn.log_softmax(full_logits(model, params, ids), axis=-1)
    chosen = jnp.take_along_axis(logprob[:, :-1], ids[:, 1:, None], axis=-1)[..., 0]
    return jnp.pad(chosen, ((0, 0), (1, 0)))


def test_score_and_its_gradient_are_those_of_all_logits():
    rng, length = np.random.default_rng(0), 21
    ids, weight = jnp.asarray(rng.integers(0, V, (2, length))), jnp.asarray(rng.normal(size=(2, length)), jnp.float32)
    model, params = make_model(layers=1), make_params(1)

    def gradient(score, *options):
        def total(params):
            logprob = score(model, params, ids, *options)
            return (weight * logprob).sum(), logprob
        return jax.grad(total, has_aux=True)(params)

    (got, logprob), (reference, want) = jax.jit(lambda: (gradient(sampling.score, 8), gradient(literal_score)))()
    np.testing.assert_allclose(logprob, want, atol=1e-5)
    assert not logprob[:, 0].any()
    largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(reference))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * largest), got, reference)
    np.testing.assert_allclose(score(model, params, ids, 32), want, atol=1e-5)  # one chunk, not quite full


def avals(jaxpr):
    """Shapes of everything computed anywhere in a program."""
    for equation in jaxpr.eqns:
        yield from (v.aval.shape for v in equation.outvars)
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')):
            inner = getattr(value, 'jaxpr', value)
            if hasattr(inner, 'eqns'):
                yield from avals(inner)


def test_score_never_holds_all_logits():
    rows, length, chunk, vocab = 2, 96, 8, 997
    model = Transformer(dummy_config(vocab), stacked=True)
    params = jax.eval_shape(model.init_params, jax.random.key(0))
    ids = jax.ShapeDtypeStruct((rows, length), jnp.int32)

    def shapes(score):
        return set(avals(jax.make_jaxpr(jax.value_and_grad(lambda p, i: score(p, i).sum()))(params, ids).jaxpr))

    with_vocabulary = {s for s in shapes(lambda p, i: sampling.score(model, p, i, chunk)) if vocab in s}
    assert any(np.prod(s) == rows * chunk * vocab for s in with_vocabulary)
    assert max(np.prod(s) for s in with_vocabulary) < rows * length * vocab / 2
    assert any(np.prod(s) == rows * length * vocab for s in shapes(lambda p, i: literal_score(model, p, i)))
