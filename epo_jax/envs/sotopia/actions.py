"""Parse the reply of a model into an action."""

import dataclasses
import json
import re
from typing import Optional

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
# What follows a name in a transcript: `NAME said: ...`, `NAME: ...`, `NAME [gesture] ...`, `NAME did nothing.`
_AFTER_NAME = (
    r'(?:(?:\s+said)?\s*:\s*|\s+(?=\[(?:gesture|action)\]|(?:left the conversation|did nothing)\.?\s*(?:\n|$)))')
_QUOTES = ('"', '\u201c', '\u201d')


@dataclasses.dataclass(frozen=True)
class Action:
    """What a seat does in its turn.

    Attributes:
      kind: one of KINDS.
      argument: the utterance, gesture or physical action; '' for 'leave' and 'none'.
      event: 'repaired' if the reply deviated from the requested forms, 'unparsable' if it could not be read, else None.
    """

    kind: str
    argument: str
    event: Optional[str] = None


def read_action(text: str, speaker: str, partner: str, allowed: tuple[str, ...] = KINDS) -> Action:
    """Parse a reply leniently: JSON, `kind: text`, a line of a transcript, or plain speech.

    The prompts ask for plain speech or `kind: text`. A reply in another form that can be understood is repaired: one
    that begins with the speaker's name, stands in quotation marks, is JSON, or continues with lines of the partner. A
    reply that is empty or of a kind that is not allowed is unparsable and becomes an action that does nothing.

    Args:
      text: the reply.
      speaker: full name of the character that speaks.
      partner: full name of the other character.
      allowed: the kinds of action that are possible.
    """
    parsed = _parse_json(text)
    if parsed is not None:
        kind, argument = parsed
        repaired = True
    elif _JSON.search(text):  # JSON that is cut off or has an unknown kind is not speech
        return Action('none', '', 'unparsable')
    else:
        body = _own_part(text.strip(), speaker, partner)
        named = _NAMED.match(body)
        kind, content = 'speak', body
        if named:
            kind, content = _ALIASES[(named[1] or named[2]).lower()], body[named.end():]
        argument = _unquote(content)
        if not named:
            kind, argument = _infer_kind(argument)
        repaired = body != text.strip() or argument != content or bool(named and named[1])
    argument = '' if kind in ('leave', 'none') else ' '.join(argument.split())
    if kind not in allowed or not (argument or kind in ('leave', 'none')):
        return Action('none', '', 'unparsable')
    return Action(kind, argument, 'repaired' if repaired else None)


def _parse_json(text: str) -> Optional[tuple[str, str]]:
    """Return (kind, argument) of the first JSON object with an `action_type` in the text, or None."""
    for start in re.finditer(r'\{', text):
        try:
            value, _ = json.JSONDecoder(strict=False).raw_decode(text[start.start():])
        except (ValueError, RecursionError):  # not JSON, a number of thousands of digits, or brackets nested too deep
            continue
        if isinstance(value, dict) and str(value.get('action_type', '')).lower() in _ALIASES:
            return _ALIASES[str(value['action_type']).lower()], str(value.get('argument') or '')
    return None


def _own_part(body: str, speaker: str, partner: str) -> str:
    """Remove the speaker's name from the beginning, and everything from the next line of either character on."""
    names = lambda name: '|'.join(re.escape(part) for part in (name, name.split()[0]))
    body = re.sub(f'^(?:{names(speaker)}){_AFTER_NAME}', '', body)
    return re.split(rf'\n\s*(?:{names(partner)}|{names(speaker)}){_AFTER_NAME}', body)[0].strip()


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
