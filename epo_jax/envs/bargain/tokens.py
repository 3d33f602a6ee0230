"""Bargaining in English on the device: every sentence is tokenized in advance, and a turn is array code.

Axis letters: B slots, E episodes, S seats, C moves, K tokens, R sentences.
"""

import dataclasses
import functools
import itertools
from typing import Any, Sequence

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Int
import numpy as np

from epo_jax.envs.bargain import game, words
from epo_jax.envs.bargain.language import INTENTS, ITEMS, MAX_COUNT, TOTAL
from epo_jax.envs.bargain.scenarios import Queue, Scenario
from epo_jax.envs.base import EnvironmentStep, EpisodeText, Observation
from epo_jax.envs.replies import cut_reasoning
from epo_jax.text import tokenizer as text
from epo_jax.text.tokens import Array, Tokens, TooLongError, concat, keep, pack, repeat


@struct.dataclass
class Openings:
    """Scenarios in tokens.

    Attributes:
      queue: the scenarios as arrays.
      strategist, actor: what the models read first, Tokens [E, S, K].
    """

    queue: Queue
    strategist: Tokens
    actor: Tokens


@struct.dataclass
class Bargains:
    """The slots.

    Attributes:
      game: the state of the game.
      intents: the last move of each side, an index in INTENTS; -1 for none.
    """

    game: game.State
    intents: Int[Array, 'B 2']


@dataclasses.dataclass(frozen=True)
class TokenBargain:
    """An Environment on the device.

    Attributes:
      game: the rules.
      tokenizer: the tokenizer of all models.
      width: number of tokens of every observation.
      constrained: see WordBargain. If it is False, replies are read on the host.
    """

    game: game.Bargain
    tokenizer: Any
    width: int
    constrained: bool = True

    on_device = True

    @property
    def num_seats(self) -> int:
        """See Environment."""
        return self.game.num_seats

    @property
    def max_turns(self) -> int:
        """See Environment."""
        return self.game.max_turns

    def _ids(self, part: str) -> list[int]:
        return text.encode(self.tokenizer, part)

    def advice(self, seat: int) -> tuple[list[int], list[int]]:
        """See Environment.advice."""
        return tuple(map(self._ids, words.ADVICE))

    def encode(self, scenarios: Sequence[Scenario], advised: Sequence[bool]) -> Openings:
        """See Environment.encode.

        Raises:
          TooLongError: an opening does not fit `width`.
        """
        def by_seat(render):
            packed = [pack([self._ids(render(scenario, seat)) for seat in range(self.num_seats)], self.width)
                      for scenario in scenarios]
            return jax.tree.map(lambda *xs: np.stack(xs), *packed)

        return Openings(
            self.game.encode(scenarios),
            by_seat(lambda scenario, seat: words.strategist_opening(scenario, seat)),
            by_seat(lambda scenario, seat: words.actor_opening(scenario, seat, advised[seat])))

    def start(self, batch: int) -> Bargains:
        """See Environment.start."""
        return Bargains(self.game.start(batch), jnp.full((batch, 2), -1, jnp.int32))

    @functools.partial(jax.jit, static_argnums=0)
    def reset(self, state: Bargains, queue: Openings, episode, rows) -> tuple[Bargains, tuple[Observation, ...]]:
        """See Environment.reset."""
        slots, _ = self.game.reset(state.game, queue.queue, episode, rows)
        at = jnp.clip(episode, 0, len(queue.strategist.length) - 1)
        seat = lambda tokens, s: keep(jax.tree.map(lambda x: jnp.asarray(x)[at, s], tokens), rows)
        return Bargains(slots, jnp.where(rows[:, None], -1, state.intents)), tuple(
            Observation(seat(queue.strategist, s), seat(queue.actor, s)) for s in range(self.num_seats))

    def cues(self, state: Bargains, seat: int) -> Observation:
        """See Environment.cues."""
        cue = lambda part: repeat(self._ids(part), len(state.intents))
        return Observation(cue(words.ADVICE_CUE), cue(words.MOVE_CUE))

    def _moves(self) -> Tokens:
        """Return the sentences of all moves, Tokens [C, K]."""
        return pack([self._ids(f' {move}') for move in words.MOVES])

    def choices(self, state: Bargains, seat: int) -> Tokens | None:
        """See Environment.choices."""
        if not self.constrained:
            return None
        moves, legal = self._moves(), game.legal_intents(state.game, seat)
        return Tokens(jnp.broadcast_to(moves.ids, (*legal.shape, moves.ids.shape[1])), legal * moves.length)

    @functools.partial(jax.jit, static_argnums=(0, 2))
    def step(self, state: Bargains, seat: int, message: Tokens, live) -> tuple[Bargains, EnvironmentStep]:
        """See Environment.step; `seat` is static."""
        rows = live & ~state.game.over
        intent = self._match(message) if self.constrained else jax.pure_callback(
            self._read, jax.ShapeDtypeStruct(message.length.shape, jnp.int32), message.ids, message.length)
        slots, seen, reward = self.game.play(state.game, seat, intent, live)
        state = Bargains(slots, state.intents.at[:, seat].set(jnp.where(rows, intent, state.intents[:, seat])))
        reader, told = self.game.next_seat(seat), rows & ~slots.over
        first = slots.turn == 1  # the observation continues the opening
        piece = lambda part, where: keep(repeat(self._ids(part), len(rows)), where)
        last = piece(words.LAST_TURN, seen.number == self.game.rounds)
        lead = piece(words.CONTINUES, first)
        answer = self._answer(reader, seen)
        actor = [lead, answer, last]
        strategist = [lead, keep(self._done(reader, state), ~first), keep(self._answer(reader, seen, ' '), ~first),
                      keep(answer, first), last]
        nothing = Tokens(jnp.zeros((len(rows), self.width), jnp.int32), jnp.zeros(len(rows), jnp.int32))
        observations = [Observation(nothing, nothing)] * self.num_seats
        observations[reader] = Observation(*(
            keep(concat(parts, self.width), told) for parts in (strategist, actor)))
        failed = told & (observations[reader].strategist.length > self.width)
        return state, EnvironmentStep(tuple(observations), slots.over, reward, failed)

    def _match(self, message: Tokens) -> Int[Array, ' B']:
        """Return the index in INTENTS of the move that each message is; -1 for none."""
        moves = self._moves()
        width = moves.ids.shape[1]
        if message.ids.shape[1] < width:
            raise TooLongError(f'a move has up to {width} tokens: set actor.max_tokens to {width + 1} or more')
        same = (message.ids[:, None, :width] == moves.ids) | (jnp.arange(width) >= moves.length[:, None])
        found = same.all(axis=2) & (message.length[:, None] == moves.length)
        return jnp.where(found.any(axis=1), found.argmax(axis=1), -1).astype(jnp.int32)

    def _read(self, ids, length) -> np.ndarray:
        """Read the moves in messages (host)."""
        return np.array([words.read_move(cut_reasoning(text.decode(self.tokenizer, row))[0])
                         for row in Tokens(ids, length).rows()], np.int32)

    def _done(self, seat: int, state: Bargains) -> Tokens:
        """Return what the strategist of a seat reads of the actor's last move, Tokens [B, K]."""
        sentences = pack([self._ids(words.done(seat, intent)) for intent in range(-1, len(INTENTS))])
        return _look_up(sentences, state.intents[:, seat] + 1)

    def _answer(self, seat: int, seen: game.Answer, lead: str = '') -> Tokens:
        """Return what a seat reads of the partner's last move, after a lead, Tokens [B, K]."""
        numbers = range(MAX_COUNT + 1)
        sentences = pack([self._ids(lead + sentence) for sentence in (words.silence(seat), *(
            words.answer(seat, counts, worth)
            for counts in itertools.product(numbers, repeat=len(ITEMS)) for worth in range(TOTAL + 1)))])
        at = seen.items @ jnp.array([len(numbers) ** i for i in reversed(range(len(ITEMS)))])
        return _look_up(sentences, jnp.where(seen.silent, 0, 1 + at * (TOTAL + 1) + seen.worth))

    def texts(self, scenarios: Sequence[Scenario], state: Bargains) -> list[EpisodeText]:
        """See Environment.texts."""
        return self.game.texts(scenarios, state.game)


def _look_up(table: Tokens, at: Int[Array, ' B']) -> Tokens:
    """Return rows of a table of sentences, Tokens [B, K]."""
    return jax.tree.map(lambda x: jnp.asarray(x)[at], table)
