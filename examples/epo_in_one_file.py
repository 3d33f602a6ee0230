"""EPO in one file: a small transformer learns to bargain by explicit policy optimization, in plain JAX, Flax and optax.

    python examples/epo_in_one_file.py                        about ten minutes on two cores
    python examples/epo_in_one_file.py --iterations=50 --seed=1

Only the game is imported. The strategist, the rollout, the process reward, the returns, the loss and the training loop
are below, in this order, for reading and for changing. `epo_jax` does the same with language models of any size.

The game: two sides divide books, hats and balls that they value differently, within four turns each, or get nothing.
Before each of its turns, the strategist reads what the partner did and writes one word of strategy, such as 'ask:7',
'accept' or 'walk'. The frozen actor, a rule here, turns it into an offer; the partner is one of a family of scripted
bargainers. An iteration plays episodes in groups that share a scenario, gives every strategy its return, and takes one
REINFORCE step on the tokens of the strategies. The whole iteration is one compiled program, and the episodes are split
over all devices.

Axis letters: E episodes, T turns, L token positions, O tokens of an observation, V vocabulary.
"""

import argparse
import dataclasses
import functools
import time
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
import optax

from epo_jax.envs.bargain import game, language, scenarios
from epo_jax.text.tokens import Tokens

GAME = game.Bargain()
TURNS, OBSERVATION, VOCABULARY = GAME.rounds, GAME.width, len(language.WORDS)
STRIDE = 1 + OBSERVATION  # a strategy and the observation after it
LENGTH = OBSERVATION + TURNS * STRIDE


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings, which are flags of the command as well."""

    iterations: int = 300
    episodes: int = 2048  # of an iteration
    group: int = 8  # episodes that share a scenario
    gamma: float = 1.0  # discount of later rewards
    process: bool = True  # whether turns get the change of the potential, or only the last turn gets the outcome
    learning_rate: float = 2e-3
    entropy: float = 0.03  # weight of the entropy of the strategies
    width: int = 32
    layers: int = 1
    seed: int = 0


class Episodes(NamedTuple):
    """What a rollout leaves.

    Attributes:
      ids: i32[E, L], the tokens: the first observation, then strategy and observation of every turn, padded.
      present: bool[E, L], which of them are not padding.
      strategy: i32[E, T], the sampled tokens, which are those that are trained.
      acted: bool[E, T], whether the turn took place.
      logprob: f32[E, T], log-probability of the strategy when it was sampled.
      reward: f32[E, T], process reward of the turn.
      outcome: f32[E], reward of the episode, from 0 to 1.
    """

    ids: jax.Array
    present: jax.Array
    strategy: jax.Array
    acted: jax.Array
    logprob: jax.Array
    reward: jax.Array
    outcome: jax.Array


# The strategist


class Strategist(nn.Module):
    """A decoder that reads the conversation so far and gives the logits of the next token."""

    width: int
    layers: int

    @nn.compact
    def __call__(self, ids, present):
        """Return logits f32[E, K, V] for tokens i32[E, K] of which some are present, bool[E, K]."""
        small = nn.initializers.normal(0.02)
        positions = self.param('positions', small, (LENGTH, self.width))
        x = nn.Embed(VOCABULARY, self.width, embedding_init=small)(ids) + positions[:ids.shape[1]]
        mask = nn.combine_masks(nn.make_causal_mask(ids), nn.make_attention_mask(present, present))
        for _ in range(self.layers):
            x += nn.MultiHeadDotProductAttention(num_heads=1)(nn.RMSNorm()(x), mask=mask)
            y = nn.RMSNorm()(x)
            x += nn.Dense(self.width)(nn.silu(nn.Dense(2 * self.width)(y)) * nn.Dense(2 * self.width)(y))
        return nn.Dense(VOCABULARY)(nn.RMSNorm()(x))


# The rollout


def position(turn: int) -> int:
    """Return the position of the strategy of a turn."""
    return OBSERVATION + turn * STRIDE


def potential(state: game.State):
    """Return what the only seat would get if it accepted the partner's last offer now, f32[E]."""
    offered = jnp.where(state.over, state.deal, state.offers[:, 1])
    return game.rewards(state.replace(deal=offered))[:, 0]


def rollout(model: Strategist, params: Any, key: jax.Array, queue: scenarios.Queue, episode: jax.Array, process: bool):
    """Play episodes.

    Args:
      model: the strategist.
      params: its parameters.
      key: random key.
      queue: the scenarios.
      episode: i32[E], the number of the scenario of every episode.
      process: whether turns get process rewards.

    Returns:
      Episodes.
    """
    count = len(episode)
    everywhere = jnp.ones(count, bool)
    state, (opening,) = GAME.reset(GAME.start(count), queue, episode, everywhere)
    ids, present = jnp.zeros((count, LENGTH), jnp.int32), jnp.zeros((count, LENGTH), bool)

    def write(ids, present, start, message: Tokens):
        there = jnp.arange(message.ids.shape[1]) < message.length[:, None]
        end = start + message.ids.shape[1]
        return ids.at[:, start:end].set(message.ids * there), present.at[:, start:end].set(there)

    ids, present = write(ids, present, 0, opening.strategist)
    turns = []
    for turn in range(TURNS):
        live, at = ~state.over, position(turn)
        # The positions before a turn are few, so every turn reads them again; language models keep keys and values.
        last = last_present(present[:, :at])
        logits = jnp.take_along_axis(model.apply(params, ids[:, :at], present[:, :at]), last[:, None, None], axis=1)
        logprobs = jax.nn.log_softmax(logits[:, 0])
        strategy = jax.random.categorical(jax.random.fold_in(key, turn), logprobs)
        message = Tokens(strategy[:, None], live.astype(jnp.int32))
        before = potential(state)
        state, step = GAME.step(state, 0, message, live)
        ids, present = write(ids, present, at, message)
        ids, present = write(ids, present, at + 1, step.observations[0].strategist)
        logprob = jnp.take_along_axis(logprobs, strategy[:, None], axis=1)[:, 0]
        # The potential of a finished episode is its outcome, so the changes of an episode add up to the outcome.
        reward = potential(state) - before if process else step.reward[:, 0]
        turns.append((strategy, live, logprob, jnp.where(live, reward, 0)))
    return Episodes(ids, present, *(jnp.stack(column, axis=1) for column in zip(*turns)), game.rewards(state)[:, 0])


def last_present(present):
    """Return the last position that is not padding, i32[E], of bool[E, K]."""
    return present.shape[1] - 1 - jnp.argmax(present[:, ::-1], axis=1)


# Credit


def advantages(config: Config, episodes: Episodes):
    """Return the returns minus the mean return of the same turn in the other episodes of the group, f32[E, T].

        R_t = sum over t' >= t of gamma^(t' - t) r_t'
    """
    returns, later = [], 0
    for reward in episodes.reward.T[::-1]:
        later = reward + config.gamma * later
        returns.append(later)
    returns = jnp.where(episodes.acted, jnp.stack(returns[::-1], axis=1), 0).reshape(-1, config.group, TURNS)
    acted = episodes.acted.reshape(returns.shape)
    others = acted.sum(axis=1, keepdims=True) - acted
    mean = (returns.sum(axis=1, keepdims=True) - returns) / jnp.maximum(others, 1)
    advantage = jnp.where(acted & (others > 0), returns - mean, 0).reshape(-1, TURNS)
    return advantage / jnp.maximum(jnp.abs(advantage).max(), 1e-9)


# The loss


def loss(params, model: Strategist, entropy: float, episodes: Episodes, advantage):
    """Return the REINFORCE loss of the strategy tokens, and no others, with a bonus for entropy.

        -(1 / T) sum over t of A_t log pi(a_t) + entropy * H_t, the mean over episodes
    """
    logits = model.apply(params, episodes.ids, episodes.present)
    at = jnp.stack([last_present(episodes.present[:, :position(turn)]) for turn in range(TURNS)], axis=1)
    logprobs = jax.nn.log_softmax(jnp.take_along_axis(logits, at[:, :, None], axis=1))
    logprob = jnp.take_along_axis(logprobs, episodes.strategy[:, :, None], axis=2)[:, :, 0]
    gain = advantage * logprob - entropy * (jnp.exp(logprobs) * logprobs).sum(axis=2)
    gap = jnp.where(episodes.acted, jnp.abs(logprob - episodes.logprob), 0).max()  # sampler and learner agree
    return -(jnp.where(episodes.acted, gain, 0).sum(axis=1) / episodes.acted.sum(axis=1)).mean(), gap


# The loop


def make_iteration(config: Config, model: Strategist, optimizer: optax.GradientTransformation,
                   schedule: optax.Schedule):
    """Return a compiled function (params, optimizer state, number, queue) -> (params, optimizer state, metrics)."""
    mesh = Mesh(np.array(jax.devices()), ('episodes',))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def iteration(params, moments, number, queue):
        key = jax.random.fold_in(jax.random.key(config.seed), number)
        choice, sample = jax.random.split(key)
        chosen = jax.random.randint(choice, (config.episodes // config.group,), 0, len(queue.board))
        episode = jax.lax.with_sharding_constraint(
            jnp.repeat(chosen, config.group), NamedSharding(mesh, PartitionSpec('episodes')))
        episodes = rollout(model, params, sample, queue, episode, config.process)
        advantage = advantages(config, episodes)
        bonus = config.entropy * schedule(number) / config.learning_rate
        (value, gap), gradient = jax.value_and_grad(loss, has_aux=True)(params, model, bonus, episodes, advantage)
        updates, moments = optimizer.update(gradient, moments, params)
        return optax.apply_updates(params, updates), moments, {
            'outcome': episodes.outcome.mean(), 'loss': value, 'gap': gap, 'turns': episodes.acted.sum(axis=1).mean()}

    return iteration


def train(config: Config, report=print):
    """Train a strategist.

    Args:
      config: the settings.
      report: called with one line of text after every tenth iteration.

    Returns:
      (params, outcomes of the iterations f64[iterations], mean outcome on held-out scenarios).
    """
    every = scenarios.every_scenario('family')
    queues = [jax.tree.map(jnp.asarray, scenarios.encode([s for s in every if s.split == split]))
              for split in ('train', 'held_out')]
    model = Strategist(config.width, config.layers)
    key = jax.random.key(config.seed)
    params = model.init(key, jnp.zeros((1, LENGTH), jnp.int32), jnp.ones((1, LENGTH), bool))
    schedule = optax.warmup_cosine_decay_schedule(
        0, config.learning_rate, max(1, round(0.03 * config.iterations)), config.iterations)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.99, weight_decay=0))
    moments = optimizer.init(params)
    iteration, outcomes, began = make_iteration(config, model, optimizer, schedule), [], time.monotonic()
    for number in range(config.iterations):
        params, moments, metrics = iteration(params, moments, number, queues[0])
        outcomes.append(metrics['outcome'])
        if number % 10 == 9:
            report(f'iteration {number + 1}: outcome {metrics["outcome"]:.3f}  turns {metrics["turns"]:.2f}  '
                   f'gap {metrics["gap"]:.0e}  {time.monotonic() - began:.0f} s')
    held_out = rollout(model, params, key, queues[1], jnp.arange(len(queues[1].board)), config.process).outcome
    return params, np.array(outcomes, np.float64), float(held_out.mean())


def main() -> None:
    """Train with the settings of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for field in dataclasses.fields(Config):
        kind = (lambda text: text == 'True') if field.type is bool else field.type
        parser.add_argument(f'--{field.name}', type=kind, default=field.default)
    config = Config(**vars(parser.parse_args()))
    *_, held_out = train(config)
    print(f'mean outcome on held-out scenarios: {held_out:.3f} of 1')


if __name__ == '__main__':
    main()
