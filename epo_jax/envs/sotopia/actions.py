"""From what a model wrote to what it did."""

import dataclasses
import json
import re
from typing import Optional

KINDS = ('speak', 'non-verbal communication', 'action', 'leave', 'none')

# First words by which a reply may name its kind: `speak: Hello there.`
WORDS = {'speak': 'speak', 'gesture': 'non-verbal communication', 'act': 'action', 'leave': 'leave', 'wait': 'none'}

_NAMES = 'speak|say|non-verbal communication|non-verbal|gesture|action|act|leave|none|wait'
_NAMED = re.compile(rf'^(?:[\[(*]+({_NAMES})[\])*]+:?|({_NAMES})\s*:)\s*', re.IGNORECASE)
_ALIASES = WORDS | {'say': 'speak', 'non-verbal': 'non-verbal communication'} | {kind: kind for kind in KINDS}
_LEAVES = re.compile(
    r'^[\[(*]*(i |you )?(leave|left|leaves)( the (conversation|room|table))?[\])*]*[.!]?$', re.IGNORECASE)
_NOTHING = re.compile(r'^[\[(*]*(none|nothing|(do|did|does) nothing|says nothing)[\])*]*[.!]?$', re.IGNORECASE)
_STARRED = re.compile(r'^[*(\[]([^*()\[\]]+)[*)\]][.!]?$')
_JSON = re.compile(r'[\'"]action_type[\'"]\s*:')
# Behind a name in a transcript: `NAME said: ...`, `NAME: ...`, `NAME [gesture] ...`, `NAME left the conversation.`
_SHOWN = r'(?:(?:\s+said)?\s*:\s*|\s+(?=\[(?:gesture|action)\]|(?:left the conversation|did nothing)\.?\s*(?:\n|$)))'
_QUOTES = ('"', '\u201c', '\u201d')


@dataclasses.dataclass(frozen=True)
class Action:
    """What a seat does in its turn.

    Attributes:
      kind: one of KINDS.
      argument: the utterance, the gesture, or the deed; '' for 'leave' and 'none'.
      event: what had to be done to read it, to be counted: None, 'repaired' or 'unparsable'.
    """

    kind: str
    argument: str
    event: Optional[str] = None


def read_action(text: str, own: str, other: str, allowed: tuple[str, ...] = KINDS) -> Action:
    """Reads a reply leniently: JSON, `kind: text`, a transcript line, or plain speech.

    Plain speech and `kind: text` are what is asked for; anything else that can be understood counts as repaired
    (a name in front, quotes around it, JSON, lines that go on with the partner's part), and what is empty, or of
    a kind that is not allowed, is unparsable and does nothing.

    Args:
      text: the reply.
      own, other: names of the speaker and of the partner.
      allowed: kinds that may be done.
    """
    found = _from_json(text)
    if found is not None:
        kind, argument, repaired = *found, True
    elif _JSON.search(text):  # cut off, or of no known kind: not something to be said
        return Action('none', '', 'unparsable')
    else:
        body = _own_part(text.strip(), own, other)
        named = _NAMED.match(body)
        kind, spoken = 'speak', body
        if named:
            kind, spoken = _ALIASES[(named[1] or named[2]).lower()], body[named.end():]
        argument = _unquote(spoken)
        if not named:
            kind, argument = _plain_kind(argument)
        repaired = body != text.strip() or argument != spoken or bool(named and named[1])
    argument = '' if kind in ('leave', 'none') else ' '.join(argument.split())
    if kind not in allowed or not (argument or kind in ('leave', 'none')):
        return Action('none', '', 'unparsable')
    return Action(kind, argument, 'repaired' if repaired else None)


def _from_json(text: str) -> Optional[tuple[str, str]]:
    """(kind, argument) of the first JSON object in the text that has an `action_type`."""
    for start in re.finditer(r'\{', text):
        try:
            value, _ = json.JSONDecoder(strict=False).raw_decode(text[start.start():])
        except (ValueError, RecursionError):  # no JSON, a number of thousands of digits, or brackets without end
            continue
        if isinstance(value, dict) and str(value.get('action_type', '')).lower() in _ALIASES:
            return _ALIASES[str(value['action_type']).lower()], str(value.get('argument') or '')
    return None


def _own_part(body: str, own: str, other: str) -> str:
    """Without the speaker's name in front, and without what follows once the partner is made to speak."""
    names = lambda name: '|'.join(re.escape(part) for part in (name, name.split()[0]))
    body = re.sub(f'^(?:{names(own)}){_SHOWN}', '', body)
    return re.split(rf'\n\s*(?:{names(other)}|{names(own)}){_SHOWN}', body)[0].strip()


def _unquote(body: str) -> str:
    """Without quotation marks around the whole (or one that was never closed)."""
    body = body.strip()
    inner = body[1:-1]
    if body[:1] in _QUOTES and body[-1:] in _QUOTES and not any(quote in inner for quote in _QUOTES):
        return inner.strip()
    if sum(body.count(quote) for quote in _QUOTES) == 1:
        return body.strip(''.join(_QUOTES)).strip()
    return body


def _plain_kind(body: str) -> tuple[str, str]:
    """Kind and argument of a reply that names no kind."""
    if _LEAVES.match(body):
        return 'leave', ''
    if _NOTHING.match(body):
        return 'none', ''
    starred = _STARRED.match(body)
    return ('non-verbal communication', starred.group(1).strip()) if starred else ('speak', body)
