"""A judge in a compiled program gives the same verdicts as one in a host loop."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from epo_jax import testing
from epo_jax.agents.base import Player, Seat
from epo_jax.agents.scripted import Echo
from epo_jax.envs.sotopia.dialogue import Sotopia
from epo_jax.envs.sotopia.profiles import load_scenarios
from epo_jax.envs.sotopia.tokens import TokenSotopia
from epo_jax.models.transformer import Transformer
from epo_jax.rewards.judge import Judge
from epo_jax.rewards.process import assess, assess_episodes
from epo_jax.rewards.prompts import encode_prompts, gather_prompts, judge_prompts
from epo_jax.rollout import Episodes, Table
from epo_jax.text.chat import chat_segments
from epo_jax.text.tokenizer import encode
from epo_jax.text.tokens import Tokens, pack

WIDTH, ACTIONS = 1024, 5  # three turns of one seat, two of the other
MESSAGES = (['Hello."', 'Hi."', 'Forty dollars?"', 'Fifty."', 'Deal."'], ['Good day."', 'No."', 'Bye."'])
PLANS = (['Be kind.', 'Wait.', 'Ask for less.', 'Hold on.', 'Agree.'], ['Greet.', 'Refuse.', 'Go.'])


@pytest.fixture(scope='module')
def played():
    """Return (judge, table, queue, episodes, prompts) of two dialogues; the second is shorter and was cut off."""
    tokenizer, model = testing.byte_tokenizer(), testing.dummy_config()
    params = testing.dummy_params(model, stacked=False)
    params['final_norm']['scale'] = params['final_norm']['scale'] * 12  # so that probabilities differ
    judge = Judge(Transformer(model), params, tokenizer, chat_segments(tokenizer), 1536, batch=3, chunk=256)
    env = TokenSotopia(Sotopia(ACTIONS, 9, ('speak',), True, True), tokenizer, WIDTH)
    player = Player(Echo(8), None, tokenizer)
    table = Table(env, (Seat(player, player, trained=True),) * 2)
    scenarios = load_scenarios('')[:2]
    queue = env.encode(scenarios, [True, True])
    state, _ = env.reset(env.start(2), queue, np.arange(2), np.ones(2, bool))
    for a in range(ACTIONS):
        live = np.array([a < len(messages) for messages in MESSAGES])
        message = pack([encode(tokenizer, messages[a]) if on else [] for messages, on in zip(MESSAGES, live)], 32)
        state, _ = env.step(state, a % 2, message, live)
    plans = [pack([encode(tokenizer, plan) for plan in rows] + [[]] * (ACTIONS - len(rows)), 16) for rows in PLANS]
    plans = Tokens(*(np.stack([getattr(p, name) for p in plans]) for name in ('ids', 'length')))
    episodes = Episodes(
        env=state, conversations=(None, None), cause=np.array([0, 1]), actions=np.array([5, 3]),
        reward=np.full((2, 2), np.nan, np.float32), strategies=plans, messages=plans)
    prompts = judge_prompts(table, episodes, env.texts(scenarios, state))
    assert prompts[1].strategies == ('Greet.', 'Go.') and not prompts[1].complete
    return judge, table, queue, episodes, prompts


@functools.partial(jax.jit, static_argnums=(4, 5))
def judge_on_device(judge, table, queue, episodes, method, rate):
    conversations = gather_prompts(judge, table, queue, episodes, method, rate or method == 'potential')
    return assess(judge, conversations, method, rate)


@pytest.mark.parametrize('method', ['potential', 'critical', 'graded', 'none'])
def test_verdicts_of_both_drivers_are_equal(played, method):
    judge, table, queue, episodes, prompts = played
    device = judge_on_device(judge, table, queue, episodes, method, True)
    host = assess(judge, encode_prompts(judge, prompts, 3, method, True), method, True)
    np.testing.assert_array_equal(device.valid, host.valid)
    np.testing.assert_array_equal(device.outcome_valid, host.outcome_valid)
    np.testing.assert_allclose(device.outcome, host.outcome, atol=2e-5)
    np.testing.assert_allclose(device.process, host.process, atol=2e-5)
    if method != 'none':
        probabilities = np.asarray(getattr(device, method))
        np.testing.assert_allclose(probabilities, getattr(host, method), atol=2e-5)
        assert np.ptp(probabilities[np.isfinite(probabilities)]) > 1e-3


@functools.partial(jax.jit, static_argnums=5)
def two_judges_on_device(rater, critic, table, queue, episodes, method):
    encode = lambda judge, method, read: gather_prompts(judge, table, queue, episodes, method, read)
    return assess_episodes(encode, rater, critic, method, True)


@pytest.mark.parametrize('method', ['critical', pytest.param('potential', marks=pytest.mark.slow)])
def test_verdicts_of_two_judges_are_those_of_the_host(played, method):
    rater, table, queue, episodes, prompts = played
    critic = rater.replace(params=jax.tree.map(lambda x: 0.7 * x, rater.params))
    device = two_judges_on_device(rater, critic, table, queue, episodes, method)
    encode = lambda judge, method, read: encode_prompts(judge, prompts, 3, method, read)
    host, alone = (assess_episodes(encode, rater, other, method, True) for other in (critic, None))
    np.testing.assert_array_equal(device.valid, host.valid)
    for name in ('outcome', 'process', method):
        np.testing.assert_allclose(getattr(device, name), getattr(host, name), atol=2e-5)
    np.testing.assert_allclose(host.outcome, alone.outcome, atol=2e-5)
    assert np.nanmax(np.abs(getattr(host, method) - getattr(alone, method))) > 1e-3


def test_rewards_replace_ratings(played):
    judge, table, queue, episodes, prompts = played
    reward = np.array([[0.25, np.nan], [np.nan, 1.0]], np.float32)
    device = judge_on_device(judge, table, queue, dataclasses.replace(episodes, reward=reward), 'none', True)
    prompts = [dataclasses.replace(prompt, reward=0.25) if n == 0 else prompt for n, prompt in enumerate(prompts)]
    host = assess(judge, encode_prompts(judge, prompts, 3, 'none', True), 'none', True)
    assert device.outcome[0] == host.outcome[0] == 0.25
    assert np.asarray(device.rewarded).tolist() == [True, False, False, True]
    np.testing.assert_allclose(device.outcome, host.outcome, atol=2e-5)
    np.testing.assert_array_equal(device.outcome_valid, [True, False, True, False])  # the second dialogue was cut off


def test_a_question_that_does_not_fit_gives_no_verdict(played):
    judge, table, queue, episodes, prompts = played
    short = judge.replace(capacity=max(len(judge.encode(prompt.prompt)) for prompt in prompts) + 200)
    verdict = judge_on_device(
        short, table, queue, dataclasses.replace(episodes, reward=np.zeros((2, 2), np.float32)), 'critical', False)
    assert not np.asarray(verdict.valid).any() and np.isnan(verdict.critical).all()
    assert np.asarray(verdict.outcome_valid).tolist() == [True, False, True, False]
