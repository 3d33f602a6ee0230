"""Mark-up in the texts of SOTOPIA profiles: which parts of a text a viewer may read.

Texts are XML as people write it: `&` and `<` need no escaping, and elements may be left open. They mean what they mean
in sotopia's renderer. A character reads the content of <p>, <root> and the hints in `_HINTS`; an element with another
name, or with a `viewer` attribute that names somebody else, hides all its content. The environment, which is the judge,
reads everything. Where it is not clear where a private part begins or ends, the text is refused.
"""

import html
import re
from typing import Iterator, Optional

ENVIRONMENT = 'environment'  # the viewer that reads everything
_NOBODY = 'nobody'           # the only viewer, besides the environment, of an element with another name

_HINTS = ('extra_info', 'clarification_hint', 'strategy_hint')
_SHOWN = ('p', 'root', *_HINTS)
_VIEWER = re.compile(rf'{ENVIRONMENT}|human|agent_\d+')
_ATTRIBUTE = r'\s+([^\s"\'<>/=]+)(?:\s*=\s*("[^"<]*"|\'[^\'<]*\'|[^\s"\'<>=/]+))?'
# A `<` before anything but a name is text, as in "3 < 5" or "<3".
_TOKEN = re.compile(
    rf'(?P<text>[^<]+|<(?!\s*/?\s*[^\W\d]|\s*[!?]))|<!--.*?-->|<!\[CDATA\[(?P<data>.*?)\]\]>|'
    rf'<(?P<end>/?)(?P<name>[^\W\d][\w.:-]*)(?P<attributes>(?:{_ATTRIBUTE})*)\s*(?P<empty>/?)>', re.DOTALL)
_ENTITY = re.compile(r'&(?:amp|lt|gt|quot|apos|#\d+|#x[\da-f]+);', re.IGNORECASE)
_STRAY_VIEWER = re.compile(r'\bviewer\s*=', re.IGNORECASE)


class MarkupError(ValueError):
    """It is not clear which parts of a text are private."""


def visible(text: str, viewer: str) -> str:
    """Return the part of a text that a viewer may read, without tags.

    Args:
      text: a text with mark-up.
      viewer: 'agent_0' or 'agent_1' for a seat, '' for what both seats may read, or ENVIRONMENT.

    Raises:
      MarkupError: the mark-up is not clear.
    """
    return ''.join(part for part, viewers in _parts(text) if viewer == ENVIRONMENT or set(viewers) <= {viewer})


def _parts(text: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the parts of a text, each with the only viewers of the private elements around it."""
    opened: list[tuple[str, Optional[str]]] = []  # (name, its only viewer or None) of the elements around a position
    position, private, misplaced = 0, False, ''
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            raise MarkupError(f'{text[position:position + 30]!r} is not a complete tag; write &lt; for a plain <')
        position = token.end()
        if token['name'] is None:
            part = _unescape(token['text'] or '') or token['data'] or ''
            if _STRAY_VIEWER.search(part):
                raise MarkupError(f'{part.strip()[:40]!r} mentions a viewer outside of a tag')
            yield part, tuple(viewer for _, viewer in opened if viewer is not None)
        elif not token['end']:
            viewer = _only_viewer(token)
            private |= viewer is not None
            opened += [] if token['empty'] else [(token['name'], viewer)]
        elif opened and opened[-1][0] == token['name']:
            opened.pop()
        else:
            names = [name for name, _ in opened]
            if token['name'] not in names and token['name'] not in _HINTS:
                raise MarkupError(f'{token[0]} ends an element that was not begun')
            misplaced = token[0]
            while token['name'] in names and opened.pop()[0] != token['name']:
                pass
    if private and misplaced:
        raise MarkupError(f'{misplaced} is not where the last element ends, so it is not clear what is private')
    for name, _ in opened:
        if name not in _SHOWN:
            raise MarkupError(f'<{name}> has no end; write &lt; for a plain <')


def _only_viewer(token: re.Match) -> Optional[str]:
    """Return the only viewer of an element besides the environment, or None if everybody may read it."""
    attributes = re.findall(_ATTRIBUTE, token['attributes'])
    viewers = [_unescape(value.strip('"\'')) for name, value in attributes if name.lower() == 'viewer']
    if len(viewers) > 1 or viewers and not _VIEWER.fullmatch(viewers[0]):
        raise MarkupError(f'{token[0]}: the viewer must be {ENVIRONMENT}, agent_0 or agent_1')
    if not viewers and any(_VIEWER.fullmatch(value.strip('"\' ').lower()) for _, value in attributes):
        raise MarkupError(f'{token[0]} names a viewer in another attribute than viewer')
    if token['name'] not in _SHOWN:
        return _NOBODY
    return viewers[0] if viewers else None


def _unescape(text: str) -> str:
    return _ENTITY.sub(lambda entity: html.unescape(entity[0]), text)
