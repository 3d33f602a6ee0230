"""Requests for chat completions, checked: what is asked for, or one sentence that says what is wrong."""

import dataclasses
import json
import secrets
from typing import Any, Mapping, Optional

from epo_jax.runtime.errors import InputError

IGNORED = {'user', 'store', 'metadata', 'service_tier', 'parallel_tool_calls', 'reasoning_effort', 'safety_identifier',
           'prompt_cache_key', 'prompt_cache_retention', 'verbosity'}
EMPTY = ('frequency_penalty', 'presence_penalty', 'logit_bias', 'tools', 'tool_choice', 'functions', 'function_call',
         'modalities', 'audio', 'prediction', 'web_search_options')  # only values that ask for nothing


class BadRequest(InputError):
    """A request that cannot be answered.

    Attributes:
      param: the parameter at fault, or None.
      status: the status of the answer.
      code: a word for programs.
    """

    def __init__(self, message: str, param: Optional[str] = None, status: int = 400, code: Optional[str] = None):
        super().__init__(message)
        self.param, self.status, self.code = param, status, code


@dataclasses.dataclass(frozen=True)
class ChatRequest:
    """What a client asks for; the names are those of OpenAI's API.

    Attributes:
      choices: the only answers that are allowed; () allows all.
      schema: JSON schema of the answer; None allows all.
      usage: whether a stream ends with the numbers of tokens.
    """

    model: str
    messages: tuple[Mapping[str, str], ...]
    max_tokens: Optional[int]
    temperature: float
    top_p: float
    n: int
    seed: int
    stop: tuple[str, ...]
    logprobs: bool
    top_logprobs: int
    stream: bool
    usage: bool
    choices: tuple[str, ...]
    schema: Optional[Mapping[str, Any]]


def parse_json(body: bytes, depth: int = 64) -> Any:
    """Parse a body.

    Raises:
      BadRequest: it is not JSON, or nested deeper than `depth`.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f'the body is not JSON: {error}') from None
    level = [value]
    for _ in range(depth):
        level = [x for part in level if isinstance(part, (dict, list))
                 for x in (part.values() if isinstance(part, dict) else part)]
        if not level:
            return value
    raise BadRequest(f'the body is nested more than {depth} levels deep')


def read_request(body: Any, max_n: int) -> ChatRequest:
    """Read the body of a request for a chat completion.

    Args:
      body: parsed JSON.
      max_n: largest number of answers.

    Raises:
      BadRequest: something is missing, wrong or not supported.
    """
    if not isinstance(body, dict):
        raise BadRequest('the body must be a JSON object')
    known = {'model', 'messages', 'max_tokens', 'max_completion_tokens', 'temperature', 'top_p', 'n', 'seed', 'stop',
             'logprobs', 'top_logprobs', 'stream', 'stream_options', 'response_format', *IGNORED, *EMPTY}
    if unknown := sorted(set(body) - known):
        raise BadRequest(f'there is no parameter {unknown[0]!r}', unknown[0])
    given = {name: value for name, value in body.items() if value is not None}
    for name in EMPTY:
        if given.get(name) not in (None, 0, 'none', 'auto', [], {}, ['text']):
            raise BadRequest(f'{name} is not supported by this server', name)

    def number(name: str, default: Any, low: float, high: float, whole: bool = False) -> Any:
        value = given.get(name, default)
        kinds = int if whole else (int, float)
        if value is not None and (isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high):
            kind = 'an integer' if whole else 'a number'
            raise BadRequest(f'{name} must be {kind} from {low:g} to {high:g}, not {value!r:.40}', name)
        return value

    def flag(name: str, source: Mapping = given) -> bool:
        value = source.get(name) or False
        if not isinstance(value, bool):
            raise BadRequest(f'{name} must be true or false, not {value!r:.40}', name)
        return value

    model = given.get('model')
    if not isinstance(model, str):
        raise BadRequest('model must be a text', 'model')
    stop = given.get('stop', [])
    stop = [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, list) or len(stop) > 16 or not all(isinstance(s, str) and 0 < len(s) <= 256 for s in stop):
        raise BadRequest('stop must be a text or a list of at most 16 texts of at most 256 characters', 'stop')
    options = given.get('stream_options', {})
    if not isinstance(options, dict):
        raise BadRequest('stream_options must be an object', 'stream_options')
    limit = 2**31 - 1
    name = 'max_completion_tokens' if 'max_completion_tokens' in given else 'max_tokens'
    seed = number('seed', None, -2**63, 2**64, True)
    return ChatRequest(
        model, tuple(read_messages(given.get('messages'))), number(name, None, 1, limit, True),
        float(number('temperature', 1.0, 0, 2)), float(number('top_p', 1.0, 1e-6, 1)), number('n', 1, 1, max_n, True),
        secrets.randbits(63) if seed is None else seed, tuple(stop), flag('logprobs'),
        number('top_logprobs', 0, 0, 20, True), flag('stream'), flag('include_usage', options),
        *read_format(given.get('response_format')))


def read_messages(messages: Any) -> list[dict[str, str]]:
    """Return the roles and texts of messages; a list of text parts becomes one text."""
    if not isinstance(messages, list) or not messages:
        raise BadRequest('messages must be a list of at least one message', 'messages')
    read = []
    for i, message in enumerate(messages):
        role = message.get('role') if isinstance(message, dict) else None
        if not isinstance(role, str) or role not in ('system', 'developer', 'user', 'assistant', 'tool'):
            raise BadRequest(f'messages[{i}] must be an object with a role: system, user or assistant', 'messages')
        content = text_of(message.get('content'))
        if content is None or message.get('tool_calls'):
            raise BadRequest(f'messages[{i}]: the content must be text; this server reads no images, audio or tool '
                             'calls', 'messages')
        read.append({'role': 'system' if role == 'developer' else role, 'content': content})
    return read


def text_of(content: Any) -> Optional[str]:
    """Return the content of a message as text; None if it is not text."""
    if isinstance(content, str):
        return content if content.isascii() or not any('\ud800' <= c <= '\udfff' for c in content) else None
    if isinstance(content, list) and all(isinstance(part, dict) and part.get('type') == 'text' for part in content):
        texts = [text_of(part.get('text')) for part in content if not isinstance(part.get('text'), list)]
        return ''.join(texts) if len(texts) == len(content) and None not in texts else None
    return None


def read_format(value: Any) -> tuple[tuple[str, ...], Optional[Mapping[str, Any]]]:
    """Return the only answers that a response_format allows, () for any, and a JSON schema of all others or None.

    Answers are listed where a schema allows a finite number of them: an enumeration, a constant or a truth value.
    """
    kind = value.get('type') if isinstance(value, dict) else None
    if value is None or kind == 'text':
        return (), None
    if kind == 'json_object':
        return (), {'type': 'object'}
    wanted = value.get('json_schema') if kind == 'json_schema' else None
    schema = wanted.get('schema') if isinstance(wanted, dict) else None
    if not isinstance(schema, dict):
        raise BadRequest('response_format must be text, json_object, or json_schema with a schema', 'response_format')
    values = schema.get('enum', [schema['const']] if 'const' in schema else
                        [True, False] if schema.get('type') == 'boolean' else None)
    if isinstance(values, list) and values and len(values) <= 1000:
        return tuple(dict.fromkeys(json.dumps(value, ensure_ascii=False) for value in values)), None
    return (), schema
