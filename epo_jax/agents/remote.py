"""A client for OpenAI-compatible endpoints, with limits of rate, time and cost.

Calls block and may come from many threads at once. `Client.reply` serves a HostAgent, and `Client.complete` labels
files. Temporary failures (no connection, 408, 409, 425, 429, 5xx, an answer that is not JSON, a timeout) are retried
after increasing delays, or when the endpoint says.
"""

import contextlib
import dataclasses
import email.utils
import http.client
import json
import os
import random
import socket
import threading
import time
from typing import Any, Callable, Mapping, Optional, Sequence
import urllib.parse

PASSING = (408, 409, 425, 429)
HOPELESS = (401, 403, 404)


class RemoteError(RuntimeError):
    """A completion that failed; the message says why."""


class Unavailable(RemoteError):
    """The endpoint kept failing; a later attempt may succeed."""


class RequestRefused(RemoteError):
    """The endpoint refuses this request for good (too long, filtered)."""


class NoAccess(RemoteError):
    """The endpoint refuses every request: wrong key, wrong address, unknown model, no credit."""


class BudgetSpent(RemoteError):
    """The next request could exceed the budget."""


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """An endpoint: model, request parameters, limits and prices.

    Attributes:
      url: base address such as https://host/v1; '/v1' is added where there is no path.
      model: its name at the endpoint.
      key_variable: environment variable with the API key; a missing one means no key.
      temperature: of sampling.
      max_tokens: longest answer; 0: the endpoint's own limit.
      timeout: seconds for one request, from connecting to the last byte.
      retries: further tries after one that failed.
      backoff, longest_wait: seconds before the first retry, doubled from try to try, and their maximum.
      concurrency: requests at a time.
      requests_per_minute, tokens_per_minute: rates that are not exceeded; 0: unlimited.
      prices: dollars for a million tokens read, and written.
      budget: dollars; 0: unlimited.
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
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ('http', 'https') or not parts.hostname:
            raise ValueError(f'{self.url!r} is no http(s) address')
        if self.concurrency < 1 or self.retries < 0 or self.timeout <= 0:
            raise ValueError('concurrency and timeout are positive, and retries not negative')
        if self.budget and not any(self.prices):
            raise ValueError('a budget needs prices: dollars for a million tokens read, and written')

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return the price in dollars."""
        return (prompt_tokens * self.prices[0] + completion_tokens * self.prices[1]) / 1e6


@dataclasses.dataclass(frozen=True)
class Answer:
    """A completion; `text` is None if the model declined to answer."""

    text: Optional[str]
    prompt_tokens: int
    completion_tokens: int


class Client:
    """A client of an endpoint that keeps its limits; it can be used from many threads."""

    def __init__(self, endpoint: Endpoint, spent: float = 0.0, clock: Callable[[], float] = time.monotonic,
                 sleep: Optional[Callable[[float], Any]] = None):
        """Create a client; `spent` are dollars of earlier runs that count towards the budget."""
        self.endpoint = endpoint
        self._stopped = threading.Event()
        self._clock, self._sleep = clock, sleep or self._stopped.wait
        self._slots = threading.BoundedSemaphore(endpoint.concurrency)
        self._lock = threading.Lock()
        self._spent, self._reserved, self._retried = spent, 0.0, 0
        self._next_request = self._next_tokens = self._paused_until = -float('inf')

    @property
    def spent(self) -> float:
        """Return the dollars spent so far, in earlier runs too."""
        return self._spent

    @property
    def retried(self) -> int:
        """Return the number of requests that were repeated."""
        return self._retried

    def stop(self) -> None:
        """Stop: waiting calls fail, and requests that were sent are completed."""
        self._stopped.set()

    def reply(self, history: Sequence[tuple[str, str]], seed: int) -> str:
        """Return the endpoint as a `Reply` of `epo_jax.agents.host`: (role, text) messages so far -> the next message.

        Raises:
          RemoteError: there is none.
        """
        answer = self.complete([{'role': role, 'content': content} for role, content in history], seed)
        if answer.text is None:
            raise RequestRefused('the model declined to answer')
        return answer.text

    def complete(self, messages: Sequence[Mapping[str, str]], seed: int) -> Answer:
        """Request one chat completion; `seed` is sent to the endpoint, which may ignore it.

        Raises:
          BudgetSpent, NoAccess, RequestRefused, Unavailable: see there.
        """
        end = self.endpoint
        body = {'model': end.model, 'messages': list(messages), 'temperature': end.temperature, 'seed': seed}
        if end.max_tokens:
            body['max_tokens'] = end.max_tokens
        # Tokens are known only afterwards. A token is hardly ever less than three bytes of prose.
        expected = sum(len(message['content'].encode()) for message in messages) // 3 + 16
        with self._slots, self._reserve(end.cost(expected, end.max_tokens or 4096)):
            answer = self._persist(json.dumps(body).encode(), expected + end.max_tokens // 4)
            with self._lock:
                self._spent += end.cost(answer.prompt_tokens, answer.completion_tokens)
                actual = answer.prompt_tokens + answer.completion_tokens
                if end.tokens_per_minute:
                    self._next_tokens += 60 * (actual - expected - end.max_tokens // 4) / end.tokens_per_minute
        return answer

    @contextlib.contextmanager
    def _reserve(self, most: float):
        """Reserve the highest cost of a request until it is completed."""
        with self._lock:
            if self.endpoint.budget and self._spent + self._reserved + most > self.endpoint.budget:
                raise BudgetSpent(f'${self._spent:.4f} of the budget of ${self.endpoint.budget:g} are spent, and the '
                                  f'next request may cost ${most:.4f}')
            self._reserved += most
        try:
            yield
        finally:
            with self._lock:
                self._reserved -= most

    def _persist(self, body: bytes, tokens: int) -> Answer:
        """Send a request until there is an answer or a final error."""
        end, problem = self.endpoint, ''
        for attempt in range(end.retries + 1):
            self._wait_for_turn(tokens)
            if self._stopped.is_set():
                raise Unavailable(f'given up after {attempt} tries {problem and f"({problem})"}')
            wait = min(end.backoff * 2**attempt, end.longest_wait) * random.uniform(0.5, 1)
            try:
                status, headers, data = self._post(body)
            except (OSError, http.client.HTTPException) as error:
                problem = f'{type(error).__name__}: {error}'
            else:
                if status == 200:
                    try:
                        return _read_answer(data, len(body))
                    except ValueError as error:
                        problem = f'the answer is no chat completion ({error})'
                else:
                    problem = f'HTTP {status}: {_reason(data)}'
                    if status in HOPELESS or b'insufficient_quota' in data:
                        raise NoAccess(f'{end.url}, model {end.model!r}: {problem}')
                    if status not in PASSING and status < 500:
                        raise RequestRefused(problem)
                    wait = self._heed(headers, wait)
            if attempt < end.retries:
                with self._lock:
                    self._retried += 1
                self._sleep(wait)
        raise Unavailable(f'no answer after {end.retries + 1} tries; the last one: {problem}')

    def _heed(self, headers: Mapping[str, str], wait: float) -> float:
        """Return the seconds to wait before a retry, with Retry-After; all threads wait."""
        asked = _retry_after(headers.get('retry-after'))
        if asked is None:
            return wait
        with self._lock:
            self._paused_until = max(self._paused_until, self._clock() + asked)
        return asked

    def _wait_for_turn(self, tokens: int) -> None:
        """Wait until both rate limits, and the endpoint, allow a request of this many tokens."""
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
        """Return (status, headers in lower case, data) of one request, which takes `timeout` seconds at most."""
        end, parts = self.endpoint, urllib.parse.urlsplit(self.endpoint.url)
        path = (parts.path.rstrip('/') or '/v1').removesuffix('/chat/completions') + '/chat/completions'
        kind = http.client.HTTPSConnection if parts.scheme == 'https' else http.client.HTTPConnection
        connection = kind(parts.hostname, parts.port, timeout=end.timeout)
        headers = {'Content-Type': 'application/json', 'Accept': 'application/json'}
        if key := os.environ.get(end.key_variable):
            headers['Authorization'] = f'Bearer {key}'
        late = threading.Event()

        def cut():  # a socket's own timeout starts again with every byte that a slow endpoint sends
            late.set()
            with contextlib.suppress(OSError, AttributeError):
                connection.sock.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(end.timeout, cut)
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
            if late.is_set():
                raise TimeoutError(f'no answer within {end.timeout:g} s') from error
            raise
        finally:
            timer.cancel()
            connection.close()


def _read_answer(data: bytes, sent: int) -> Answer:
    """Read a chat completion; raise ValueError if the data is none."""
    try:
        content = json.loads(data)
        message = content['choices'][0]['message']
        text = message.get('content')
        usage = content.get('usage') or {}
        tokens = usage.get('prompt_tokens', sent // 3), usage.get('completion_tokens', len(text or '') // 3 + 1)
        declined = bool(message.get('refusal')) or not isinstance(text, str)
        return Answer(None if declined else text, int(tokens[0]), int(tokens[1]))
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f'{type(error).__name__}: {error}') from error


def _reason(data: bytes) -> str:
    """Return the error message of an endpoint, on one short line."""
    text: Any = data.decode('utf-8', errors='replace')
    with contextlib.suppress(ValueError, KeyError, TypeError):
        text = json.loads(text)['error']['message']
    return ' '.join(str(text).split())[:200] or 'without a reason'


def _retry_after(value: Optional[str]) -> Optional[float]:
    """Return the seconds that a Retry-After header asks for, as a number or a date, or None."""
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
