"""The WebShop environment: one shopper, who reads pages and acts until something is bought or the steps are over."""

import dataclasses
import re
from typing import Any, Callable, Optional, Sequence

from epo_jax.envs.base import TextStep, View
from epo_jax.envs.webshop import prompts
from epo_jax.envs.webshop.engine import INDEX, Shop, Visit

_SEARCH = f'{prompts.ACTION} search['
_COMMAND = re.compile(r'(search|click)\s*\[([^\]\n]*)(\]?)', re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One goal to be shopped for.

    Attributes:
      id: variant and number of the goal; split: 'train' or 'held_out'; category: of the goal's product.
      variant: what is played, and how it is rewarded; shop: where; goal: the number of the goal.
      overlaps: the same goal is in the other split, too.
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
    """One visit so far: where it has come to, and (action, page as the models read it) in order."""

    scenario: Scenario
    visit: Visit
    steps: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class WebShop:
    """A TextEnvironment.

    Attributes:
      max_turns: actions at most; the variant's.
      short: short prompts with an example of a search only, and pages whose pieces are cut to a few words, for small
        models.
      begun: replies are begun for the models, with 'Thought:' and 'Action:' ('Action: search[' where nothing else can
        be done).
      constrained: the actor can only click what is there; a search is free.
      script: a customer (see experts.py) who acts in place of the actor, whatever it replies.
    """

    max_turns: int
    short: bool = False
    begun: bool = False
    constrained: bool = False
    script: Optional[Callable[[Shop, Visit], str]] = None

    num_seats = 1
    prefixes = ()
    closing = ']'  # ends an action

    def __post_init__(self):
        if self.constrained and not self.begun:
            raise ValueError("constrained needs begun: the choices follow on 'Action:'")

    @property
    def advice(self) -> tuple[str, str]:
        """See TextEnvironment.advice."""
        return (f'\n{prompts.THOUGHT}' if self.begun else '\n', '')

    def reset(self, scenario: Scenario, advised: Sequence[bool]) -> tuple[Trip, tuple[View, ...]]:
        """See TextEnvironment.reset."""
        trip = Trip(scenario, Visit(scenario.shop.goals[scenario.goal]))
        page = prompts.page(scenario.shop.pieces(trip.visit), self.short)
        instruction = trip.visit.goal.instruction
        return trip, (View(
            prompts.strategist_opening(instruction, page, self.short) if advised[0] else '',
            prompts.actor_opening(instruction, page, advised[0], self.short)),)

    def cues(self, state: Trip, seat: int) -> View:
        """See TextEnvironment.cues."""
        if not self.begun:
            return View('', '')
        return View(prompts.THOUGHT, _SEARCH if state.visit.page == INDEX else prompts.ACTION)

    def choices(self, state: Trip, seat: int) -> tuple[str, ...]:
        """See TextEnvironment.choices."""
        if not self.constrained or state.visit.page == INDEX:
            return ()
        return tuple(f' click[{value}]' for value in state.scenario.shop.available(state.visit).clicks)

    def step(self, state: Trip, seat: int, message: str) -> tuple[Trip, TextStep]:
        """See TextEnvironment.step. What cannot be read takes a turn and changes nothing, as an invalid action."""
        shop, visit = state.scenario.shop, state.visit
        if self.begun:
            message = self.cues(state, seat).actor + message
        action, event = (self.script(shop, visit), None) if self.script else read_action(message)
        after = dataclasses.replace(visit, invalid=visit.invalid + 1) if action is None else shop.step(visit, action)
        invalid = action is not None and after.invalid > visit.invalid
        if action is None:
            page = prompts.UNREADABLE
        else:  # the official page after a purchase tells the reward: that is not for the models
            page = prompts.page(shop.pieces(after)[:1 if after.done else None], self.short)
        written = ' '.join(message.split()).removeprefix(prompts.ACTION).strip()
        step = (action or written, page)
        state = Trip(state.scenario, after, state.steps + (step,))
        kind = 'unparsable' if action is None else 'invalid' if invalid else action.partition('[')[0]
        events = (f'action/{kind}',) + ((f'action/{event}',) if event else ())
        if after.done:
            events += ('purchase',) + (('purchase/success',) if after.reward == 1 else ())
        view = View(prompts.line(*step), f'{prompts.OBSERVATION} {page}')
        done = after.done or len(state.steps) >= self.max_turns
        return state, TextStep((view,), done, (after.reward,), events)

    def transcript(self, state: Trip) -> tuple[tuple[int, str], ...]:
        """See TextEnvironment.transcript."""
        return tuple((0, prompts.line(*step)) for step in state.steps)

    def brief(self, state: Trip, seat: int) -> str:
        """See TextEnvironment.brief."""
        return prompts.judge_opening(state.visit.goal.instruction)

    def score(self, state: Trip, seat: int) -> float:
        """See TextEnvironment.score: ten times the official reward; 0 where nothing was bought."""
        return 10 * state.visit.reward

    def describe(self, state: Trip) -> dict[str, Any]:
        """See TextEnvironment.describe."""
        scenario, visit = state.scenario, state.visit
        bought = scenario.shop.product(visit) if visit.done else None
        return {
            'scenario': scenario.id, 'environment': self.variant(scenario.variant), 'category': scenario.category,
            'situation': visit.goal.instruction, 'seats': [{'name': 'Shopper', 'goal': visit.goal.instruction}],
            'target': visit.goal.asin, 'bought': bought and bought.asin, 'options': dict(visit.options),
            'reward': visit.reward, 'reward_parts': dict(visit.parts), 'success': visit.reward == 1,
            'invalid_actions': visit.invalid, 'overlaps': scenario.overlaps}

    def variant(self, name: str) -> str:
        """The name under which results are reported: what is played, and how."""
        changed = ['constrained' if self.constrained else 'begun'] * self.begun + ['short'] * self.short
        return '+'.join([name, *changed, *([self.script.__name__] if self.script else [])])


def read_action(text: str) -> tuple[Optional[str], Optional[str]]:
    """(action, event) of a reply; event: None where it was as asked for, else 'repaired'; (None, None): no action.

    Asked for is 'Action: search[...]' or 'Action: click[...]'. Text around it, a missing 'Action:' and a missing
    last bracket are repaired.
    """
    found = _COMMAND.search(text.partition(prompts.ACTION)[2] or text)
    if not found or not found[2].strip():
        return None, None
    action = f'{found[1].lower()}[{found[2]}]'
    return action, None if text.strip() == f'{prompts.ACTION} {action}' else 'repaired'
