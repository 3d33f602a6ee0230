"""What a judge reads about finished episodes: text from the host, or tokens that are already on the device.

Both become a `JudgeInput`; everything after that is the same (process.py).

Axis letters: E episodes, S seats, N = S E judged conversations (seat-major: seat 0 of all episodes, then seat 1, ...),
A actions of all seats, T turns of one seat, K tokens.
"""

import dataclasses
from typing import Any, Optional, Sequence

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float
import numpy as np

from epo_jax.envs.base import EpisodeText
from epo_jax.rewards.judge import Judge
from epo_jax.rollout import Episodes, Table, max_seat_turns
from epo_jax.text import tokenizer as text
from epo_jax.text.tokens import Array, Tokens, concat, keep, pack, repeat

# Questions about strategies, in three parts: before the score, between score and strategies, the end.
_SCORE = ('\n\nThe final score for the goal was ', ' of 10. Before each turn, a strategy was chosen:')
CRITICAL = (*_SCORE, '\nWhich of these strategies were critical for the outcome? Answer Yes or No for each.')
GRADED = (*_SCORE, '\nHow much did each of these strategies contribute to the outcome? '
                   'Answer with a number from 0 (not at all) to 9 (decisive) for each.')
QUESTIONS = {'critical': CRITICAL, 'graded': GRADED}  # by method of the process reward


@dataclasses.dataclass(frozen=True)
class JudgePrompt:
    """What the judge reads of one episode for one seat, as text.

    Attributes:
      prompt: situation, people and goals.
      seat: the seat whose goal is judged.
      lines: (seat, text) of the transcript.
      strategies: the strategies of the seat, one per turn.
      reward: what the environment itself gave the seat, in [0, 1], or None to ask the judge.
      complete: whether the episode ended without being cut off.
    """

    prompt: str
    seat: int
    lines: tuple[tuple[int, str], ...]
    strategies: tuple[str, ...]
    reward: Optional[float]
    complete: bool

    def stages(self, turns: int) -> list[str]:
        """Return the transcript cut before each turn of the seat: T + 1 texts.

        Stage 0 is what precedes the first turn of the seat; stage t + 1 is turn t and the replies to it.
        """
        stages = [''] * (turns + 1)
        stage = 0
        for seat, line in self.lines:
            stage += seat == self.seat
            stages[stage] += f'\n{line}'
        return stages

    @property
    def turns(self) -> int:
        """Return the number of turns of the seat."""
        return sum(seat == self.seat for seat, _ in self.lines)


@struct.dataclass
class JudgeInput:
    """Judged conversations in tokens.

    Attributes:
      stages: the transcript in stages, Tokens [N, T + 1, K]; None where the judge reads none.
      question: about the strategies, Tokens [N, K] before the score (transcript included) and after it; else None.
      turn_mask: turns that took place.
      complete: episodes that ended without being cut off.
      reward: what the environment itself gave, in [0, 1]; NaN to ask the judge.
    """

    stages: Optional[Tokens]
    question: Optional[tuple[Tokens, Tokens]]
    turn_mask: Bool[Array, 'N T']
    complete: Bool[Array, ' N']
    reward: Float[Array, ' N']


def judge_prompts(table: Table, episodes: Episodes, texts: Sequence[EpisodeText]) -> list[JudgePrompt]:
    """Return the prompts of all seats and episodes, seat-major (host)."""
    strategies = strategy_texts(table, episodes)
    number = lambda reward: None if np.isnan(reward) else float(reward)
    return [
        JudgePrompt(
            prompt=episode.judge_prompts[seat] if episode.judge_prompts else '', seat=seat, lines=tuple(episode.lines),
            strategies=tuple(strategies[seat][e]), reward=number(episodes.reward[e, seat]),
            complete=not episodes.cause[e])
        for seat in range(len(table.seats)) for e, episode in enumerate(texts)]


def strategy_texts(table: Table, episodes: Episodes) -> list[list[list[str]]]:
    """Return the strategies by seat, episode and turn of the seat; '' for turns without a strategist (host)."""
    texts = [[[] for _ in episodes.cause] for _ in table.seats]
    for e, (rows, length) in enumerate(zip(episodes.strategies.ids, episodes.strategies.length, strict=True)):
        for action in range(episodes.actions[e]):
            seat = action % len(table.seats)
            player = table.seats[seat].strategist
            ids = rows[action, :length[action]].tolist()
            texts[seat][e].append(text.decode(player.tokenizer, ids).strip() if player else '')
    return texts


def encode_prompts(judge: Judge, prompts: Sequence[JudgePrompt], turns: int, method: str, read: bool) -> JudgeInput:
    """Tokenize prompts (host).

    Args:
      judge: who will read them.
      prompts: N of them.
      turns: T.
      method: of the process reward, see `process.assess`.
      read: whether the judge reads the transcript in stages.
    """
    def packed(rows):
        return pack([row[:judge.capacity] for row in rows], judge.capacity)

    stages = question = None
    if read:
        pieces = []
        for prompt in prompts:
            texts = prompt.stages(turns)
            if method != 'potential':  # no question comes between the stages
                texts = [''.join(texts), *[''] * turns]
            pieces.append([prompt.prompt + texts[0], *texts[1:]])
        by_stage = [packed([judge.encode(piece, first=t == 0) for piece in row])
                    for t, row in enumerate(zip(*pieces, strict=True))]
        stages = Tokens(np.stack([part.ids for part in by_stage], 1), np.stack([part.length for part in by_stage], 1))
    if method in QUESTIONS:
        transcript = lambda prompt: prompt.prompt + ''.join(f'\n{line}' for _, line in prompt.lines)
        question = (
            packed([judge.encode(transcript(prompt) + QUESTIONS[method][0], first=True) for prompt in prompts]),
            packed([_encode_strategies(judge.tokenizer, prompt.strategies, method) for prompt in prompts]))
    return JudgeInput(
        stages, question, turn_mask=np.arange(turns) < np.array([prompt.turns for prompt in prompts])[:, None],
        complete=np.array([prompt.complete for prompt in prompts]),
        reward=np.array([np.nan if prompt.reward is None else prompt.reward for prompt in prompts], np.float64))


def gather_prompts(judge: Optional[Judge], table: Table, queue: Any, episodes: Episodes, method: str,
                   read: bool) -> JudgeInput:
    """Put the tokens of an environment on the device together (traceable).

    Args:
      judge: the judge that will read them; None if there is none.
      table: who played.
      queue: the encoded scenarios.
      episodes: what was played.
      method: of the process reward, see `process.assess`.
      read: whether the judge reads the transcript in stages.
    """
    S, E, T = len(table.seats), len(episodes.cause), max_seat_turns(table.env)
    seat = jnp.repeat(jnp.arange(S), E)
    turns = (jnp.tile(episodes.actions, S) + S - 1 - seat) // S
    by_seat = lambda build: jax.tree.map(lambda *xs: jnp.concatenate(xs), *[
        build(s, *table.env.judge_prompts(queue, episodes.env, s)) for s in range(S)])
    stages = question = None
    if read:
        stages = by_seat(lambda s, prompt, lines: _stages(judge, prompt, lines, episodes.actions, s, S, T))
    if method in QUESTIONS:
        question = by_seat(lambda s, prompt, lines: _question(judge, prompt, lines, episodes, s, S, method))
    return JudgeInput(
        stages, question, turn_mask=jnp.arange(T) < turns[:, None], complete=jnp.tile(episodes.cause == 0, S),
        reward=episodes.reward.T.reshape(-1))


def _stages(judge: Judge, prompt: Tokens, lines: Tokens, actions, seat: int, S: int, T: int) -> Tokens:
    """Return Tokens [E, T + 1, K], what a judge reads before a seat's first turn and after each of its turns."""
    E, A, K = lines.ids.shape
    lines = lines.replace(length=jnp.where(jnp.arange(A) < actions[:, None], lines.length, 0))
    front, back = S - seat, (T + 1) * S - A - (S - seat)
    fill = lambda x: jnp.pad(x, ((0, 0), (front, max(back, 0)), *((0, 0),) * (x.ndim - 2)))[:, :(T + 1) * S]
    lines = jax.tree.map(fill, lines)
    by_stage = jax.tree.map(lambda x: x.reshape(E, T + 1, S, *x.shape[2:]), lines)
    first = concat([repeat(judge.chat.open, E), prompt])
    width = first.ids.shape[1] + S * K
    return jax.tree.map(lambda *xs: jnp.stack(xs, axis=1), *(
        concat([keep(first, t == 0), *(jax.tree.map(lambda x: x[:, t, s], by_stage) for s in range(S))], width)
        for t in range(T + 1)))


def _question(judge: Judge, prompt: Tokens, lines: Tokens, episodes: Episodes, seat: int, S: int,
              method: str) -> tuple[Tokens, Tokens]:
    """Return Tokens [E, K] before and after the score in the question about a seat's strategies.

    The strategies are encoded from text on the host (`jax.pure_callback`), as in a host loop.
    """
    E, A = lines.length.shape
    at = lambda tokens, a: keep(jax.tree.map(lambda x: x[:, a], tokens), a < episodes.actions)
    before = concat([repeat(judge.chat.open, E), prompt, *(at(lines, a) for a in range(A)),
                     repeat(text.encode(judge.tokenizer, QUESTIONS[method][0]), E)])

    def list_strategies(strategies, actions, tokenizer=judge.tokenizer, capacity=judge.capacity):
        rows = []
        for e in range(E):
            written = jax.tree.map(lambda x: np.asarray(x)[e, seat:int(actions[e]):S], strategies).rows()
            rows.append(_encode_strategies(
                tokenizer, [text.decode(tokenizer, row).strip() for row in written], method))
        return pack([row[:capacity] for row in rows], capacity)

    shape = lambda *axes: jax.ShapeDtypeStruct((E, *axes), jnp.int32)
    after = jax.pure_callback(
        list_strategies, Tokens(shape(judge.capacity), shape()), episodes.strategies, episodes.actions)
    return before, after


def _encode_strategies(tokenizer: Any, strategies: Sequence[str], method: str) -> list[int]:
    """Return the ids of the question about strategies after the score (host)."""
    listed = ''.join(f'\n{t + 1}. {strategy}' for t, strategy in enumerate(strategies))
    _, before, after = QUESTIONS[method]
    return text.encode(tokenizer, before + listed + after)
