"""A client for OpenAI-compatible endpoints that enforces limits of rate, time and cost.

Calls block, and many threads can share a client. `Client.reply` is a reply function for HostAgent; `Client.complete`
labels files. Temporary failures (no connection, 408, 409, 425, 429, 5xx, a response that is not JSON, a timeout) are
retried with exponential backoff, or after the time that the endpoint requests.
"""

import contextlib
import dataclasses
import email.utils
import http.client
import json
import random
import socket
import threading
import time
from typing import Any, Callable, Mapping, Optional, Sequence
import urllib.parse

from epo_jax.runtime.secrets import read_key, redact

# HTTP statuses below 500 that are retried, and statuses after which no request will succeed.
TEMPORARY = (408, 409, 425, 429)
PERMANENT = (401, 403, 404)


class RemoteError(RuntimeError):
    """A completion failed. The message says why."""


class Unavailable(RemoteError):
    """The endpoint failed repeatedly. A later request may succeed."""


class RequestRefused(RemoteError):
    """The endpoint rejects this request permanently, for example because it is too long."""


class NoAccess(RemoteError):
    """The endpoint rejects all requests: wrong key, wrong address, unknown model or no credit."""


class BudgetSpent(RemoteError):
    """The next request could exceed the budget."""


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """An endpoint: model, request parameters, limits and prices.

    Attributes:
      url: base URL such as https://host/v1; '/v1' is appended if the URL has no path.
      model: name of the model at the endpoint.
      key_variable: environment variable that contains the API key; if it is not set, no key is sent.
      temperature: sampling temperature.
      max_tokens: maximum number of tokens of an answer; 0 means the limit of the endpoint.
      timeout: maximum time of a request in seconds, from connecting to the last byte.
      retries: maximum number of retries of a request.
      backoff: time before the first retry in seconds; it doubles with every retry.
      longest_wait: maximum time before a retry in seconds.
      concurrency: maximum number of simultaneous requests.
      requests_per_minute: maximum rate of requests; 0 means no limit.
      tokens_per_minute: maximum rate of tokens; 0 means no limit.
      prices: dollars per million prompt tokens, and dollars per million completion tokens.
      budget: maximum cost in dollars; 0 means no limit.
    """

    url: str
    model: str
    key_variable: str = 'OPENAI_API_KEY'
    temperature: float = 0.7
    max_tokens: int = 1024
    timeout: float = 120.0
    retries: int = 8
    backoff: float = 1.0
    longest_wait: float = 60.0
    concurrency: int = 8
    requests_per_minute: float = 0.0
    tokens_per_minute: float = 0.0
    prices: tuple[float, float] = (0.0, 0.0)
    budget: float = 0.0

    def __post_init__(self):
        url = urllib.parse.urlsplit(self.url)
        if url.scheme not in ('http', 'https') or not url.hostname:
            raise ValueError(f'{redact(self.url)!r} is not an http or https URL')
        if self.concurrency < 1 or self.retries < 0 or self.timeout <= 0:
            raise ValueError(
                'concurrency and timeout must be positive and retries must not be negative, but they are '
                f'{self.concurrency}, {self.timeout:g} and {self.retries}')
        if self.budget and not any(self.prices):
            raise ValueError('a budget requires prices: dollars per million prompt tokens and completion tokens')

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return the cost of a request in dollars."""
        return (prompt_tokens * self.prices[0] + completion_tokens * self.prices[1]) / 1e6


@dataclasses.dataclass(frozen=True)
class Answer:
    """A completion. `text` is None if the model declined to answer."""

    text: Optional[str]
    prompt_tokens: int
    completion_tokens: int
    problem: Optional[str] = None
    cut: bool = False
    cached: bool = False


@dataclasses.dataclass(frozen=True)
class Request:
    address: Any
    role: str
    messages: tuple
    temperature: float
    max_tokens: int
    seed: int
    attempt: int = 0
    schema: Optional[Mapping] = None


class Remote:
    pass


class Client:
    """A thread-safe client that enforces the limits of an endpoint."""

    def __init__(self, endpoint: Endpoint, spent: float = 0.0, clock: Callable[[], float] = time.monotonic,
                 sleep: Optional[Callable[[float], Any]] = None):
        """Create a client.

        Args:
          endpoint: the endpoint.
          spent: dollars spent in earlier runs, which count toward the budget.
          clock: function that returns the time in seconds.
          sleep: function that waits for some seconds; None waits until `stop` is called or the time is over.

        Raises:
          SecretError: the API key cannot be sent.
        """
        self.endpoint, self._key = endpoint, read_key(endpoint.key_variable)
        self._stopped = threading.Event()
        self._clock, self._sleep = clock, sleep or self._stopped.wait
        self._slots = threading.BoundedSemaphore(endpoint.concurrency)
        self._lock = threading.Lock()
        self._spent, self._reserved, self._retried = spent, 0.0, 0
        self._next_request = self._next_tokens = self._paused_until = -float('inf')

    @property
    def spent(self) -> float:
        """Return the dollars spent so far, including earlier runs."""
        return self._spent

    @property
    def retried(self) -> int:
        """Return the number of retries so far."""
        return self._retried

    def stop(self) -> None:
        """Make waiting calls fail. Requests that were already sent are completed."""
        self._stopped.set()

    def reply(self, history: Sequence[tuple[str, str]], seed: int) -> str:
        """Return the next message of a conversation. This method is a `Reply` for `epo_jax.agents.host`.

        Args:
          history: the messages so far as (role, text).
          seed: the random seed.

        Raises:
          RemoteError: the request failed, or the model declined to answer.
        """
        answer = self.complete([{'role': role, 'content': content} for role, content in history], seed)
        if answer.text is None:
            raise RequestRefused('the model declined to answer')
        return answer.text

    def complete(self, messages: Sequence[Mapping[str, str]], seed: int) -> Answer:
        """Request a chat completion.

        Args:
          messages: the conversation, in the format of OpenAI.
          seed: the random seed. The endpoint may ignore it.

        Raises:
          BudgetSpent: the request could exceed the budget.
          NoAccess: the endpoint rejects all requests.
          RequestRefused: the endpoint rejects this request permanently.
          Unavailable: all retries failed, or the client was stopped.
        """
        end = self.endpoint
        body = {'model': end.model, 'messages': list(messages), 'temperature': end.temperature, 'seed': seed}
        if end.max_tokens:
            body['max_tokens'] = end.max_tokens
        # The number of tokens is not known before the answer. A token rarely has fewer than three bytes of prose.
        expected = sum(len(message['content'].encode()) for message in messages) // 3 + 16
        with self._slots, self._reserve(end.cost(expected, end.max_tokens or 4096)):
            answer = self._send(json.dumps(body).encode(), expected + end.max_tokens // 4)
            with self._lock:
                self._spent += end.cost(answer.prompt_tokens, answer.completion_tokens)
                actual = answer.prompt_tokens + answer.completion_tokens
                if end.tokens_per_minute:
                    self._next_tokens += 60 * (actual - expected - end.max_tokens // 4) / end.tokens_per_minute
        return answer

    @contextlib.contextmanager
    def _reserve(self, max_cost: float):
        """Reserve the maximum cost of a request until it is completed."""
        with self._lock:
            if self.endpoint.budget and self._spent + self._reserved + max_cost > self.endpoint.budget:
                raise BudgetSpent(f'the next request may cost ${max_cost:.4f} and could exceed the budget of '
                                  f'${self.endpoint.budget:g} (${self._spent:.4f} is spent); increase the budget')
            self._reserved += max_cost
        try:
            yield
        finally:
            with self._lock:
                self._reserved -= max_cost

    def _send(self, body: bytes, tokens: int) -> Answer:
        """Send a request, with retries, until it succeeds or fails permanently."""
        end, problem = self.endpoint, ''
        for attempt in range(end.retries + 1):
            self._wait_for_turn(tokens)
            if self._stopped.is_set():
                reason = f' (last problem: {problem})' if problem else ''
                raise Unavailable(f'the client was stopped after {attempt} attempt(s){reason}')
            wait = min(end.backoff * 2**attempt, end.longest_wait) * random.uniform(0.5, 1)
            try:
                status, headers, data = self._post(body)
            except (OSError, http.client.HTTPException) as error:
                problem = redact(f'{type(error).__name__}: {error}', self._key)
            else:
                if status == 200:
                    try:
                        return _read_answer(data, len(body))
                    except ValueError as error:
                        problem = f'the response is not a chat completion ({error})'
                else:
                    problem = f'HTTP {status}: {_reason(data, self._key)}'
                    if status in PERMANENT or b'insufficient_quota' in data:
                        raise NoAccess(f'{redact(end.url, self._key)}, model {end.model!r}: {problem}')
                    if status not in TEMPORARY and status < 500:
                        raise RequestRefused(problem)
                    wait = self._retry_delay(headers, wait)
            if attempt < end.retries:
                with self._lock:
                    self._retried += 1
                self._sleep(wait)
        raise Unavailable(f'no answer after {end.retries + 1} attempt(s); last problem: {problem}')

    def _retry_delay(self, headers: Mapping[str, str], default: float) -> float:
        """Return the seconds before a retry. If a Retry-After header sets them, all threads pause."""
        delay = _retry_after(headers.get('retry-after'))
        if delay is None:
            return default
        with self._lock:
            self._paused_until = max(self._paused_until, self._clock() + delay)
        return delay

    def _wait_for_turn(self, tokens: int) -> None:
        """Wait until the rate limits and the endpoint allow a request of this many tokens."""
        end = self.endpoint
        with self._lock:
            now = self._clock()
            start = max(now, self._paused_until, self._next_request if end.requests_per_minute else now,
                        self._next_tokens if end.tokens_per_minute else now)
            if end.requests_per_minute:
                self._next_request = start + 60 / end.requests_per_minute
            if end.tokens_per_minute:
                self._next_tokens = max(self._next_tokens, start) + 60 * tokens / end.tokens_per_minute
        if start > now:
            self._sleep(start - now)

    def _post(self, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        """Send one request that takes at most `timeout` seconds; return status, headers in lower case, and data."""
        end, url = self.endpoint, urllib.parse.urlsplit(self.endpoint.url)
        path = (url.path.rstrip('/') or '/v1').removesuffix('/chat/completions') + '/chat/completions'
        connection_class = http.client.HTTPSConnection if url.scheme == 'https' else http.client.HTTPConnection
        connection = connection_class(url.hostname, url.port, timeout=end.timeout)
        headers = {'Content-Type': 'application/json', 'Accept': 'application/json'}
        if self._key:
            headers['Authorization'] = f'Bearer {self._key}'
        late = threading.Event()

        def shut_down():  # the timeout of a socket restarts with every byte that a slow endpoint sends
            late.set()
            with contextlib.suppress(OSError, AttributeError):
                connection.sock.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(end.timeout, shut_down)
        timer.daemon = True
        timer.start()
        try:
            connection.request('POST', path, body, headers)
            response = connection.getresponse()
            data = response.read()
            if late.is_set():
                raise TimeoutError(f'no answer within {end.timeout:g} s')
            return response.status, {name.lower(): value for name, value in response.getheaders()}, data
        except (OSError, http.client.HTTPException, AttributeError) as error:
            if late.is_set() or isinstance(error, TimeoutError):
                raise TimeoutError(f'no answer within {end.timeout:g} s') from error
            raise
        finally:
            timer.cancel()
            connection.close()


def _read_answer(data: bytes, request_bytes: int) -> Answer:
    """Parse a chat completion, or raise ValueError if it is invalid."""
    try:
        content = json.loads(data)
        message = content['choices'][0]['message']
        text = message.get('content')
        usage = content.get('usage') or {}
        prompt_tokens = usage.get('prompt_tokens', request_bytes // 3)
        completion_tokens = usage.get('completion_tokens', len(text or '') // 3 + 1)
        declined = bool(message.get('refusal')) or not isinstance(text, str)
        return Answer(None if declined else text, int(prompt_tokens), int(completion_tokens))
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f'{type(error).__name__}: {error}') from error


def _reason(data: bytes, key: str) -> str:
    """Return the error message in a response as one short line, which may not repeat the API key."""
    text: Any = data.decode('utf-8', errors='replace')
    with contextlib.suppress(ValueError, KeyError, TypeError):
        text = json.loads(text)['error']['message']
    return ' '.join(redact(str(text), key).split())[:200] or 'no error message'


def _retry_after(value: Optional[str]) -> Optional[float]:
    """Return the seconds that a Retry-After header, a number or a date, requests; None if it is missing or invalid."""
    if value is None:
        return None
    try:
        return max(float(value), 0.0) if float(value) < float('inf') else None
    except ValueError:
        pass
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except ValueError:
        return None
