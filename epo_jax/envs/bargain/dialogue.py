"""Bargaining in English as a TextEnvironment. The game is that of game.py; the sentences are those of words.py."""

import dataclasses
from typing import Any, Sequence

import jax
import numpy as np

from epo_jax.envs.bargain import game, words
from epo_jax.envs.bargain.records import episode_text
from epo_jax.envs.bargain.scenarios import Scenario
from epo_jax.envs.base import EpisodeText, Observation, TextEnvironment, TextStep
from epo_jax.envs.replies import cut_reasoning

EVERYBODY = np.ones(1, bool)


@dataclasses.dataclass(frozen=True)
class Bargaining:
    """One bargain so far.

    Attributes:
      scenario: what is bargained over.
      slot: the state of the game in one slot (NumPy).
      intents: for each side, the index in INTENTS of its last move; -1 for none.
    """

    scenario: Scenario
    slot: game.State
    intents: tuple[int, int] = (-1, -1)


@dataclasses.dataclass(frozen=True)
class WordBargain(TextEnvironment):
    """Bargaining in English.

    Attributes:
      game: the rules.
      constrained: whether the actor is restricted to the sentences of the legal moves. If not, its reply is read.
    """

    game: game.Bargain
    constrained: bool = True

    advice = words.ADVICE

    @property
    def num_seats(self) -> int:
        """See TextEnvironment."""
        return self.game.num_seats

    @property
    def max_turns(self) -> int:
        """See TextEnvironment."""
        return self.game.max_turns

    def reset(self, scenario: Scenario, advised: Sequence[bool]) -> tuple[Bargaining, tuple[Observation, ...]]:
        """See TextEnvironment.reset."""
        slot, _ = self.game.reset(self.game.start(1), self.game.encode([scenario]), np.zeros(1, np.int32), EVERYBODY)
        return Bargaining(scenario, jax.tree.map(np.asarray, slot)), tuple(
            Observation(words.strategist_opening(scenario, seat),
                        words.actor_opening(scenario, seat, advised[seat]))
            for seat in range(self.num_seats))

    def cues(self, state: Bargaining, seat: int) -> Observation:
        """See TextEnvironment.cues."""
        return Observation(words.ADVICE_CUE, words.MOVE_CUE)

    def choices(self, state: Bargaining, seat: int) -> tuple[str, ...]:
        """See TextEnvironment.choices."""
        legal = game.legal_intents(state.slot, seat)[0]
        return tuple(f' {move}' for move, allowed in zip(words.MOVES, legal) if allowed) if self.constrained else ()

    def step(self, state: Bargaining, seat: int, message: str) -> tuple[Bargaining, TextStep]:
        """See TextEnvironment.step. A reply that is not a possible move takes a turn and a tenth of the reward."""
        message, reasoned = cut_reasoning(message)
        intent = words.read_move(message)
        slot, seen, reward = jax.tree.map(np.asarray, self.game.play(
            state.slot, seat, np.array([intent], np.int32), EVERYBODY))
        intents = tuple(intent if side == seat else last for side, last in enumerate(state.intents))
        state = dataclasses.replace(state, slot=slot, intents=intents)
        over, reader = bool(slot.over[0]), self.game.next_seat(seat)
        observations = [Observation('', '')] * self.num_seats
        if not over:
            first = words.CONTINUES if slot.turn[0] == 1 else ''
            answer = words.silence(reader) if seen.silent[0] else words.answer(
                reader, seen.items[0].tolist(), int(seen.worth[0]))
            answer += words.LAST_TURN if seen.number[0] == self.game.rounds else ''
            done = '' if first else f'{words.done(reader, intents[reader])} '
            observations[reader] = Observation(first + done + answer, first + answer)
        events = self._text(state).events if over else ()
        return state, TextStep(observations, over, tuple(map(float, reward[0])),
                               (*events, *(('action/reasoning',) if reasoned else ())))

    def _text(self, state: Bargaining) -> EpisodeText:
        return episode_text(
            state.scenario, state.slot.actions[0].tolist(), state.slot.invalid[0].tolist(), self.num_seats)

    def transcript(self, state: Bargaining, messages: Sequence[tuple[int, str]]) -> Sequence[tuple[int, str]]:
        """See TextEnvironment.transcript."""
        return self._text(state).lines

    def describe(self, scenario: Scenario, state: Bargaining) -> dict[str, Any]:
        """See TextEnvironment.describe."""
        return dict(self._text(state).facts)
