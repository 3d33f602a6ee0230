"""The server: routes, limits, keys and metrics, on starlette."""

import asyncio
import collections
import contextlib
import dataclasses
import hmac
import time
from typing import Any, AsyncIterator, Awaitable, Callable, Optional

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from epo_jax.serve.completions import AnswerError, Completion, Completions
from epo_jax.serve.engine import Engine
from epo_jax.serve.protocol import BadRequest, parse_json, read_request
from epo_jax.serve.tickets import Busy


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the server accepts.

    Attributes:
      body: bytes of a request.
      headers: bytes of all its headers.
      seconds: time for a request to arrive, and for an answer to be finished and read by its client.
      n: answers to one request.
    """

    body: int = 4 * 2**20
    headers: int = 16 * 2**10
    seconds: float = 600.0
    n: int = 16


class Guard:
    """Lets requests in, and turns errors into answers.

    Attributes:
      limits: what is accepted.
      statuses: number of answers by status; those of an upstream model are not counted.
    """

    def __init__(self, key: str = '', limits: Limits = Limits()):
        """Set the API key that clients must send ('' lets everybody in) and the limits."""
        self.limits, self._key = limits, key
        self.statuses: collections.Counter = collections.Counter()

    def __call__(self, handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """Return a handler that checks the key and turns errors into answers."""
        async def handle(request: Request) -> Response:
            try:
                check_headers(request, self.limits)
                check_key(request, self._key)
                response = await handler(request)
            except BadRequest as error:
                response = error_response(str(error), error.status, param=error.param, code=error.code)
            except Busy as error:
                response = error_response(f'{error}; try again later', 429, code='rate_limit_exceeded')
                response.headers['Retry-After'] = '1'
            except AnswerError as error:
                response = error_response(str(error), 500)
            except (ClientDisconnect, TimeoutError):
                response = error_response('the request did not arrive in time', 408)
            if response.status_code:
                self.statuses[response.status_code] += 1
            return response

        return handle


class Server:
    """The handlers of an OpenAI-compatible server for one model."""

    def __init__(self, completions: Completions, guard: Guard):
        """Serve a model."""
        self._completions, self._guard = completions, guard
        self._seconds: collections.Counter = collections.Counter()

    def routes(self) -> list[Route]:
        """Return the routes."""
        guard = self._guard
        return [
            Route('/v1/chat/completions', guard(self.chat), methods=['POST']),
            Route('/v1/models', guard(self.models), methods=['GET']),
            Route('/v1/models/{name:path}', guard(self.model), methods=['GET']),
            Route('/health', self.health, methods=['GET']),
            Route('/metrics', self.metrics, methods=['GET'])]

    async def chat(self, request: Request) -> Response:
        """Answer POST /v1/chat/completions."""
        began, limits = time.monotonic(), self._guard.limits
        wanted = read_request(parse_json(await read_body(request, limits)), limits.n)
        completion = await self._completions.start(wanted)
        if wanted.stream:
            return EventResponse(completion, limits.seconds, lambda: self._first_token(began))
        try:
            answer = await while_connected(request, completion.answer(), limits.seconds)
        finally:
            completion.cancel()
        self._first_token(began)
        return JSONResponse(answer)

    def _first_token(self, began: float) -> None:
        self._seconds.update({'sum': time.monotonic() - began, 'count': 1})

    async def models(self, request: Request) -> Response:
        """Answer GET /v1/models."""
        return JSONResponse({'object': 'list', 'data': [self._model()]})

    async def model(self, request: Request) -> Response:
        """Answer GET /v1/models/NAME."""
        if request.path_params['name'] != self._completions.loaded.name:
            raise BadRequest(f'there is no model {request.path_params["name"]!r:.80}', 'model', 404, 'model_not_found')
        return JSONResponse(self._model())

    def _model(self) -> dict[str, Any]:
        return {'id': self._completions.loaded.name, 'object': 'model', 'created': 0, 'owned_by': 'epo_jax',
                'max_model_len': self._completions.engine.options.capacity}

    async def health(self, request: Request) -> Response:
        """Answer GET /health: 200 while requests can be served."""
        failure = self._completions.engine.failure
        return JSONResponse({'status': failure or 'ok'}, 503 if failure else 200)

    async def metrics(self, request: Request) -> Response:
        """Answer GET /metrics in the text format of Prometheus."""
        return PlainTextResponse(
            engine_metrics(self._completions.engine) + status_metrics(self._guard.statuses)
            + metric('answer_seconds_sum', 'Seconds to the first token of a stream or the whole answer.', 'counter',
                     {'': self._seconds['sum']})
            + metric('answer_seconds_count', 'Answers of which the time was taken.', 'counter',
                     {'': self._seconds['count']}), media_type='text/plain; version=0.0.4')


class EventResponse(Response):
    """A stream of server-sent events, which ends when its client leaves or takes too long."""

    def __init__(self, completion: Completion, seconds: float, on_first: Callable[[], None]):
        """Describe the stream; `on_first` is called when the first token is sent."""
        super().__init__(media_type='text/event-stream', headers={'Cache-Control': 'no-cache'})
        del self.headers['content-length']
        self._completion, self._seconds, self._on_first = completion, seconds, on_first

    async def __call__(self, scope, receive, send) -> None:
        """Send the events, and free the slots however this ends."""
        async def stream() -> None:
            await send({'type': 'http.response.start', 'status': 200, 'headers': self.raw_headers})
            number = 0
            async for event in self._completion.events():
                await send({'type': 'http.response.body', 'body': event.encode(), 'more_body': True})
                number += 1
                if number == 2:
                    self._on_first()
            await send({'type': 'http.response.body', 'body': b''})

        try:
            await while_connected(Request(scope, receive), stream(), self._seconds)
        except (ClientDisconnect, TimeoutError):
            pass
        finally:
            self._completion.cancel()


async def while_connected(request: Request, work: Any, seconds: float) -> Any:
    """Await work, and cancel it when the client leaves.

    Raises:
      ClientDisconnect: the client has left.
      TimeoutError: the work took too long.
    """
    async def left() -> None:
        while (await request.receive())['type'] != 'http.disconnect':
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(left())]
    try:
        done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0] in done:
            return tasks[0].result()
        raise ClientDisconnect() if done else TimeoutError()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def read_body(request: Request, limits: Limits) -> bytes:
    """Return the body of a request.

    Raises:
      BadRequest: it is too large.
      TimeoutError: it does not arrive in time.
    """
    body = bytearray()
    async with asyncio.timeout(limits.seconds):
        async for part in request.stream():
            body += part
            if len(body) > limits.body:
                raise BadRequest(f'the body is larger than {limits.body} bytes', status=413)
    return bytes(body)


def check_headers(request: Request, limits: Limits) -> None:
    """Raise BadRequest if the headers of a request are too large."""
    if sum(len(name) + len(value) for name, value in request.headers.raw) > limits.headers:
        raise BadRequest(f'the headers are larger than {limits.headers} bytes', status=431)


def check_key(request: Request, key: str) -> None:
    """Raise BadRequest unless the request has the API key."""
    sent = request.headers.get('authorization', '').removeprefix('Bearer ').strip()
    if key and not hmac.compare_digest(sent.encode(), key.encode()):
        raise BadRequest('the API key is missing or wrong', status=401, code='invalid_api_key')


def error_response(message: str, status: int, param: Optional[str] = None, code: Optional[str] = None) -> JSONResponse:
    """Return an error in the form of OpenAI's API."""
    kind = 'invalid_request_error' if status < 500 else 'server_error'
    return JSONResponse({'error': {'message': message, 'type': kind, 'param': param, 'code': code}}, status)


def metric(name: str, meaning: str, kind: str, values: dict[str, float]) -> str:
    """Return the lines of a metric; the keys of `values` are labels, or ''."""
    lines = [f'# HELP epo_{name} {meaning}', f'# TYPE epo_{name} {kind}']
    return '\n'.join(lines + [f'epo_{name}{labels} {value}' for labels, value in values.items()]) + '\n'


def engine_metrics(engine: Engine) -> str:
    """Return the metrics of an engine."""
    meanings = {
        'requests': 'Requests that were queued.', 'finished': 'Requests that were answered.',
        'cancelled': 'Requests whose clients left.', 'refused': 'Requests that did not fit in the queue.',
        'failed': 'Requests that ended with an error.', 'tokens_read': 'Tokens of prompts that were read.',
        'tokens_reused': 'Tokens of prompts that were in a slot already.',
        'tokens_forgotten': 'Tokens in slots that other requests got.',
        'tokens_sampled': 'Tokens that were sampled.',
        'steps': 'Decoding steps.', 'steps_slots': 'Tokens that these steps could have sampled.'}
    lines = ''.join(metric(f'{name}_total', meaning, 'counter', {'': engine.counts[name]})
                    for name, meaning in meanings.items())
    return lines + ''.join(metric(name, f'Present number of {name}.', 'gauge', {'': value})
                           for name, value in engine.load().items())


def status_metrics(statuses: collections.Counter) -> str:
    """Return the number of answers by status."""
    return metric('http_responses_total', 'Answers by status.', 'counter',
                  {f'{{status="{status}"}}': count for status, count in sorted(statuses.items())})


def make_app(routes: list[Route], close: Callable[[], Awaitable[None]]) -> Starlette:
    """Return the application; `close` is called when it stops."""
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await close()

    return Starlette(routes=routes, lifespan=contextlib.asynccontextmanager(lifespan))
