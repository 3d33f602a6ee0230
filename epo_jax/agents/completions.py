"""What OpenAI-compatible endpoints send: completions and errors in all their spellings."""

import dataclasses
import enum
import json
import re
from typing import Any, Collection, Iterator, Optional

from epo_jax.envs.replies import cut_reasoning

_SAYS = ('error', 'errors', 'message', 'code', 'type', 'param', 'status', 'detail', 'msg', 'loc', 'title', 'metadata',
         'raw', 'reason', 'innererror', 'description')
SHOWN = 300              # characters of an endpoint's message that are shown
_MOST_TOKENS = 10**7     # a larger number in `usage` is no number of tokens


class Malformed(ValueError):
    """A response that holds no completion."""


@dataclasses.dataclass(frozen=True)
class Completion:
    """The answer in a response.

    Attributes:
      text: the answer without reasoning, or None.
      problem: why there is no text.
      refused: whether the model or its content filter declined to answer.
      cut: whether the answer ended at the limit of tokens.
      prompt_tokens: tokens of the request; None if the endpoint does not say.
      completion_tokens: tokens of the answer with its reasoning; estimated if the endpoint does not say.
    """

    text: Optional[str]
    problem: Optional[str]
    refused: bool
    cut: bool
    prompt_tokens: Optional[int]
    completion_tokens: int


def read_completion(data: Any) -> Completion:
    """Read a response of /chat/completions, parsed from JSON.

    Raises:
      Malformed: it holds no completion.
    """
    if not isinstance(data, dict) or not isinstance(data.get('choices'), list) or not data['choices']:
        raise Malformed('the response holds no choices')
    choice = data['choices'][0]
    message = choice.get('message') if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise Malformed('the response holds no message')
    said, refusal = _content(message.get('content'))
    refusal = refusal or _string(message.get('refusal'))
    text, reasoned = cut_reasoning(said)
    text = text.strip() if reasoned else text
    reasoning = [_string(message.get(name)) for name in ('reasoning_content', 'reasoning', 'thinking')]
    reasoned = reasoned or any(reasoning)
    finish = _string(choice.get('finish_reason')).lower()
    if finish == 'error':
        raise Malformed('the endpoint failed while it answered')
    cut = finish in ('length', 'max_tokens')
    problem, refused = None, bool(refusal) or finish == 'content_filter'
    if refusal:
        problem = f'the model refused: {brief(refusal)}'
    elif finish == 'content_filter':
        problem = 'the content filter of the endpoint stopped the answer'
    elif not text.strip():
        problem = 'the answer is nothing but reasoning' if reasoned else 'the answer is empty'
        problem += ', cut off at its longest length' if cut else ''
    usage = data.get('usage') if isinstance(data.get('usage'), dict) else {}
    written = _tokens(usage.get('completion_tokens'))
    if written is None:
        written = len(said.encode(errors='replace')) // 3 + max(map(len, reasoning)) // 3 + 1
    return Completion(None if problem else whole(text), problem, refused, cut, _tokens(usage.get('prompt_tokens')),
                      written)


def whole(text: str) -> str:
    """Return text that can be encoded: halves of surrogate pairs are joined, or replaced if they are alone."""
    return text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')


def brief(text: str) -> str:
    """Return text as one short line."""
    line = ' '.join(whole(text).split())
    return line if len(line) <= SHOWN else line[:SHOWN] + '...'


def _content(content: Any) -> tuple[str, str]:
    """Return the text and the refusal in the content of a message: null, text, or a list of parts."""
    if content is None or isinstance(content, str):
        return content or '', ''
    texts, refusals = [], []
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict) and (kind := part.get('type', 'text')) in ('text', 'output_text'):
            texts.append(_string(part.get('text')))
        elif isinstance(part, dict) and kind == 'refusal':
            refusals.append(_string(part.get('refusal')))
        elif not isinstance(part, dict):
            raise Malformed('the content is neither text nor a list of parts')
    return ''.join(texts), ''.join(refusals)


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ''


def _tokens(value: Any) -> Optional[int]:
    valid = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= _MOST_TOKENS
    return int(value) if valid else None


class Kind(enum.Enum):
    """Whom an error concerns, and what to do."""

    TEMPORARY = 'ask again later'
    ACCESS = 'no request will succeed'
    CONTENT = 'this request will never succeed'
    PARAMETER = 'ask again without a parameter'
    UNKNOWN = 'this request failed, and perhaps all will'


@dataclasses.dataclass(frozen=True)
class Problem:
    """An error of an endpoint.

    Attributes:
      kind: what to do.
      text: one line, which may repeat what was sent.
      parameter: the refused parameter of a PARAMETER problem.
    """

    kind: Kind
    text: str
    parameter: str = ''


# How messages name the optional parameters of a request.
PARAMETERS = {
    'max_tokens': r'\bmax_tokens\b',
    'max_completion_tokens': r'\bmax_completion_tokens\b',
    'temperature': r'\btemperature\b',
    'seed': r'\bseed\b',
    'response_format': r'\bresponse[_ ]format\b|\bjson[_ ]?schema\b|\bjson_object\b|\bstructured[_ ]outputs?\b',
}
_TOO_LONG = re.compile(
    r'context[_ ]length|context[_ ]window|maximum context|context size|too long|too many (?:input )?tokens|'
    r'reduce the length|prompt is too|input length|string_above_max_length|max_model_len|'
    r'exceeds? the (?:available )?context|exceeds the maximum number of tokens|longer than the maximum|`inputs`',
    re.IGNORECASE)
_UNWANTED = re.compile(
    r'content[_ ](?:filter|policy|management)|content.{0,20}(?:flagged|blocked)|moderation|flagged|safety|'
    r'inappropriate|responsible ?ai|data_inspection|sensitive (?:content|words?|information)|usage polic',
    re.IGNORECASE)
_UNSUPPORTED = re.compile(
    r'support|unknown|unrecogni[sz]ed|unexpected|\bextra|permitted|allowed|unavailable|deprecated|not available|'
    r'removed|cannot be used|incompatible|no such|not accepted|not implemented', re.IGNORECASE)
_VALUE = re.compile(r'too (?:large|small|high|low|big)|at most|at least|less than|greater than|between|out of range',
                    re.IGNORECASE)
_NO_KEY = re.compile(r'api[_ -]?key|unauthorized|authenticat|credentials|access token|permission', re.IGNORECASE)
_NO_CREDIT = re.compile(r'insufficient|credit|balance|billing|payment|arrears|spending|hard limit', re.IGNORECASE)
_NO_QUOTA = re.compile(r'insufficient_quota|insufficient[_ ]balance|out of credits', re.IGNORECASE)
_NO_MODEL = re.compile(
    r'model_not_found|model_not_exist|(?:invalid|unknown|no such|unrecognized|nonexistent) model|'
    r'model\b.{0,120}\b(?:not found|not exist|unknown|invalid|not available|unavailable|no longer|decommissioned|'
    r'not loaded|not be found|no access)|not (?:a valid|have access to) .{0,20}model', re.IGNORECASE)
_TEMPORARY = (408, 409, 425, 429)
_PERMANENT = (401, 402, 403, 404, 405, 410, 501, 505)


def judge_error(status: int, data: Any, sent: Collection[str], model: str) -> Problem:
    """Say what an error means.

    Args:
      status: status of HTTP, or the code of an error inside a response of status 200.
      data: the body, parsed if it is JSON.
      sent: names of the optional parameters in the request.
      model: name of the model, which messages may repeat.
    """
    words = ' '.join(_words(data))
    message = f'HTTP {status}: {brief(_message(data)) or "no error message"}'
    words = re.sub(rf'(?<!\w){re.escape(model)}(?!\w)', ' ', words) if model else words
    named = [name for name, pattern in PARAMETERS.items() if name in sent and re.search(pattern, words)]
    if status == 500 and 'response_format' in named:  # llama-cpp-python says so that it knows no schemas
        return Problem(Kind.PARAMETER, message, 'response_format')
    if status in _TEMPORARY or status >= 500 and status not in _PERMANENT:
        return Problem(Kind.ACCESS if status == 429 and _NO_QUOTA.search(words) else Kind.TEMPORARY, message)
    if status in (400, 403, 413, 422) and (_TOO_LONG.search(words) or _UNWANTED.search(words)) or status == 413:
        return Problem(Kind.CONTENT, message)
    if status in _PERMANENT or 300 <= status < 400:
        return Problem(Kind.ACCESS, message)
    if 'response_format' in named:
        return Problem(Kind.PARAMETER, message, 'response_format')
    if named and _VALUE.search(words) and 'unsupported_' not in words:
        return Problem(Kind.ACCESS, message)
    if named and _UNSUPPORTED.search(words):
        return Problem(Kind.PARAMETER, message, named[0])
    if named or any(pattern.search(words) for pattern in (_NO_KEY, _NO_CREDIT, _NO_MODEL)):
        return Problem(Kind.ACCESS, message)
    return Problem(Kind.UNKNOWN, message)


def error_in(data: Any) -> Optional[tuple[int, Any]]:
    """Return the status and the body of an error inside a response of status 200, or None if it holds none."""
    if not isinstance(data, dict):
        return None
    choices = data.get('choices')
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    error = data.get('error') or choice.get('error')
    if not error or choice.get('message') and not choice.get('error'):
        return None
    codes = [error.get(name) for name in ('code', 'status', 'http_code')] if isinstance(error, dict) else []
    for code in codes:
        if str(code).isdecimal() and 400 <= int(code) < 600:
            return int(code), {'error': error}
    # Without a status, words decide; what they do not explain may pass.
    problem = judge_error(400, {'error': error}, (), '')
    return (500 if problem.kind is Kind.UNKNOWN else 400), {'error': error}


def _message(data: Any) -> str:
    """Return the message for people in the body of an error."""
    if isinstance(data, str):
        return '' if data.lstrip().startswith('<') else data
    for name in ('error', 'message', 'detail', 'msg', 'title'):
        if isinstance(data, dict) and data.get(name):
            return _message(data[name]) or json.dumps(data[name])
    if isinstance(data, list) and data:
        return _message(data[0])
    return json.dumps(data) if data else ''


def _words(data: Any, depth: int = 0) -> Iterator[str]:
    """Yield what an error says itself, without what it repeats of the request."""
    if isinstance(data, str):
        yield data[:2000]
    elif isinstance(data, (list, tuple)) and depth < 8:
        for item in data[:20]:
            yield from _words(item, depth + 1)
    elif isinstance(data, dict) and depth < 8:
        for name, value in data.items():
            if name in _SAYS:
                yield from _words(value, depth + 1)
