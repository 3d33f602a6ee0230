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
      scenario, game: the scenario and its game.
      situation: the room and the task, as the models read them.
      state: the state of the game.
      lines: (command, observation) of every action so far, in order.
      idle: number of actions in a row, up to now, that did nothing.
    """

    scenario: Scenario
    game: Game
    situation: str
    state: State
    lines: tuple[tuple[str, str], ...] = ()
    idle: int = 0


@dataclasses.dataclass(frozen=True)
class Alfworld(TextEnvironment):
    """ALFWorld as a TextEnvironment with one seat.

    Attributes:
      version: the release whose words are used.
      variant: the name under which results are reported.
      examples: a worked example of every task type (see prompts.examples).
      max_turns: largest number of actions.
      max_idle: the episode ends when more than this many actions in a row do nothing; 0 disables this.
      share: partial credit: an episode that is not won earns the share of the goal's conditions that hold at its end.
      constrained: the actor can only write admissible commands.
      short: short prompts, for small models, without the worked example.
      begun: prefill the replies of the models with 'Thought:' and 'Action:'.
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
        """See TextEnvironment.advice; a strategy that was not prefilled contains 'Thought:' itself."""
        return (f'\n{prompts.THOUGHT}' if self.begun else '\n'), ''

    def reset(self, scenario: Scenario, advised: Sequence[bool]) -> tuple[Episode, tuple[Observation, ...]]:
        """See TextEnvironment.reset."""
        game = scenario.game
        room = prompts.situation(game, self.version)
        return Episode(scenario, game, room, game.initial), (Observation(
            prompts.strategist_opening(game.category, room, self.examples, self.short) if advised[0] else '',
            prompts.actor_opening(game, self.version, self.examples, self.short, advised[0])),)

    def cues(self, state: Episode, seat: int) -> Observation:
        """See TextEnvironment.cues."""
        return Observation(prompts.THOUGHT if self.begun else '',
                           prompts.ACTION if self.begun or self.constrained else '')

    def choices(self, state: Episode, seat: int) -> tuple[str, ...]:
        """See TextEnvironment.choices: the admissible commands, each with a leading space."""
        if not self.constrained:
            return ()
        return tuple(f' {command}' for command in text.admissible(state.game, self.version, state.state))

    def step(self, state: Episode, seat: int, message: str) -> tuple[Episode, TextStep]:
        """See TextEnvironment.step. A reply without a command and a command that does nothing count as actions."""
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
        """See TextEnvironment.transcript: every action with its observation."""
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
      begun: whether the reply was prefilled with 'Action:'.

    Returns:
      (command, event). The event is '' if the reply had the expected form; 'action/repaired' if the command had capital
      letters, quotation marks, a period or other text around it; and 'action/unparsable' if the reply has no command,
      and then the beginning of the reply is returned in its place.
    """
    found = re.search(rf'{prompts.ACTION}[ \t]*(.*)', reply)
    line = found[1] if found else reply.strip().partition('\n')[0] if begun else ''
    command = ' '.join(line.strip(' \t\r"\'`*.').lower().split())
    if not command:
        return ' '.join(reply.replace(prompts.ACTION, '').split())[:80], 'action/unparsable'
    plain = reply.strip() if begun else reply.strip().removeprefix(prompts.ACTION).strip()
    return command, '' if plain == command else 'action/repaired'
