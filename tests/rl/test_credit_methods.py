"""Methods of credit against loops written from their formulas, and what must hold for all of them."""

import functools
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epo_jax.rewards.process import Verdict
from epo_jax.rl.credit import assign, grouping, steps
from epo_jax.rl.credit.assign import METHODS
from epo_jax.rl.methods import describe
from epo_jax.rl.trajectory import Trajectory

N, T = 24, 5
OPTIONS = {name: key.default for name, key in assign.KEYS.items()} | dict(
    gamma=0.9, decay=0.8, step_weight=0.7, history=1, history_power=2.0, sharpness=1.5, future_weight=0.3,
    baseline='group', normalise='none', trace=0.6)
REWARD = dict(combine='sum', weight=1.0, kl_weight=0.0, outcome='environment', process='none')


def make_inputs(seed=0):
    """Return inputs of two seats, groups of three episodes, 0 to T turns; what is not valid is noise."""
    rng = np.random.default_rng(seed)
    episode, seat = np.tile(np.arange(N // 2), 2), np.repeat([0, 1], N // 2)
    valid = np.arange(T) < rng.integers(1, T + 1, N)[:, None]
    valid[rng.integers(0, N, 2)] = False
    return dict(
        reward=np.where(valid, rng.normal(size=(N, T)), 0), valid=valid, group=episode // 3 * 2 + seat, episode=episode,
        seat=seat, tokens=rng.integers(1, 6, (N, T)).astype(float),
        observation=rng.integers(0, 3, (N, T)).astype(np.uint32),
        entropy=np.where(valid, rng.exponential(size=(N, T)), np.nan), memory=np.array([0.4, -0.3]),
        value=np.where(valid, rng.random((N, T)), np.nan))


@functools.cache
def program(method):
    return jax.jit(lambda inputs: method(inputs))


def credit(name, inputs, **options):
    """Return the credit by a method in float64, and its memory."""
    method = assign.from_config(REWARD, OPTIONS | dict(name=name) | options).method
    with jax.enable_x64(True):
        result = jax.tree.map(np.asarray, program(method)({key: inputs[key] for key in method.inputs}))
    return result if isinstance(result, tuple) else (result, ())


def spread(values, valid):
    return np.where(valid, np.asarray(values)[:, None], 0)


def literal_episodes(inputs):
    """Return the returns of the conversations that count, by number."""
    return {n: float(inputs['reward'][n][inputs['valid'][n]].sum()) for n in range(N) if inputs['valid'][n].any()}


def literal_returns(inputs, gamma):
    value = np.zeros((N, T))
    for n in range(N):
        for t in range(T):
            if inputs['valid'][n, t]:
                value[n, t] = sum(gamma ** (s - t) * inputs['reward'][n, s] for s in range(t, T) if inputs['valid'][n, s])
    return value


def group_values(inputs, n, own):
    return [r for m, r in own.items() if inputs['group'][m] == inputs['group'][n]]


def literal_rloo(inputs, others_only=True):
    own, found = literal_episodes(inputs), np.zeros(N)
    for n in own:
        others = [r for m, r in own.items() if m != n and inputs['group'][m] == inputs['group'][n]]
        found[n] = own[n] - np.mean(others) if others else 0
    return spread(found, inputs['valid'])


def literal_grpo(inputs, scale='group'):
    own, found = literal_episodes(inputs), np.zeros(N)
    for n in own:
        values = group_values(inputs, n, own)
        if len(values) < 2:
            continue
        size = {'group': np.std(values, ddof=1) + 1e-6, 'none': 1,
                'batch': np.std(list(own.values()), ddof=1) + 1e-6}[scale]
        found[n] = (own[n] - np.mean(values)) / size
    return spread(found, inputs['valid'])


def literal_whitened(value, inputs):
    tokens = [x for n, t in zip(*np.nonzero(inputs['valid'])) for x in [value[n, t]] * int(inputs['tokens'][n, t])]
    return np.where(inputs['valid'], (value - np.mean(tokens)) / (np.std(tokens, ddof=1) + 1e-8), 0)


def literal_rae(inputs):
    baseline, own, found = list(inputs['memory']), literal_episodes(inputs), np.zeros(N)
    for n in own:
        seat = inputs['seat'][n]
        found[n] = own[n] - baseline[seat]
        baseline[seat] = 0.8 * baseline[seat] + 0.2 * own[n]
    return spread(found, inputs['valid']), baseline


def literal_dr_mas(inputs):
    own, found = literal_episodes(inputs), np.zeros(N)
    for n in own:
        values = [r for m, r in own.items() if inputs['seat'][m] == inputs['seat'][n]]
        found[n] = (own[n] - np.mean(values)) / (np.std(values, ddof=1) + 1e-6)
    return spread(found, inputs['valid'])


def literal_gigpo(inputs):
    value, found = literal_returns(inputs, 0.9), literal_grpo(inputs, 'none')
    for n, t in zip(*np.nonzero(inputs['valid'])):
        same = [value[m, s] for m, s in zip(*np.nonzero(inputs['valid']))
                if inputs['group'][m] == inputs['group'][n] and inputs['observation'][m, s] == inputs['observation'][n, t]]
        found[n, t] += 0.7 * (value[n, t] - np.mean(same))
    return found


def literal_hgpo(inputs):
    value, episode, found = literal_returns(inputs, 0.9), literal_grpo(inputs, 'none'), np.zeros((N, T))
    turns = list(zip(*np.nonzero(inputs['valid'])))
    history = lambda n, t, k: (inputs['group'][n], *inputs['observation'][n, t - k + 1:t + 1])
    for n, t in turns:
        items = [(0, episode[n, t])]
        for k in (1, 2):
            same = [value[m, s] for m, s in turns if s >= k - 1 and t >= k - 1 and history(m, s, k) == history(n, t, k)]
            if len(same) > 1:
                items.append((k, value[n, t] - np.mean(same)))
        weights = [(k + 1) ** 2.0 for k, _ in items]
        found[n, t] = sum(w * a for w, (_, a) in zip(weights, items)) / sum(weights)
    return found


def literal_empg(inputs):
    turns = list(zip(*np.nonzero(inputs['valid'])))
    entropies = [inputs['entropy'][n, t] for n, t in turns]
    f = {(n, t): np.exp(-1.5 * (inputs['entropy'][n, t] - min(entropies)) / (max(entropies) - min(entropies)))
         for n, t in turns}
    episode, found = literal_grpo(inputs), np.zeros((N, T))
    for n, t in turns:
        found[n, t] = episode[n, t] * f[n, t] / np.mean(list(f.values())) + 0.3 * f.get((n, t + 1), 0)
    mean = np.mean([found[n, t] for n, t in turns])
    return np.where(inputs['valid'], found - mean, 0)


def literal_discounted(inputs):
    value, found = literal_returns(inputs, 0.9), np.zeros((N, T))
    for n, t in zip(*np.nonzero(inputs['valid'])):
        others = [value[m, t] for m in range(N) if inputs['valid'][m, t] and inputs['group'][m] == inputs['group'][n]
                  and inputs['episode'][m] != inputs['episode'][n]]
        found[n, t] = value[n, t] - np.mean(others) if others else 0
    return found


def literal_epo(inputs):
    value = literal_returns(inputs, 0.9)
    return np.array([row / (np.abs(row).max() or 1) for row in value])


def literal_branched(inputs):
    found = np.zeros((N, T))
    for n, t in zip(*np.nonzero(inputs['valid'])):
        count = inputs['valid'][n].sum()
        value = [*inputs['value'][n, :count], 0.0]
        found[n, t] = sum((0.9 * 0.6) ** (s - t) * (inputs['reward'][n, s] + 0.9 * value[s + 1] - value[s])
                          for s in range(t, count))
    return found


LITERAL = {
    'discounted': literal_discounted, 'epo': literal_epo, 'rloo': literal_rloo, 'grpo': literal_grpo,
    'dr_grpo': lambda x: literal_grpo(x, 'none'), 'lite_ppo': lambda x: literal_grpo(x, 'batch'),
    'reinforce_pp': lambda x: literal_whitened(literal_returns(x, 0.9), x),
    'reinforce_pp_baseline': lambda x: literal_whitened(literal_grpo(x, 'none'), x),
    'rae': lambda x: literal_rae(x)[0], 'dr_mas': literal_dr_mas, 'gigpo': literal_gigpo, 'hgpo': literal_hgpo,
    'empg': literal_empg, 'branched': literal_branched}
WHOLE_EPISODE = ('rloo', 'grpo', 'dr_grpo', 'lite_ppo', 'reinforce_pp_baseline', 'rae', 'dr_mas')


@pytest.mark.parametrize('name', METHODS)
def test_a_method_is_its_formula(name):
    for seed in range(3):
        inputs = make_inputs(seed)
        value, memory = credit(name, inputs)
        expected = LITERAL[name](inputs)
        assert np.count_nonzero(expected) > N
        np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-9)
        if name == 'rae':
            np.testing.assert_allclose(memory, literal_rae(inputs)[1], rtol=1e-12)
    assert set(LITERAL) == set(METHODS)


@pytest.mark.parametrize('name', METHODS)
def test_padding_changes_nothing(name):
    """More turns that did not take place, and conversations without turns."""
    inputs = make_inputs()
    padded = {key: x if key == 'memory' else np.pad(x, ((0, 3), (0, 2))[:x.ndim]) for key, x in inputs.items()}
    padded['group'][N:] = padded['episode'][N:] = 99
    value, _ = credit(name, padded)
    np.testing.assert_allclose(value[:N, :T], credit(name, inputs)[0], rtol=1e-9, atol=1e-12)
    assert not value[N:].any() and not value[:, T:].any()


@pytest.mark.parametrize('name', METHODS)
def test_the_order_of_conversations_does_not_matter(name):
    if name == 'rae':
        pytest.skip('the baseline follows the order')
    inputs, order = make_inputs(), np.random.default_rng(1).permutation(N)
    shuffled = {key: x if key == 'memory' else x[order] for key, x in inputs.items()}
    np.testing.assert_allclose(credit(name, shuffled)[0], credit(name, inputs)[0][order], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('name', ('rloo', 'grpo', 'dr_grpo', 'reinforce_pp_baseline', 'discounted'))
def test_a_constant_added_to_all_outcomes_of_a_group_changes_nothing(name):
    inputs = make_inputs()
    if name == 'discounted':  # it compares turns of the same number, which must exist in the whole group
        inputs['valid'] = np.ones((N, T), bool)
    last = inputs['valid'] & (np.cumsum(inputs['valid'], axis=1) == inputs['valid'].sum(axis=1, keepdims=True))
    easier = inputs | {'reward': inputs['reward'] + 10 * last * (1 + inputs['group'])[:, None]}
    value, other = (credit(name, x, gamma=1.0)[0] for x in (inputs, easier))
    np.testing.assert_allclose(value, other, atol=1e-7)


@pytest.mark.parametrize('name', WHOLE_EPISODE)
def test_process_rewards_that_telescope_cancel_in_credit_of_whole_episodes(name):
    """Differences of a potential that begins with the same value in a group add up to its end, whatever is between."""
    inputs = make_inputs()
    potential = np.random.default_rng(1).random((N, T + 1))
    potential[:, 0] = 0.5
    for n, count in enumerate(inputs['valid'].sum(axis=1)):
        potential[n, count:] = 1.0 if n % 2 else 0.0  # the outcome
    straight = np.where(np.arange(T) == inputs['valid'].sum(axis=1, keepdims=True) - 1, potential[:, -1:] - 0.5, 0)
    shaped = np.where(inputs['valid'], np.diff(potential, axis=1), 0)
    value, other = (credit(name, inputs | {'reward': reward})[0] for reward in (straight, shaped))
    np.testing.assert_allclose(value, other, atol=1e-7)
    assert np.abs(credit('discounted', inputs | {'reward': straight})[0]
                  - credit('discounted', inputs | {'reward': shaped})[0]).max() > 0.1


@pytest.mark.parametrize('name', ('rloo', 'grpo', 'dr_grpo', 'lite_ppo'))
def test_a_group_of_one_gets_no_credit(name):
    """In some implementations, its mean is 0 and its deviation 1, so that the return passes through."""
    inputs = make_inputs()
    assert not credit(name, inputs | {'group': np.arange(N)})[0].any()


@pytest.mark.parametrize('name', (
    'rloo', 'grpo', 'dr_grpo', 'lite_ppo', 'reinforce_pp', 'reinforce_pp_baseline', 'dr_mas', 'discounted', 'gigpo', 'hgpo'))
def test_equal_returns_give_no_credit(name):
    """The rounding of their mean must not become credit, not even where it is divided by its own size."""
    inputs = make_inputs()
    for lengths in (np.full(N, 3), np.arange(N) % T + 1):
        inputs['valid'] = np.arange(T) < lengths[:, None]
        last = np.arange(T) == lengths[:, None] - 1
        for value in (0.7, 0.1, 1 / 3, 123.4, -1e-3):
            inputs['reward'] = np.where(last, value, 0)
            for options in (dict(baseline='batch', normalise='batch'), dict(baseline='group', normalise='trajectory')):
                assert not credit(name, inputs, gamma=1.0, **options)[0].any(), (value, options)


def test_long_episodes_do_not_weigh_more_in_the_mean_of_a_group():
    """The released code of GiGPO takes the mean over turns: three turns of 1 and one of 0 would give 0.75."""
    inputs = make_inputs()
    inputs.update(valid=np.zeros((N, T), bool), reward=np.zeros((N, T)))
    inputs['valid'][0, :3] = inputs['valid'][1, :1] = True
    inputs['reward'][0, 2], inputs['observation'] = 1.0, np.arange(N * T, dtype=np.uint32).reshape(N, T)
    for name in ('dr_grpo', 'gigpo'):
        assert credit(name, inputs)[0][:2].tolist() == [[0.5, 0.5, 0.5, 0, 0], [-0.5, 0, 0, 0, 0]]


def test_the_return_of_reinforce_pp_is_carried_across_observations():
    """Where the mask of context tokens stops the sum, an early turn gets no credit for a late reward."""
    inputs = make_inputs()
    inputs['reward'] = np.where(np.arange(T) == inputs['valid'].sum(axis=1, keepdims=True) - 1, inputs['seat'][:, None], 0.0)
    value, _ = credit('reinforce_pp', inputs, gamma=1.0)
    won, lost = (value[:, 0][(inputs['seat'] == seat) & inputs['valid'][:, 0]] for seat in (1, 0))
    np.testing.assert_allclose(won, won[0])
    assert won[0] > 0 > lost[0]


def test_a_turn_that_others_took_in_the_same_situation_is_compared_with_theirs():
    inputs = make_inputs()
    inputs.update(valid=np.zeros((N, T), bool), reward=np.zeros((N, T)), observation=np.zeros((N, T), np.uint32))
    inputs['valid'][:3, :2] = True
    inputs['reward'][:3, 1] = 1, 0, 0.5
    inputs['observation'][:3, 1] = 5, 5, 7  # the third conversation came elsewhere
    value, _ = credit('gigpo', inputs, gamma=1.0, step_weight=1.0)
    episode = credit('dr_grpo', inputs)[0]
    np.testing.assert_allclose((value - episode)[:3, 1], [0.5, -0.5, 0], atol=1e-12)
    np.testing.assert_allclose((value - episode)[:3, 0], [0.5, -0.5, 0], atol=1e-12)


def test_the_memory_of_rae_lasts_and_its_baseline_never_contains_its_own_return():
    inputs = make_inputs()
    one, memory = credit('rae', inputs)
    two, _ = credit('rae', inputs | {'memory': memory})
    assert np.abs(one - two).max() > 0.01
    first = int(np.flatnonzero(inputs['valid'].any(axis=1))[0])
    larger = inputs['reward'] + 5 * (np.arange(N) == first)[:, None] * (np.arange(T) == 0)
    other, _ = credit('rae', inputs | {'reward': np.where(inputs['valid'], larger, 0)})
    np.testing.assert_allclose((other - one)[first][inputs['valid'][first]], 5, rtol=1e-12)


def test_turns_before_certain_ones_get_a_bonus():
    inputs = make_inputs()
    inputs['reward'] = np.zeros((N, T))
    inputs['valid'] = np.ones((N, T), bool)
    inputs['entropy'] = np.ones((N, T)) * np.array([1.0, 1.0, 0.0, 1.0, 1.0])
    value, _ = credit('empg', inputs)
    assert (value[:, 1] > value[:, 0]).all() and (value[:, 4] < value[:, 0]).all()


@pytest.mark.parametrize('name', ('rloo', 'grpo', 'dr_grpo', 'rae', 'gigpo'))
def test_no_credit_within_a_seat_makes_a_policy_care_about_its_partner(name):
    """The action of a seat decides only the outcome of its partner, so the gradient of its own return is 0."""
    episodes = 3
    rows = np.arange(2 * episodes)
    episode, seat, partner = rows % episodes, rows // episodes, (rows + episodes) % (2 * episodes)
    method = assign.from_config(REWARD, OPTIONS | dict(name=name)).method
    actions = (np.arange(2 ** len(rows))[:, None] >> rows) & 1
    one = np.ones((len(rows), 1), bool)

    def advantage(outcome):
        found = method(dict(reward=outcome[:, None], valid=one, group=seat, episode=episode, seat=seat,
                            observation=one.astype(np.uint32), memory=jnp.zeros(2)))
        return (found[0] if name == 'rae' else found)[:, 0]

    with jax.enable_x64(True):
        got = np.asarray(jax.jit(jax.vmap(advantage))((actions[:, partner] == 0).astype(np.float64)))
    np.testing.assert_allclose((np.where(actions == 0, 0.5, -0.5) * got).mean(axis=0), 0, atol=1e-9)
    assert np.abs(got).max() > 0.1


def test_values_of_siblings_telescope():
    """With trace 1 and no discount, credit is the return minus the value; with trace 0, it adds up to R - V_0."""
    inputs = make_inputs()
    whole, steps = (credit('branched', inputs, gamma=1.0, trace=trace)[0] for trace in (1.0, 0.0))
    value = np.where(inputs['valid'], literal_returns(inputs, 1.0) - np.nan_to_num(inputs['value']), 0)
    np.testing.assert_allclose(whole, value, atol=1e-12)
    np.testing.assert_allclose(steps.sum(axis=1), value[:, 0], atol=1e-12)


# Fingerprints and groups

def test_fingerprints_are_equal_where_the_same_was_read():
    rng = np.random.default_rng(0)
    rows, turns, read = [], [], []
    for _ in range(30):
        ids, turn, seen = [], [], []
        for t in range(rng.integers(0, T + 1)):
            seen.append(tuple(rng.integers(5, 7, rng.integers(1, 4)).tolist()))
            said = rng.integers(0, 50, rng.integers(1, 3)).tolist()
            ids, turn = ids + list(seen[-1]) + said, turn + [-1] * len(seen[-1]) + [t] * len(said)
        rest = 30 - len(ids)
        rows.append(ids + rng.integers(0, 50, rest).tolist())  # what follows the last strategy does not count
        turns.append(turn + [-1] * rest)
        read.append(seen)
    got = np.asarray(jax.jit(steps.fingerprints, static_argnums=2)(np.array(rows), np.array(turns), T))
    texts = {(n, t): text for n, seen in enumerate(read) for t, text in enumerate(seen)}
    assert len(set(texts.values())) < len(texts)
    for a, text in texts.items():
        for b, other in texts.items():
            assert (got[a] == got[b]) == (text == other)


def test_numbers_of_groups_are_equal_where_all_keys_are():
    rng = np.random.default_rng(0)
    a, b = rng.integers(-2, 3, 40), rng.integers(0, 3, 40)
    got = np.asarray(grouping.same(jnp.asarray(a), jnp.asarray(b)))
    assert got.min() == 0 and got.max() < 40
    np.testing.assert_array_equal(got[:, None] == got, (a[:, None] == a) & (b[:, None] == b))


# From verdict to credit

def make_case(seed=0, n=12, length=40):
    """Return a verdict and conversations; strategies end with id 1, except where they were cut."""
    rng = np.random.default_rng(seed)
    turn, ids = np.full((n, length), -1, np.int32), rng.integers(2, 20, (n, length)).astype(np.int32)
    count, cut = rng.integers(1, T + 1, n), rng.random((n, T)) < 0.3
    for row in range(n):
        for t in range(count[row]):
            turn[row, 8 * t + 2:8 * t + 6] = t
            if not cut[row, t]:
                ids[row, 8 * t + 5] = 1
    mask = np.arange(T) < count[:, None]
    sampled = np.where(turn >= 0, -rng.exponential(size=turn.shape), 0).astype(np.float32)
    every = np.ones(n, bool)
    rows = Trajectory(ids, turn, sampled, np.full(n, length), mask, ~every, np.arange(n), np.zeros(n, int), np.arange(n) // 3)
    verdict = Verdict(np.zeros((n, T), np.float32), mask, rng.random(n).astype(np.float32), every, every, mask)
    return verdict, rows, cut


def test_the_divergence_is_subtracted_from_the_reward_of_the_turn():
    verdict, rows, _ = make_case()
    reference = np.where(rows.turn >= 0, -np.random.default_rng(1).exponential(size=rows.turn.shape), 0).astype(np.float32)
    rules = assign.from_config(REWARD | dict(kl_weight=0.5), OPTIONS | dict(name='discounted', baseline='none'))
    plain = assign.from_config(REWARD, OPTIONS | dict(name='discounted', baseline='none'))
    penalized, _ = assign.assign(verdict, rows, rules, {'reference': reference})
    reward = assign.assign(verdict, rows, plain)[0].reward
    for n in range(len(reward)):
        for t in range(T):
            at = rows.turn[n] == t
            expected = reward[n, t] - 0.5 * (rows.logprob[n] - reference[n])[at].sum()
            np.testing.assert_allclose(penalized.reward[n, t], expected, rtol=1e-5, atol=1e-6)


def test_cut_strategies_are_not_trained_but_their_episodes_count():
    verdict, rows, cut = make_case()
    switched = assign.from_config(REWARD, OPTIONS | dict(name='dr_grpo', mask_cut=True), ends=(1, 77))
    plain = assign.from_config(REWARD, OPTIONS | dict(name='dr_grpo'), ends=(1, 77))
    (masked, _), (full, _) = assign.assign(verdict, rows, switched), assign.assign(verdict, rows, plain)
    np.testing.assert_array_equal(masked.valid, full.valid & ~cut)
    np.testing.assert_allclose(masked.advantage, np.where(cut, 0, full.advantage), rtol=1e-6)
    assert (cut & full.valid).any() and masked.valid.any()


def test_groups_without_variance_are_dropped():
    verdict, rows, _ = make_case()
    outcome = verdict.outcome.copy()
    outcome[3:6] = 0.25
    verdict = verdict.replace(outcome=outcome)
    rules = assign.from_config(REWARD, OPTIONS | dict(name='grpo', drop_equal_groups=True))
    found, _ = assign.assign(verdict, rows, rules)
    assert not found.valid[3:6].any() and found.valid[np.array([0, 1, 2, 6, 7, 8])].any(axis=1).all()


def test_inputs_that_nobody_needs_are_not_computed():
    verdict, rows, _ = make_case()
    rules = assign.from_config(REWARD, OPTIONS | dict(name=f'{__name__}:own_method'))
    assert rules.method.inputs == ('reward', 'valid') and not any(map(rules.needs, ('entropy', 'memory', 'reference')))
    found, memory = assign.assign(verdict, rows, rules)
    np.testing.assert_allclose(found.advantage, np.where(rows.turn_mask, found.reward * 0.9, 0), rtol=1e-6)
    assert memory == ()


def own_method(reward, valid, gamma):
    """A method of one's own."""
    return jnp.where(valid, gamma * reward, 0)


# Configurations that cannot give what a method needs

@pytest.mark.parametrize('options, group, repeats, message', [
    (dict(name='grpo'), 1, True, 'needs rollout.group > 1'), (dict(name='gigpo'), 4, False, 'do not repeat'),
    (dict(name='hgpo'), 4, False, 'do not repeat'), (dict(name='discounted', baseline='group'), 1, True, 'rollout.group'),
    (dict(name='discounted', drop_equal_groups=True, baseline='none'), 1, True, 'drop_equal_groups'),
    (dict(name='best'), 4, True, 'no method'), (dict(name='branched'), 4, True, 'rollout.compiled'),
    (dict(name=f'{__name__}:spread'), 4, True, "'values' is neither an input .* nor a key")])
def test_what_a_configuration_cannot_give_is_refused(options, group, repeats, message):
    found, = assign.problems(REWARD, OPTIONS | options, group, repeats, False)
    assert re.search(message, found)


@pytest.mark.parametrize('name', METHODS)
def test_a_configuration_that_gives_everything_is_accepted(name):
    assert not assign.problems(REWARD, OPTIONS | dict(name=name), 4, True, True)


def test_every_method_says_what_it_is_and_where_it_comes_from():
    for name, line, source in describe(METHODS):
        assert line.endswith('.') or ':' in line, name
        assert len(source) > 10, name
        parameters = inspect.signature(METHODS[name]).parameters
        assert all(p in assign.INPUTS or p in assign.KEYS for p in parameters), name
