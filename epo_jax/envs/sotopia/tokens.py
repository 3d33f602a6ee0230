"""The SOTOPIA environment on the device: templates become token segments once, and a turn is array code.

What is said is passed on token for token, between segments such as `NAME said: "` and `"`. The same prompts, turn
order and stop rules as in dialogue.py hold; what needs to understand text (goals checked by rule, repairs of what
was written) is done in `accounts`, or not at all.

Axis letters: B slots, E episodes, S seats, A actions, F frames (ways a line can look), K tokens.
"""

import dataclasses
import functools
from typing import Any, Sequence

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from epo_jax.envs.base import Account, Observation, View
from epo_jax.envs.sotopia import goals, prompts
from epo_jax.envs.sotopia.actions import WORDS, Action
from epo_jax.envs.sotopia.dialogue import Sotopia, facts
from epo_jax.envs.sotopia.profiles import Scenario
from epo_jax.text import tokenizer as text
from epo_jax.text.tokens import Tokens, concat, keep, pack, repeat

# What a message turns out to be: plain speech, something whose kind was named first (in the order of WORDS), or
# nothing that can be done.
PLAIN, NAMED, NOTHING = 0, 1, 1 + len(WORDS)
FRAME_KINDS = ('speak', *WORDS.values(), 'none')
FRAME_TOKENS = 48  # room for what a line begins with


@struct.dataclass
class Scenes:
    """Scenarios in tokens: strategist, actor and judge openings Tokens [E, S, K]; cue Tokens [E, S, K] of replies;
    frame Tokens [E, S, F, K], with which a line begins."""

    strategist: Tokens
    actor: Tokens
    judge: Tokens
    cue: Tokens
    frame: Tokens


@struct.dataclass
class Dialogues:
    """Conversations so far.

    Attributes:
      cue, frame: of the scenarios, as in Scenes, by slot.
      actions: i32[B]; stale: i32[B], actions at the end that did nothing.
      spoke: bool[B, S] seats that have acted.
      lines: Tokens [B, A, K] of the transcript; frames: i32[B, A].
    """

    cue: Tokens
    frame: Tokens
    actions: Any
    stale: Any
    spoke: Any
    lines: Tokens
    frames: Any


@dataclasses.dataclass(frozen=True)
class TokenSotopia:
    """An Environment on the device.

    Attributes:
      rules: the environment in text, whose settings hold.
      tokenizer: everybody's.
      width: tokens of every View, and of a line.
    """

    rules: Sotopia
    tokenizer: Any
    width: int

    num_seats = 2
    on_device = True

    @property
    def max_turns(self) -> int:
        return self.rules.max_turns

    def _ids(self, part: str) -> list[int]:
        return text.encode(self.tokenizer, part) if part else []

    def advice(self, seat: int) -> tuple[list[int], list[int]]:
        """See Environment.advice."""
        return tuple(map(self._ids, prompts.ADVICE))

    def encode(self, scenarios: Sequence[Scenario]) -> Scenes:
        """See Environment.encode.

        Raises:
          TooLongError: an opening does not fit `width`.
        """
        rules, seats = self.rules, (0, 1)

        def by_seat(render, width):
            packed = [pack([self._ids(render(scenario, seat)) for seat in seats], width) for scenario in scenarios]
            return jax.tree.map(lambda *xs: np.stack(xs), *packed)

        frames = [pack([self._ids(frame) for frame in _frames(scenario.characters[seat].first_name)], FRAME_TOKENS)
                  for scenario in scenarios for seat in seats]
        fold = lambda *xs: np.stack(xs).reshape(len(scenarios), len(seats), *xs[0].shape)
        name = lambda scenario, seat: scenario.characters[seat].first_name
        return Scenes(
            strategist=by_seat(lambda s, seat: prompts.strategist_opening(s, seat, rules.short), self.width),
            actor=by_seat(
                lambda s, seat: prompts.actor_opening(s, seat, True, rules.allowed, rules.short), self.width),
            judge=by_seat(prompts.judge_opening, self.width),
            cue=by_seat(lambda s, seat: prompts.speech(name(s, seat)) if rules.begun else '', FRAME_TOKENS),
            frame=jax.tree.map(fold, *frames))

    def start(self, batch: int) -> Dialogues:
        """See Environment.start."""
        A, F = self.max_turns, len(FRAME_KINDS)
        zeros = lambda *shape: np.zeros((batch, *shape), np.int32)
        return Dialogues(
            cue=Tokens(zeros(2, FRAME_TOKENS), zeros(2)), frame=Tokens(zeros(2, F, FRAME_TOKENS), zeros(2, F)),
            actions=zeros(), stale=zeros(), spoke=np.zeros((batch, 2), bool),
            lines=Tokens(zeros(A, self.width), zeros(A)), frames=zeros(A))

    @functools.partial(jax.jit, static_argnums=0)
    def deal(self, state: Dialogues, queue: Scenes, episode, rows) -> tuple[Dialogues, tuple[View, ...]]:
        """See Environment.deal."""
        scene = jax.tree.map(lambda x: jnp.asarray(x)[jnp.minimum(episode, len(x) - 1)], queue)
        choose = lambda new, old: jnp.where(rows.reshape(-1, *[1] * (old.ndim - 1)), new, old)
        clear = lambda x: choose(jnp.zeros_like(x), x)
        state = Dialogues(
            cue=jax.tree.map(choose, scene.cue, state.cue), frame=jax.tree.map(choose, scene.frame, state.frame),
            actions=clear(state.actions), stale=clear(state.stale), spoke=clear(state.spoke),
            lines=state.lines.replace(length=clear(state.lines.length)), frames=clear(state.frames))
        seat = lambda tokens, s: keep(jax.tree.map(lambda x: x[:, s], tokens), rows)
        return state, tuple(View(seat(scene.strategist, s), seat(scene.actor, s)) for s in (0, 1))

    def cues(self, state: Dialogues, seat: int) -> View:
        """See Environment.cues."""
        strategy = self._ids(prompts.STRATEGY) if self.rules.begun else []
        return View(repeat(strategy, len(state.actions)), jax.tree.map(lambda x: x[:, seat], state.cue))

    def choices(self, state: Dialogues, seat: int) -> None:
        """See Environment.choices."""

    @functools.partial(jax.jit, static_argnums=(0, 2))
    def step(self, state: Dialogues, seat: int, message: Tokens, live) -> tuple[Dialogues, Observation]:
        """See Environment.step."""
        message = jax.tree.map(jnp.asarray, message)
        kind, body = self._read(message)
        batch = len(kind)
        begin = jax.tree.map(lambda x: x[jnp.arange(batch), seat, kind], state.frame)
        quotes = jnp.array(text.ids_with(self.tokenizer, '"'))
        last = jnp.take_along_axis(body.ids, jnp.maximum(body.length - 1, 0)[:, None], axis=1)
        closed = (last == quotes).any(axis=1)
        close = keep(repeat(self._ids('"'), batch), (kind == PLAIN) & ~closed)
        newline = repeat(self._ids('\n'), batch)
        line = keep(concat([begin, body, close], self.width), live)
        told = keep(concat([newline, line], self.width), live)
        opened = state.spoke[:, 1 - seat]
        views = [View(line, keep(line, False)),
                 View(told, Tokens(jnp.where(opened[:, None], line.ids, told.ids),
                                   jnp.where(opened, line.length, told.length)))]

        idle = jnp.array([k == 'none' for k in FRAME_KINDS])[kind]
        leaves = jnp.array([k == 'leave' for k in FRAME_KINDS])[kind]
        now = (jnp.arange(self.max_turns) == state.actions[:, None]) & live[:, None]
        actions = state.actions + live
        stale = jnp.where(live, jnp.where(idle, state.stale + 1, 0), state.stale)
        state = state.replace(
            actions=actions, stale=stale, spoke=state.spoke.at[:, seat].set(state.spoke[:, seat] | live),
            lines=Tokens(jnp.where(now[:, :, None], line.ids[:, None], state.lines.ids),
                         jnp.where(now, line.length[:, None], state.lines.length)),
            frames=jnp.where(now, kind[:, None], state.frames))
        done = leaves | (stale > self.rules.max_stale) | (actions >= self.max_turns)
        return state, Observation(
            tuple(views if seat == 0 else views[::-1]), done, jnp.zeros((batch, 2)), told.length > self.width)

    def _read(self, message: Tokens) -> tuple[jax.Array, Tokens]:
        """(frame i32[B], what is said or done: Tokens [B, K]) of messages."""
        kind, skip = jnp.full(message.length.shape, PLAIN), jnp.zeros_like(message.length)
        for number, word in enumerate(WORDS):
            ids = jnp.array(self._ids(f'{word}:'))
            if len(ids) > message.ids.shape[1]:
                continue
            named = (message.length >= len(ids)) & (message.ids[:, :len(ids)] == ids).all(axis=1)
            allowed = WORDS[word] in self.rules.allowed
            kind = jnp.where(named, NAMED + number if allowed else NOTHING, kind)
            skip = jnp.where(named, len(ids), skip)
        silent = jnp.array([k in ('leave', 'none') for k in FRAME_KINDS])[kind]
        kind = jnp.where(~silent & (message.length <= skip), NOTHING, kind)
        silent = jnp.array([k in ('leave', 'none') for k in FRAME_KINDS])[kind]
        at = jnp.minimum(skip[:, None] + jnp.arange(message.ids.shape[1]), message.ids.shape[1] - 1)
        return kind, Tokens(
            jnp.take_along_axis(message.ids, at, axis=1), jnp.where(silent, 0, message.length - skip))

    def reading(self, queue: Scenes, state: Dialogues, seat: int) -> tuple[Tokens, Tokens]:
        """What a judge of a seat reads: (opening Tokens [E, K], lines Tokens [E, A, K], each on a line of its own)."""
        E, A = state.frames.shape
        lines = jax.tree.map(lambda x: x.reshape(E * A, *x.shape[2:]), state.lines)
        lines = keep(concat([repeat(self._ids('\n'), E * A), lines]), lines.length > 0)
        lines = jax.tree.map(lambda x: x.reshape(E, A, *x.shape[1:]), lines)
        return jax.tree.map(lambda x: jnp.asarray(x)[:, seat], queue.judge), lines

    def accounts(self, scenarios: Sequence[Scenario], state: Dialogues, messages: Tokens) -> list[Account]:
        """See Environment.accounts; here goals that have a rule are scored by it."""
        state = jax.tree.map(np.asarray, state)
        told = []
        for e, scenario in enumerate(scenarios):
            lines, actions, events = [], [], []
            for a in range(state.actions[e]):
                seat, frame = a % 2, int(state.frames[e, a])
                line = text.decode(self.tokenizer, state.lines.ids[e, a, :state.lines.length[e, a]].tolist())
                begin = _frames(scenario.characters[seat].first_name)[frame]
                said = line.removeprefix(begin).strip()
                actions.append((seat, Action(FRAME_KINDS[frame], said.removesuffix('"') if frame == PLAIN else said)))
                lines.append((seat, line))
                events += [f'action/{FRAME_KINDS[frame]}'] + ['action/unparsable'] * (frame == NOTHING)
            scores = [None if rule is None else goals.score(rule, actions) for rule in scenario.goal_rules]
            told.append(Account(
                facts(scenario), lines, [prompts.judge_opening(scenario, seat) for seat in (0, 1)], scores, events))
        return told


def _frames(name: str) -> tuple[str, ...]:
    """With what a line of each frame begins."""
    named = {'speak': f'{name} said:', 'non-verbal communication': f'{name} [gesture]', 'action': f'{name} [action]',
             'leave': prompts.line(name, Action('leave', '')), 'none': prompts.line(name, Action('none', ''))}
    return (prompts.speech(name), *(named[kind] for kind in WORDS.values()), named['none'])
