"""The ALFWorld environment: a strategist's thought, an actor's command, the game's answer."""

import dataclasses
import re
from typing import Any, Mapping, Sequence

from epo_jax.envs.alfworld import engine, prompts, text
from epo_jax.envs.alfworld.engine import Game, State
from epo_jax.envs.alfworld.index import Scenario
from epo_jax.envs.alfworld.replay import run_command
from epo_jax.envs.alfworld.text import Version
from epo_jax.envs.base import Observation, TextEnvironment, TextStep
from epo_jax.envs.replies import cut_reasoning


@dataclasses.dataclass(frozen=True)
class Episode:
    """A game so far.

    Attributes:
      scenario, game: what is played; `situation` is how it began, as the models read it.
      state: of the game.
      lines: (command, what was said), in order.
      idle: actions in a row, up to now, that did nothing.
    """

    scenario: Scenario
    game: Game
    situation: str
    state: State
    lines: tuple[tuple[str, str], ...] = ()
    idle: int = 0


@dataclasses.dataclass(frozen=True)
class Alfworld(TextEnvironment):
    """A TextEnvironment.

    Attributes:
      version: the release whose words are used; variant: the name under which results are reported.
      examples: worked example of every task type (see prompts.examples).
      max_turns: actions; the last one ends the episode.
      max_idle: the episode ends when more than this many actions in a row do nothing; 0: it goes on.
      share: an episode that is not won is worth the share of the goal's conditions that hold at its end.
      constrained: the actor may only give admissible commands.
      short: short prompts, for small models, without the worked example.
      begun: replies are begun for the models, with 'Thought:' and 'Action:'.
    """

    version: Version
    variant: str
    examples: Mapping[str, str] = dataclasses.field(repr=False)
    max_turns: int = 40
    max_idle: int = 0
    share: bool = False
    constrained: bool = False
    short: bool = False
    begun: bool = False

    @property
    def advice(self) -> tuple[str, str]:
        """See TextEnvironment.advice; a strategy that was not begun says itself that it is a thought."""
        return (f'\n{prompts.THOUGHT}' if self.begun else '\n'), ''

    def reset(self, scenario: Scenario, advised: Sequence[bool]) -> tuple[Episode, tuple[Observation, ...]]:
        """See TextEnvironment.reset."""
        game = scenario.game
        given = game, self.version, self.examples, self.short
        return Episode(scenario, game, prompts.situation(game, self.version), game.initial), (Observation(
            prompts.strategist_opening(*given) if advised[0] else '', prompts.actor_opening(*given, advised[0])),)

    def cues(self, state: Episode, seat: int) -> Observation:
        """See TextEnvironment.cues."""
        return Observation(prompts.THOUGHT if self.begun else '',
                           prompts.ACTION if self.begun or self.constrained else '')

    def choices(self, state: Episode, seat: int) -> tuple[str, ...]:
        """See TextEnvironment.choices: the admissible commands, each behind the space that follows the cue."""
        if not self.constrained:
            return ()
        return tuple(f' {command}' for command in text.admissible(state.game, self.version, state.state))

    def step(self, state: Episode, seat: int, message: str) -> tuple[Episode, TextStep]:
        """See TextEnvironment.step. A reply without a command, and a command that does nothing, are actions too."""
        message, reasoned = cut_reasoning(message)
        command, event = read_reply(message, self.begun or self.constrained)
        events = ((event,) if event else ()) + (('action/reasoning',) if reasoned else ())
        if event == 'action/unparsable':
            after, observation, did = state.state, prompts.NO_ACTION, False
        else:
            after, observation = run_command(state.game, self.version, state.state, command)
            did = observation != text.NOTHING_HAPPENS
            events += ('action/done',) if did else ('action/invalid',)
        observation = prompts.said(observation.rstrip(), self.version)
        state = dataclasses.replace(state, state=after, lines=state.lines + ((command, observation),),
                                    idle=0 if did else state.idle + 1)
        won = engine.won(state.game, after)
        stopped = bool(self.max_idle) and state.idle > self.max_idle
        done = won or stopped or len(state.lines) >= self.max_turns
        if done:
            events += ('episode/won' if won else 'episode/stopped_early' if stopped else 'episode/out_of_turns',)
        reward = engine.progress(state.game, after) if self.share else float(won)
        seen = Observation(prompts.exchange(command, observation), f'{prompts.OBSERVATION} {observation}')
        return state, TextStep((seen,), done, (reward if done else 0.0,), events)

    def transcript(self, state: Episode, messages: Sequence[tuple[int, str]]) -> tuple[tuple[int, str], ...]:
        """See TextEnvironment.transcript: every action with its answer."""
        return tuple((0, prompts.exchange(*line)) for line in state.lines)

    def judge_prompt(self, state: Episode, seat: int) -> str:
        """See TextEnvironment.judge_prompt."""
        return prompts.judge_opening(state.game, self.version)

    def describe(self, scenario: Scenario, state: Episode) -> dict[str, Any]:
        """See TextEnvironment.describe."""
        return {'scenario': scenario.id, 'environment': self.variant, 'category': scenario.category,
                'situation': state.situation, 'seats': [{'name': 'Agent', 'goal': scenario.task}],
                'won': engine.won(state.game, state.state), 'progress': engine.progress(state.game, state.state)}


def read_reply(reply: str, begun: bool) -> tuple[str, str]:
    """Return the command in an actor's reply, and how it was found.

    Args:
      begun: the reply was begun with 'Action:'.

    Returns:
      (command, event): '' if it stood there as it should; 'action/repaired' if it was wrapped in something else:
      capital letters, quotation marks, a full stop, more text; 'action/unparsable' if there is none, and then the
      command is the reply's beginning.
    """
    found = re.search(rf'{prompts.ACTION}[ \t]*(.*)', reply)
    line = found[1] if found else reply.strip().partition('\n')[0] if begun else ''
    command = ' '.join(line.strip(' \t\r"\'`*.').lower().split())
    if not command:
        return ' '.join(reply.replace(prompts.ACTION, '').split())[:80], 'action/unparsable'
    plain = reply.strip() if begun else reply.strip().removeprefix(prompts.ACTION).strip()
    return command, '' if plain == command else 'action/repaired'
