"""An environment of one's own in array code: two seats talk for as long as the scenario says.

What is said depends on every id that was ever said, so an error anywhere shows in all that follows.
"""

import dataclasses
from typing import Any, NamedTuple

from flax import struct
import jax.numpy as jnp

from epo_jax.envs.base import Domain, EnvironmentStep, EpisodeText, Observation
from epo_jax.text.tokens import Tokens, repeat

NEVER = 99


class Scenario(NamedTuple):
    """An episode lasts `turns` actions; in action number `broken` the environment fails, and from number `loud` on it
    says as much as fits a view.
    """

    id: str
    turns: int
    category: str = ''
    split: str = 'train'
    broken: int = NEVER
    loud: int = NEVER


@struct.dataclass
class State:
    """i32[B] each: the scenario of a slot, its actions so far, and the sum of all ids that were ever said."""

    scenario: Any
    turns: Any
    broken: Any
    loud: Any
    actions: Any
    total: Any


@dataclasses.dataclass(frozen=True)
class Counting:
    """See Environment; three tokens are said at a time, where an episode is not loud."""

    max_turns: int = 6
    width: int = 48

    num_seats = 2
    on_device = True

    def encode(self, scenarios):
        """i32[E, 4]"""
        return jnp.array([[n, s.turns, s.broken, s.loud] for n, s in enumerate(scenarios)], jnp.int32)

    def start(self, batch):
        return State(*[jnp.zeros(batch, jnp.int32)] * 6)

    def reset(self, state, queue, episode, rows):
        dealt = queue[jnp.minimum(episode, len(queue) - 1)]
        pick = lambda new, old: jnp.where(rows, new, old)
        state = State(*(pick(dealt[:, i], old) for i, old in enumerate(
            (state.scenario, state.turns, state.broken, state.loud))), pick(0, state.actions), pick(0, state.total))
        hello = lambda role: self._say(state.scenario + role, rows, 3)
        return state, tuple(Observation(hello(2 * s), hello(2 * s + 1)) for s in range(2))

    def _say(self, number, rows, count):
        """Tokens [B, width]: so many letters that depend on a number."""
        ids = 65 + (number[:, None] * 7 + jnp.arange(self.width) * 3) % 26
        return Tokens(ids.astype(jnp.int32), (rows * count).astype(jnp.int32))

    def advice(self, seat):
        return [64], [64 + seat]

    def cues(self, state, seat):
        cue = repeat([60 + seat], len(state.actions))
        return Observation(cue, cue)

    def choices(self, state, seat):
        """In its second turn, seat 0 may say one of three words, which differ from scenario to scenario."""
        if seat:
            return None
        words = jnp.array([[70, 71, 72], [70, 71, 0], [73, 0, 0]])[None] + (state.scenario % 5)[:, None, None]
        return Tokens(words, jnp.array([3, 2, 1]) * (state.actions == 2)[:, None])

    def step(self, state, seat, message, live):
        inside = jnp.arange(message.ids.shape[1]) < message.length[:, None]
        total = state.total + live * jnp.where(inside, message.ids, 0).sum(axis=1)
        failed = live & (state.actions == state.broken)
        said = self._say(total, live, jnp.where(state.actions >= state.loud, self.width, 3))
        actions = state.actions + live
        reward = jnp.zeros((len(actions), 2)).at[:, seat].set((total % 11).astype(jnp.float32))
        return state.replace(actions=actions, total=total), EnvironmentStep(
            (Observation(said, said),) * 2, live & (actions >= state.turns), reward, failed)

    def texts(self, scenarios, state):
        facts = lambda s: {'scenario': s.id, 'environment': 'counting', 'category': s.category,
                           'situation': '', 'seats': [{'name': name, 'goal': ''} for name in 'AB']}
        return [
            EpisodeText(facts(s), [(n % 2, str(state.total[e])) for n in range(state.actions[e])], ['', ''], (),
                        'broken' if state.actions[e] > s.broken else None)
            for e, s in enumerate(scenarios)]


def scenarios(path, options):
    """Twelve to train on and four held out."""
    return [Scenario(str(n), 1 + n % options.longest, f'c{n % 2}', 'held_out' if n % 4 == 3 else 'train')
            for n in range(16)]


DOMAIN = Domain(
    seats=2, options=dict(longest=5), scenarios=scenarios,
    check=lambda options: [] if options.longest > 0 else ['environment.longest must be positive'],
    device_environment=lambda options, tokenizer, width: Counting(options.longest, width), judged=False)
