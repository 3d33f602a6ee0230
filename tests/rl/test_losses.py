"""Losses of tokens against formulas written token by token, and the gradient of each against that of all logits."""

import dataclasses
import functools
import itertools
import math

from exact_decoder import ExactDecoder, V
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epo_jax.models import scoring
from epo_jax.models.lora import LoRA
from epo_jax.rl import aggregation, losses, objective
from epo_jax.rl.learner import Batch, Learner
from epo_jax.rl.objective import Objective
from epo_jax.runtime.errors import InputError

N, L, T = 6, 30, 4
OPTIONS = {name: key.default for name, key in objective.KEYS.items()} | dict(
    clip_low=0.2, clip_high=0.28, dual_clip=3.0, ratio_low=0.7, ratio_high=1.5, constant=7.0)


def exact(function, *args):
    """Return the result of a function in float64."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, jax.jit(function)(*args))


def ragged(seed, n=N, length=L):
    """Return a Batch of conversations with 0 to T turns of 1 to 4 tokens, and context; what is not valid is NaN."""
    rng = np.random.default_rng(seed)
    turn = np.full((n, length), -1, np.int32)
    for row in range(n):
        at = 1
        for t in range(rng.permutation(T + 1)[0] if row else 0):
            at += rng.integers(0, 4)
            size = rng.integers(1, 5)
            turn[row, at:at + size] = t
            at += size
    valid = rng.random((n, T)) < 0.7
    logprob = lambda: np.where(turn >= 0, -rng.exponential(size=(n, length)), 0)
    return Batch(
        ids=rng.integers(0, V, (n, length)).astype(np.int32), turn=turn, logprob=logprob(),
        advantage=np.where(valid, rng.normal(size=(n, T)), np.nan), valid=valid, reference=logprob())


def configured(name, **changes):
    return objective.from_config(OPTIONS | dict(name=name) | changes)


# The formulas, for one token: log-probability, advantage, log-probability at sampling

def clip(x, low, high):
    return min(max(x, low), high)


def ppo(logprob, a, sampled):
    ratio = math.exp(logprob - sampled)
    gain = min(ratio * a, clip(ratio, 0.8, 1.28) * a)
    return -max(gain, 3 * a) if a < 0 else -gain


FORMULAS = {
    'epo': lambda logprob, a, sampled: -a * logprob,
    'ppo': ppo,
    'cispo': lambda logprob, a, sampled: -clip(math.exp(logprob - sampled), 0.8, 1.28) * a * logprob,
    'truncated': lambda logprob, a, sampled: -min(math.exp(logprob - sampled), 1.5) * a * logprob,
    'masked': lambda logprob, a, sampled: -a * logprob * math.exp(logprob - sampled) * (
        0.7 <= math.exp(logprob - sampled) <= 1.5),
    'sft': lambda logprob, a, sampled: -logprob,
    'cloning': lambda logprob, a, sampled: -logprob if a > 0 else 0,
}


@pytest.mark.parametrize('name', FORMULAS)
def test_a_loss_is_its_formula(name):
    rng = np.random.default_rng(0)
    logprob, sampled, advantage = -rng.exponential(size=200), -rng.exponential(size=200), rng.normal(size=200)
    inputs = dict(logprob=logprob, sampled=sampled, advantage=advantage)
    actual = exact(lambda inputs: configured(name).loss(inputs), inputs)
    expected = [FORMULAS[name](*row) for row in zip(logprob, advantage, sampled)]
    np.testing.assert_allclose(actual, expected, rtol=1e-10)


def test_the_loss_of_a_turn_clips_the_ratio_of_the_whole_turn():
    rng = np.random.default_rng(0)
    logprob, ratio, advantage = -rng.exponential(size=200), 0.5 * rng.normal(size=200), rng.normal(size=200)
    actual = exact(lambda *xs: losses.gspo(*xs, clip_low=0.2, clip_high=0.28), logprob, advantage, ratio)
    expected = [-min(math.exp(s) * a, clip(math.exp(s), 0.8, 1.28) * a) for s, a in zip(ratio, advantage)]
    np.testing.assert_allclose(actual, expected, rtol=1e-10)


def test_all_losses_are_compared():
    assert set(FORMULAS) | {'gspo'} == set(losses.LOSSES) == set(LITERAL)


@pytest.mark.parametrize('name', ('ppo', 'cispo', 'truncated', 'masked', 'epo', 'gspo'))
def test_the_first_step_after_a_rollout_follows_the_policy_gradient(name):
    """Where the policy is the one that sampled, every ratio is 1."""
    rng = np.random.default_rng(0)
    logprob, advantage = -rng.exponential(size=50), rng.normal(size=50)
    inputs = dict(sampled=logprob, advantage=advantage, turn_ratio=np.zeros(50))
    slope = exact(jax.grad(lambda logprob: configured(name).loss(inputs | dict(logprob=logprob)).sum()), logprob)
    np.testing.assert_allclose(slope, -advantage, rtol=1e-12)


def test_a_huge_ratio_stays_finite():
    inputs = dict(logprob=np.array([-1.0, -1e4]), sampled=np.array([-1e4, -1.0]), advantage=np.array([-1.0, 1.0]),
                  turn_ratio=np.array([1e4, -1e4]))
    for name in losses.LOSSES:
        value, slope = exact(jax.value_and_grad(
            lambda logprob: configured(name).loss(inputs | dict(logprob=logprob)).sum()), inputs['logprob'])
        assert np.isfinite(value) and np.isfinite(slope).all(), name


# Divergence

@pytest.mark.parametrize('how', ('k1', 'k2', 'k3', 'grpo'))
def test_the_divergence_is_its_formula(how):
    rng = np.random.default_rng(0)
    logprob, reference = -rng.exponential(size=50), -rng.exponential(size=50)
    formula = {'k1': lambda d: d, 'k2': lambda d: d * d / 2, 'k3': lambda d: math.exp(-d) - 1 + d}
    expected = [formula.get(how, formula['k3'])(a - b) for a, b in zip(logprob, reference)]
    np.testing.assert_allclose(exact(lambda *xs: losses.divergence(*xs, how), logprob, reference), expected, rtol=1e-9)


def expected_slope(how):
    """Return the slope of a divergence by logits, averaged over all tokens of a vocabulary, and of both true ones."""
    rng = np.random.default_rng(0)
    logits, reference = rng.normal(size=7), np.asarray(jax.nn.log_softmax(rng.normal(size=7)), np.float64)

    def averaged(logits):
        logprob = jax.nn.log_softmax(logits)
        return (jax.lax.stop_gradient(jnp.exp(logprob)) * losses.divergence(logprob, reference, how)).sum()

    def true(logits, forward):
        logprob = jax.nn.log_softmax(logits)
        return (jnp.exp(reference) * (reference - logprob) if forward else
                jnp.exp(logprob) * (logprob - reference)).sum()

    return exact(lambda x: (jax.grad(averaged)(x), jax.grad(true)(x, False), jax.grad(true)(x, True)), logits)


@pytest.mark.parametrize('how', ('k1', 'k2', 'k3'))
def test_the_divergence_has_the_gradient_of_the_divergence(how):
    """The derivatives of k1 and k3 themselves do not average to it."""
    actual, reverse, _ = expected_slope(how)
    np.testing.assert_allclose(actual, reverse, atol=1e-12)


def test_the_divergence_of_grpo_has_the_gradient_of_the_other_direction():
    actual, reverse, forward = expected_slope('grpo')
    np.testing.assert_allclose(actual, forward, atol=1e-12)
    assert np.abs(actual - reverse).max() > 0.01


# Aggregation

def literal_weights(how, turn, valid):
    """Return the weight of every token, counted in loops."""
    turns = [{t: np.flatnonzero(row == t) for t in range(T) if ok[t] and (row == t).any()}
             for row, ok in zip(turn, valid)]
    used = [found for found in turns if found]
    all_turns, all_tokens = sum(map(len, used)), sum(len(i) for found in used for i in found.values())
    weight = np.zeros(turn.shape)
    for row, found in zip(weight, turns):
        for i in found.values():
            row[i] = {'official': 1 / len(used) / len(found) / len(i), 'turn_mean': 1 / all_turns / len(i),
                      'token_mean': 1 / all_tokens, 'constant': 1 / len(used) / 7,
                      'episode_mean': 1 / len(used) / sum(map(len, found.values()))}[how]
    return weight


@pytest.mark.parametrize('how', aggregation.AGGREGATIONS)
def test_the_weights_of_tokens_equal_loops(how):
    for seed in range(5):
        batch = ragged(seed, n=10)
        actual = exact(lambda turn, valid: aggregation.token_weights(how, turn, valid, 7.0), batch.turn, batch.valid)
        np.testing.assert_allclose(actual, literal_weights(how, batch.turn, batch.valid), rtol=1e-6)


@pytest.mark.parametrize('how', ('official', 'episode_mean', 'turn_mean', 'token_mean'))
def test_long_episodes_weigh_more_only_in_means_over_turns_or_tokens(how):
    turn = np.array([[0, 0, 1, 1, 2, 2, 3, 3], [0, 0, -1, -1, -1, -1, -1, -1]])
    weight = exact(lambda turn, valid: aggregation.token_weights(how, turn, valid), turn, np.ones((2, T), bool))
    assert weight.sum() == pytest.approx(1)
    long = 0.5 if how in ('official', 'episode_mean') else 0.8
    assert weight[0].sum() == pytest.approx(long)


@pytest.mark.parametrize('how', aggregation.AGGREGATIONS)
def test_padding_changes_no_weight(how):
    batch = ragged(1)
    turn = np.pad(batch.turn, ((0, 3), (0, 9)), constant_values=-1)
    valid = np.pad(batch.valid, ((0, 3), (0, 2)))
    weight = exact(lambda turn, valid: aggregation.token_weights(how, turn, valid, 7.0), turn, valid)
    np.testing.assert_allclose(weight[:N, :L], literal_weights(how, batch.turn, batch.valid), rtol=1e-6)
    assert not weight[N:].any() and not weight[:, L:].any()


def test_counts_of_a_large_batch_do_not_overflow():
    turn = np.zeros((2048, 600), np.int32)
    weight = jax.jit(lambda turn: aggregation.token_weights('official', turn, turn[:, :1] == 0))(turn)
    assert float(weight[0, 0]) == pytest.approx(1 / 2048 / 600)


def test_an_unknown_aggregation_is_refused():
    with pytest.raises(ValueError, match='median'):
        aggregation.token_weights('median', np.zeros((1, 1), int), np.ones((1, 1), bool))


def test_turn_means_equal_a_loop_over_turns():
    batch = ragged(3)
    mean, count = exact(lambda values, turn: aggregation.turn_means(values, turn, T), batch.logprob, batch.turn)
    for n in range(N):
        for t in range(T):
            tokens = batch.logprob[n][batch.turn[n] == t]
            assert count[n, t] == len(tokens)
            assert mean[n, t] == pytest.approx(tokens.mean() if len(tokens) else 0, rel=1e-12)


def test_has_turns_is_true_if_a_token_is_trained():
    for seed in range(5):
        batch = ragged(seed)
        expected = [any(valid[t] for t in turn if t >= 0) for turn, valid in zip(batch.turn, batch.valid)]
        assert exact(aggregation.has_turns, batch.turn, batch.valid).tolist() == expected


# The whole objective

def total(goal, batch, logprob):
    """Return the objective of a batch as the learner computes it, without turn ratios."""
    data = goal.data(batch.turn, batch.valid, batch.advantage, batch.logprob, batch.reference)
    return goal.token_loss(logprob, None, data).sum()


def literal_epo(logprob, batch):
    """Return the mean over conversations of -(1 / T) sum_t A_t (1 / k_t) sum_i log pi(a_ti), and its gradient."""
    loss, gradient, used = 0.0, np.zeros_like(logprob), 0
    for n, turn in enumerate(batch.turn):
        segments = {}
        for i, t in enumerate(turn):
            if t >= 0 and batch.valid[n, t]:
                segments.setdefault(t, []).append(i)
        used += bool(segments)
        for t, tokens in segments.items():
            for i in tokens:
                weight = -batch.advantage[n, t] / len(segments) / len(tokens)
                loss += weight * logprob[n, i]
                gradient[n, i] = weight
    return loss / used, gradient / used


@pytest.mark.parametrize('seed', range(5))
def test_the_default_objective_is_that_of_epo(seed):
    batch = ragged(seed, n=10, length=40)
    logprob = np.where(batch.turn >= 0, batch.logprob - 0.1, -1e3)  # context is ignored
    value, gradient = exact(jax.value_and_grad(lambda x: total(Objective(), batch, x)), logprob)
    expected, expected_gradient = literal_epo(logprob, batch)
    assert np.count_nonzero(expected_gradient) > 10
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-6, atol=1e-14)
    assert not gradient[batch.turn < 0].any()


def test_a_batch_without_a_valid_turn_has_no_loss_and_no_gradient():
    batch = ragged(2)
    batch = batch.replace(valid=np.zeros_like(batch.valid), advantage=np.full_like(batch.advantage, np.nan))
    for name in set(losses.LOSSES) - {'gspo'}:
        value, gradient = exact(jax.value_and_grad(lambda x: total(configured(name), batch, x)), batch.logprob)
        assert value == 0 and not gradient.any(), name


def test_an_objective_without_its_reference_is_refused():
    batch = ragged(0).replace(reference=None)
    with pytest.raises(ValueError, match='reference'):
        total(configured('epo', kl='k2'), batch, batch.logprob)


# Every loss through the model, against all logits

def literal_turns(turn_loss):
    """Return a loss of a batch from the loss of a turn: the mean over conversations, turns and tokens."""
    def loss(logprob, batch, sampled):
        value, used = 0.0, 0
        for n in range(len(batch.turn)):
            own, count = 0.0, 0
            for t in range(T):
                at = np.flatnonzero(batch.turn[n] == t)
                if batch.valid[n, t] and len(at):
                    own, count = own + turn_loss(logprob[n, at], batch.advantage[n, t], sampled[n, at]).mean(), count + 1
            if count:
                value, used = value + own / count, used + 1
        return value / used
    return loss


def literal_gspo(logprob, a, sampled):
    s = jnp.exp((logprob - sampled).sum() / len(logprob))
    return jnp.minimum(s * a, jnp.clip(s, 0.8, 1.28) * a) * -jnp.ones(1)


def literal_ppo(logprob, a, sampled):
    ratio = jnp.exp(logprob) / jnp.exp(sampled)
    loss = jnp.maximum(-ratio * a, -jnp.clip(ratio, 0.8, 1.28) * a)
    return jnp.minimum(loss, -3 * a) if a < 0 else loss


def weighted(weight):
    """Return REINFORCE with a constant weight, a function of the ratio."""
    def loss(logprob, a, sampled):
        return -weight(jax.lax.stop_gradient(jnp.exp(logprob - sampled))) * a * logprob
    return loss


LITERAL = {
    'epo': weighted(lambda r: 1), 'ppo': literal_ppo, 'gspo': literal_gspo,
    'cispo': weighted(lambda r: jnp.clip(r, 0.8, 1.28)), 'truncated': weighted(lambda r: jnp.minimum(r, 1.5)),
    'masked': weighted(lambda r: jnp.where((r < 0.7) | (r > 1.5), 0, r)), 'sft': lambda logprob, a, sampled: -logprob,
    'cloning': lambda logprob, a, sampled: -logprob * (a > 0)}


@functools.cache
def model_batch(seed=0):
    """Return a batch whose log-probabilities at sampling differ a bit from those of the model."""
    model, batch = ExactDecoder(), ragged(seed)
    with jax.enable_x64(True):
        logprob = np.asarray(model.all_logprobs(model.params(), batch.ids))
    chosen = np.take_along_axis(logprob, batch.ids[..., None], axis=-1)[..., 0]
    noise = np.random.default_rng(seed).normal(size=(2, *chosen.shape))
    return batch.replace(logprob=chosen + 0.4 * noise[0], reference=chosen + 0.5 * noise[1])


def learner_gradient(learner, params, batch, base=None):
    """Return loss and gradient of one step, in float64: the step of SGD with rate 1, without clipping."""
    class Plain(Learner):
        def _update(self, state, gradient, change):
            return state.replace(params=gradient)
    plain = Plain(**{field.name: getattr(learner, field.name) for field in dataclasses.fields(learner)})
    state = plain.init(params).replace(params=jax.tree.map(jnp.asarray, params))
    moved, metrics = plain.step(state, batch, base)
    return jax.tree.map(np.asarray, (metrics['loss'], moved.params))


def assert_gradient_is_exact(name, adapted, micro_batches, kl='none', entropy=0.0):
    """Compare with full autodiff in float64, on all parameters or on an adapter."""
    model, batch, lora = ExactDecoder(), model_batch(), LoRA(2, 3.0, ('q',)) if adapted else None
    base = model.params()
    trained = model.adapter() if adapted else base

    def literal(trained):
        params = lora.join(base, trained) if adapted else trained
        logprobs = model.all_logprobs(params, batch.ids)
        chosen = jnp.take_along_axis(logprobs, batch.ids[..., None], axis=-1)[..., 0]
        value = literal_turns(LITERAL[name])(chosen, batch, batch.logprob)
        if kl != 'none':  # as a function of log-probability and reference
            d = {'k2': lambda p, _, ref: (p - ref) ** 2 / 2, 'grpo': lambda p, _, ref: jnp.exp(ref - p) - 1 + p - ref}
            value += 0.7 * literal_turns(d[kl])(chosen, batch, batch.reference)
        if entropy:
            value += entropy * literal_turns(lambda h, *_: h)((logprobs * jnp.exp(logprobs)).sum(-1), batch, batch.logprob)
        return value

    learner = Learner(model, total_steps=2, learning_rate=1.0, schedule='constant', warmup_ratio=0.0, lora=lora, chunk=8,
                      entropy=entropy, objective=configured(name, kl=kl, kl_weight=0.7))
    tolerance = 1e-6 if entropy else 1e-9  # the schedule, which scales the entropy, is float32
    with jax.enable_x64(True):
        expected, expected_gradient = jax.jit(jax.value_and_grad(literal))(trained)
        for micro_batch in micro_batches:
            one = dataclasses.replace(learner, micro_batch=micro_batch)
            loss, gradient = learner_gradient(one, trained, batch, base)
            np.testing.assert_allclose(loss, expected, rtol=tolerance)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max()),
                         gradient, expected_gradient)
            assert all(np.abs(x).max() > 1e-3 for x in jax.tree.leaves(gradient))


@pytest.mark.parametrize('name', ('ppo', 'gspo', 'masked'))
def test_the_gradient_is_that_of_all_logits(name):
    assert_gradient_is_exact(name, False, (3,))


@pytest.mark.parametrize('name, kl', (('gspo', 'k2'), ('epo', 'grpo')))
def test_the_gradient_of_an_adapter_is_exact_with_any_micro_batches(name, kl):
    assert_gradient_is_exact(name, True, (2, 6), kl, 0.3)


@pytest.mark.slow
@pytest.mark.parametrize('adapted', (False, True), ids=('full', 'lora'))
@pytest.mark.parametrize('name', LITERAL)
def test_every_gradient_is_exact(name, adapted):
    assert_gradient_is_exact(name, adapted, (1, 2, 3, 6), 'k2' if name == 'ppo' else 'none', 0.3 * (name == 'cispo'))


@pytest.mark.parametrize('tied', (True, False))
def test_a_sum_over_all_tokens_has_the_exact_gradient_with_any_chunk(tied):
    model = ExactDecoder(tied)
    batch, params = model_batch(), model.params()
    square = lambda logprob, entropy, data: data * logprob ** 2 + jnp.sin(entropy)

    def literal(params):
        logprobs = model.all_logprobs(params, batch.ids)[:, 1:]
        chosen = jnp.take_along_axis(logprobs, batch.ids[:, 1:, None], axis=-1)[..., 0]
        return square(chosen, -(jnp.exp(logprobs) * logprobs).sum(-1), batch.reference[:, 1:]).sum()

    with jax.enable_x64(True):
        expected = jax.value_and_grad(literal)(params)
        for chunk in (7, 1000):
            ours = jax.value_and_grad(lambda params: scoring.summed_loss(
                model, params, batch.ids, np.ones_like(batch.turn, bool), square, batch.reference, chunk, True)[0])
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), ours(params), expected)


# Names

def own_loss(logprob, advantage, clip_low, scale=2.0):
    """A loss of one's own."""
    return -scale * clip_low * advantage * logprob


def wrong_loss(logprob, temperature):
    return logprob / temperature


def test_a_loss_of_ones_own_is_selected_by_name():
    method = configured(f'{__name__}:own_loss', clip_low=0.25).loss
    assert method({'logprob': 3.0, 'advantage': 2.0}) == -3.0


@pytest.mark.parametrize('name, message', [
    ('reinforce', 'no method .*choose one of epo, ppo'), ('epo_jax.rl.losses:nothing', 'no function'),
    ('nowhere:loss', 'no function'), ('epo_jax.rl.losses:LOSSES', 'it is a dict'),
    (f'{__name__}:wrong_loss', "'temperature' is neither an input")])
def test_a_loss_that_cannot_be_used_is_refused(name, message):
    with pytest.raises(InputError, match=message):
        configured(name)


def test_objectives_are_static():
    a, b = (configured('ppo', kl='k3') for _ in range(2))
    assert a == b and hash(a) == hash(b) and configured('ppo') != a
    assert not any(x == y for x, y in itertools.combinations([configured(name) for name in losses.LOSSES], 2))
