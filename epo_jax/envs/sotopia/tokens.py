"""The SOTOPIA environment on the device: prompts are tokenized in advance, and a turn is array code.

Two steps have to understand text: parsing an action and scoring a goal by its rule. They call the functions of
dialogue.py on the host (`jax.pure_callback`), so both forms of the environment behave in the same way. JAX does not
keep programs with callbacks in its compilation cache.

Axis letters: B slots, E episodes, S seats, A actions, K tokens, W bytes.
"""

import dataclasses
import functools
import json
from typing import Any, Sequence

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Int, UInt8
import numpy as np

from epo_jax.envs.base import EnvironmentStep, EpisodeText, Observation
from epo_jax.envs.sotopia import prompts
from epo_jax.envs.sotopia.actions import KINDS, Action, from_code
from epo_jax.envs.sotopia.dialogue import Sotopia, describe, rule_reward
from epo_jax.envs.sotopia.profiles import Scenario
from epo_jax.text import tokenizer as text
from epo_jax.text.tokens import Array, Tokens, TooLongError, concat, keep, pack, repeat

CUE_TOKENS = 48     # longest beginning of a reply
ABOUT_BYTES = 1024  # longest JSON of names and goal rules


@struct.dataclass
class Scenes:
    """Scenarios in tokens.

    Attributes:
      strategist, actor, judge: opening prompts, Tokens [E, S, K].
      cue: beginning of the replies, Tokens [E, S, K].
      about: names and goal rules as UTF-8 JSON, for the functions that read text.
      ruled: whether a goal has a rule.
    """

    strategist: Tokens
    actor: Tokens
    judge: Tokens
    cue: Tokens
    about: UInt8[Array, 'E W']
    ruled: Bool[Array, 'E S']


@struct.dataclass
class Dialogues:
    """Conversations so far.

    Attributes:
      cue, about, ruled: those of the scenario in each slot, see Scenes.
      actions: number of actions.
      stale: number of actions at the end that did nothing.
      spoke: whether a seat has acted.
      lines: the transcript, Tokens [B, A, K].
      kinds: kind of every action, as an index into KINDS.
      events: the events of every action, see Action.code.
    """

    cue: Tokens
    about: UInt8[Array, 'B W']
    ruled: Bool[Array, 'B S']
    actions: Int[Array, ' B']
    stale: Int[Array, ' B']
    spoke: Bool[Array, 'B S']
    lines: Tokens
    kinds: Int[Array, 'B A']
    events: Int[Array, 'B A']


@dataclasses.dataclass(frozen=True)
class TokenSotopia:
    """An Environment on the device.

    Attributes:
      rules: the environment in text, whose settings apply.
      tokenizer: the tokenizer of all models.
      width: number of tokens of every observation, and of a line.
    """

    rules: Sotopia
    tokenizer: Any
    width: int

    num_seats = 2
    on_device = True

    @property
    def max_turns(self) -> int:
        """See Environment."""
        return self.rules.max_turns

    def _ids(self, part: str) -> list[int]:
        return text.encode(self.tokenizer, part) if part else []

    def advice(self, seat: int) -> tuple[list[int], list[int]]:
        """See Environment.advice."""
        return tuple(map(self._ids, prompts.ADVICE))

    def encode(self, scenarios: Sequence[Scenario], advised: Sequence[bool]) -> Scenes:
        """See Environment.encode.

        Raises:
          TooLongError: a prompt does not fit `width`.
        """
        rules, seats = self.rules, (0, 1)

        def by_seat(render, width):
            packed = [pack([self._ids(render(scenario, seat)) for seat in seats], width) for scenario in scenarios]
            return jax.tree.map(lambda *xs: np.stack(xs), *packed)

        cue = lambda s, seat: prompts.speech(s.characters[seat].first_name) if rules.begun else ''
        return Scenes(
            strategist=by_seat(lambda s, seat: prompts.strategist_opening(s, seat, rules.short), self.width),
            actor=by_seat(
                lambda s, seat: prompts.actor_opening(s, seat, advised[seat], rules.allowed, rules.short), self.width),
            judge=by_seat(prompts.judge_opening, self.width),
            cue=by_seat(cue, CUE_TOKENS),
            about=np.stack([_pack_about(scenario) for scenario in scenarios]),
            ruled=np.array([[rule is not None for rule in scenario.goal_rules] for scenario in scenarios]))

    def start(self, batch: int) -> Dialogues:
        """See Environment.start."""
        A = self.max_turns
        zeros = lambda *shape: np.zeros((batch, *shape), np.int32)
        return Dialogues(
            cue=Tokens(zeros(2, CUE_TOKENS), zeros(2)), about=np.zeros((batch, ABOUT_BYTES), np.uint8),
            ruled=np.zeros((batch, 2), bool), actions=zeros(), stale=zeros(), spoke=np.zeros((batch, 2), bool),
            lines=Tokens(zeros(A, self.width), zeros(A)), kinds=zeros(A), events=zeros(A))

    @functools.partial(jax.jit, static_argnums=0)
    def reset(self, state: Dialogues, queue: Scenes, episode, rows) -> tuple[Dialogues, tuple[Observation, ...]]:
        """See Environment.reset."""
        scene = jax.tree.map(lambda x: jnp.asarray(x)[jnp.minimum(episode, len(x) - 1)], queue)
        fresh = self.start(len(rows)).replace(cue=scene.cue, about=scene.about, ruled=scene.ruled)
        choose = lambda new, old: jnp.where(rows.reshape(-1, *[1] * (old.ndim - 1)), new, old)
        state = jax.tree.map(choose, fresh, state)
        seat = lambda tokens, s: keep(jax.tree.map(lambda x: x[:, s], tokens), rows)
        return state, tuple(Observation(seat(scene.strategist, s), seat(scene.actor, s)) for s in (0, 1))

    def cues(self, state: Dialogues, seat: int) -> Observation:
        """See Environment.cues."""
        strategy = self._ids(prompts.STRATEGY) if self.rules.begun else []
        return Observation(repeat(strategy, len(state.actions)), jax.tree.map(lambda x: x[:, seat], state.cue))

    def choices(self, state: Dialogues, seat: int) -> None:
        """See Environment.choices: every reply is allowed."""

    @functools.partial(jax.jit, static_argnums=(0, 2))
    def step(self, state: Dialogues, seat: int, message: Tokens, live) -> tuple[Dialogues, EnvironmentStep]:
        """See Environment.step; `seat` is static."""
        batch = len(live)
        shape = lambda *rest: jax.ShapeDtypeStruct((batch, *rest), jnp.int32)
        kind, event, ids, length = jax.pure_callback(
            functools.partial(self._read, seat), (shape(), shape(), shape(self.width), shape()),
            state.about, message.ids, message.length, live)
        line = Tokens(ids, length)
        newline = repeat(self._ids('\n'), batch)
        next_line = keep(concat([newline, line], self.width), live)
        opened = state.spoke[:, 1 - seat]
        observations = [
            Observation(line, keep(line, False)),
            Observation(next_line, Tokens(jnp.where(opened[:, None], line.ids, next_line.ids),
                                          jnp.where(opened, line.length, next_line.length)))]

        now = (jnp.arange(self.max_turns) == state.actions[:, None]) & live[:, None]
        actions = state.actions + live
        stale = jnp.where(live, jnp.where(kind == KINDS.index('none'), state.stale + 1, 0), state.stale)
        state = state.replace(
            actions=actions, stale=stale, spoke=state.spoke.at[:, seat].set(state.spoke[:, seat] | live),
            lines=Tokens(jnp.where(now[:, :, None], line.ids[:, None], state.lines.ids),
                         jnp.where(now, line.length[:, None], state.lines.length)),
            kinds=jnp.where(now, kind[:, None], state.kinds), events=jnp.where(now, event[:, None], state.events))
        left = live & (kind == KINDS.index('leave'))
        done = left | (stale > self.rules.max_stale) | (actions >= self.max_turns)
        return state, EnvironmentStep(
            tuple(observations if seat == 0 else observations[::-1]), done, self._reward(state, done & live),
            next_line.length > self.width)

    def _read(self, seat: int, about, ids, length, live) -> tuple[np.ndarray, ...]:
        """Parse the actions in messages (host).

        Args:
          seat: who wrote them.
          about: u8[B, W], see Scenes.
          ids: the messages, i32[B, K].
          length: their lengths, i32[B].
          live: bool[B]; the other rows get empty lines.

        Returns:
          (kind i32[B], event i32[B], ids i32[B, width] and length i32[B] of the lines of the transcript). The length of
          a line that does not fit is width + 1.
        """
        batch, messages = len(live), Tokens(ids, length).rows()
        kinds, events = np.zeros(batch, np.int32), np.zeros(batch, np.int32)
        lines = [()] * batch
        for b in np.flatnonzero(live):
            facts = _unpack_about(about[b])
            names, first_name = facts['names'], facts['first_names'][seat]
            action = self.rules.read(text.decode(self.tokenizer, messages[b]), names[seat], names[1 - seat])
            kinds[b], events[b] = KINDS.index(action.kind), action.code
            lines[b] = self._ids(prompts.line(first_name, action))
        packed = pack([line[:self.width] for line in lines], self.width)
        return kinds, events, packed.ids, np.array([min(len(line), self.width + 1) for line in lines], np.int32)

    def _reward(self, state: Dialogues, done) -> jax.Array:
        """Return the rewards f32[B, S] by the rules of the goals of dialogues that are done; NaN for all others."""
        missing = jnp.full((len(done), 2), jnp.nan, jnp.float32)
        score = lambda: jax.pure_callback(
            self._score, jax.ShapeDtypeStruct(missing.shape, missing.dtype), state.about, state.lines.ids,
            state.lines.length, state.kinds, state.actions, done)
        return jax.lax.cond((state.ruled & done[:, None]).any(), score, lambda: missing)

    def _score(self, about, ids, length, kinds, actions, done) -> np.ndarray:
        """Score finished dialogues by the rules of their goals (host): f32[B, S], NaN where there is no rule."""
        rewards = np.full((len(done), 2), np.nan, np.float32)
        ids, length, kinds = map(np.asarray, (ids, length, kinds))
        for b in np.flatnonzero(done):
            facts, dialogue = _unpack_about(about[b]), []
            for a in range(int(actions[b])):
                line = text.decode(self.tokenizer, ids[b, a, :length[b, a]].tolist())
                begin = prompts.speech(facts['first_names'][a % 2])
                dialogue.append((a % 2, Action(KINDS[kinds[b, a]], line.removeprefix(begin).removesuffix('"'))))
            for seat, rule in enumerate(facts['rules']):
                reward = rule_reward(rule, dialogue)
                rewards[b, seat] = np.nan if reward is None else reward
        return rewards

    def judge_prompts(self, queue: Scenes, state: Dialogues, seat: int) -> tuple[Tokens, Tokens]:
        """See Environment.judge_prompts; every line begins with a line break."""
        E, A = state.kinds.shape
        lines = jax.tree.map(lambda x: x.reshape(E * A, *x.shape[2:]), state.lines)
        lines = keep(concat([repeat(self._ids('\n'), E * A), lines]), lines.length > 0)
        lines = jax.tree.map(lambda x: x.reshape(E, A, *x.shape[1:]), lines)
        return jax.tree.map(lambda x: jnp.asarray(x)[:, seat], queue.judge), lines

    def texts(self, scenarios: Sequence[Scenario], state: Dialogues) -> list[EpisodeText]:
        """See Environment.texts."""
        state = jax.tree.map(np.asarray, state)
        episodes = []
        for e, scenario in enumerate(scenarios):
            lines, events = [], []
            for a in range(state.actions[e]):
                ids = state.lines.ids[e, a, :state.lines.length[e, a]].tolist()
                lines.append((a % 2, text.decode(self.tokenizer, ids)))
                events += from_code(KINDS[state.kinds[e, a]], '', state.events[e, a]).events
            shown = [line for a, (_, line) in enumerate(lines) if KINDS[state.kinds[e, a]] != 'none']
            episodes.append(EpisodeText(
                describe(scenario), lines, [prompts.judge_opening(scenario, seat) for seat in (0, 1)], events,
                overview=prompts.overview(scenario, shown)))
        return episodes


def _pack_about(scenario: Scenario) -> np.ndarray:
    """Return names and goal rules of a scenario as UTF-8 JSON, u8[W], padded with zeros."""
    about = json.dumps({
        'names': [character.name for character in scenario.characters],
        'first_names': [character.first_name for character in scenario.characters],
        'rules': [rule and dict(rule) for rule in scenario.goal_rules]}).encode()
    if len(about) > ABOUT_BYTES:
        raise TooLongError(f'scenario {scenario.id}: names and goal rules take {len(about)} bytes, more than '
                           f'{ABOUT_BYTES}')
    return np.frombuffer(about.ljust(ABOUT_BYTES, b'\0'), np.uint8)


def _unpack_about(about) -> dict[str, Any]:
    """Undo `_pack_about`."""
    return json.loads(np.asarray(about).tobytes().rstrip(b'\0'))
