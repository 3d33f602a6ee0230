"""Parse the reply of a model into an action."""

import dataclasses
import re
from typing import Optional

from epo_jax.envs.replies import cut_reasoning, find_objects

KINDS = ('speak', 'non-verbal communication', 'action', 'leave', 'none')

# Keywords with which a reply may begin to name its kind, as in `speak: Hello there.`
WORDS = {'speak': 'speak', 'gesture': 'non-verbal communication', 'act': 'action', 'leave': 'leave', 'wait': 'none'}

_NAMES = 'speak|say|non-verbal communication|non-verbal|gesture|action|act|leave|none|wait'
_NAMED = re.compile(rf'^(?:[\[(*]+({_NAMES})[\])*]+:?|({_NAMES})\s*:)\s*', re.IGNORECASE)
_ALIASES = WORDS | {'say': 'speak', 'non-verbal': 'non-verbal communication'} | {kind: kind for kind in KINDS}
_LEAVES = re.compile(
    r'^[\[(*]*(i |you )?(leave|left|leaves)( the (conversation|room|table))?[\])*]*[.!]?$', re.IGNORECASE)
_NOTHING = re.compile(r'^[\[(*]*(none|nothing|(do|did|does) nothing|says nothing)[\])*]*[.!]?$', re.IGNORECASE)
_STARRED = re.compile(r'^[*(\[]([^*()\[\]]+)[*)\]][.!]?$')
_JSON = re.compile(r'[\'"]action_type[\'"]\s*:')
# What follows a name in a transcript: `NAME said: ...`, `NAME: ...`, `NAME [gesture] ...`, `NAME did nothing.` Models
# also write `NAME (smiling): ...`, and names in bold.
_AFTER_NAME = (
    r'[*_]*(?:(?:\s+(?:said|says|replied|replies)|\s*\([^()\n]{1,60}\))?\s*[*_]*:[*_]*\s*|'
    r'\s+(?=\[(?:gesture|action)\]|(?:left the conversation|did nothing)\.?\s*(?:\n|$)))')
# What sotopia's transcripts have above a line
_TURN = r'[*_]*Turn\s*(?:#\s*\d+\b[:.]?|\d+\s*(?::|(?=[*_]*\n)))[*_]*'
_QUOTES = ('"', '\u201c', '\u201d')
_EVENTS = (None, 'repaired', 'unparsable')


@dataclasses.dataclass(frozen=True)
class Action:
    """What a seat does in its turn.

    Attributes:
      kind: one of KINDS.
      argument: the utterance, gesture or physical action; '' for 'leave' and 'none'.
      event: 'repaired' if the reply deviated from the requested forms, 'unparsable' if it could not be read, else None.
      reasoning: whether the reply contained reasoning, which is cut.
      partner: whether the reply began as a line of the partner.
    """

    kind: str
    argument: str
    event: Optional[str] = None
    reasoning: bool = False
    partner: bool = False

    @property
    def events(self) -> tuple[str, ...]:
        """Return the names of the events that the action counts as."""
        names = (self.kind, self.event, 'reasoning' if self.reasoning else None, 'partner' if self.partner else None)
        return tuple(f'action/{name}' for name in names if name)

    @property
    def code(self) -> int:
        """Return everything but kind and argument as a number, for `from_code`."""
        return _EVENTS.index(self.event) + len(_EVENTS) * (self.reasoning + 2 * self.partner)


def from_code(kind: str, argument: str, code: int) -> Action:
    """Return the action of a kind, an argument and an `Action.code`."""
    flags, event = divmod(int(code), len(_EVENTS))
    return Action(kind, argument, _EVENTS[event], bool(flags & 1), bool(flags & 2))


def read_action(text: str, speaker: str, partner: str, allowed: tuple[str, ...] = KINDS) -> Action:
    """Parse a reply leniently: JSON, `kind: text`, a line of a transcript, or plain speech.

    The prompts ask for plain speech or `kind: text`. Reasoning is cut first. A reply in another form that can be
    understood is repaired: one that begins with the speaker's name or the number of a turn, stands in quotation marks,
    is JSON, or has lines of the partner before or after it. A reply that is empty or of a kind that is not allowed is
    unparsable and becomes an action that does nothing.

    Args:
      text: the reply.
      speaker: full name of the character that speaks.
      partner: full name of the other character.
      allowed: the kinds of action that are possible.
    """
    text, reasoning = cut_reasoning(text)
    text, of_partner = text.strip(), False
    nothing = Action('none', '', 'unparsable', reasoning)
    parsed = _parse_json(text)
    if parsed is not None:
        kind, argument = parsed
        repaired = True
    elif _JSON.search(text):  # JSON that is cut off or has an unknown kind is not speech
        return nothing
    else:
        body, of_partner = _own_part(text, speaker, partner)
        named = _NAMED.match(body)
        kind, content = 'speak', body
        if named:
            kind, content = _ALIASES[(named[1] or named[2]).lower()], body[named.end():]
        argument = _unquote(content)
        if not named:
            kind, argument = _infer_kind(argument)
        repaired = body != text or argument != content or bool(named and named[1])
    argument = '' if kind in ('leave', 'none') else ' '.join(argument.split())
    if kind not in allowed or not (argument or kind in ('leave', 'none')):
        return nothing
    return Action(kind, argument, 'repaired' if repaired else None, reasoning, of_partner)


def _parse_json(text: str) -> Optional[tuple[str, str]]:
    """Return (kind, argument) of the first JSON object with an `action_type` in the text, or None."""
    for value, _, _ in find_objects(text):
        kind, argument = value.get('action_type'), value.get('argument')
        if isinstance(kind, str) and kind.lower() in _ALIASES:
            return _ALIASES[kind.lower()], argument if isinstance(argument, str) else ''
    return None


def _own_part(body: str, speaker: str, partner: str) -> tuple[str, bool]:
    """Return the speaker's part of a reply, without its name, and whether the reply began as a line of the partner.

    The part ends where the next line of either character begins. If the reply has a line of the partner only, this line
    is returned.
    """
    names = lambda name: '|'.join(re.escape(part) for part in (name, name.split()[0]))
    own, other = (f'(?i:[*_]*(?:{names(name)}){_AFTER_NAME})' for name in (speaker, partner))
    body = re.sub(rf'^(?:{_TURN}\s*)+', '', body, flags=re.IGNORECASE)
    begin = re.match(rf'{own}|said\s*:\s*(?=["\u201c])', body)
    of_partner = begin is None and re.match(other, body) is not None
    if of_partner:
        begin = re.search(rf'\n[^\S\n]*{own}', body)
    body = body[begin.end():] if begin else body
    end = re.search(rf'\n[^\S\n]*(?:{other}|{own}|(?i:{_TURN}))', body)
    return body[:end.start() if end else None].strip(), of_partner


def _unquote(body: str) -> str:
    """Remove a pair of quotation marks around a text, or a single unmatched one at either end."""
    body = body.strip()
    inner = body[1:-1]
    if body[:1] in _QUOTES and body[-1:] in _QUOTES and not any(quote in inner for quote in _QUOTES):
        return inner.strip()
    if sum(body.count(quote) for quote in _QUOTES) == 1:
        return body.strip(''.join(_QUOTES)).strip()
    return body


def _infer_kind(body: str) -> tuple[str, str]:
    """Return the kind and argument of a reply that does not name its kind."""
    if _LEAVES.match(body):
        return 'leave', ''
    if _NOTHING.match(body):
        return 'none', ''
    starred = _STARRED.match(body)
    return ('non-verbal communication', starred.group(1).strip()) if starred else ('speak', body)
