"""From finished episodes to rows for the learner, one a trained conversation.

Axis letters: E episodes, S seats, N trained conversations (seat-major: all episodes of one trained seat, then of the
next), T turns of one seat, L token positions.
"""

from typing import Any

from flax import struct
import numpy as np

from epo_jax.rollout import Archive, Table, numpy_or_jax, turns_of


@struct.dataclass
class Trajectory:
    """What the learner gets, one row a trained conversation.

    Attributes:
      ids: i32[N, L] the strategist's conversation.
      turn: i32[N, L] turn in which an id was sampled; -1: context, not trained.
      logprob: f32[N, L] log-probability at which it was sampled.
      length: i32[N].
      turn_mask: bool[N, T] turns that took place.
      truncated: bool[N] the episode was cut off.
      episode, seat: i32[N] where the row comes from.
      group: i32[N] rows of the same scenario and seat have the same number.
    """

    ids: Any
    turn: Any
    logprob: Any
    length: Any
    turn_mask: Any
    truncated: Any
    episode: Any
    seat: Any
    group: Any


def trajectory(table: Table, archive: Archive, groups) -> Trajectory:
    """The conversations of the trained strategists.

    Args:
      table: who played.
      archive: what came out.
      groups: i32[E]; episodes of the same scenario share a number.
    """
    S, count = len(table.seats), len(archive.cause)
    xp = numpy_or_jax(archive.cause)
    trained = [s for s, seat in enumerate(table.seats) if seat.trained]
    if not trained:
        raise ValueError('no seat at this table is trained')
    join = lambda name: xp.concatenate([getattr(archive.conversations[s], name) for s in trained])
    return Trajectory(
        ids=join('ids'), turn=join('turn'), logprob=join('logprob'), length=join('length'),
        turn_mask=xp.arange(turns_of(table.env)) < join('turns')[:, None],
        truncated=xp.tile(archive.cause != 0, len(trained)),
        episode=xp.tile(xp.arange(count, dtype=np.int32), len(trained)),
        seat=xp.repeat(xp.array(trained, np.int32), count),
        group=xp.concatenate([xp.asarray(groups, np.int32) * S + s for s in trained]))
