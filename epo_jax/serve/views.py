"""What a strategist reads, by domain: the prompts of the environments that it was trained in, and one for all others.

A view turns a brief and the messages of a conversation into the pieces of text that a strategist reads before its
turns. Each piece is tokenized on its own, as the observations of a rollout are, so that the ids are those of training.
"""

import dataclasses
from typing import Mapping, NamedTuple, Optional, Protocol, Sequence

from epo_jax.envs.alfworld import prompts as alfworld, text as alfworld_text
from epo_jax.envs.sotopia import prompts as sotopia
from epo_jax.envs.sotopia.dialogue import Sotopia
from epo_jax.envs.sotopia.profiles import Character, Scenario
from epo_jax.envs.webshop import prompts as webshop
from epo_jax.envs.webshop.pages import SEPARATOR
from epo_jax.runtime.errors import InputError


class Message(NamedTuple):
    """A message of a conversation: whether the advised agent wrote it, and its text."""

    own: bool
    text: str


@dataclasses.dataclass(frozen=True)
class Brief:
    """What a strategist knows before a conversation.

    Attributes:
      goal: what the advised agent wants to reach.
      situation: what else it should know.
      name: what the advised agent is called.
      partner: what the other side is called.
      about, about_partner: who they are (sotopia).
    """

    goal: str
    situation: str = ''
    name: str = 'Agent'
    partner: str = 'Partner'
    about: str = ''
    about_partner: str = ''


class View(Protocol):
    """How a conversation is shown to the strategist.

    Attributes:
      advice: text before and after a strategy in what the advised agent reads.
      cue: the beginning of every strategy; '' for none.
    """

    advice: tuple[str, str]
    cue: str

    def begin(self, brief: Brief, messages: Sequence[Message]) -> list[str]:
        """Return the pieces of the strategist's first message: the opening, and the messages so far."""

    def more(self, brief: Brief, messages: Sequence[Message]) -> list[str]:
        """Return the pieces of a later message: what was said since the last strategy."""


@dataclasses.dataclass(frozen=True)
class General:
    """Any conversation with a goal; the only view whose prompt no environment of the package uses."""

    begun: bool = False

    advice = ('\nAdvice: ', '')

    @property
    def cue(self) -> str:
        """See View."""
        return sotopia.STRATEGY if self.begun else ''

    def begin(self, brief: Brief, messages: Sequence[Message]) -> list[str]:
        """See View."""
        name = brief.name
        situation = [f'Situation: {brief.situation}'] if brief.situation else []
        return ['\n'.join((
            f'You are an expert in strategy. You advise {name}, who talks with {brief.partner}.', *situation,
            f"{name}'s goal: {brief.goal}",
            f'Before each message of {name}, write one strategy for it: what {name} should do next to reach the goal, '
            f'in one short sentence. Write only the strategy and not the message, in plain language, as '
            f'"{sotopia.STRATEGY} ...". Never repeat a strategy.',
            'The conversation begins.')), *(f'\n{line}' for line in self._lines(brief, messages))]

    def more(self, brief: Brief, messages: Sequence[Message]) -> list[str]:
        """See View."""
        return joined(self._lines(brief, messages))

    def _lines(self, brief: Brief, messages: Sequence[Message]) -> list[str]:
        return [f'{brief.name if message.own else brief.partner}: {message.text}' for message in messages]


@dataclasses.dataclass(frozen=True)
class Social:
    """SOTOPIA: two people talk. What they say is parsed and shown as in the environment."""

    env: Sotopia

    advice = sotopia.ADVICE

    @property
    def cue(self) -> str:
        """See View."""
        return sotopia.STRATEGY if self.env.begun else ''

    def begin(self, brief: Brief, messages: Sequence[Message]) -> list[str]:
        """See View."""
        opening = sotopia.strategist_opening(self.scenario(brief), 0, self.env.short)
        return [opening, *(f'\n{line}' for line in self._lines(brief, messages))]

    def more(self, brief: Brief, messages: Sequence[Message]) -> list[str]:
        """See View."""
        return joined(self._lines(brief, messages))

    def scenario(self, brief: Brief) -> Scenario:
        """Return the scenario of a brief, with the advised person in seat 0."""
        people = tuple(
            Character('', *(name.split(maxsplit=1) + ['', ''])[:2], 0, '', '', '', about, '', '')
            for name, about in ((brief.name, brief.about), (brief.partner, brief.about_partner)))
        return Scenario('', '', brief.situation, (brief.goal, ''), (None, None), 0, '', people, 'all', 'train', False)

    def _lines(self, brief: Brief, messages: Sequence[Message]) -> list[str]:
        lines = []
        for message in messages:
            speaker, other = (brief.name, brief.partner) if message.own else (brief.partner, brief.name)
            lines.append(sotopia.line(speaker.split()[0], self.env.read(message.text, speaker, other)))
        return lines


@dataclasses.dataclass(frozen=True)
class Shopping:
    """WebShop: the agent acts on pages. The other side's messages are pages, and the agent's are actions."""

    short: bool = False
    begun: bool = False

    @property
    def advice(self) -> tuple[str, str]:
        """See View."""
        return (f'\n{webshop.THOUGHT}' if self.begun else '\n', '')

    @property
    def cue(self) -> str:
        """See View."""
        return webshop.THOUGHT if self.begun else ''

    def begin(self, brief: Brief, messages: Sequence[Message]) -> list[str]:
        """See View; the opening shows the first page."""
        first, rest = split_first(messages)
        opening = webshop.strategist_opening(brief.goal, self._page(first or brief.situation), self.short)
        return [opening, *(f'\n{line}' for line in self._steps(rest))]

    def more(self, brief: Brief, messages: Sequence[Message]) -> list[str]:
        """See View."""
        return joined(self._steps(messages))

    def _page(self, text: str) -> str:
        text = text.removeprefix(webshop.OBSERVATION).strip()
        return webshop.page(text.split(SEPARATOR), True) if self.short and SEPARATOR in text else text

    def _steps(self, messages: Sequence[Message]) -> list[str]:
        return [webshop.line(action.removeprefix(webshop.ACTION).strip(), self._page(page))
                for action, page in steps(messages)]


@dataclasses.dataclass(frozen=True)
class Household:
    """ALFWorld: the agent acts in a house. The other side's messages are observations, and the agent's are commands."""

    version: alfworld_text.Version
    worked: Mapping[str, str] = dataclasses.field(repr=False)
    short: bool = False
    begun: bool = False

    @property
    def advice(self) -> tuple[str, str]:
        """See View."""
        return (f'\n{alfworld.THOUGHT}' if self.begun else '\n', '')

    @property
    def cue(self) -> str:
        """See View."""
        return alfworld.THOUGHT if self.begun else ''

    def begin(self, brief: Brief, messages: Sequence[Message]) -> list[str]:
        """See View; the opening shows the room."""
        first, rest = split_first(messages)
        opening = alfworld.strategist_opening(
            alfworld.category_of(brief.goal), first or brief.situation, self.worked, self.short)
        return [opening, *(f'\n{line}' for line in self._steps(rest))]

    def more(self, brief: Brief, messages: Sequence[Message]) -> list[str]:
        """See View."""
        return joined(self._steps(messages))

    def _steps(self, messages: Sequence[Message]) -> list[str]:
        return [alfworld.exchange(
                    command.removeprefix(alfworld.ACTION).strip(),
                    alfworld.said(observation.removeprefix(alfworld.OBSERVATION).strip(), self.version))
                for command, observation in steps(messages)]


def joined(lines: Sequence[str]) -> list[str]:
    """Return pieces that begin a message; all but the first begin with a line break."""
    return [f'\n{line}' if i else line for i, line in enumerate(lines)]


def split_first(messages: Sequence[Message]) -> tuple[str, Sequence[Message]]:
    """Return the text before the first own message, and the other messages."""
    count = next((i for i, message in enumerate(messages) if message.own), len(messages))
    return '\n'.join(message.text for message in messages[:count]), messages[count:]


def steps(messages: Sequence[Message]) -> list[tuple[str, str]]:
    """Return pairs of an own message and what was answered; '' where there is no answer."""
    pairs: list[tuple[str, str]] = []
    for own, text in messages:
        if own:
            pairs.append((text, ''))
        elif pairs:
            action, answer = pairs[-1]
            pairs[-1] = action, f'{answer}\n{text}' if answer else text
        else:
            pairs.append(('', text))
    return pairs


def make_view(domain: str, options: Optional[Mapping] = None, short: bool = False, begun: bool = False) -> View:
    """Return the view of a domain.

    Args:
      domain: 'sotopia', 'webshop', 'alfworld' or 'general'.
      options: `config.environment` of the run that trained the strategist, if it was trained in this domain.
      short, begun: as in the options of the environments; used where `options` is None.

    Raises:
      InputError: there is no such domain.
    """
    if options is not None and options['name'] == domain:
        short, begun = options['short'], options['begun']
    else:
        options = None
    if domain == 'general':
        return General(begun)
    if domain == 'sotopia':
        return Social(Sotopia(short=short, begun=begun) if options is None else Sotopia(
            allowed=tuple(options['allowed']), short=short, begun=begun))
    if domain == 'webshop':
        return Shopping(short, begun)
    if domain == 'alfworld':
        version, _ = alfworld_text.read_variant('alfworld-0.4-unseen' if options is None else options['variant'])
        return Household(version, alfworld.examples(version), short, begun)
    raise InputError(f'there is no domain {domain!r} to advise in; choose sotopia, webshop, alfworld or general')
