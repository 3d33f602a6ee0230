"""The WebShop environment: one shopper reads pages and acts until it buys something or runs out of steps."""

import dataclasses
import re
from typing import Any, Callable, Optional, Sequence

from epo_jax.envs.base import Observation, TextEnvironment, TextStep
from epo_jax.envs.replies import cut_reasoning
from epo_jax.envs.webshop import prompts
from epo_jax.envs.webshop.engine import INDEX, Shop, Visit

_SEARCH = f'{prompts.ACTION} search['
_COMMAND = re.compile(r'(search|click)\s*\[(.*)', re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One goal to shop for.

    Attributes:
      id: the variant and the number of the goal.
      split: 'train' or 'held_out'.
      category: category of the goal's product.
      variant: the variant with the options that change its rewards, such as 'webshop-1k-human+spacy'.
      shop: the shop that is visited.
      goal: index of the goal in `shop.goals`.
      overlaps: whether the same goal is in the other split, too.
    """

    id: str
    split: str
    category: str
    variant: str
    shop: Shop
    goal: int
    overlaps: bool = False


@dataclasses.dataclass(frozen=True)
class Trip:
    """The state of an episode.

    Attributes:
      scenario: the scenario being played.
      visit: the state of the shop.
      steps: (action, resulting page as the models read it) for every step so far.
    """

    scenario: Scenario
    visit: Visit
    steps: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class WebShop(TextEnvironment):
    """WebShop as a TextEnvironment with one seat.

    Attributes:
      max_turns: largest number of actions; set by the variant.
      short: for small models, use short prompts whose only example is a search, and cut every piece of a page to a
        few words.
      begun: prefill the replies of both models with 'Thought:' and 'Action:' ('Action: search[' on the first page,
        where nothing else is possible).
      constrained: restrict the actor's clicks to what the page offers; search terms stay free.
      script: a customer (see scripted.py) that acts in place of the actor; the actor's replies are ignored.
    """

    max_turns: int
    short: bool = False
    begun: bool = False
    constrained: bool = False
    script: Optional[Callable[[Shop, Visit], str]] = None

    closing = ']'  # ends an action

    def __post_init__(self):
        if self.constrained and not self.begun:
            raise ValueError("constrained=True needs begun=True, because the choices follow 'Action:'")

    @property
    def advice(self) -> tuple[str, str]:
        """See TextEnvironment.advice."""
        return (f'\n{prompts.THOUGHT}' if self.begun else '\n', '')

    def reset(self, scenario: Scenario, advised: Sequence[bool]) -> tuple[Trip, tuple[Observation, ...]]:
        """See TextEnvironment.reset."""
        trip = Trip(scenario, Visit(scenario.shop.goals[scenario.goal]))
        page = prompts.page(scenario.shop.pieces(trip.visit), self.short)
        instruction = trip.visit.goal.instruction
        return trip, (Observation(
            prompts.strategist_opening(instruction, page, self.short) if advised[0] else '',
            prompts.actor_opening(instruction, page, advised[0], self.short)),)

    def cues(self, state: Trip, seat: int) -> Observation:
        """See TextEnvironment.cues."""
        if not self.begun:
            return Observation('', '')
        return Observation(prompts.THOUGHT, _SEARCH if state.visit.page == INDEX else prompts.ACTION)

    def choices(self, state: Trip, seat: int) -> tuple[str, ...]:
        """See TextEnvironment.choices."""
        if not self.constrained or state.visit.page == INDEX:
            return ()
        return tuple(f' click[{value}]' for value in state.scenario.shop.available(state.visit).clicks)

    def step(self, state: Trip, seat: int, message: str) -> tuple[Trip, TextStep]:
        """See TextEnvironment.step. An unparsable reply takes a turn and changes nothing, like an invalid action."""
        shop, visit = state.scenario.shop, state.visit
        message, reasoned = cut_reasoning(message)
        if self.begun:
            message = self.cues(state, seat).actor + message
        action, repair = ((self.script(shop, visit), None) if self.script
                          else read_action(message, shop.available(visit).clicks))
        after = dataclasses.replace(visit, invalid=visit.invalid + 1) if action is None else shop.step(visit, action)
        invalid = action is not None and after.invalid > visit.invalid
        if action is None:
            page = prompts.UNREADABLE
        else:  # The official page after a purchase shows the reward, which the models must not read.
            page = prompts.page(shop.pieces(after)[:1 if after.done else None], self.short)
        reply = ' '.join(message.split()).removeprefix(prompts.ACTION).strip()
        step = (action or reply, page)
        state = Trip(state.scenario, after, state.steps + (step,))
        kind = 'unparsable' if action is None else 'invalid' if invalid else action.partition('[')[0]
        events = (f'action/{kind}',) + ((f'action/{repair}',) if repair else ())
        events += ('action/reasoning',) if reasoned else ()
        if after.done:
            events += ('purchase',) + (('purchase/success',) if after.reward == 1 else ())
        observation = Observation(prompts.line(*step), f'{prompts.OBSERVATION} {page}')
        done = after.done or len(state.steps) >= self.max_turns
        return state, TextStep((observation,), done, (after.reward,), events)

    def transcript(self, state: Trip, messages: Sequence[tuple[int, str]]) -> tuple[tuple[int, str], ...]:
        """See TextEnvironment.transcript."""
        return tuple((0, prompts.line(*step)) for step in state.steps)

    def judge_prompt(self, state: Trip, seat: int) -> str:
        """See TextEnvironment.judge_prompt."""
        return prompts.judge_opening(state.visit.goal.instruction)

    def describe(self, scenario: Scenario, state: Trip) -> dict[str, Any]:
        """See TextEnvironment.describe."""
        visit = state.visit
        bought = scenario.shop.product(visit) if visit.done else None
        return {
            'scenario': scenario.id, 'environment': self.variant(scenario.variant), 'category': scenario.category,
            'situation': visit.goal.instruction, 'seats': [{'name': 'Shopper', 'goal': visit.goal.instruction}],
            'target': visit.goal.asin, 'bought': bought and bought.asin, 'options': dict(visit.options),
            'reward': visit.reward, 'reward_parts': dict(visit.parts), 'success': visit.reward == 1,
            'invalid_actions': visit.invalid, 'overlaps': scenario.overlaps}

    def variant(self, name: str) -> str:
        """Return `name` with a suffix for every setting of this environment that changes results."""
        suffixes = ['constrained' if self.constrained else 'begun'] * self.begun + ['short'] * self.short
        return '+'.join([name, *suffixes, *([self.script.__name__] if self.script else [])])


def read_action(text: str, offered: Sequence[str] = ()) -> tuple[Optional[str], Optional[str]]:
    """Find the action in a reply.

    The expected form is 'Action: search[...]' or 'Action: click[...]'. Surrounding text, a missing 'Action:' and a
    missing closing bracket are repaired.

    Args:
      text: the actor's reply.
      offered: what can be clicked, in lower case; such a value may contain brackets.

    Returns:
      (action, event): the event is None if the reply had the expected form and 'repaired' otherwise. (None, None) if
      the reply contains no action.
    """
    text = text.strip()
    match = _COMMAND.search(text.partition(prompts.ACTION)[2] or text)
    if not match:
        return None, None
    kind, value = match[1].lower(), match[2].partition(']')[0]
    if kind == 'click':
        line = match[2].lower()
        value = max((click for click in offered if line.startswith(f'{click}]') or line == click), key=len,
                    default=value)
        as_written = match[2][:len(value)]
        value = as_written if as_written.lower() == value else value
    if not value.strip():
        return None, None
    action = f'{kind}[{value}]'
    return action, None if text == f'{prompts.ACTION} {action}' else 'repaired'
