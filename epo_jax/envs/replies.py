"""What models write around an answer: the reasoning before it, and JSON objects between other text."""

import json
import re
from typing import Any, Iterator

# Tags of DeepSeek, Qwen and others, Magistral's, and Kimi's; the group is the stroke of an end.
_REASONING = re.compile(
    r'(?i:<\s*(/?)\s*(?:think(?:ing)?|thoughts?|reasoning)(?:\s+\w+\s*=[^<>]*)?\s*>)|'
    r'\[(/?)THINK\]|\u25c1(/?)think\u25b7')
_OBJECT = re.compile(r'\{\s*"')
_WORK = 100  # characters that are parsed at most, per character of the text


def cut_reasoning(text: str) -> tuple[str, bool]:
    """Remove the reasoning of a thinking model, `<think>...</think>`, from a reply.

    Chat templates may begin the reasoning themselves, so everything before a `</think>` without a `<think>` is
    reasoning. A reply that ends before its reasoning does has no answer.

    Returns:
      The reply without reasoning, and whether there was any.
    """
    kept, start, thinking, found = [], 0, False, False
    for tag in _REASONING.finditer(text):
        found, ends = True, any(tag.groups())
        if ends and not thinking:
            kept.clear()
        elif not ends and not thinking:
            kept.append(text[start:tag.start()])
        thinking, start = not ends, tag.end()
    return ''.join(kept + ([] if thinking else [text[start:]])), found


def find_objects(text: str) -> Iterator[tuple[dict[str, Any], int, int]]:
    """Yield the JSON objects in a text with their beginnings and ends, and the objects inside of them after them.

    Strings may contain line breaks. The search ends after an effort that is proportional to the length of the text, so
    a long text of unfinished objects takes no longer than another one.
    """
    decoder, work = json.JSONDecoder(strict=False), _WORK * (len(text) + 100)
    for begin in (match.start() for match in _OBJECT.finditer(text)):
        if work < 0:
            return
        try:
            value, end = decoder.raw_decode(text, begin)
        except json.JSONDecodeError as error:
            work -= error.pos  # the error counts the lines of the text before it
        except (ValueError, RecursionError):  # a number of thousands of digits, or brackets nested too deep
            work -= len(text) - begin
        else:
            work -= end - begin
            yield value, begin, end
