"""What a judge gets to read of the finished episodes."""

import dataclasses
from typing import Optional, Sequence

from epo_jax.envs.base import Account
from epo_jax.rollout import Archive, Table
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


def strategies(table: Table, archive: Archive) -> list[list[list[str]]]:
    """Texts of the strategies by seat, episode and turn of the seat; '' in turns without advice."""
    said = [[[] for _ in archive.cause] for _ in table.seats]
    for e, (rows, length) in enumerate(zip(archive.strategies.ids, archive.strategies.length)):
        for action in range(archive.actions[e]):
            seat = action % len(table.seats)
            player = table.seats[seat].strategist
            ids = rows[action, :length[action]].tolist()
            said[seat][e].append(text.decode(player.tokenizer, ids).strip() if player else '')
    return said


def readings(table: Table, archive: Archive, accounts: Sequence[Account]) -> list[Reading]:
    """One Reading for every seat of every episode, seat-major: seat 0 of all episodes, then seat 1, ..."""
    said = strategies(table, archive)
    return [
        Reading(
            brief=account.briefs[seat], seat=seat, lines=tuple(account.lines), strategies=tuple(said[seat][e]),
            score=account.scores[seat], complete=not archive.cause[e])
        for seat in range(len(table.seats)) for e, account in enumerate(accounts)]
