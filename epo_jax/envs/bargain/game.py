"""The bargaining game: two sides divide books, hats and balls that they value differently, or get nothing.

The sides act in turn, seat 0 first. An action is an offer, accepting the partner's last offer, or walking away; an
offer stands until its side makes another. A strategist's intent 'ask:7' becomes the offer that, among those worth
at least 7 out of 10 to the side, looks best for the partner, by what the partner kept for itself in its offers.
A deal is worth to a side its share of its own 10 points, times the points of both sides out of the most that any
split of these items has for both together. No deal is worth 0. A message that is no possible action does nothing,
and costs its side a tenth of what the deal is worth to it: else any word would do for 'wait'.

All splits of all sets of items are tabled, so that an action is a few operations on [B, P].

Axis letters: B slots, E episodes, S = 2 sides, I = 3 items, P splits (padded), A actions of both sides.
"""

import dataclasses
import functools
from typing import Sequence

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from epo_jax.envs.bargain import language, opponents
from epo_jax.envs.bargain.language import ASKS, INTENTS, TOTAL
from epo_jax.envs.bargain.records import episode_text
from epo_jax.envs.bargain.scenarios import (
    ACCEPTED,
    BOARDS,
    NOTHING,
    PASSED,
    REAL,
    SPLITS,
    WALKED,
    Queue,
    Scenario,
    encode,
)
from epo_jax.envs.base import EnvironmentStep, EpisodeText, Observation
from epo_jax.text.tokens import Tokens, repeat

WEIGHTS = 60 // BOARDS    # 60 is a multiple of every count

INVALID_COST = 0.1

ACCEPT, WAIT, WALK = (INTENTS.index(word) for word in ('accept', 'wait', 'walk'))


@struct.dataclass
class State:
    """The slots at one moment.

    Attributes:
      board: i32[B] row of BOARDS.
      values: i32[B, S, I] points of one item to a side.
      kind: i32[B] row of opponents.FAMILY (unused where two seats are played).
      turn: i32[B] actions so far.
      actions: i32[B, A] number of the split that was offered, or ACCEPTED, WALKED, PASSED, NOTHING.
      offers: i32[B, S] the last split that a side offered; -1: none.
      kept: i32[B, S, I] items that a side kept for itself, summed over its offers and one for all the items.
      first, best: i32[B] value to the opponent of seat 0's first offer and of its best one; -1: none.
      insults: i32[B] that the opponent has borne.
      deal: i32[B] the split agreed on; -1: none.
      over: bool[B].
      invalid: i32[B, S] messages that were no possible action.
    """

    board: jax.Array
    values: jax.Array
    kind: jax.Array
    turn: jax.Array
    actions: jax.Array
    offers: jax.Array
    kept: jax.Array
    first: jax.Array
    best: jax.Array
    insults: jax.Array
    deal: jax.Array
    over: jax.Array
    invalid: jax.Array


def shares(state: State, seat: int):
    """i32[B, I, P] items that every split leaves to a seat."""
    splits = jnp.asarray(SPLITS)[state.board]
    return splits if seat == 0 else jnp.asarray(BOARDS)[state.board][:, :, None] - splits


def share(state: State, seat: int, split):
    """i32[B, I] items of a seat in split i32[B]; -1 is read as 0."""
    items = jnp.asarray(SPLITS)[state.board, :, jnp.maximum(split, 0)]
    return items if seat == 0 else jnp.asarray(BOARDS)[state.board] - items


def points(state: State, seat: int, split):
    """i32[B] what a split is worth to a seat, out of 10."""
    return (state.values[:, seat] * share(state, seat, split)).sum(axis=1)


def most(state: State):
    """i32[B] points of both sides together in the split that has most of them."""
    return (jnp.asarray(BOARDS)[state.board] * state.values.max(axis=1)).sum(axis=1)


def propose(state: State, seat: int, wanted):
    """i32[B] the split that a seat offers when it wants `wanted` i32[B] points or more.

    The one that looks best for the partner; of these the one with most points for the seat itself; of these the
    first. How much the partner values an item is judged by the share of it that it has kept in its offers.
    """
    mine, theirs = shares(state, seat), shares(state, 1 - seat)
    liking = state.kept[:, 1 - seat] * jnp.asarray(WEIGHTS)[state.board]
    dot = lambda weights, items: sum(weights[:, i, None] * items[:, i] for i in range(items.shape[1]))
    own = dot(state.values[:, seat], mine)
    possible = (own >= wanted[:, None]) & jnp.asarray(REAL)[state.board]
    return jnp.argmax(jnp.where(possible, dot(liking, theirs) * (TOTAL + 1) + own, -1), axis=1)


def act(state: State, seat: int, action, rows) -> State:
    """A seat's action i32[B] (as in State.actions) in the rows bool[B]."""
    offered = rows & (action >= 0)
    agreed = rows & (action == ACCEPTED)
    now = rows[:, None] & (jnp.arange(state.actions.shape[1]) == state.turn[:, None])
    turn = state.turn + rows
    return state.replace(
        turn=turn,
        actions=jnp.where(now, action[:, None], state.actions),
        offers=state.offers.at[:, seat].set(jnp.where(offered, action, state.offers[:, seat])),
        kept=state.kept.at[:, seat].add(offered[:, None] * share(state, seat, action)),
        deal=jnp.where(agreed, state.offers[:, 1 - seat], state.deal),
        over=state.over | agreed | (rows & (action == WALKED)) | (turn >= state.actions.shape[1]))


def answer(state: State, rows) -> State:
    """The opponent, seat 1, acts in the rows bool[B] after an action of seat 0."""
    offer, number = state.offers[:, 0], state.turn // 2
    made = rows & (jnp.take_along_axis(state.actions, jnp.maximum(state.turn - 1, 0)[:, None], axis=1)[:, 0] >= 0)
    worth = jnp.where(offer >= 0, points(state, 1, offer), -1)
    first = jnp.where(state.first < 0, worth, state.first)
    state = state.replace(
        first=jnp.where(rows, first, state.first), best=jnp.where(rows, jnp.maximum(state.best, worth), state.best))

    wanted = opponents.aspiration(state.kind, number, state.first, state.best)
    insulted = made & opponents.insulting(state.kind, worth)
    insults = state.insults + insulted
    action = propose(state, 1, wanted)
    action = jnp.where(insulted, PASSED, action)
    action = jnp.where(opponents.leaves(state.kind, insults), WALKED, action)
    action = jnp.where(worth >= wanted, ACCEPTED, action)
    return act(state.replace(insults=insults), 1, action, rows)


def rewards(state: State):
    """f32[B, S] what the deal is worth to both sides; 0 where there is none."""
    own = jnp.stack([points(state, seat, state.deal) for seat in (0, 1)], axis=1)
    joint = own.sum(axis=1, keepdims=True)
    value = (own * joint).astype(jnp.float32) / (TOTAL * jnp.maximum(most(state), 1))[:, None]
    return jnp.where((state.deal >= 0)[:, None], value * (1 - INVALID_COST) ** state.invalid, 0)


@dataclasses.dataclass(frozen=True)
class Bargain:
    """An Environment in array code; its messages are intents (see `language`): the first word counts.

    Attributes:
      opponent: 'family': seat 1 is played by the scenario's opponent, within the step of seat 0, the only seat at the
        table; 'seat': two seats at the table.
      rounds: actions of each side.
    """

    opponent: str = 'family'
    rounds: int = 4

    on_device = True
    width = language.OPENING_WIDTH

    def __post_init__(self):
        if self.opponent not in ('family', 'seat') or not 1 <= self.rounds <= language.MAX_ROUNDS:
            raise ValueError(f"opponent must be 'family' or 'seat', rounds 1 to {language.MAX_ROUNDS}: {self}")

    @property
    def num_seats(self) -> int:
        """See Environment."""
        return 1 if self.opponent == 'family' else 2

    @property
    def max_turns(self) -> int:
        """See Environment."""
        return self.rounds * self.num_seats

    def encode(self, scenarios: Sequence[Scenario]) -> Queue:
        """See Environment.encode and `scenarios.encode`."""
        return jax.tree.map(jnp.asarray, encode(scenarios))

    def start(self, batch: int) -> State:
        """See Environment.start."""
        zeros = lambda *shape: jnp.zeros((batch, *shape), jnp.int32)
        return State(
            board=zeros(), values=zeros(2, 3), kind=zeros(), turn=zeros(), actions=zeros(2 * self.rounds) + NOTHING,
            offers=zeros(2) - 1, kept=zeros(2, 3), first=zeros() - 1, best=zeros() - 1, insults=zeros(),
            deal=zeros() - 1, over=zeros() > 0, invalid=zeros(2))

    @functools.partial(jax.jit, static_argnums=0)
    def reset(self, state: State, queue: Queue, episode, rows) -> tuple[State, tuple[Observation, ...]]:
        """See Environment.reset."""
        at = jnp.clip(episode, 0, len(queue.board) - 1)
        board, values = queue.board[at], queue.values[at]
        counts = jnp.asarray(BOARDS)[board]
        fresh = self.start(len(rows)).replace(
            board=board, values=values, kind=queue.kind[at], kept=jnp.repeat(counts[:, None], 2, axis=1))
        where = lambda new, old: jnp.where(rows.reshape(-1, *[1] * (new.ndim - 1)), new, old)
        state = jax.tree.map(where, fresh, state)
        return state, tuple(
            Observation(language.opening(counts, values[:, seat], rows), self._nothing(rows))
            for seat in range(self.num_seats))

    def advice(self, seat: int) -> tuple[Sequence[int], Sequence[int]]:
        """See Environment.advice: the actor reads the intent alone."""
        return (), ()

    def cues(self, state: State, seat: int) -> Observation:
        """See Environment.cues: none."""
        nothing = repeat((), len(state.board))
        return Observation(nothing, nothing)

    def choices(self, state: State, seat: int) -> None:
        """See Environment.choices: everything may be said."""

    @functools.partial(jax.jit, static_argnums=(0, 2))
    def step(self, state: State, seat: int, message: Tokens, live) -> tuple[State, EnvironmentStep]:
        """See Environment.step; `seat` is static."""
        rows = live & ~state.over
        intent = language.intent(message)
        offer = propose(state, seat, jnp.asarray(ASKS)[jnp.clip(intent, 0, len(ASKS) - 1)])
        action = jnp.where((intent >= 0) & (intent < len(ASKS)), offer, PASSED)
        action = jnp.where((intent == ACCEPT) & (state.offers[:, 1 - seat] >= 0), ACCEPTED, action)
        action = jnp.where(intent == WALK, WALKED, action)
        invalid = rows & (action == PASSED) & (intent != WAIT)
        state = state.replace(invalid=state.invalid.at[:, seat].add(invalid))
        state = act(state, seat, action, rows)
        reader = 1 - seat
        if self.opponent == 'family':
            state = answer(state, rows & ~state.over)
            reader = 0

        observations = [Observation(self._nothing(rows), self._nothing(rows))] * self.num_seats
        last = jnp.take_along_axis(state.actions, jnp.maximum(state.turn - 1, 0)[:, None], axis=1)[:, 0]
        observations[reader] = observations[reader]._replace(strategist=language.news(
            state.turn // 2 + 1, share(state, reader, last), points(state, reader, last), last < 0,
            rows & ~state.over))
        return state, EnvironmentStep(
            tuple(observations), done=state.over, reward=jnp.where(rows[:, None], rewards(state), 0)[:, :self.num_seats],
            failed=jnp.zeros_like(rows))

    def _nothing(self, rows) -> Tokens:
        return Tokens(jnp.zeros((len(rows), self.width), jnp.int32), jnp.zeros(len(rows), jnp.int32))

    def texts(self, scenarios: Sequence[Scenario], state: State) -> list[EpisodeText]:
        """See Environment.texts."""
        state = jax.tree.map(np.asarray, state)
        return [episode_text(scenario, state.actions[e].tolist(), state.invalid[e].tolist(), self.num_seats)
                for e, scenario in enumerate(scenarios)]
