"""A user's environment in array code, for tests: two seats talk for as many actions as the scenario says.

An observation depends on all ids of all earlier messages, so an error in one of them changes everything that follows.
"""

import dataclasses
from typing import Any, NamedTuple

from flax import struct
import jax.numpy as jnp

from epo_jax.envs.base import Domain, EnvironmentStep, EpisodeText, Observation
from epo_jax.text.tokens import Tokens, repeat

NEVER = 99


class Scenario(NamedTuple):
    """A scenario.

    Attributes:
      id, category, split: see epo_jax.envs.base.Scenario.
      turns: number of actions after which the episode ends.
      broken: number of the action in which the environment fails.
      loud: number of the action from which observations are as long as possible.
    """

    id: str
    turns: int
    category: str = ''
    split: str = 'train'
    broken: int = NEVER
    loud: int = NEVER


@struct.dataclass
class State:
    """The slots, i32[B] each: the fields of the scenario, the number of actions, and the sum of all ids so far."""

    scenario: Any
    turns: Any
    broken: Any
    loud: Any
    actions: Any
    total: Any


@dataclasses.dataclass(frozen=True)
class Counting:
    """An Environment whose observations have three tokens, or `width` in a loud episode."""

    max_turns: int = 6
    width: int = 48

    num_seats = 2
    on_device = True

    def encode(self, scenarios, advised):
        """Return the numbers of the scenarios, i32[E, 4]."""
        return jnp.array([[n, s.turns, s.broken, s.loud] for n, s in enumerate(scenarios)], jnp.int32)

    def start(self, batch):
        return State(*[jnp.zeros(batch, jnp.int32)] * 6)

    def reset(self, state, queue, episode, rows):
        scenario = queue[jnp.minimum(episode, len(queue) - 1)]
        pick = lambda new, old: jnp.where(rows, new, old)
        state = State(*(pick(scenario[:, i], old) for i, old in enumerate(
            (state.scenario, state.turns, state.broken, state.loud))), pick(0, state.actions), pick(0, state.total))
        opening = lambda role: self._letters(state.scenario + role, rows, 3)
        return state, tuple(Observation(opening(2 * s), opening(2 * s + 1)) for s in range(2))

    def _letters(self, number, rows, count):
        """Return `count` letters that depend on number[B], in the given rows: Tokens [B, width]."""
        ids = 65 + (number[:, None] * 7 + jnp.arange(self.width) * 3) % 26
        return Tokens(ids.astype(jnp.int32), (rows * count).astype(jnp.int32))

    def advice(self, seat):
        return [64], [64 + seat]

    def cues(self, state, seat):
        cue = repeat([60 + seat], len(state.actions))
        return Observation(cue, cue)

    def choices(self, state, seat):
        """Return the three words, different in every scenario, of which seat 0 chooses one in its second turn."""
        if seat:
            return None
        words = jnp.array([[70, 71, 72], [70, 71, 0], [73, 0, 0]])[None] + (state.scenario % 5)[:, None, None]
        return Tokens(words, jnp.array([3, 2, 1]) * (state.actions == 2)[:, None])

    def step(self, state, seat, message, live):
        inside = jnp.arange(message.ids.shape[1]) < message.length[:, None]
        total = state.total + live * jnp.where(inside, message.ids, 0).sum(axis=1)
        failed = live & (state.actions == state.broken)
        letters = self._letters(total, live, jnp.where(state.actions >= state.loud, self.width, 3))
        actions = state.actions + live
        reward = jnp.zeros((len(actions), 2)).at[:, seat].set((total % 11 / 60).astype(jnp.float32))
        return state.replace(actions=actions, total=total), EnvironmentStep(
            (Observation(letters, letters),) * 2, live & (actions >= state.turns), reward, failed)

    def texts(self, scenarios, state):
        facts = lambda s: {'scenario': s.id, 'environment': 'counting', 'category': s.category,
                           'situation': '', 'seats': [{'name': name, 'goal': ''} for name in 'AB']}
        return [
            EpisodeText(facts(s), [(n % 2, str(state.total[e])) for n in range(state.actions[e])], ['', ''], (),
                        'broken' if state.actions[e] > s.broken else None)
            for e, s in enumerate(scenarios)]


def scenarios(path, options):
    """Return twelve training and four held-out scenarios."""
    return [Scenario(str(n), 1 + n % options.longest, f'c{n % 2}', 'held_out' if n % 4 == 3 else 'train')
            for n in range(16)]


DOMAIN = Domain(
    seats=2, options=dict(longest=5), scenarios=scenarios,
    check=lambda options: [] if options.longest > 0 else ['environment.longest must be positive'],
    device_environment=lambda options, tokenizer, width: Counting(options.longest, width), judged=False)
