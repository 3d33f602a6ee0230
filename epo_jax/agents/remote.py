"""A client of remote models: chat completions of OpenAI-compatible endpoints within limits of rate, time and dollars.

    with Remote(remote_options(config.remote)) as remote:
        answers = remote.complete([Request(parse_address('gpt-4o@https://api.openai.com/v1'), 'judge', messages, ...)])

`complete` blocks, and all its requests run at once in an event loop of their own thread. Temporary failures (no
connection, 408, 409, 425, 429, 5xx, a response that is no completion, a timeout) are retried with exponential backoff,
or after the time that the endpoint asks for. What concerns one request only becomes a Failure in its place; what
concerns all of them raises an error that ends the run. Parameters that an endpoint does not know are left out.
"""

import asyncio
import collections
import contextlib
import dataclasses
import json
import logging
import random
import re
import sys
import threading
import time
from typing import Any, Awaitable, Callable, Mapping, Optional, Sequence, Union

from epo_jax.agents.address import Address, parse_address
from epo_jax.agents.answers import Answers, AnswersError, Entry, ReplayMiss
from epo_jax.agents.completions import Kind, Problem, brief, read_completion, whole
from epo_jax.agents.endpoint import Endpoint, Unreachable
from epo_jax.agents.limits import Budget, BudgetSpent, retry_after
from epo_jax.agents.questions import Answer, Refused, Request, Usage
from epo_jax.agents.remote_options import REMOTE_KEYS, RemoteOptions, remote_options
from epo_jax.runtime.errors import InputError
from epo_jax.runtime.hostcalls import Failure
from epo_jax.runtime.secrets import redact

__all__ = ['Address', 'Answer', 'AnswersError', 'BudgetSpent', 'Failure', 'NoAccess', 'REMOTE_KEYS', 'Refused',
           'Remote', 'RemoteOptions', 'ReplayMiss', 'Request', 'Unavailable', 'Usage', 'parse_address',
           'remote_options']

GIVE_UP = 10      # requests in succession that failed after all retries; then the endpoint counts as down
REFUSALS = 5      # requests in succession that were refused for an unknown reason; then it concerns all of them
HOPELESS = 2      # retries where no connection was ever possible, or the certificate is wrong
LONG_WAIT = 10.0  # seconds from which a wait is announced
QUIET = 60.0      # seconds between two lines about failures of one address


class NoAccess(InputError):
    """The endpoint rejects all requests: wrong key, URL, model or parameter, or no credit."""


class Unavailable(InputError):
    """The endpoint failed again and again, or the client was stopped. The same requests may succeed later."""


class Remote(contextlib.AbstractContextManager):
    """The client of a process. It is thread-safe: all threads share its limits."""

    def __init__(self, options: RemoteOptions, process: int = 0, processes: int = 1,
                 say: Optional[Callable[[str], None]] = None, clock: Callable[[], float] = time.monotonic,
                 sleep: Optional[Callable[[float], Awaitable[None]]] = None):
        """Open the record of answers and start the thread.

        Args:
          options: the settings.
          process: number of this process among those of the run, each of which has its own client.
          processes: number of processes, which share the rates and the budget equally.
          say: prints a line; None prints to stderr.
          clock: returns the time in seconds.
          sleep: waits for some seconds; None waits until the time is over or the client is stopped.

        Raises:
          AnswersError: the record of answers cannot be used.
        """
        self.options = options
        self._say = say or (lambda line: print(line, file=sys.stderr, flush=True))
        self._clock, self._sleep, self._processes = clock, sleep, processes
        self._answers = Answers(options.cache, process, options.replay) if options.cache else None
        earlier = sum(self._answers.spent().values()) if self._answers else 0.0
        share = earlier + (options.budget - earlier) / processes if options.budget else 0.0
        self._budget = Budget(share, earlier)
        self._body_fields = options.body_fields()
        self._endpoints: dict[Address, Endpoint] = {}
        self._usage: dict[str, Usage] = collections.defaultdict(Usage)
        self._asking: dict[str, asyncio.Task] = {}
        self._fatal: Optional[InputError] = None
        self._ended, self._settled = asyncio.Event(), asyncio.Event()
        for name in ('httpx', 'httpx2', 'httpcore', 'httpcore2', 'openai'):  # they log URLs and headers with keys
            logging.getLogger(name).setLevel(logging.WARNING)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name='remote models', daemon=True)
        self._thread.start()

    @property
    def spent(self) -> float:
        """Return the dollars spent, earlier runs with the same record included."""
        return self._budget.spent

    def usage(self) -> dict[str, Usage]:
        """Return what each role asked and spent through this client."""
        return {role: dataclasses.replace(usage, losses=usage.losses.copy())
                for role, usage in dict(self._usage).items()}

    def check(self, address: Address) -> None:
        """Check that an address can be asked, without asking it.

        Raises:
          InputError: its key cannot be sent, a header's variable is not set, or a price is missing.
        """
        if not self.options.replay:
            self._run(self._endpoint_of(address))

    def complete(self, requests: Sequence[Request]) -> list[Union[Answer, Failure]]:
        """Ask all requests at once and return the results in order.

        A request that failed after all retries, or that the endpoint rejects for its own content (Refused), has a
        Failure in its place.

        Raises:
          NoAccess: the endpoint rejects all requests.
          Unavailable: the endpoint failed again and again, or `stop` was called.
          BudgetSpent: the next request could exceed the budget.
          ReplayMiss: a request is not in the record that is replayed.
          AnswersError: the record cannot be read or written.
        """
        return self._run(self._complete(requests))

    def stop(self) -> None:
        """Make calls of `complete` raise, as soon as the requests that were already sent are answered and saved."""
        with contextlib.suppress(RuntimeError):  # it is closed
            self._loop.call_soon_threadsafe(self._end, Unavailable('the client was stopped'))

    def close(self) -> None:
        """End all requests and close the record."""
        if self._loop.is_closed():
            return
        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(self._shut_down(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        if not self._thread.is_alive():
            self._loop.close()
        if self._answers:
            self._answers.close()

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _shut_down(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for endpoint in self._endpoints.values():
            await endpoint.close()

    async def _complete(self, requests: Sequence[Request]) -> list[Union[Answer, Failure]]:
        # Errors wait for the other requests: those in flight are paid for, and their answers are saved.
        results = await asyncio.gather(*map(self._answer, requests), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results

    async def _answer(self, request: Request) -> Union[Answer, Failure]:
        """Return the result of a request; equal requests at the same time are asked once."""
        record = self._record(request)
        key = json.dumps(record, sort_keys=True)
        task = self._asking.get(key)
        shared = task is not None
        if task is None:
            task = self._asking[key] = asyncio.ensure_future(self._find(request, record))
            task.add_done_callback(lambda _: self._asking.pop(key, None))
        found, cached = await asyncio.shield(task)
        result = found
        if isinstance(found, Entry) and found.refusal is not None:
            result = Refused(found.refusal)
        elif isinstance(found, Entry):
            said = read_completion(json.loads(found.response))
            result = Answer(said.text, said.problem, said.cut, found.prompt_tokens, found.completion_tokens,
                            cached or shared, said.refused)
        self._usage[request.role].count(result)
        return result

    async def _find(self, request: Request, record: Mapping[str, Any]) -> tuple[Union[Entry, Failure], bool]:
        """Return the entry of a request, and whether it was in the record already."""
        if self._answers and (entry := await asyncio.to_thread(self._answers.get, record)) is not None:
            return entry, True
        if self.options.replay:
            last = request.messages[-1][1] if request.messages else ''
            raise ReplayMiss(
                f'{self.options.cache} holds no answer to a request of the {request.role} to {request.address} (seed '
                f'{request.seed}, attempt {request.attempt}): {redact(brief(last[-200:]))!r}; run without '
                'remote.replay to ask it')
        try:
            endpoint = await self._endpoint_of(request.address)
            async with endpoint.slots:
                entry = await self._ask(endpoint, request)
            if isinstance(entry, Entry) and self._answers:
                await asyncio.to_thread(self._answers.put, request.role, record, entry)
        except InputError as error:
            self._end(error)
            raise
        return entry, False

    async def _endpoint_of(self, address: Address) -> Endpoint:
        if address not in self._endpoints:
            self._endpoints[address] = Endpoint(address, self.options, self._processes)
        return self._endpoints[address]

    def _end(self, error: InputError) -> None:
        self._fatal = self._fatal or error
        self._ended.set()
        self._settle()

    def _settle(self) -> None:
        """Wake the requests that wait for a part of the budget."""
        self._settled.set()
        self._settled = asyncio.Event()

    def _check(self) -> None:
        if self._fatal is not None:
            raise type(self._fatal)(str(self._fatal))

    async def _wait(self, seconds: float) -> None:
        """Wait, or raise the error that ended the client."""
        if self._sleep is not None:
            await self._sleep(seconds)
        else:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), seconds)
        self._check()

    def _record(self, request: Request) -> dict[str, Any]:
        """Return what identifies a request."""
        tokens = request.max_tokens + self.options.reasoning_tokens if request.max_tokens else 0
        return {
            'url': request.address.public_url, 'model': request.address.name, 'role': request.role,
            'messages': [[role, whole(text)] for role, text in request.messages], 'temperature': request.temperature,
            'max_tokens': tokens, 'seed': request.seed % 2**31, 'attempt': request.attempt,
            'response_format': self._response_format(request), 'body': self._body_fields}

    def _response_format(self, request: Request) -> Optional[dict[str, Any]]:
        if request.schema is None or self.options.structured == 'off':
            return None
        if self.options.structured == 'json_object':
            return {'type': 'json_object'}
        return {'type': 'json_schema', 'json_schema': {'name': re.sub(r'\W', '_', request.role) or 'answer',
                                                       'schema': dict(request.schema), 'strict': True}}

    def _body(self, endpoint: Endpoint, request: Request) -> tuple[dict[str, Any], set[str]]:
        """Return the body of a request, and its parameters that can be left out."""
        record = self._record(request)
        optional = {'temperature': record['temperature'], 'seed': record['seed'],
                    endpoint.tokens_name: record['max_tokens'] or None, 'response_format': record['response_format']}
        optional = {name: value for name, value in optional.items()
                    if value is not None and name not in endpoint.dropped and name not in self._body_fields}
        fields = {name: value for name, value in self._body_fields.items() if value is not None}
        messages = [{'role': role, 'content': text} for role, text in record['messages']]
        return {'model': request.address.name, 'messages': messages} | optional | fields, set(optional)

    async def _ask(self, endpoint: Endpoint, request: Request) -> Union[Entry, Failure]:
        """Ask within the budget and return what came back, with its cost."""
        # The number of tokens is not known before the answer. A token rarely has fewer than three bytes of prose.
        prompt = sum(len(text.encode(errors='replace')) for _, text in request.messages) // 3 + 16
        longest = request.max_tokens + self.options.reasoning_tokens if request.max_tokens else 4096
        reserved = endpoint.cost(prompt, longest)
        self._check()
        while not self._budget.reserve(reserved):
            await self._settled.wait()
            self._check()
        dollars = 0.0
        try:
            expected = prompt + (longest // 4 if request.max_tokens else 0)
            entry = await self._try(endpoint, request, prompt, expected)
            if isinstance(entry, Entry) and entry.refusal is None:
                dollars = entry.dollars
                endpoint.pace.correct(entry.prompt_tokens + entry.completion_tokens - expected)
                usage = self._usage[request.role]
                usage.prompt_tokens += entry.prompt_tokens
                usage.completion_tokens += entry.completion_tokens
                usage.dollars += dollars
                usage.unpriced += endpoint.price is None
            return entry
        finally:
            self._budget.settle(reserved, dollars)
            self._settle()

    async def _try(self, endpoint: Endpoint, request: Request, prompt: int, expected: int) -> Union[Entry, Failure]:
        """Send a request until it succeeds or fails for good."""
        options, attempts = self.options, 0
        while True:
            start = endpoint.pace.reserve(self._clock(), expected)
            while (left := max(start, endpoint.pace.paused_until) - self._clock()) > 0:
                await self._wait(left)
            self._check()
            body, optional = self._body(endpoint, request)
            attempts += 1
            wait = min(options.backoff * 2.0**min(attempts - 1, 60), options.longest_wait) * random.uniform(0.5, 1)
            try:
                outcome, headers = await endpoint.send(body, optional, prompt)
            except Unreachable as error:
                outcome, headers = Problem(Kind.TEMPORARY, str(error)), {}
                if error.certificate or error.connecting and not endpoint.reached:
                    if attempts > min(options.retries, HOPELESS):
                        raise NoAccess(f'cannot connect to {endpoint.address}: {error}') from error
            if isinstance(outcome, Entry):
                endpoint.failures = endpoint.refusals = 0
                return outcome
            kind, text = outcome.kind, f'{endpoint.address}: {outcome.text}'
            if kind is Kind.PARAMETER:
                attempts -= 1
                if instead := endpoint.refuse(outcome.parameter):
                    self._say(f'{text}; {outcome.parameter} is refused, so {instead}')
            elif kind is Kind.ACCESS:
                raise NoAccess(text)
            elif kind is Kind.CONTENT:
                return Entry(None, outcome.text)
            elif kind is Kind.UNKNOWN:
                endpoint.refusals += 1
                if endpoint.refusals >= REFUSALS:
                    raise NoAccess(f'{text} ({endpoint.refusals} requests in succession)')
                return Failure(outcome.text)
            elif attempts > options.retries:
                endpoint.failures += 1
                reason = f'no answer after {attempts} attempt(s); last problem: {outcome.text}'
                if endpoint.failures >= GIVE_UP:
                    raise Unavailable(f'{endpoint.address} did not answer {endpoint.failures} requests in succession: '
                                      f'{reason}')
                return Failure(reason)
            else:
                self._usage[request.role].retried += 1
                await self._wait(self._announce(endpoint, text, headers, wait, attempts))

    def _announce(self, endpoint: Endpoint, text: str, headers: Mapping[str, str], wait: float,
                  attempts: int) -> float:
        """Return the seconds before the next attempt, and say why, but not too often."""
        now, asked = self._clock(), retry_after(headers, time.time())
        if asked is not None:
            wait = min(asked, self.options.longest_wait)
            if endpoint.pace.pause(now, wait) and asked >= LONG_WAIT:
                self._say(f'{text}; the endpoint asks to wait {asked:g} s, and all requests to it wait {wait:g} s')
                endpoint.quiet_until = now + QUIET
        if now >= endpoint.quiet_until and (attempts > 1 or wait >= LONG_WAIT or not endpoint.reached):
            self._say(f'{text}; asking again in {wait:.1f} s')
            endpoint.quiet_until = now + QUIET
        return wait
