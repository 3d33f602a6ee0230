"""Sampled tokens against the distribution that they are sampled from."""

import dataclasses

import jax
import jax.numpy as jnp
from little_model import (
    CLOSING,
    CONFIG,
    ENDLESS,
    STOP,
    B,
    V,
    draw,
    full_logits,
    generate,
    make_keys,
    make_model,
    make_params,
    started_session,
)
import numpy as np
import pytest

from epo_jax.models import sampling
from epo_jax.models.sampling import SamplingConfig


def literal_distribution(logits, config, banned=None):
    """Return the float64 probabilities according to SamplingConfig, computed by sorting."""
    logits = np.asarray(logits, np.float64).copy()
    if banned is not None:
        logits[banned] = -np.inf
    if config.temperature == 0:
        return np.eye(len(logits))[logits.argmax()]
    p = np.exp((logits - logits.max()) / config.temperature)
    order = np.argsort(-p, kind='stable')
    if config.top_k:
        p[order[config.top_k:]] = 0
    p /= p.sum()
    mass, kept = 0.0, np.zeros(len(p), bool)
    for i in order:
        if mass >= config.top_p:
            break
        kept[i], mass = True, mass + p[i]
    p = np.where(kept, p, 0) if config.top_p < 1 else p
    return p / p.sum()


def chi_square_bound(dof):
    """Return the 1 - 1e-6 quantile of the chi-square distribution (Wilson-Hilferty approximation)."""
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
    banned = np.zeros(V, bool)
    banned[np.argsort(logits)[[-1, -4, 0]]] = True  # the most probable token and two others
    keys = jax.random.split(jax.random.key(1), n)
    for mask in (np.zeros(V, bool), banned):
        repeat = lambda x: np.broadcast_to(x, (n, V))
        tokens, logprob = draw(repeat(logits), keys, config, repeat(mask))
        p = literal_distribution(logits, config, mask)
        count = np.bincount(tokens, minlength=V)
        assert not count[p == 0].any()
        full = logits - np.log(np.exp(logits.astype(np.float64)).sum())
        np.testing.assert_allclose(logprob, full[np.asarray(tokens)], atol=1e-5)  # of the model without truncation
        likely = n * p >= 5
        expected, observed = np.append((n * p)[likely], (n * p)[~likely].sum()), np.append(
            count[likely], count[~likely].sum())
        expected, observed = expected[expected > 0], observed[expected > 0]
        chi_square = ((observed - expected) ** 2 / expected).sum()
        assert chi_square <= chi_square_bound(max(len(expected) - 1, 1)), (name, chi_square)


def test_the_nucleus_equals_that_found_by_sorting():
    rng, n = np.random.default_rng(0), 200
    scale = rng.uniform(0.1, 6, (n, 1))
    logits = jnp.asarray(rng.normal(size=(n, V)) * scale, jnp.float32)
    weights = jnp.exp(logits - logits.max(axis=1, keepdims=True))
    for top_p in (0.05, 0.5, 0.9, 0.999):
        kept = np.asarray(weights >= sampling.nucleus(weights, top_p))
        p = np.asarray(weights, np.float64)
        p /= p.sum(axis=1, keepdims=True)
        for b in range(n):
            ordered = np.sort(p[b])[::-1]
            mass = np.cumsum(ordered)
            size = int((mass < top_p).sum()) + 1
            if np.abs(mass - top_p).min() < 1e-6:
                continue  # in float32, this sum may be on the other side of the threshold
            assert kept[b].tolist() == (p[b] >= ordered[size - 1]).tolist()


def test_equally_probable_tokens_are_all_in_the_nucleus():
    weights = jnp.array([[1.0, 0.5, 0.5, 0.25]])
    assert (weights >= sampling.nucleus(weights, 0.6)).tolist() == [[True, True, True, False]]


def test_a_token_of_weight_zero_is_never_sampled():
    """In float32, cumulative sums may grow by a rounding error where the weight is 0; use keys that hit these places."""
    batch, size, rng = 64, 3000, np.random.default_rng(0)
    logits = rng.normal(size=(batch, size)).astype(np.float32)
    banned = rng.random((batch, size)) > 0.1
    weights = np.where(banned, 0, np.exp(logits - np.max(logits, axis=1, where=~banned, initial=-10, keepdims=True)))
    total = np.asarray(jax.jit(lambda w: jnp.cumsum(w, axis=-1))(weights))
    keys = jax.random.split(jax.random.key(0), 400_000)
    uniform = np.asarray(jax.jit(jax.vmap(jax.random.uniform))(keys))
    order = np.argsort(uniform)
    chosen = np.zeros(batch, int)
    for b in range(batch):
        for j in np.flatnonzero(banned[b, 1:] & (np.diff(total[b]) > 0)) + 1:
            near = np.searchsorted(uniform[order], total[b, [j - 1, j]] / total[b, -1] + [-2e-7, 2e-7])
            for i in order[slice(*near)]:
                if banned[b, np.sum(total[b] <= uniform[i] * total[b, -1])]:
                    chosen[b] = i
    if not chosen.any():
        pytest.skip('cumulative sums of this backend do not grow where the weight is 0')
    tokens, _ = draw(logits, keys[chosen], SamplingConfig(1, (STOP,)), banned)
    assert not banned[np.arange(batch), np.asarray(tokens)].any()


def test_min_tokens_is_the_minimum_length_of_a_message():
    model, params = make_model(), make_params()
    config = dataclasses.replace(CONFIG, stop=tuple(range(1, V, 2)), closing=(0, 2, 4), min_tokens=6)
    for seed in range(12):
        session, message = generate(model, params, started_session(model, params), make_keys(seed), jnp.ones(B, bool), config)
        for ids in message.rows():
            assert len(ids) >= 6 and not set(ids[:-1]) & set(config.closing) and not set(ids) & set(config.stop)


def test_banned_ids_are_never_sampled_and_probabilities_stay_those_of_the_model():
    model, params = make_model(), make_params()
    free, messages = dataclasses.replace(ENDLESS, banned=()), {(): [], tuple(range(2, V, 2)): []}
    for banned, sampled in messages.items():
        config = dataclasses.replace(free, banned=banned)
        for seed in range(12):
            session, message = generate(
                model, params, started_session(model, params), make_keys(seed), jnp.ones(B, bool), config)
            sampled += sum(message.rows(), [])
            logits = jax.nn.log_softmax(full_logits(model, params, session.ids))
            expected = jnp.take_along_axis(logits[:, :-1], session.ids[:, 1:, None], axis=2)[..., 0]
            where = session.turn[:, 1:] >= 0
            np.testing.assert_allclose(session.logprob[:, 1:][where], expected[where], atol=1e-3)
            assert not session.broken.any()
    everything, rest = messages.values()
    assert set(everything) & set(range(2, V, 2)) and not set(rest) & set(range(2, V, 2)) and len(set(rest)) > 10


def test_a_message_ends_where_nothing_may_be_sampled():
    model, params = make_model(), make_params()
    config = dataclasses.replace(ENDLESS, banned=tuple(set(range(V)) - {STOP, CLOSING, 7}), no_repeat=1)
    session = started_session(model, params)
    session = session.replace(ids=jnp.where(session.ids == 7, 8, session.ids))
    session, message = generate(model, params, session, make_keys(0), jnp.ones(B, bool), config)
    assert message.rows() == [[7]] * B  # then 7 would be a repetition, and the other ids are banned
    assert sampling.last_id(session).tolist() == [STOP] * B


def test_ids_that_end_a_message_cannot_be_banned():
    with pytest.raises(ValueError, match='must not be banned'):
        dataclasses.replace(CONFIG, banned=(3, CLOSING))


@pytest.mark.parametrize('where', ['one row', 'all rows'])
def test_a_row_with_logits_that_are_not_finite_is_broken(where):
    model, params = make_model(), make_params()
    session = started_session(model, params)
    if where == 'one row':
        session = session.replace(cache=jax.tree.map(lambda x: x.at[1].set(jnp.nan), session.cache))
    else:
        params = dict(params, final_norm=jax.tree.map(lambda x: x.at[0].set(jnp.nan), params['final_norm']))
    session, _ = generate(model, params, session, make_keys(0), jnp.ones(B, bool), CONFIG)
    assert session.broken.tolist() == ([False, True, False] if where == 'one row' else [True] * B)
    assert not sampling.clear(session, jnp.ones(B, bool)).broken.any()


def test_would_repeat_equals_a_search_of_the_row():
    rng, capacity, vocab = np.random.default_rng(0), 24, 5
    repeats = jax.jit(sampling.would_repeat, static_argnums=(1, 2))
    for size in (1, 2, 3, 5):
        for trial in range(4):
            ids, length = rng.integers(0, vocab, (16, capacity)), rng.integers(1, capacity + 1, 16)
            length[:2] = 1, capacity
            session = sampling.Session(jnp.asarray(ids), jnp.asarray(length), *[None] * 6)
            expected = np.zeros((16, vocab), bool)
            for b in range(16):
                row = ids[b, :length[b]].tolist()
                sequences = {tuple(row[i:i + size]) for i in range(len(row) - size + 1)}
                for v in range(vocab):
                    end = (row + [v])[len(row) + 1 - size:] if len(row) + 1 >= size else None
                    expected[b, v] = end is not None and tuple(end) in sequences
            assert np.asarray(repeats(session, size, vocab)).tolist() == expected.tolist()


def test_no_repeat_prevents_repeated_sequences():
    model, params = make_model(), make_params()
    session, live = started_session(model, params), jnp.ones(B, bool)

    def repeated(no_repeat):
        """Return the number of repeated pairs of tokens in many messages of maximum length."""
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
def test_invalid_settings_raise(settings):
    with pytest.raises(ValueError, match='invalid sampling settings|at least one stop id'):
        SamplingConfig(**dict(max_tokens=4, stop=(STOP,)) | settings)
