"""Credit against literal loops over turns in float64."""

import jax
import numpy as np
import pytest

from epo_jax.rl import credit

N, T = 12, 6


def exact(function, *args, **options):
    """The function's answer in float64."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, function(*args, **options))


def ragged(seed):
    """Rewards of conversations with 0 to T turns, some of them missing; numbers where nothing counts are noise."""
    rng = np.random.default_rng(seed)
    counts = rng.permutation(np.arange(N) % (T + 1))
    mask = np.arange(T) < counts[:, None]
    process = rng.choice([0.0, 0.0, 1.0, 0.4, -0.7], (N, T)) + 100 * ~mask
    process_valid = (rng.random((N, T)) > 0.05) & mask
    outcome, outcome_valid = rng.integers(0, 11, N) / 10, rng.random(N) > 0.2
    process, outcome = np.where(process_valid | ~mask, process, np.nan), np.where(outcome_valid, outcome, np.nan)
    return process, process_valid, outcome, outcome_valid, mask


# The official code, for one conversation.

def official_rewards(selected, score):
    """Rewards of the turns of a conversation of len(selected) turns."""
    rewards = []
    for t, chosen in enumerate(selected):
        if chosen:
            rewards.append(1.0)
        elif t == len(selected) - 1:
            rewards.append(score)
        else:
            rewards.append(0.0)
    return rewards


def literal_returns(rewards, gamma):
    return [sum(gamma ** (s - t) * rewards[s] for s in range(t, len(rewards))) for t in range(len(rewards))]


def official_weights(rewards, gamma):
    result = literal_returns(rewards, gamma)
    largest = max((abs(r) for r in result), default=0)
    return [r / largest if largest else 0.0 for r in result]


# Ours.

@pytest.mark.parametrize('how', ('official', 'sum'))
def test_combine_is_the_loop_over_turns(how):
    seen = 0
    for seed in range(20):
        process, process_valid, outcome, outcome_valid, mask = ragged(seed)
        got, valid = exact(
            credit.combine, process, process_valid, outcome, outcome_valid, mask, how=how, weight=0.3)
        assert np.isfinite(got).all() and not got[~mask].any()
        for n, count in enumerate(mask.sum(axis=1)):
            whole = outcome_valid[n] and process_valid[n, :count].all()
            assert valid[n].tolist() == [bool(whole)] * count + [False] * (T - count)
            if whole and how == 'official':
                seen += 1
                assert got[n, :count].tolist() == official_rewards(process[n, :count] > 0, outcome[n])
            elif whole:
                last = [0.0] * (count - 1) + [outcome[n]] if count else []
                np.testing.assert_allclose(got[n, :count], 0.3 * process[n, :count] + last, rtol=1e-12)
    assert seen > 50 or how == 'sum'


def test_a_selected_last_turn_loses_the_outcome_only_officially():
    selected, every, outcome = np.array([[0.0, 1.0]]), np.ones((1, 2), bool), np.array([0.3])
    result = {how: exact(credit.combine, selected, every, outcome, every[:, 0], every, how=how)[0].tolist()
              for how in ('official', 'sum')}
    assert result == {'official': [[0.0, 1.0]], 'sum': [[0.0, 1.3]]}


def test_a_missing_reward_invalidates_the_conversation_and_no_other():
    mask = np.array([[True, True, True], [True, True, False], [True, True, True], [True, False, False]])
    process_valid, outcome_valid = mask.copy(), np.array([True, True, False, True])
    process_valid[0, 1] = False
    for how in ('official', 'sum'):
        _, valid = exact(credit.combine, np.ones((4, 3)), process_valid, np.ones(4), outcome_valid, mask, how=how)
        assert valid.tolist() == [[False] * 3, [True, True, False], [False] * 3, [True, False, False]]


def random_turns(seed, holes=False):
    rng = np.random.default_rng(seed)
    mask = np.arange(T) < rng.integers(0, T + 1, N)[:, None]
    if holes:
        mask = rng.random((N, T)) > 0.4
    return np.where(mask, rng.normal(size=(N, T)), np.nan), mask, rng.integers(0, 4, N)


@pytest.mark.parametrize('gamma', (0.99, 0.5, 1.0, 0.0))
def test_returns_are_discounted_sums(gamma):
    compiled = jax.jit(credit.returns, static_argnums=2)
    for seed in range(10):
        reward, mask, _ = random_turns(seed)
        got = exact(compiled, reward, mask, gamma)
        for n, count in enumerate(mask.sum(axis=1)):
            want = literal_returns(reward[n, :count], gamma)
            np.testing.assert_allclose(got[n, :count], want, rtol=1e-12, atol=1e-12)
            assert not got[n, count:].any()


@pytest.mark.parametrize('how', ('none', 'batch', 'group'))
def test_the_baseline_is_the_mean_of_the_others(how):
    alone = 0
    for seed in range(10):
        value, mask, group = random_turns(seed, holes=seed % 2)
        got = exact(credit.baseline, np.nan_to_num(value), mask, group, how)
        for n in range(N):
            for t in range(T):
                others = [value[m, t] for m in range(N)
                          if m != n and mask[m, t] and (how == 'batch' or group[m] == group[n])]
                if how == 'none':
                    assert got[n, t] == 0
                elif mask[n, t]:
                    alone += not others
                    want = np.mean(others) if others else value[n, t]
                    np.testing.assert_allclose(got[n, t], want, rtol=1e-12, atol=1e-12)
    assert alone or how == 'none'


@pytest.mark.parametrize('how', ('none', 'trajectory', 'batch'))
def test_normalise_divides_by_the_largest(how):
    for seed in range(10):
        value, mask, _ = random_turns(seed, holes=seed % 2)
        value[3] = np.where(mask[3], 0, np.nan)
        got = exact(credit.normalise, value, mask, how)
        everywhere = max(abs(value[n, t]) for n in range(N) for t in range(T) if mask[n, t])
        for n in range(N):
            own = max([abs(value[n, t]) for t in range(T) if mask[n, t]], default=0)
            size = {'none': 1, 'trajectory': own or 1, 'batch': everywhere}[how]
            want = [value[n, t] / size if mask[n, t] else 0 for t in range(T)]
            np.testing.assert_allclose(got[n], want, rtol=1e-12)


@pytest.mark.parametrize('how', ('none', 'trajectory', 'batch'))
def test_all_zeros_stay_zeros(how):
    assert not exact(credit.normalise, np.zeros((3, T)), np.ones((3, T), bool), how).any()


@pytest.mark.parametrize('base', ('none', 'batch', 'group'))
@pytest.mark.parametrize('norm', ('none', 'trajectory', 'batch'))
def test_advantages_are_returns_minus_baseline_scaled(base, norm):
    gamma = 0.9
    for seed in range(3):
        reward, mask, group = random_turns(seed)
        got = exact(credit.advantages, reward, mask, group, gamma=gamma, base=base, norm=norm)
        value = [literal_returns(row[m], gamma) for row, m in zip(reward, mask)]
        minus = []
        for n, row in enumerate(value):
            minus.append([])
            for t, own in enumerate(row):
                others = [v[t] for m, v in enumerate(value)
                          if m != n and t < len(v) and (base == 'batch' or group[m] == group[n])]
                expected = 0 if base == 'none' else np.mean(others) if others else own
                minus[-1].append(own - expected)
        everywhere = max(abs(x) for row in minus for x in row)
        for n, row in enumerate(minus):
            size = {'none': 1, 'trajectory': max(map(abs, row), default=0) or 1, 'batch': everywhere}[norm]
            np.testing.assert_allclose(got[n, :len(row)], np.array(row) / size, rtol=1e-9, atol=1e-12)
            assert not got[n, len(row):].any()


def test_invalid_conversations_count_in_no_mean_and_no_maximum():
    reward, mask, group = random_turns(0)
    out = np.arange(N) % 3 == 0
    wild, valid = np.where(out[:, None], 1e6, reward), mask & ~out[:, None]
    options = dict(gamma=0.99, base='group', norm='batch')
    got = exact(credit.advantages, wild, valid, group, **options)
    want = exact(credit.advantages, reward[~out], mask[~out], group[~out], **options)
    np.testing.assert_allclose(got[~out], want, rtol=1e-12)
    assert not got[out].any()


def official(selected, score, gamma=0.99):
    """Our weights with the official settings, for one conversation."""
    every = np.ones((1, len(selected)), bool)
    reward, valid = exact(credit.combine, np.array([selected], float), every, np.array([score]), every[:, 0], every,
                          how='official')
    return exact(credit.advantages, reward, valid, np.zeros(1, int), gamma=gamma, base='none', norm='trajectory')[0]


def test_official_weights_forget_the_outcome_where_no_turn_is_selected():
    weights = [official([0] * 5, score) for score in (0.1, 1.0)]
    np.testing.assert_allclose(weights, [[0.99 ** 4, 0.99 ** 3, 0.99 ** 2, 0.99, 1.0]] * 2, rtol=1e-12)
    assert round(weights[0][0], 3) == 0.961


def test_official_weights_are_those_of_the_released_code():
    rng = np.random.default_rng(0)
    for turns in (1, 4, 10):
        for trial in range(5):
            selected, score = rng.random(turns) < 0.3, rng.integers(0, 11) / 10
            want = official_weights(official_rewards(selected, score), 0.99)
            np.testing.assert_allclose(official(selected, score), want, rtol=1e-12)
    assert not official([0] * 4, 0.0).any()


def test_unknown_options_are_refused():
    one, yes = np.ones((1, 1)), np.ones((1, 1), bool)
    with pytest.raises(ValueError, match='median'):
        credit.combine(one, yes, one[0], yes[0], yes, how='median')
    for options in (dict(base='median', norm='none'), dict(base='none', norm='median')):
        with pytest.raises(ValueError, match='median'):
            credit.advantages(one, yes, np.zeros(1, int), gamma=0.9, **options)
