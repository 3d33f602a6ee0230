"""Convert finished episodes to rows for the learner, one for each trained conversation.

Axis letters: E episodes, S seats, N trained conversations (seat-major: all episodes of one trained seat, then of the
next), T turns of one seat, L token positions.
"""

from flax import struct
from jaxtyping import Bool, Float, Int
import numpy as np

from epo_jax.rollout import Episodes, Table, max_seat_turns
from epo_jax.text.tokens import Array, array_module


@struct.dataclass
class Trajectory:
    """Trained conversations.

    Attributes:
      ids: the strategist's conversation.
      turn: the turn in which an id was sampled; -1 for context, which is not trained.
      logprob: log-probability of an id when it was sampled.
      length: number of ids.
      turn_mask: turns that took place.
      truncated: whether the episode was cut off.
      episode, seat: where the row comes from.
      group: rows of the same scenario and seat have the same number.
    """

    ids: Int[Array, 'N L']
    turn: Int[Array, 'N L']
    logprob: Float[Array, 'N L']
    length: Int[Array, ' N']
    turn_mask: Bool[Array, 'N T']
    truncated: Bool[Array, ' N']
    episode: Int[Array, ' N']
    seat: Int[Array, ' N']
    group: Int[Array, ' N']


def trajectories(table: Table, episodes: Episodes, numbers: Int[Array, ' E'], group: int) -> Trajectory:
    """Return the conversations of the trained strategists.

    Args:
      table: who played.
      episodes: what was played.
      numbers: number of each episode within the iteration; `group` neighbors share a scenario.
      group: see Table.group.

    Raises:
      ValueError: no seat is trained.
    """
    S, count = len(table.seats), len(episodes.cause)
    xp = array_module(episodes.cause)
    trained = trained_seats(table)
    if not trained:
        raise ValueError('no seat at this table is trained')
    join = lambda name: xp.concatenate([getattr(episodes.conversations[s], name) for s in trained])
    numbers = xp.asarray(numbers, np.int32)
    return Trajectory(
        ids=join('ids'), turn=join('turn'), logprob=join('logprob'), length=join('length'),
        turn_mask=xp.arange(max_seat_turns(table.env)) < join('turns')[:, None],
        truncated=xp.tile(episodes.cause != 0, len(trained)),
        episode=xp.tile(numbers, len(trained)),
        seat=xp.repeat(xp.array(trained, np.int32), count),
        group=xp.concatenate([numbers // group * S + s for s in trained]))


def trained_seats(table: Table) -> list[int]:
    """Return the numbers of the trained seats."""
    return [s for s, seat in enumerate(table.seats) if seat.trained]


def trained_rows(table: Table, count: int) -> np.ndarray:
    """Return which of S E seat-major rows (verdicts on all seats of `count` episodes) belong to trained seats."""
    return np.concatenate([s * count + np.arange(count) for s in trained_seats(table)])
