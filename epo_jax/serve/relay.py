"""Forward a request to the upstream model and its answer back, byte by byte, and read what was answered."""

import asyncio
import json
import re
from typing import Any, Awaitable, Callable, Mapping, Optional
import urllib.parse

import httpx2
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from epo_jax.runtime.errors import InputError
from epo_jax.serve.app import while_connected
from epo_jax.serve.conversations import message_text

# Headers that concern one connection only, or that the new request sets itself.
HOP = {'connection', 'keep-alive', 'proxy-authenticate', 'proxy-authorization', 'te', 'trailer', 'transfer-encoding',
       'upgrade', 'host', 'content-length', 'accept-encoding', 'expect'}
_FINISH = re.compile(rb'"finish_reason":\s*"|data: ?\[DONE\]')
LARGEST = 16 * 2**20  # bytes of an answer that are read; longer ones are forwarded, but not recorded


class Upstream:
    """The endpoint that answers.

    Attributes:
      url: its base URL, which ends with the version of the API.
    """

    def __init__(self, url: str, key: str = '', seconds: float = 600.0):
        """Describe the endpoint.

        Args:
          url: its base URL.
          key: the API key to send; '' sends that of the client.
          seconds: time for an answer.

        Raises:
          InputError: the URL cannot be used.
        """
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ('http', 'https') or not parts.hostname:
            raise InputError(f'--upstream must be a URL such as https://api.openai.com/v1, not {url!r}')
        path = parts.path.rstrip('/') or '/v1'
        self.url = urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, '', ''))
        self._key, self._seconds = key, seconds
        self._client = httpx2.AsyncClient(
            timeout=httpx2.Timeout(seconds, connect=10.0), limits=httpx2.Limits(max_connections=None),
            follow_redirects=False)

    def relay(self, request: Request, body: bytes, forward_key: bool, own: Mapping[str, str] = {},
              finished: Optional[Callable[[Optional[str]], Awaitable[None]]] = None) -> 'RelayResponse':
        """Return the answer of the endpoint as a response.

        Args:
          request: the request of the client.
          body: what is sent as its body.
          forward_key: whether the API key of the client is sent.
          own: further headers of the response.
          finished: called with the text of a complete answer, or None if there is none.
        """
        path = request.url.path.removeprefix('/v1')
        query = f'?{request.url.query}' if request.url.query else ''
        headers = [(name, value) for name, value in request.headers.items()
                   if name not in HOP and not name.startswith('x-epo-')
                   and (forward_key and not self._key or name != 'authorization')]
        headers += [('authorization', f'Bearer {self._key}')] if self._key else []
        headers += [('accept-encoding', 'identity')]
        outgoing = self._client.build_request(request.method, self.url + path + query, headers=headers, content=body)
        return RelayResponse(self._client, outgoing, self._seconds, own, finished)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


class RelayResponse(Response):
    """A response whose status, headers and bytes are those of the upstream model."""

    def __init__(self, client: httpx2.AsyncClient, outgoing: httpx2.Request, seconds: float, own: Mapping[str, str],
                 finished: Optional[Callable[[Optional[str]], Awaitable[None]]]):
        """See `Upstream.relay`."""
        super().__init__(status_code=0)  # it is not known yet
        self._client, self._outgoing, self._seconds = client, outgoing, seconds
        self._own, self._finished = own, finished

    async def __call__(self, scope, receive, send) -> None:
        """Forward the request, and its answer as it comes."""
        try:
            await while_connected(Request(scope, receive), self._relay(send), self._seconds)
        except (ClientDisconnect, TimeoutError):
            pass
        finally:
            await self._finish(None)

    async def _finish(self, answer: Optional[str]) -> None:
        """Call `finished`, once."""
        finished, self._finished = self._finished, None
        if finished:
            await asyncio.shield(finished(answer))

    async def _relay(self, send) -> None:
        own = [(name.lower().encode(), value.encode()) for name, value in self._own.items()]
        try:
            response = await self._client.send(self._outgoing, stream=True)
        except httpx2.HTTPError as error:
            await self._finish(None)
            message = f'the upstream model cannot be reached: {type(error).__name__} {error}'.strip()
            body = json.dumps({'error': {'message': message, 'type': 'server_error', 'code': 'upstream'}}).encode()
            await send({'type': 'http.response.start', 'status': 502, 'headers': [
                (b'content-type', b'application/json'), (b'content-length', str(len(body)).encode()), *own]})
            await send({'type': 'http.response.body', 'body': body})
            return
        kept, sent, kind = bytearray(), 0, response.headers.get('content-type', '')
        try:
            headers = [(name.lower(), value) for name, value in response.headers.raw
                       if name.lower().decode() not in HOP - {'content-length'}]
            await send({'type': 'http.response.start', 'status': response.status_code, 'headers': headers + own})
            # The end of an answer is sent when the answer has been kept, since the client may then go on at once.
            async for part in response.aiter_raw():
                if len(kept) > LARGEST:
                    await self._finish(None)
                if not self._finished:
                    part, kept, sent = bytes(kept[sent:]) + part, bytearray(), 0
                    await send({'type': 'http.response.body', 'body': part, 'more_body': True})
                    continue
                kept += part
                if not ends(kind, kept, sent):
                    await send({'type': 'http.response.body', 'body': bytes(kept[sent:]), 'more_body': True})
                    sent = len(kept)
            if self._finished:
                await self._finish(answer_text(kind, bytes(kept)) if response.status_code == 200 else None)
            await send({'type': 'http.response.body', 'body': bytes(kept[sent:])})
        except httpx2.HTTPError:  # the answer breaks off; the client sees that, too
            pass
        finally:
            await response.aclose()


def ends(kind: str, body: bytearray, sent: int) -> bool:
    """Return whether the last part of an answer may have come: any part of JSON, or an event with a reason to end.

    Args:
      kind: its content type.
      body: its bytes so far.
      sent: number of bytes that were no end.
    """
    return not kind.startswith('text/event-stream') or _FINISH.search(body, max(0, sent - 64)) is not None


def answer_text(kind: str, body: bytes) -> Optional[str]:
    """Return the text of an answer to a request for a chat completion; None if it is not complete.

    Args:
      kind: its content type: JSON, or a stream of events.
      body: its bytes.
    """
    try:
        if not kind.startswith('text/event-stream'):
            return message_text(json.loads(body)['choices'][0]['message'])
        content, calls, finished = '', {}, False
        for line in body.decode().splitlines():
            if not line.startswith('data:') or line[5:].strip() == '[DONE]':
                continue
            for choice in json.loads(line[5:]).get('choices') or ():
                delta: dict[str, Any] = choice.get('delta') or {}
                content += delta.get('content') or ''
                for call in delta.get('tool_calls') or ():
                    name, given = calls.get(call.get('index', 0), ('', ''))
                    function = call.get('function') or {}
                    calls[call.get('index', 0)] = (
                        name + (function.get('name') or ''), given + (function.get('arguments') or ''))
                finished |= choice.get('finish_reason') is not None
        return message_text({'content': content, 'tool_calls': [
            {'function': {'name': name, 'arguments': given}} for name, given in calls.values()]}) if finished else None
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):
        return None
