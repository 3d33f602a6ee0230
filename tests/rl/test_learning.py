"""Rollouts, credit and gradient steps together raise an outcome that depends on the tokens of the strategies."""

import jax
import numpy as np

from epo_jax import testing
from epo_jax.agents.base import Player, Seat
from epo_jax.agents.local import LocalAgent
from epo_jax.envs.base import Observation, TextEnvironment, TextStep
from epo_jax.envs.host import HostEnvironment
from epo_jax.models.layout import unstack
from epo_jax.models.sampling import SamplingConfig
from epo_jax.models.transformer import Transformer
from epo_jax.rl.batching import batches
from epo_jax.rl.credit import rewards, turns
from epo_jax.rl.learner import Batch, Learner
from epo_jax.rl.trajectory import trajectories
from epo_jax.rollout import Table, episode_keys, rollout_on_host
from epo_jax.text.chat import chat_segments

EPISODES, TOKENS = 48, 6


class Parrot(TextEnvironment):
    """Two seats take one turn each, and observations are always the same."""

    num_seats, max_turns, advice = 2, 2, (' ', '')

    def reset(self, scenario, advised):
        return (), (Observation('Go', 'Act'),) * 2

    def step(self, state, seat, message):
        return state, TextStep((Observation('.', '.'),) * 2, False)


def test_thirty_iterations_raise_the_outcome_from_chance_to_ninety_percent_of_the_maximum():
    config, tokenizer = testing.dummy_config(), testing.byte_tokenizer()
    chat = chat_segments(tokenizer)
    favorite = tokenizer.convert_tokens_to_ids('e')
    agent = lambda size: LocalAgent(Transformer(config), chat, SamplingConfig(size, chat.stop), capacity=96, chunk=32)
    learner = Learner(
        Transformer(config, stacked=True), learning_rate=2e-2, total_steps=30, schedule='constant', micro_batch=96)
    state = learner.init(testing.dummy_params(config, stacked=True))
    frozen = testing.dummy_params(config, stacked=False)
    shares = []
    for iteration in range(30):
        strategist = Player(agent(TOKENS), jax.jit(unstack)(state.params), tokenizer)
        seats = (Seat(Player(agent(1), frozen, tokenizer), strategist, trained=True),) * 2
        table = Table(HostEnvironment(Parrot(), seats, width=16), seats)
        keys = episode_keys(0, iteration, np.arange(EPISODES))
        episodes, _ = rollout_on_host(table, [None] * EPISODES, keys, EPISODES)
        rows = trajectories(table, episodes, np.arange(EPISODES), EPISODES)

        sampled = rows.turn >= 0
        share = ((rows.ids == favorite) & sampled).sum(axis=1) / TOKENS  # the length of the longest strategy
        shares.append(share.mean())
        valid = rows.turn_mask
        reward, valid = rewards.combine(
            np.zeros(valid.shape), valid, share, np.ones(len(share), bool), rows.turn_mask, 'sum')
        advantage = turns.discounted(reward, valid, rows.group, rows.episode, 0.99, 'batch', 'batch')
        batch, = batches(
            Batch(rows.ids, rows.turn, rows.logprob, np.asarray(advantage), np.asarray(valid)), 96, 1, (iteration,),
            bucket=96)
        state, metrics = learner.step(state, batch)
        assert metrics['logprob_gap'] < 1e-3
    assert shares[0] < 0.03, 'by chance, the share is 1 / 259'
    assert np.mean(shares[-3:]) >= 0.9, np.round(shares, 2)
