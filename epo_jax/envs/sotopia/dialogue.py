"""The SOTOPIA environment in text: two characters with private goals talk in turn."""

import dataclasses
from typing import Any, Optional, Sequence

from epo_jax.envs.base import Observation, TextEnvironment, TextStep
from epo_jax.envs.sotopia import goals, prompts
from epo_jax.envs.sotopia.actions import KINDS, Action, read_action
from epo_jax.envs.sotopia.profiles import Scenario


@dataclasses.dataclass(frozen=True)
class Dialogue:
    """A conversation so far: its scenario, and (seat, action) in order."""

    scenario: Scenario
    actions: tuple[tuple[int, Action], ...] = ()


@dataclasses.dataclass(frozen=True)
class Sotopia(TextEnvironment):
    """SOTOPIA in text.

    Attributes:
      max_turns: number of actions of both seats together after which the episode ends.
      max_stale: the episode ends when more than this many actions in a row do nothing.
      allowed: the kinds of action that agents may choose.
      short: leave out of the prompts what a small model cannot use: the characters except for their first names, their
        relationship, and the rules of conduct.
      begun: prefill the replies of the models with 'Strategy:' and 'NAME said: "', which keeps a small model in its
        role.
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
            raise ValueError(f'allowed must be some of {KINDS}, including speak, not {self.allowed}')

    @property
    def prefixes(self) -> tuple[str, ...]:
        """See TextEnvironment."""
        return prompts.choices(self.allowed)

    @property
    def closing(self) -> str:
        """See TextEnvironment."""
        return '"' if self.begun else ''

    def reset(self, scenario: Scenario, advised: Sequence[bool]) -> tuple[Dialogue, tuple[Observation, ...]]:
        """See TextEnvironment.reset."""
        return Dialogue(scenario), tuple(
            Observation(
                prompts.strategist_opening(scenario, seat, self.short) if advised[seat] else '',
                prompts.actor_opening(scenario, seat, advised[seat], self.allowed, self.short)) for seat in (0, 1))

    def cues(self, state: Dialogue, seat: int) -> Observation:
        """See TextEnvironment.cues."""
        name = state.scenario.characters[seat].first_name
        return Observation(prompts.STRATEGY, prompts.speech(name)) if self.begun else Observation('', '')

    def read(self, message: str, speaker: str, partner: str) -> Action:
        """Parse the message of an actor.

        Args:
          message: what the actor wrote, without its cue.
          speaker: full name of the character that speaks.
          partner: full name of the other character.
        """
        if self.begun:  # the model closes the quotation mark that its cue opened
            message = message.rstrip().removesuffix('"')
        return read_action(message, speaker, partner, self.allowed)

    def step(self, state: Dialogue, seat: int, message: str) -> tuple[Dialogue, TextStep]:
        """See TextEnvironment.step. The speaker's strategist and both models of the partner read the new line."""
        scenario = state.scenario
        speaker, partner = (scenario.characters[s] for s in (seat, 1 - seat))
        action = self.read(message, speaker.name, partner.name)
        actions = state.actions + ((seat, action),)
        line = prompts.line(speaker.first_name, action)
        opened = any(s != seat for s, _ in state.actions)  # otherwise the line continues the partner's first message
        observations = [Observation(line, ''), Observation(f'\n{line}', line if opened else f'\n{line}')]
        recent = [a.kind for _, a in actions[-self.max_stale - 1:]]
        stale = len(recent) > self.max_stale and all(kind == 'none' for kind in recent)
        done = action.kind == 'leave' or stale or len(actions) >= self.max_turns
        rewards = tuple(rule_reward(rule, actions) if done else None for rule in scenario.goal_rules)
        return Dialogue(scenario, actions), TextStep(
            tuple(observations if seat == 0 else observations[::-1]), done, rewards, action.events)

    def transcript(self, state: Dialogue, messages: Sequence[tuple[int, str]]) -> tuple[tuple[int, str], ...]:
        """See TextEnvironment.transcript."""
        return tuple((seat, prompts.line(state.scenario.characters[seat].first_name, action))
                     for seat, action in state.actions)

    def judge_prompt(self, state: Dialogue, seat: int) -> str:
        """See TextEnvironment.judge_prompt."""
        return prompts.judge_opening(state.scenario, seat)

    def overview(self, state: Dialogue, messages: Sequence[tuple[int, str]]) -> str:
        """See TextEnvironment.overview."""
        lines = zip(self.transcript(state, messages), state.actions, strict=True)
        return prompts.overview(
            state.scenario, [line for (_, line), (_, action) in lines if action.kind != 'none'])

    def describe(self, scenario: Scenario, state: Dialogue) -> dict[str, Any]:
        """See TextEnvironment.describe."""
        return describe(scenario)


def rule_reward(rule: Optional[dict[str, Any]], actions: Sequence[tuple[int, Action]]) -> Optional[float]:
    """Return the reward in [0, 1] of a finished dialogue by a goal rule.

    None asks the judge: there is no rule, or the dialogue leaves open whether there is a deal.
    """
    score = None if rule is None else goals.score(rule, actions)
    return None if score is None else score / 10


def describe(scenario: Scenario) -> dict[str, Any]:
    """Return the facts about a scenario for the record of an episode."""
    return {
        'scenario': scenario.id, 'environment': scenario.environment, 'category': scenario.category,
        'situation': scenario.text,
        'seats': [{'name': character.name, 'goal': goal}
                  for character, goal in zip(scenario.characters, scenario.goals, strict=True)]}
