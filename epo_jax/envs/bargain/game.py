"""The bargaining game: two sides divide books, hats and balls that they value differently, or get nothing.

The sides act in turn, seat 0 first. An action is to offer a split, to accept the partner's last offer, to walk away, or
to pass. An offer is valid until its side makes another one. The intent 'ask:7' of a strategist becomes an offer that is
worth at least 7 of 10 points to its side: the one that looks best for the partner, judged by the items that the partner
kept in its own offers.

In a deal, the reward of a side is (own points / 10) * (points of both sides / largest possible points of both sides).
Without a deal it is 0. A message that is not a possible action has no effect and costs its side a tenth of the reward;
without this cost, any word would serve as 'wait'.

All splits of all sets of items are in tables, so an action takes a few operations on arrays [B, P].

Axis letters: B slots, E episodes, S = 2 sides, I = 3 kinds of items, P splits (padded), A actions of both sides.
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
    SPLITS,
    VALID_SPLITS,
    WALKED,
    Queue,
    Scenario,
    encode,
)
from epo_jax.envs.base import EnvironmentStep, EpisodeText, Observation
from epo_jax.text.tokens import Tokens, array_module, repeat

WEIGHTS = 60 // BOARDS  # proportional to 1 / count, in integers: 60 is a multiple of every count

INVALID_COST = 0.1  # share of the reward that a message without a possible action costs

ACCEPT, WAIT, WALK = (INTENTS.index(word) for word in ('accept', 'wait', 'walk'))


@struct.dataclass
class State:
    """The slots at one moment.

    Attributes:
      board: i32[B], rows of BOARDS.
      values: i32[B, S, I], points of one item to each side.
      kind: i32[B], rows of opponents.FAMILY; unused if two seats play.
      turn: i32[B], number of actions so far.
      actions: i32[B, A], number of the split that was offered, or ACCEPTED, WALKED, PASSED, NOTHING.
      offers: i32[B, S], the last split that each side offered; -1 for none.
      kept: i32[B, S, I], items that each side kept, summed over its offers and an initial one that keeps everything.
      first: i32[B], points to the opponent of seat 0's first offer; -1 for none.
      best: i32[B], points to the opponent of seat 0's best offer; -1 for none.
      insults: i32[B], number of offers that insulted the opponent.
      deal: i32[B], the split that both sides agreed on; -1 for none.
      over: bool[B], whether the bargain is over.
      invalid: i32[B, S], number of messages of each side that were not a possible action.
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


def split_items(state: State, seat: int):
    """Return the items that every split gives to a seat, i32[B, I, P]."""
    splits = jnp.asarray(SPLITS)[state.board]
    return splits if seat == 0 else jnp.asarray(BOARDS)[state.board][:, :, None] - splits


def items_of(state: State, seat: int, split):
    """Return the items that a split i32[B] gives to a seat, i32[B, I]; a negative number means split 0."""
    items = jnp.asarray(SPLITS)[state.board, :, jnp.maximum(split, 0)]
    return items if seat == 0 else jnp.asarray(BOARDS)[state.board] - items


def points(state: State, seat: int, split):
    """Return the points, from 0 to 10, that a split i32[B] gives to a seat, i32[B]."""
    return (state.values[:, seat] * items_of(state, seat, split)).sum(axis=1)


def max_joint_points(state: State):
    """Return the largest number of points that a split gives to both sides together, i32[B]."""
    return (jnp.asarray(BOARDS)[state.board] * state.values.max(axis=1)).sum(axis=1)


def propose(state: State, seat: int, ask):
    """Return the split that a seat offers when it asks for at least `ask` i32[B] points, i32[B].

    It is the split that looks best for the partner; among equal ones that with most points for the seat itself; among
    equal ones the first. The value of an item to the partner is estimated by the share of these items that the partner
    kept in its offers.
    """
    own_items, partner_items = split_items(state, seat), split_items(state, 1 - seat)
    estimate = state.kept[:, 1 - seat] * jnp.asarray(WEIGHTS)[state.board]
    dot = lambda weights, items: sum(weights[:, i, None] * items[:, i] for i in range(items.shape[1]))
    own = dot(state.values[:, seat], own_items)
    possible = (own >= ask[:, None]) & jnp.asarray(VALID_SPLITS)[state.board]
    return jnp.argmax(jnp.where(possible, dot(estimate, partner_items) * (TOTAL + 1) + own, -1), axis=1)


def legal_intents(state: State, seat: int):
    """Return which intents have an effect for a seat, bool[B, len(INTENTS)]: a side can accept what was offered."""
    xp = array_module(state.offers)
    return (xp.arange(len(INTENTS)) != ACCEPT) | (state.offers[:, 1 - seat] >= 0)[:, None]


def act(state: State, seat: int, action, rows) -> State:
    """Apply an action i32[B] (see State.actions) of a seat in the rows bool[B]."""
    offered = rows & (action >= 0)
    agreed = rows & (action == ACCEPTED)
    now = rows[:, None] & (jnp.arange(state.actions.shape[1]) == state.turn[:, None])
    turn = state.turn + rows
    return state.replace(
        turn=turn,
        actions=jnp.where(now, action[:, None], state.actions),
        offers=state.offers.at[:, seat].set(jnp.where(offered, action, state.offers[:, seat])),
        kept=state.kept.at[:, seat].add(offered[:, None] * items_of(state, seat, action)),
        deal=jnp.where(agreed, state.offers[:, 1 - seat], state.deal),
        over=state.over | agreed | (rows & (action == WALKED)) | (turn >= state.actions.shape[1]))


def answer(state: State, rows) -> State:
    """Apply the action with which the opponent, seat 1, answers an action of seat 0 in the rows bool[B]."""
    offer, number = state.offers[:, 0], state.turn // 2
    made = rows & (jnp.take_along_axis(state.actions, jnp.maximum(state.turn - 1, 0)[:, None], axis=1)[:, 0] >= 0)
    worth = jnp.where(offer >= 0, points(state, 1, offer), -1)
    first = jnp.where(state.first < 0, worth, state.first)
    state = state.replace(
        first=jnp.where(rows, first, state.first), best=jnp.where(rows, jnp.maximum(state.best, worth), state.best))

    ask = opponents.aspiration(state.kind, number, state.first, state.best)
    insulted = made & opponents.insulting(state.kind, worth)
    insults = state.insults + insulted
    action = propose(state, 1, ask)
    action = jnp.where(insulted, PASSED, action)
    action = jnp.where(opponents.leaves(state.kind, insults), WALKED, action)
    action = jnp.where(worth >= ask, ACCEPTED, action)
    return act(state.replace(insults=insults), 1, action, rows)


def rewards(state: State):
    """Return the rewards of both sides, f32[B, S]; 0 without a deal."""
    own = jnp.stack([points(state, seat, state.deal) for seat in (0, 1)], axis=1)
    joint = own.sum(axis=1, keepdims=True)
    value = (own * joint).astype(jnp.float32) / (TOTAL * jnp.maximum(max_joint_points(state), 1))[:, None]
    return jnp.where((state.deal >= 0)[:, None], value * (1 - INVALID_COST) ** state.invalid, 0)


@struct.dataclass
class Answer:
    """What a seat sees of the partner's last action.

    Attributes:
      items: i32[B, I], the items that the partner's offer gives the seat.
      worth: i32[B], points of these items to the seat.
      silent: bool[B], whether the partner made no offer.
      number: i32[B], number of the action that the seat is about to choose, from 1.
    """

    items: jax.Array
    worth: jax.Array
    silent: jax.Array
    number: jax.Array


@dataclasses.dataclass(frozen=True)
class Bargain:
    """An Environment in array code. Its messages are intents (see language.py), of which the first word counts.

    Attributes:
      opponent: 'family' if the opponent of the scenario acts for the second side, within the step of the only seat;
        'seat' if there are two seats.
      rounds: largest number of actions of each side.
    """

    opponent: str = 'family'
    rounds: int = 4

    on_device = True
    width = language.OPENING_WIDTH

    def __post_init__(self):
        if self.opponent not in ('family', 'seat') or not 1 <= self.rounds <= language.MAX_ROUNDS:
            raise ValueError(f"opponent must be 'family' or 'seat', and rounds 1 to {language.MAX_ROUNDS}, not {self}")

    @property
    def num_seats(self) -> int:
        """See Environment."""
        return 1 if self.opponent == 'family' else 2

    @property
    def max_turns(self) -> int:
        """See Environment."""
        return self.rounds * self.num_seats

    def encode(self, scenarios: Sequence[Scenario], advised: Sequence[bool] = ()) -> Queue:
        """See Environment.encode and scenarios.encode."""
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
            Observation(language.opening(counts, values[:, seat], rows), self._empty(rows))
            for seat in range(self.num_seats))

    def advice(self, seat: int) -> tuple[Sequence[int], Sequence[int]]:
        """See Environment.advice; the actor reads only the intent."""
        return (), ()

    def cues(self, state: State, seat: int) -> Observation:
        """See Environment.cues; there are none."""
        no_cue = repeat((), len(state.board))
        return Observation(no_cue, no_cue)

    def choices(self, state: State, seat: int) -> None:
        """See Environment.choices; every reply is allowed."""

    @functools.partial(jax.jit, static_argnums=(0, 2))
    def play(self, state: State, seat: int, intent, live) -> tuple[State, Answer, jax.Array]:
        """Apply the intents of a seat, and the answers of the family if it plays.

        Args:
          state: the slots.
          seat: who acts; static.
          intent: i32[B], indices in language.INTENTS; -1 for a message that is none.
          live: bool[B], the slots that take part.

        Returns:
          The new state; what the seat that acts next sees; and the rewards of the step, f32[B, seats].
        """
        rows = live & ~state.over
        offer = propose(state, seat, jnp.asarray(ASKS)[jnp.clip(intent, 0, len(ASKS) - 1)])
        action = jnp.where((intent >= 0) & (intent < len(ASKS)), offer, PASSED)
        action = jnp.where((intent == ACCEPT) & (state.offers[:, 1 - seat] >= 0), ACCEPTED, action)
        action = jnp.where(intent == WALK, WALKED, action)
        invalid = rows & (action == PASSED) & (intent != WAIT)
        state = state.replace(invalid=state.invalid.at[:, seat].add(invalid))
        state = act(state, seat, action, rows)
        if self.opponent == 'family':
            state = answer(state, rows & ~state.over)
        reader = self.next_seat(seat)
        last = jnp.take_along_axis(state.actions, jnp.maximum(state.turn - 1, 0)[:, None], axis=1)[:, 0]
        seen = Answer(items_of(state, reader, last), points(state, reader, last), last < 0, state.turn // 2 + 1)
        return state, seen, jnp.where(rows[:, None], rewards(state), 0)[:, :self.num_seats]

    def next_seat(self, seat: int) -> int:
        """Return the seat that acts after a seat."""
        return (seat + 1) % self.num_seats

    @functools.partial(jax.jit, static_argnums=(0, 2))
    def step(self, state: State, seat: int, message: Tokens, live) -> tuple[State, EnvironmentStep]:
        """See Environment.step; `seat` is static."""
        rows = live & ~state.over
        state, seen, reward = self.play(state, seat, language.intent(message), live)
        observations = [Observation(self._empty(rows), self._empty(rows))] * self.num_seats
        reader = self.next_seat(seat)
        observations[reader] = observations[reader]._replace(strategist=language.observation(
            seen.number, seen.items, seen.worth, seen.silent, rows & ~state.over))
        return state, EnvironmentStep(
            tuple(observations), done=state.over, reward=reward, failed=jnp.zeros_like(rows))

    def _empty(self, rows) -> Tokens:
        """Return an observation without tokens."""
        return Tokens(jnp.zeros((len(rows), self.width), jnp.int32), jnp.zeros(len(rows), jnp.int32))

    def texts(self, scenarios: Sequence[Scenario], state: State) -> list[EpisodeText]:
        """See Environment.texts."""
        state = jax.tree.map(np.asarray, state)
        return [episode_text(scenario, state.actions[e].tolist(), state.invalid[e].tolist(), self.num_seats)
                for e, scenario in enumerate(scenarios)]
