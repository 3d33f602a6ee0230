"""The episodes of an evaluation: who plays them, which are finished, and which are played together."""

import dataclasses
import pathlib
from typing import Any, Iterator, Mapping, Optional, Sequence

from ml_collections import ConfigDict

from epo_jax.runtime import hosts
from epo_jax.runtime.files import append_jsonl, cut_jsonl, read_jsonl, write_jsonl
from epo_jax.runtime.secrets import redact


@dataclasses.dataclass(frozen=True)
class Case:
    """Episodes that are played with the same strategists.

    Attributes:
      condition: the strategist of the tested seats.
      kinds: the strategists of all seats.
      tested: the tested seats.
      partner: number of the snapshot that plays the other seats; None where no snapshot does.
      repetition: number of the repetition.
    """

    condition: str
    kinds: tuple[str, ...]
    tested: tuple[int, ...]
    partner: Optional[int]
    repetition: int

    def label(self) -> dict[str, Any]:
        """Return the fields that distinguish its records from those of other cases."""
        label = {'condition': redact(self.condition), 'tested': list(self.tested), 'repetition': self.repetition}
        return label if self.partner is None else label | {'partner': self.partner}


def cases(config: ConfigDict, seats: int, conditions: Sequence[str], snapshots: int) -> Iterator[Case]:
    """Yield the cases of an evaluation, in the order in which they are played.

    Args:
      config: the configuration.
      seats: number of seats.
      conditions: the strategists to compare.
      snapshots: number of snapshots that the partner 'pool' stands for.
    """
    partner = partner_strategist(config)
    for condition in conditions:
        for number in range(snapshots) if partner == 'pool' else (None,):
            for kinds, tested in pairings(condition, seats, partner, bool(config.partner.model)):
                for repetition in range(config.evaluation.repetitions):
                    yield Case(condition, kinds, tested, number, repetition)


def partner_strategist(config: ConfigDict) -> str:
    """Return the strategist of the seats that are not tested: 'self', or one of `selfplay.KINDS`, or a model."""
    return config.evaluation.partner or ('none' if config.partner.model else 'self')


def pairings(kind: str, seats: int, partner: str, other_actor: bool) -> list[tuple[tuple[str, ...], tuple[int, ...]]]:
    """Return the tables at which a kind of strategist is evaluated: (strategists by seat, seats that are tested).

    Args:
      kind: the strategist of the tested seats.
      seats: number of seats.
      partner: the strategist of the other seats; 'self' for the same.
      other_actor: whether the other seats have an actor of their own, unless the partner is 'self'.
    """
    if partner == 'self' or kind == partner and not other_actor:
        return [((kind,) * seats, tuple(range(seats)))]
    return [(tuple(kind if s == tested else partner for s in range(seats)), (tested,)) for tested in range(seats)]


class EpisodeLog:
    """The finished episodes of an evaluation, of which every process holds all and process 0 writes the file."""

    def __init__(self, path: pathlib.Path, key: str):
        """Continue the file of an earlier process if it has the same key; otherwise, begin a new one.

        Args:
          path: the file, which begins with a line that holds the key.
          key: of everything that determines the episodes.

        Raises:
          LineError: a line other than the last one is damaged.
        """
        self._path = path

        def read() -> dict[int, Any]:
            rows = []
            if path.exists():
                cut_jsonl(path, lambda row: True)
                rows = read_jsonl(path)
            if not rows or rows[0] != {'key': key}:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_jsonl(path, [{'key': key}])
                rows = []
            return {0: rows[1:]}

        self.records: list[dict[str, Any]] = hosts.share_all(read if hosts.is_primary() else dict)[0]
        self._known = {_identity(record) for record in self.records}

    def missing(self, case: Case, count: int) -> list[int]:
        """Return the numbers of the episodes of a case, of 0 to count - 1, that have not been played."""
        return [e for e in range(count) if _identity(case.label() | {'episode': e}) not in self._known]

    def sorted(self, planned: Sequence[Case]) -> list[dict[str, Any]]:
        """Return the records by case and episode, whatever the order in which they were finished."""
        place = {_identity(case.label() | {'episode': None}): number for number, case in enumerate(planned)}
        return sorted(self.records, key=lambda record: (
            place[_identity(record | {'episode': None})], record['episode']))

    def add(self, records: Sequence[dict[str, Any]]) -> None:
        """Write records of finished episodes."""
        if hosts.is_primary():
            append_jsonl(self._path, records)
        self.records += records
        self._known |= {_identity(record) for record in records}


def _identity(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return (record['condition'], tuple(record['tested']), record['repetition'], record.get('partner'),
            record['episode'])


def batches(planned: Sequence[Case], log: EpisodeLog, scenarios: int, size: int,
            together: bool) -> Iterator[list[tuple[Case, tuple[int, ...]]]]:
    """Yield the missing episodes in batches, each as cases with the numbers of their episodes.

    Args:
      planned: the cases.
      log: the finished episodes.
      scenarios: number of episodes of a case.
      size: largest number of episodes in a batch.
      together: whether a batch may hold several cases, so that they wait for endpoints at the same time. All of them
        have the same snapshot, because each one takes the memory of a model.
    """
    batch: list[tuple[Case, tuple[int, ...]]] = []
    for case in planned:
        missing = log.missing(case, scenarios)
        while missing:
            room = size - sum(len(episodes) for _, episodes in batch)
            if batch and not (together and room and batch[0][0].partner == case.partner):
                yield batch
                batch, room = [], size
            batch.append((case, tuple(missing[:room])))
            missing = missing[room:]
    if batch:
        yield batch
