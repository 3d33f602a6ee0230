"""Credit against plain loops over turns in float64."""

import jax
import numpy as np
import pytest

from epo_jax.rl.credit import rewards, turns

N, T = 12, 6

advantages = jax.jit(turns.discounted, static_argnames=('gamma', 'baseline', 'normalise'))


def exact(function, *args, **options):
    """Return the result of a function in float64."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, function(*args, **options))


def ragged(seed):
    """Return rewards of conversations with 0 to T turns, some of them missing; masked numbers are noise."""
    rng = np.random.default_rng(seed)
    counts = rng.permutation(np.arange(N) % (T + 1))
    mask = np.arange(T) < counts[:, None]
    process = rng.choice([0.0, 0.0, 1.0, 0.4, -0.7], (N, T)) + 100 * ~mask
    process_valid = (rng.random((N, T)) > 0.05) & mask
    outcome, outcome_valid = rng.integers(0, 11, N) / 10, rng.random(N) > 0.2
    process, outcome = np.where(process_valid | ~mask, process, np.nan), np.where(outcome_valid, outcome, np.nan)
    return process, process_valid, outcome, outcome_valid, mask


# The released code, for one conversation

def official_rewards(selected, score):
    """Return the rewards of a conversation of len(selected) turns."""
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


# epo_jax

@pytest.mark.parametrize('how', ('official', 'sum', 'process'))
def test_combine_equals_a_loop_over_turns(how):
    compared = 0
    for seed in range(20):
        process, process_valid, outcome, outcome_valid, mask = ragged(seed)
        reward, valid = exact(
            rewards.combine, process, process_valid, outcome, outcome_valid, mask, how=how, weight=0.3)
        assert np.isfinite(reward).all() and not reward[~mask].any()
        for n, count in enumerate(mask.sum(axis=1)):
            complete = outcome_valid[n] and process_valid[n, :count].all()
            assert valid[n].tolist() == [bool(complete)] * count + [False] * (T - count)
            if complete and how == 'official':
                compared += 1
                assert reward[n, :count].tolist() == official_rewards(process[n, :count] > 0, outcome[n])
            elif complete:
                last = [0.0] * (count - 1) + [outcome[n] * (how == 'sum')] if count else []
                np.testing.assert_allclose(reward[n, :count], 0.3 * process[n, :count] + last, rtol=1e-12)
    assert compared > 50 or how != 'official'


def test_a_selected_last_turn_loses_the_outcome_only_in_the_official_rule():
    selected, every, outcome = np.array([[0.0, 1.0]]), np.ones((1, 2), bool), np.array([0.3])
    result = {how: exact(rewards.combine, selected, every, outcome, every[:, 0], every, how=how)[0].tolist()
              for how in ('official', 'sum')}
    assert result == {'official': [[0.0, 1.0]], 'sum': [[0.0, 1.3]]}


def test_a_missing_reward_invalidates_only_its_conversation():
    mask = np.array([[True, True, True], [True, True, False], [True, True, True], [True, False, False]])
    process_valid, outcome_valid = mask.copy(), np.array([True, True, False, True])
    process_valid[0, 1] = False
    for how in ('official', 'sum'):
        _, valid = exact(rewards.combine, np.ones((4, 3)), process_valid, np.ones(4), outcome_valid, mask, how=how)
        assert valid.tolist() == [[False] * 3, [True, True, False], [False] * 3, [True, False, False]]


def random_turns(seed, holes=False):
    """Return returns, mask, group and episode of conversations; two conversations belong to each episode."""
    rng = np.random.default_rng(seed)
    mask = np.arange(T) < rng.integers(0, T + 1, N)[:, None]
    if holes:
        mask = rng.random((N, T)) > 0.4
    return np.where(mask, rng.normal(size=(N, T)), np.nan), mask, rng.integers(0, 4, N), rng.permutation(N) // 2


@pytest.mark.parametrize('gamma', (0.99, 0.5, 1.0, 0.0))
def test_returns_are_discounted_sums(gamma):
    compiled = jax.jit(turns.returns, static_argnums=2)
    for seed in range(10):
        reward, mask, *_ = random_turns(seed)
        value = exact(compiled, reward, mask, gamma)
        for n, count in enumerate(mask.sum(axis=1)):
            expected = literal_returns(reward[n, :count], gamma)
            np.testing.assert_allclose(value[n, :count], expected, rtol=1e-12, atol=1e-12)
            assert not value[n, count:].any()


@pytest.mark.parametrize('how', ('none', 'batch', 'group'))
def test_the_baseline_is_the_mean_of_the_conversations_of_other_episodes(how):
    alone = 0
    for seed in range(10):
        value, mask, group, episode = random_turns(seed, holes=seed % 2)
        base = exact(turns.subtracted, np.nan_to_num(value), mask, group, episode, how)
        for n in range(N):
            for t in range(T):
                others = [value[m, t] for m in range(N)
                          if episode[m] != episode[n] and mask[m, t] and (how == 'batch' or group[m] == group[n])]
                if how == 'none':
                    assert base[n, t] == 0
                elif mask[n, t]:
                    alone += not others
                    expected = np.mean(others) if others else value[n, t]
                    np.testing.assert_allclose(base[n, t], expected, rtol=1e-12, atol=1e-12)
    assert alone or how == 'none'


@pytest.mark.parametrize('how', turns.BASELINES)
@pytest.mark.parametrize('episodes', (2, 3, 6))
def test_no_baseline_makes_a_policy_care_about_its_partner(how, episodes):
    """The action of a seat decides only the outcome of its partner, so the gradient of its own return is 0.

    The mean over all joint actions is exact: no baseline may depend on what the seat itself does.
    """
    rows = np.arange(2 * episodes)  # seat-major, as in rl/trajectory.py
    episode, seat, partner = rows % episodes, rows // episodes, (rows + episodes) % (2 * episodes)
    one, every = np.ones((len(rows), 1), bool), np.ones(len(rows), bool)
    actions = (np.arange(2 ** len(rows))[:, None] >> rows) & 1

    def advantage(outcome):
        reward, valid = rewards.combine(np.zeros(one.shape), one, outcome, every, one, 'sum')
        return turns.discounted(reward, valid, seat, episode, 0.99, how, 'none')[:, 0]

    with jax.enable_x64(True):
        got = np.asarray(jax.jit(jax.vmap(advantage))((actions[:, partner] == 0).astype(np.float64)))
    score = np.where(actions == 0, 0.5, -0.5)  # the gradient of log p(action) by the logit of action 0, at p = 1/2
    np.testing.assert_allclose((score * got).mean(axis=0), 0, atol=1e-12)


@pytest.mark.parametrize('how', ('none', 'trajectory', 'batch'))
def test_normalize_divides_by_the_largest(how):
    for seed in range(10):
        value, mask, group, _ = random_turns(seed, holes=seed % 2)
        value[3] = np.where(mask[3], 0, np.nan)
        advantage = exact(turns.normalize, value, mask, group, how)
        largest = max(abs(value[n, t]) for n in range(N) for t in range(T) if mask[n, t])
        for n in range(N):
            own = max([abs(value[n, t]) for t in range(T) if mask[n, t]], default=0)
            size = {'none': 1, 'trajectory': own or 1, 'batch': largest}[how]
            expected = [value[n, t] / size if mask[n, t] else 0 for t in range(T)]
            np.testing.assert_allclose(advantage[n], expected, rtol=1e-12)


@pytest.mark.parametrize('how', ('none', 'trajectory', 'batch'))
def test_all_zeros_stay_zeros(how):
    assert not exact(turns.normalize, np.zeros((3, T)), np.ones((3, T), bool), np.zeros(3, int), how).any()


@pytest.mark.parametrize('base', ('none', 'batch', 'group'))
@pytest.mark.parametrize('norm', ('none', 'trajectory', 'batch'))
def test_advantages_are_normalized_returns_minus_the_baseline(base, norm):
    gamma = 0.9
    for seed in range(3):
        reward, mask, group, episode = random_turns(seed)
        advantage = exact(advantages, reward, mask, group, episode, gamma=gamma, baseline=base, normalise=norm)
        value = [literal_returns(row[m], gamma) for row, m in zip(reward, mask)]
        difference = []
        for n, row in enumerate(value):
            difference.append([])
            for t, own in enumerate(row):
                others = [v[t] for m, v in enumerate(value)
                          if episode[m] != episode[n] and t < len(v) and (base == 'batch' or group[m] == group[n])]
                expected = 0 if base == 'none' else np.mean(others) if others else own
                difference[-1].append(own - expected)
        largest = max(abs(x) for row in difference for x in row)
        for n, row in enumerate(difference):
            size = {'none': 1, 'trajectory': max(map(abs, row), default=0) or 1, 'batch': largest}[norm]
            np.testing.assert_allclose(advantage[n, :len(row)], np.array(row) / size, rtol=1e-9, atol=1e-12)
            assert not advantage[n, len(row):].any()


def test_invalid_conversations_do_not_change_means_and_maxima():
    reward, mask, group, episode = random_turns(0)
    invalid = np.arange(N) % 3 == 0
    huge, valid = np.where(invalid[:, None], 1e6, reward), mask & ~invalid[:, None]
    options = dict(gamma=0.99, baseline='group', normalise='batch')
    advantage = exact(advantages, huge, valid, group, episode, **options)
    expected = exact(advantages, reward[~invalid], mask[~invalid], group[~invalid], episode[~invalid], **options)
    np.testing.assert_allclose(advantage[~invalid], expected, rtol=1e-12)
    assert not advantage[invalid].any()


def official(selected, score, gamma=0.99):
    """Return the advantages of one conversation with the official settings."""
    every = np.ones((1, len(selected)), bool)
    reward, valid = exact(rewards.combine, np.array([selected], float), every, np.array([score]), every[:, 0], every,
                          how='official')
    return exact(turns.epo, reward, valid, np.zeros(1, int), gamma=gamma)[0]


def test_official_advantages_do_not_depend_on_the_outcome_if_no_turn_is_selected():
    weights = [official([0] * 5, score) for score in (0.1, 1.0)]
    np.testing.assert_allclose(weights, [[0.99 ** 4, 0.99 ** 3, 0.99 ** 2, 0.99, 1.0]] * 2, rtol=1e-12)
    assert round(weights[0][0], 3) == 0.961


def test_official_advantages_are_those_of_the_released_code():
    rng = np.random.default_rng(0)
    for count in (1, 4, 10):
        for trial in range(5):
            selected, score = rng.random(count) < 0.3, rng.integers(0, 11) / 10
            expected = official_weights(official_rewards(selected, score), 0.99)
            np.testing.assert_allclose(official(selected, score), expected, rtol=1e-12)
    assert not official([0] * 4, 0.0).any()


def test_unknown_options_are_refused():
    one, yes = np.ones((1, 1)), np.ones((1, 1), bool)
    with pytest.raises(ValueError, match='median'):
        rewards.combine(one, yes, one[0], yes[0], yes, how='median')
    for options in (dict(baseline='median', normalise='none'), dict(baseline='none', normalise='median')):
        with pytest.raises(ValueError, match='median'):
            advantages(one, yes, np.zeros(1, int), np.zeros(1, int), gamma=0.9, **options)
