"""The SOTOPIA environment: two people with private goals talk in turn."""

import dataclasses
from typing import Any, Optional, Sequence

from epo_jax.envs.base import TextStep, View
from epo_jax.envs.sotopia import goals, prompts
from epo_jax.envs.sotopia.actions import KINDS, Action, read_action
from epo_jax.envs.sotopia.profiles import Scenario


@dataclasses.dataclass(frozen=True)
class Dialogue:
    """One conversation so far: (seat, action) in order."""

    scenario: Scenario
    actions: tuple[tuple[int, Action], ...] = ()


@dataclasses.dataclass(frozen=True)
class Sotopia:
    """A TextEnvironment.

    Attributes:
      max_turns: actions of both seats together; the last one ends the episode.
      max_stale: the episode ends when more than this many actions in a row do nothing.
      allowed: kinds of action that may be done.
      short: leaves out of the prompts what a small model cannot use: characters beyond name, age and occupation,
        and advice on good conduct.
      begun: replies are begun for the models, with 'Strategy:' and 'NAME said: "', which keeps a small model to
        its part.
    """

    max_turns: int = 20
    max_stale: int = 2
    allowed: tuple[str, ...] = KINDS
    short: bool = False
    begun: bool = False

    num_seats = 2
    advice = prompts.ADVICE

    def __post_init__(self):
        unknown = set(self.allowed) - set(KINDS)
        if unknown or 'speak' not in self.allowed:
            raise ValueError(f'allowed actions must be some of {KINDS}, speak among them, not {self.allowed}')

    @property
    def prefixes(self) -> tuple[str, ...]:
        """See TextEnvironment."""
        return prompts.choices(self.allowed)

    @property
    def closing(self) -> str:
        """See TextEnvironment."""
        return '"' if self.begun else ''

    def reset(self, scenario: Scenario, advised: Sequence[bool]) -> tuple[Dialogue, tuple[View, ...]]:
        """See TextEnvironment.reset."""
        return Dialogue(scenario), tuple(
            View(prompts.strategist_opening(scenario, seat, self.short) if advised[seat] else '',
                 prompts.actor_opening(scenario, seat, advised[seat], self.allowed, self.short)) for seat in (0, 1))

    def cues(self, state: Dialogue, seat: int) -> View:
        """See TextEnvironment.cues."""
        name = state.scenario.characters[seat].first_name
        return View(prompts.STRATEGY, prompts.speech(name)) if self.begun else View('', '')

    def choices(self, state: Dialogue, seat: int) -> tuple[str, ...]:
        """See TextEnvironment.choices: anything may be said."""
        return ()

    def step(self, state: Dialogue, seat: int, message: str) -> tuple[Dialogue, TextStep]:
        """See TextEnvironment.step. The speaker's strategist and both of the partner's models read the line."""
        own, other = (state.scenario.characters[s] for s in (seat, 1 - seat))
        if self.begun:  # the quotation mark that the reply was begun with is closed by the model
            message = message.rstrip().removesuffix('"')
        action = read_action(message, own.name, other.name, self.allowed)
        actions = state.actions + ((seat, action),)
        line = prompts.line(own.first_name, action)
        opened = any(s != seat for s, _ in state.actions)  # else the partner has its opening still to read
        views = [View(line, ''), View(f'\n{line}', line if opened else f'\n{line}')]
        recent = [a.kind for _, a in actions[-self.max_stale - 1:]]
        stale = len(recent) > self.max_stale and all(kind == 'none' for kind in recent)
        done = action.kind == 'leave' or stale or len(actions) >= self.max_turns
        events = (f'action/{action.kind}',) + ((f'action/{action.event}',) if action.event else ())
        return Dialogue(state.scenario, actions), TextStep(
            tuple(views if seat == 0 else views[::-1]), done, (0.0, 0.0), events)

    def transcript(self, state: Dialogue) -> tuple[tuple[int, str], ...]:
        """See TextEnvironment.transcript."""
        return tuple((seat, prompts.line(state.scenario.characters[seat].first_name, action))
                     for seat, action in state.actions)

    def brief(self, state: Dialogue, seat: int) -> str:
        """See TextEnvironment.brief."""
        return prompts.judge_opening(state.scenario, seat)

    def score(self, state: Dialogue, seat: int) -> Optional[float]:
        """See TextEnvironment.score: by the scenario's rule, where it has one."""
        rule = state.scenario.goal_rules[seat]
        return None if rule is None else goals.score(rule, state.actions)

    def describe(self, state: Dialogue) -> dict[str, Any]:
        """See TextEnvironment.describe."""
        return facts(state.scenario)


def facts(scenario: Scenario) -> dict[str, Any]:
    """Of a scenario, for the episode's record."""
    return {
        'scenario': scenario.id, 'environment': scenario.environment, 'category': scenario.category,
        'situation': scenario.text,
        'seats': [{'name': character.name, 'goal': goal}
                  for character, goal in zip(scenario.characters, scenario.goals)]}
