"""What a judge gets to read of the finished episodes."""

import dataclasses
from typing import Optional

from epo_jax.rollout import Episodes, Table
from epo_jax.text import tokenizer as text


@dataclasses.dataclass(frozen=True)
class Reading:
    """What the judge reads of one episode for one seat.

    Attributes:
      brief: situation, people and goals.
      seat: whose goal is judged.
      lines: (seat, text) of the transcript.
      strategies: the seat's strategies, one a turn.
      score: the environment's own verdict on the goal, 0 to 10, or None to ask the judge.
      complete: the episode came to its end (it was not cut off).
    """

    brief: str
    seat: int
    lines: tuple[tuple[int, str], ...]
    strategies: tuple[str, ...]
    score: Optional[float]
    complete: bool

    def stages(self, turns: int) -> list[str]:
        """The transcript cut before each of the seat's turns: T + 1 texts, '' where nothing more was said.

        Stage 0 is what precedes the seat's first turn; stage t + 1 is turn t and the replies to it.
        """
        stages = [''] * (turns + 1)
        stage = 0
        for seat, line in self.lines:
            stage += seat == self.seat
            stages[stage] += f'\n{line}'
        return stages

    @property
    def turns(self) -> int:
        """Turns that the seat had."""
        return sum(seat == self.seat for seat, _ in self.lines)


def strategies(table: Table, episodes: Episodes) -> list[list[list[str]]]:
    """Texts of the strategies by seat, episode and turn of the seat; '' in turns without advice."""
    said = [[[] for _ in episodes.scenarios] for _ in table.seats]
    for turn in episodes.turns:
        player = table.seats[turn.seat].strategist
        rows = turn.strategy.rows() if turn.strategy is not None else [[]] * len(episodes.scenarios)
        for b, ids in enumerate(rows):
            if turn.live[b]:
                said[turn.seat][b].append(text.decode(player.tokenizer, ids).strip() if player else '')
    return said


def readings(table: Table, episodes: Episodes) -> list[Reading]:
    """One Reading for every seat of every episode, seat-major: seat 0 of all episodes, then seat 1, ..."""
    env, states = table.env.env, episodes.state.env.episodes
    said = strategies(table, episodes)
    return [
        Reading(
            brief=env.brief(state, seat), seat=seat, lines=env.transcript(state), strategies=tuple(said[seat][b]),
            score=env.score(state, seat), complete=not episodes.state.failed[b])
        for seat in range(len(table.seats)) for b, state in enumerate(states)]
