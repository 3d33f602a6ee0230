"""The gradient step against a plain one: full logits, a loop over conversations, and optax."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from epo_jax.models.config import SHAPES
from epo_jax.models.transformer import Transformer
from epo_jax.rl.batching import batches
from epo_jax.rl.learner import Batch, Learner
from epo_jax.runtime.parallel import make_mesh
from epo_jax.testing import dummy_config

N, L, T, V = 4, 27, 3, 61
MODEL = Transformer(dummy_config(V), stacked=True)
LEARNER = Learner(MODEL, learning_rate=1e-2, total_steps=10, warmup_ratio=0.3, clip=0.5, weight_decay=0.1,
                  micro_batch=2, chunk=8)


@functools.cache
def make_params():
    """Return random parameters that are as large as those of a trained model."""
    shapes = jax.eval_shape(MODEL.init_params, jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: (0.3 * rng.normal(size=x.shape)).astype(np.float32), shapes)


def make_rows(n=N, seed=0, length=L):
    """Return conversations of 0 to T turns: the first has none, the last has all; some turns are invalid."""
    rng = np.random.default_rng(seed)
    turn = np.full((n, length), -1, np.int32)
    for b in range(n):
        at = 0
        for t in range(0 if b == 0 else T if b == n - 1 else rng.integers(1, T + 1)):
            at += rng.integers(1, 4)
            turn[b, at:at + rng.integers(1, 5)] = t
            at = np.flatnonzero(turn[b] >= 0)[-1] + 1
    valid = rng.random((n, T)) < 0.8
    valid[-1] = True
    return Batch(
        ids=rng.integers(0, V, (n, length)).astype(np.int32), turn=turn,
        logprob=-rng.exponential(size=(n, length)).astype(np.float32),
        advantage=rng.normal(size=(n, T)).astype(np.float32), valid=valid)


def fresh(learner=LEARNER):
    return learner.init(make_params())


@jax.jit
@jax.value_and_grad
def literal_loss(params, ids, weight):
    """Return the weighted sum of the log-probabilities of one conversation, computed from all its logits."""
    hidden, _ = MODEL.apply({'params': params}, ids[None], jnp.arange(len(ids))[None])
    logprob = jax.nn.log_softmax(MODEL.apply({'params': params}, hidden, method='logits')[0], axis=-1)
    return (weight[1:] * jnp.take_along_axis(logprob[:-1], ids[1:, None], axis=1)[:, 0]).sum()


def literal_gradient(params, batch):
    """Return loss and gradient by EPO's formula, token by token, in a loop over conversations."""
    weights = []
    for turn, advantage, valid in zip(batch.turn, batch.advantage, batch.valid):
        trained = [t for t in range(T) if valid[t] and (turn == t).any()]
        weights.append(sum(((turn == t) * -advantage[t] / len(trained) / (turn == t).sum() for t in trained),
                           np.zeros(L)))
    used = [n for n, weight in enumerate(weights) if weight.any()]
    loss, gradient = 0.0, jax.tree.map(np.zeros_like, params)
    for n in used:
        value, new = literal_loss(params, batch.ids[n], np.float32(weights[n] / len(used)))
        loss, gradient = loss + float(value), jax.tree.map(np.add, gradient, new)
    return loss, gradient


def assert_trees_close(actual, expected, tolerance):
    """Assert that the arrays of two trees differ by at most `tolerance` times their largest number."""
    def close(path, a, b):
        error = np.abs(np.asarray(a) - np.asarray(b)).max() / max(np.abs(np.asarray(b)).max(), 1e-30)
        assert error <= tolerance, (jax.tree_util.keystr(path), error)
    jax.tree_util.tree_map_with_path(close, actual, expected)


def bits(tree):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


def adam(optimizer):
    """Return Adam's moments: running means of the clipped gradients and of their squares."""
    is_adam = lambda x: isinstance(x, optax.ScaleByAdamState)
    return next(x for x in jax.tree.leaves(optimizer, is_leaf=is_adam) if is_adam(x))


def test_steps_equal_those_of_a_plain_reference():
    state = fresh()
    peak, warmup = LEARNER.learning_rate, 3
    reference = optax.chain(optax.clip_by_global_norm(LEARNER.clip), optax.adamw(
        lambda step: peak * (step + 1) / warmup, b1=0.9, b2=0.999, weight_decay=0.1))
    update = jax.jit(reference.update)
    for step in range(2):
        params, optimizer = jax.tree.map(np.array, (state.params, state.optimizer))
        batch = make_rows(seed=step)
        loss, gradient = literal_gradient(params, batch)
        norm = math.sqrt(sum(float((g ** 2).sum()) for g in jax.tree.leaves(gradient)))
        updates, optimizer = update(gradient, optimizer, params)
        params = jax.tree.map(np.add, params, updates)
        state, metrics = LEARNER.step(state, batch)
        assert float(metrics['loss']) == pytest.approx(loss, rel=1e-4)
        assert float(metrics['gradient_norm']) == pytest.approx(norm, rel=1e-4) and norm > LEARNER.clip
        assert float(metrics['learning_rate']) == pytest.approx(peak * (step + 1) / warmup)
        assert metrics['conversations'] == 3 and state.step == step + 1
        assert_trees_close(adam(state.optimizer).mu, adam(optimizer).mu, 1e-4)
        assert_trees_close(*(jax.tree.map(np.sqrt, adam(x).nu) for x in (state.optimizer, optimizer)), 1e-4)
        # Adam moves by g / |g|. Where a gradient is rounding error, so is the direction, and there is nothing to compare.
        clear = jax.tree.map(lambda g: np.abs(g) > 1e-5 * np.abs(g).max(), gradient)
        assert all(where.mean() > 0.9 for where in jax.tree.leaves(clear))
        moved = lambda new: jax.tree.map(lambda where, x: np.where(where, x, 0), clear, new)
        assert_trees_close(moved(state.params), moved(params), 1e-4)


def test_micro_batches_and_rematerialization_do_not_change_the_step():
    batch = make_rows(seed=3)
    two, metrics = LEARNER.step(fresh(), batch)
    other = dataclasses.replace(LEARNER, model=dataclasses.replace(MODEL, remat='none'), micro_batch=4)
    four, other_metrics = other.step(fresh(), batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), metrics, other_metrics)
    assert_trees_close(adam(four.optimizer).mu, adam(two.optimizer).mu, 1e-5)  # float32 sums in another order


def test_the_batch_must_be_a_multiple_of_the_micro_batch():
    with pytest.raises(ValueError, match='4 conversations.*3'):
        dataclasses.replace(LEARNER, micro_batch=3).step(fresh(), make_rows())


def test_moments_in_host_memory_do_not_change_the_step():
    offloading = dataclasses.replace(LEARNER, offload=True)
    state, offloaded = fresh(), fresh(offloading)
    kinds = lambda tree: {x.sharding.memory_kind for x in jax.tree.leaves(tree)}
    for seed in range(2):
        rows = make_rows(seed=seed)
        (state, metrics), (offloaded, other_metrics) = LEARNER.step(state, rows), offloading.step(offloaded, rows)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), metrics, other_metrics)
        # The programs round differently, and Adam divides by the size of the gradient, so that for gradients near zero
        # rounding is a part of the learning rate.
        assert_trees_close(offloaded, state, 5e-3 * LEARNER.learning_rate)
        moments = adam(offloaded.optimizer)
        assert kinds((moments.mu, moments.nu)) == {'pinned_host'}
        assert kinds((offloaded.params, offloaded.step, moments.count, state)) == {'device'}


def newton_schulz(x):
    """Return a matrix with the singular vectors of x and singular values near 1 (Jordan et al. 2024)."""
    x = np.asarray(x, np.float64)
    x = x / np.linalg.norm(x)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
    return x


def test_muon_orthogonalizes_the_updates_of_the_matrices_of_the_layers():
    """Embeddings move as with AdamW and Nesterov momentum."""
    model = dataclasses.replace(MODEL, mesh=make_mesh((1, 1, 1)))
    plain = dataclasses.replace(LEARNER, model=model, weight_decay=0.0, warmup_ratio=0.0)
    muon, before, batch = dataclasses.replace(plain, optimizer='muon'), make_params(), make_rows()
    change = lambda learner: jax.tree.map(
        lambda new, old: np.asarray(new) - old, learner.step(fresh(learner), batch)[0].params, before)
    ours, adam, (_, gradient) = change(muon), change(plain), literal_gradient(before, batch)
    nesterov = 0.9 * (1 - 0.9) / (1 - 0.9 ** 2) + 1  # of the first step
    for name in ('embed', 'final_norm'):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, nesterov * b, rtol=1e-4, atol=1e-6),
                     ours[name], adam[name])
    for name in ('q', 'o', 'gate', 'down'):
        for update, slope in zip(ours['layers'][name]['kernel'], gradient['layers'][name]['kernel'], strict=True):
            slope = slope.reshape(len(slope), -1)
            expected = -muon.learning_rate * 0.2 * math.sqrt(max(slope.shape)) * newton_schulz(slope)
            np.testing.assert_allclose(update.reshape(slope.shape), expected, atol=0.01 * np.abs(expected).max())
    shapes = jax.tree.map(lambda x: x.shape, muon.abstract_state().optimizer)
    assert shapes == jax.tree.map(lambda x: x.shape, fresh(muon).optimizer)


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match='sgd'):
        dataclasses.replace(LEARNER, optimizer='sgd').transformation()


@pytest.mark.parametrize('learner', (LEARNER, dataclasses.replace(LEARNER, offload=True)), ids=('on device', 'offloaded'))
def test_a_batch_without_valid_turns_changes_nothing(learner):
    state, _ = learner.step(fresh(learner), make_rows())
    before, rows = bits(state), make_rows(seed=1)
    for batch in (rows.replace(valid=np.zeros_like(rows.valid)), rows.replace(turn=np.full_like(rows.turn, -1))):
        state, metrics = learner.step(state, batch)
        assert bits(state) == before
        assert metrics['loss'] == metrics['gradient_norm'] == metrics['conversations'] == 0


def test_padding_rows_of_a_batch_train_nothing():
    rows = jax.tree.map(lambda x: x[1:], make_rows())
    batch, = batches(rows, N, 1, (0,), bucket=L)
    assert batch.ids.shape == (N, L) and (batch.turn[-1] == -1).all() and not batch.valid[-1].any()
    loss, gradient = literal_gradient(make_params(), rows)
    state, metrics = LEARNER.step(fresh(), batch)
    assert metrics['conversations'] == 3
    assert float(metrics['loss']) == pytest.approx(loss, rel=1e-4)
    norm = float(metrics['gradient_norm'])
    clipped = jax.tree.map(lambda g: 0.1 * g * min(1, LEARNER.clip / norm), gradient)
    assert_trees_close(adam(state.optimizer).mu, clipped, 1e-4)


def test_gap_and_drift_compare_log_probabilities_with_those_at_sampling():
    rows, now = make_rows(), np.zeros((N, L), np.float32)
    for n, i in zip(*np.nonzero(rows.turn >= 0)):
        now[n, i] = literal_loss(make_params(), rows.ids[n], np.float32(np.arange(L) == i))[0]
    gap = np.random.default_rng(0).normal(size=(N, L)).astype(np.float32) + 10 * (rows.turn < 0)
    _, metrics = LEARNER.step(fresh(), rows.replace(logprob=now - gap))
    assert float(metrics['logprob_gap']) == pytest.approx(np.abs(gap[rows.turn >= 0]).max(), rel=1e-3)
    assert float(metrics['drift']) == pytest.approx(-gap[rows.turn >= 0].mean(), rel=1e-3)


def test_a_step_never_holds_all_logits_in_memory():
    rows, length, vocab = 8, 96, 8009
    model = Transformer(dataclasses.replace(dummy_config(vocab), num_layers=1), stacked=True)
    learner = dataclasses.replace(LEARNER, model=model, micro_batch=rows, chunk=4)
    params = jax.eval_shape(model.init_params, jax.random.key(0))
    state = jax.eval_shape(learner.init, params)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), make_rows(length=length))
    memory = learner.step.lower(learner, state, batch).compile().memory_analysis()
    assert memory.temp_size_in_bytes < rows * length * vocab * 4 / 2
    assert memory.alias_size_in_bytes >= sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))


@pytest.mark.slow
def test_a_step_on_4_rows_of_1024_tokens_needs_less_than_twice_the_memory_of_its_state():
    """The state of SmolLM2 is parameters and moments; a gradient is a third of it."""
    model = Transformer(SHAPES['smollm2'], stacked=True, remat='full')
    learner = dataclasses.replace(LEARNER, model=model, micro_batch=4, chunk=256)
    state = jax.eval_shape(learner.init, jax.eval_shape(model.init_params, jax.random.key(0)))
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((4, *x.shape[1:]), x.dtype), make_rows(length=1024))
    memory = learner.step.lower(learner, state, batch).compile().memory_analysis()
    arguments = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    state_size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert arguments + memory.temp_size_in_bytes < 1.8 * state_size


@pytest.mark.parametrize('total, ratio, warmup', ((100, 0.03, 3), (10, 0.25, 3), (7, 0.0, 0), (1, 0.5, 1)))
def test_the_learning_rate_follows_the_formula(total, ratio, warmup):
    learner = dataclasses.replace(LEARNER, total_steps=total, warmup_ratio=ratio, learning_rate=0.2)
    cosine, constant = learner.rate(), dataclasses.replace(learner, schedule='constant').rate()
    for step in range(total):
        rising = 0.2 * (step + 1) / warmup if step < warmup else None
        falling = 0.1 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))
        assert float(cosine(step)) == pytest.approx(falling if rising is None else rising, rel=1e-5, abs=1e-7)
        assert float(constant(step)) == pytest.approx(0.2 if rising is None else rising, rel=1e-5)
    if warmup < total:
        assert abs(float(cosine(total))) < 1e-7


@pytest.mark.parametrize('total, ratio', ((100, 0.03), (10, 0.25), (7, 0.0), (1, 0.5)))
def test_the_official_schedule_is_that_of_transformers(total, ratio):
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.2)
    expected = transformers.get_cosine_schedule_with_warmup(optimizer, math.ceil(ratio * total), total)
    rate = dataclasses.replace(
        LEARNER, total_steps=total, warmup_ratio=ratio, learning_rate=0.2, schedule='official').rate()
    for step in range(total):
        assert float(rate(step)) == pytest.approx(expected.get_last_lr()[0], rel=1e-5, abs=1e-7)
        optimizer.step()
        expected.step()


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match='linear'):
        dataclasses.replace(LEARNER, schedule='linear').rate()


# Batches

def numbered(n, lengths=None):
    """Return rows that are all different: the ids of row b are b, and it trains tokens up to its length."""
    turn = np.full((n, 50), -1, np.int32)
    for b in range(n):
        turn[b, 1:(b % 20) if lengths is None else lengths[b]] = 0
    every = np.arange(n)[:, None]
    return Batch(ids=np.broadcast_to(every, (n, 50)).astype(np.int32), turn=turn,
                 logprob=np.broadcast_to(-every, (n, 50)).astype(np.float32),
                 advantage=np.broadcast_to(every + 0.5, (n, T)).astype(np.float32), valid=np.ones((n, T), bool))


@pytest.mark.parametrize('n, size', ((12, 4), (13, 4), (3, 8), (1, 1)))
def test_an_epoch_contains_every_row_once(n, size):
    rows = numbered(n)
    epoch = batches(rows, size, 1, (0,), bucket=8)
    assert len(epoch) == math.ceil(n / size) and all(len(x) == size for b in epoch for x in jax.tree.leaves(b))
    joined = jax.tree.map(lambda *xs: np.concatenate(xs), *epoch)
    length, order = joined.ids.shape[1], []
    for b, padding in enumerate([False] * n + [True] * (-n % size)):
        if padding:
            assert (joined.turn[b] == -1).all() and not joined.valid[b].any() and not joined.advantage[b].any()
            continue
        order.append(int(joined.ids[b, 0]))
        row = jax.tree.map(lambda x: x[order[-1]], rows)
        expected = Batch(row.ids[:length], row.turn[:length], row.logprob[:length], row.advantage, row.valid)
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda x: x[b], joined), expected)
    assert sorted(order) == list(range(n)) and (n < 3 or order != sorted(order))
    assert jax.tree.map(lambda x: x.dtype, joined) == jax.tree.map(lambda x: x.dtype, rows)


def test_batches_depend_only_on_the_seed():
    make = lambda seed: [bits(b) for b in batches(numbered(10), 4, 2, (seed,), bucket=8)]
    assert make(0) == make(0) != make(1)


@pytest.mark.parametrize('longest, bucket, length', ((8, 8, 8), (9, 8, 16), (17, 1, 17), (49, 64, 50), (50, 8, 50)))
def test_the_cut_keeps_every_trained_token(longest, bucket, length):
    rows = numbered(4, lengths=[longest, 3, 0, longest - 2])
    batch, = batches(rows, 4, 1, (0,), bucket)
    assert batch.ids.shape == batch.turn.shape == batch.logprob.shape == (4, length)
    assert (batch.turn >= 0).sum() == (rows.turn >= 0).sum()


def test_rows_without_trained_tokens_are_cut_to_one_bucket():
    batch, = batches(numbered(2, lengths=[0, 0]), 2, 1, (0,), bucket=8)
    assert batch.ids.shape == (2, 8) and (batch.turn == -1).all()
