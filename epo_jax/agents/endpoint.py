"""One request to an OpenAI-compatible endpoint, on the `openai` package."""

import asyncio
import dataclasses
import json
import ssl
from typing import Any, Callable, Collection, Mapping, Union

from epo_jax.agents.address import Address
from epo_jax.agents.answers import Entry
from epo_jax.agents.completions import Kind, Malformed, Problem, error_in, judge_error, read_completion
from epo_jax.agents.limits import Pace
from epo_jax.agents.remote_options import RemoteOptions
from epo_jax.runtime.errors import InputError
from epo_jax.runtime.secrets import HIDDEN, redact

CONNECT = 10.0  # seconds to connect
HIDE = 6        # characters from which a secret is replaced in answers too; shorter ones are parts of words
ADVICE = {401: 'check the API key', 402: 'there is no credit', 403: 'the key has no access',
          404: 'check the name of the model and the URL', 405: 'check the URL'}


class Unreachable(Exception):
    """No response came.

    Attributes:
      connecting: whether there was no connection.
      certificate: whether the reason was the certificate of the endpoint or its encryption.
    """

    def __init__(self, text: str, connecting: bool = False, certificate: bool = False):
        super().__init__(text)
        self.connecting, self.certificate = connecting, certificate


class Endpoint:
    """An address with its client, its limits, and what is known about it.

    Attributes:
      address: the address.
      price: dollars per token of the prompt and of the completion, or None.
      pace: its rates and pauses.
      slots: limits the number of simultaneous requests.
      dropped: names of the parameters that it refuses.
      tokens_name: its name of the longest answer in tokens.
      reached: whether any response has come.
      failures: requests in succession that failed after all retries.
      refusals: requests in succession that were refused for an unknown reason.
      quiet_until: time until which its failures are not printed.
    """

    def __init__(self, address: Address, options: RemoteOptions, processes: int):
        """Create the client.

        Args:
          address: the address.
          options: the settings.
          processes: number of processes that share the rates equally.

        Raises:
          InputError: a key, a header or a proxy cannot be used, or a price is missing.
        """
        import openai  # takes a second, and most runs have no remote model
        self.address, self.price, self._timeout = address, options.price(address.name), options.timeout
        key = options.api_key(address)
        headers, header_secrets = options.header_fields()
        if address.authorization:
            headers = {'Authorization': address.authorization} | headers
        authorized = key or any(name.lower() == 'authorization' for name in headers)
        variable = options.key_variable_of(address)
        self._advice = ADVICE if authorized or not variable else ADVICE | {
            401: f'the environment variable {variable} holds no API key'}
        self._headers = {} if authorized else {'Authorization': openai.Omit()}
        secrets = set(filter(None, (key, *header_secrets, *address.secrets)))
        secrets |= {json.dumps(secret)[1:-1] for secret in secrets}  # as JSON inside of JSON repeats them
        self._secrets = sorted(secrets, key=len, reverse=True)
        try:
            # A redirect would send the conversation elsewhere.
            http = openai.DefaultAsyncHttpxClient(follow_redirects=False)
        except Exception as error:  # a proxy in the environment that needs a package, or is no URL
            raise InputError(f'the proxy in the environment cannot be used: {redact(str(error))}') from error
        self._client = openai.AsyncOpenAI(
            api_key=key or HIDDEN, base_url=address.base_url, default_query=address.query, default_headers=headers,
            timeout=openai.Timeout(options.timeout, connect=min(CONNECT, options.timeout)), max_retries=0,
            http_client=http)
        self._errors = openai.APIStatusError, openai.APITimeoutError, openai.APIConnectionError
        self.pace = Pace(options.requests_per_minute / processes, options.tokens_per_minute / processes)
        self.slots = asyncio.Semaphore(max(1, options.concurrency // processes))
        self.dropped: set[str] = set()
        self.tokens_name = 'max_tokens'
        self.reached = False
        self.failures = self.refusals = 0
        self.quiet_until = -float('inf')

    def redact(self, text: str) -> str:
        """Return text without secrets."""
        return redact(text, *self._secrets)

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return the dollars of a request; 0 if the model has no price."""
        prompt, completion = self.price or (0.0, 0.0)
        return prompt_tokens * prompt + completion_tokens * completion

    def refuse(self, parameter: str) -> str:
        """Leave a parameter out from now on; return what is done instead, or '' if that is not new."""
        if parameter in self.dropped:
            return ''
        self.dropped.add(parameter)
        if parameter == 'max_tokens':
            self.tokens_name = 'max_completion_tokens'
            return f'sending {self.tokens_name} instead from now on'
        return 'leaving it out from now on'

    async def send(self, body: Mapping[str, Any], optional: Collection[str],
                   prompt_tokens: int) -> tuple[Union[Entry, Problem], Mapping[str, str]]:
        """Send a request once.

        Args:
          body: the body.
          optional: its parameters that can be left out.
          prompt_tokens: estimate of its tokens, for endpoints that do not count them.

        Returns:
          The answer or the problem, without secrets, and the headers of the response.

        Raises:
          Unreachable: there was no response.
        """
        status_error, timeout_error, connection_error = self._errors
        fields = {name: value for name, value in body.items() if name not in ('model', 'messages')}
        call = self._client.chat.completions.with_raw_response.create(
            model=body['model'], messages=body['messages'], extra_body=fields, extra_headers=self._headers)
        try:
            # The limits of the client restart with every byte that a slow endpoint sends.
            response = (await asyncio.wait_for(call, self._timeout)).http_response
        except status_error as error:
            response = error.response
        except (TimeoutError, timeout_error) as error:
            connecting = any(type(cause).__name__ == 'ConnectTimeout' for cause in _causes(error))
            raise Unreachable('no connection in time' if connecting else f'no answer within {self._timeout:g} s',
                              connecting) from error
        except connection_error as error:
            causes = _causes(error)
            connecting = any(type(cause).__name__ in ('ConnectError', 'ProxyError') for cause in causes)
            certificate = connecting and any(isinstance(cause, ssl.SSLError) for cause in causes)
            text = self.redact(f'{type(causes[-1]).__name__}: {causes[-1]}')
            raise Unreachable(text, connecting, certificate) from error
        self.reached = True
        return self._read(response.status_code, response.headers, response.content.decode(errors='replace'), optional,
                          prompt_tokens), response.headers

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def _read(self, status: int, headers: Mapping[str, str], text: str, optional: Collection[str],
              prompt_tokens: int) -> Union[Entry, Problem]:
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            data = text
        error = error_in(data) if 200 <= status < 300 else (status, data)
        if error is not None:
            return self._problem(*error, headers, optional)
        try:
            said = read_completion(data)
        except Malformed as problem:
            return Problem(Kind.TEMPORARY, f'HTTP {status}: {problem}')
        counts = prompt_tokens if said.prompt_tokens is None else said.prompt_tokens, said.completion_tokens
        return Entry(json.dumps(_map_text(self._hide, data)), None, *counts, self.cost(*counts))

    def _hide(self, text: str) -> str:
        """Return a part of an answer without secrets, which an endpoint may repeat."""
        for secret in self._secrets:
            if len(secret) >= HIDE:
                text = text.replace(secret, HIDDEN)
        return text

    def _problem(self, status: int, data: Any, headers: Mapping[str, str], optional: Collection[str]) -> Problem:
        problem = judge_error(status, _map_text(self.redact, data), optional, self.address.name)
        text = problem.text
        if 300 <= status < 400:
            text = f'HTTP {status}: it redirects to {self.redact(headers.get("location", "no address"))}'
        if problem.kind is Kind.ACCESS and status in self._advice:
            text = f'{text} ({self._advice[status]})'
        return dataclasses.replace(problem, text=text)


def _causes(error: BaseException) -> list[BaseException]:
    """Return an error and what caused it, the first cause last."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _map_text(function: Callable[[str], str], data: Any) -> Any:
    """Apply a function to all strings in data of JSON."""
    if isinstance(data, str):
        return function(data)
    if isinstance(data, list):
        return [_map_text(function, item) for item in data]
    if isinstance(data, dict):
        return {function(name): _map_text(function, value) for name, value in data.items()}
    return data
