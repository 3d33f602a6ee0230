"""Chat completions: a request becomes n answers of the engine, which are sent at once or as a stream."""

import asyncio
import json
import time
from typing import Any, AsyncIterator, Callable, Optional, Sequence
import uuid

import numpy as np

from epo_jax.roles import unspeakable_ids
from epo_jax.serve.engine import Engine
from epo_jax.serve.guides import Choices, GuideError, Schemas
from epo_jax.serve.loading import Loaded
from epo_jax.serve.protocol import BadRequest, ChatRequest
from epo_jax.serve.texts import TextStream
from epo_jax.serve.tickets import Guide, Piece, RequestError, Sampling, Ticket
from epo_jax.text import tokenizer as text
from epo_jax.text.rendering import MessagesError, encode_messages


class AnswerError(Exception):
    """The engine could not finish an answer."""


class Completions:
    """Answers requests with one model.

    Attributes:
      loaded: the model.
      engine: what samples.
    """

    def __init__(self, loaded: Loaded, engine: Engine):
        """Use a running engine."""
        self.loaded, self.engine = loaded, engine
        chat = loaded.language.chat
        self._ends = frozenset(chat.stop)
        self._banned = frozenset(unspeakable_ids(loaded.language) - self._ends)
        self._schemas = Schemas(loaded.language.tokenizer, self._ends)

    async def close(self) -> None:
        """Stop the engine."""
        await asyncio.to_thread(self.engine.close)

    async def start(self, request: ChatRequest) -> 'Completion':
        """Submit a request.

        Raises:
          BadRequest: the model cannot read these messages or answer in this form, or they are too long.
          Busy: too many requests wait.
        """
        language = self.loaded.language
        if request.model != self.loaded.name:
            raise BadRequest(f'there is no model {request.model!r:.80}; this server has {self.loaded.name!r}', 'model',
                             404, 'model_not_found')
        try:
            ids = encode_messages(language.tokenizer, self.loaded.template, language.chat, request.messages)
        except (MessagesError, text.TokenizerError) as error:
            raise BadRequest(str(error), 'messages') from None
        guides = await self._guides(request)
        keys = [np.random.SeedSequence([request.seed % 2**64, i]).generate_state(2) for i in range(request.n)]
        return Completion(self, request, ids, [
            Sampling(request.max_tokens or self.engine.options.capacity, self._ends, self._banned, request.temperature,
                     request.top_p, key=tuple(key.tolist()), top=request.logprobs and request.top_logprobs > 0,
                     guide=guide, room=guide.room if guide else 1)
            for key, guide in zip(keys, guides)])

    async def _guides(self, request: ChatRequest) -> list[Optional[Guide]]:
        """Return a guide for each answer."""
        language = self.loaded.language
        if request.schema is None:
            choices = tuple(tuple(text.encode(language.tokenizer, choice, language.chat.reply_lead))
                            for choice in request.choices)
            return [Choices(choices, self._ends) if choices else None] * request.n
        try:  # in a thread, because a large schema takes long
            return await asyncio.to_thread(
                lambda: [self._schemas.guide(request.schema) for _ in range(request.n)])
        except GuideError as error:
            raise BadRequest(f'response_format: {error}', 'response_format') from None


class Completion:
    """The answers to one request.

    Attributes:
      id: its id.
      prompt: number of tokens of the prompt.
    """

    def __init__(self, completions: Completions, request: ChatRequest, ids: Sequence[int], answers: Sequence[Sampling]):
        """Submit a request for each answer."""
        self.id, self.prompt, self._created = f'chatcmpl-{uuid.uuid4().hex}', len(ids), int(time.time())
        self._completions, self._request = completions, request
        self._queue: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        self._tickets: list[Ticket] = []
        loop = asyncio.get_running_loop()
        try:
            for i, sampling in enumerate(answers):
                self._tickets.append(completions.engine.submit(ids, sampling, self._sender(loop, i)))
        except RequestError as error:
            raise BadRequest(str(error), 'messages', code='context_length_exceeded') from None
        except BaseException:
            self.cancel()
            raise

    def _sender(self, loop: asyncio.AbstractEventLoop, index: int) -> Callable[[Piece], None]:
        def send(piece: Piece) -> None:
            try:
                loop.call_soon_threadsafe(self._queue.put_nowait, (index, piece))
            except RuntimeError:  # the loop is closed, so nobody waits
                pass

        return send

    def cancel(self) -> None:
        """Free the slots of answers that are not finished."""
        for ticket in self._tickets:
            ticket.cancel()

    async def answer(self) -> dict[str, Any]:
        """Return the whole answer as JSON.

        Raises:
          AnswerError: the engine failed.
        """
        n = self._request.n
        texts, logprobs, reasons = [''] * n, [[] for _ in range(n)], [''] * n
        async for i, part, tokens, finish in self._parts():
            texts[i] += part
            logprobs[i] += tokens
            reasons[i] = finish or reasons[i]
        return self._object('chat.completion') | {
            'choices': [{
                'index': i, 'message': {'role': 'assistant', 'content': texts[i], 'refusal': None},
                'logprobs': self._logprobs(logprobs[i]), 'finish_reason': reasons[i]} for i in range(n)],
            'usage': self._usage()}

    async def events(self) -> AsyncIterator[str]:
        """Yield the events of a stream; an error of the engine becomes the last one."""
        def event(choices: list[dict[str, Any]], usage: Optional[dict[str, Any]] = None) -> str:
            chunk = self._object('chat.completion.chunk') | {'choices': choices}
            return f'data: {json.dumps(chunk | ({"usage": usage} if self._request.usage else {}))}\n\n'

        def choice(i: int, delta: dict[str, str], tokens: list, finish: Optional[str]) -> dict[str, Any]:
            return {'index': i, 'delta': delta, 'logprobs': self._logprobs(tokens), 'finish_reason': finish}

        for i in range(self._request.n):
            yield event([choice(i, {'role': 'assistant', 'content': ''}, [], None)])
        try:
            async for i, part, tokens, finish in self._parts():
                if part or tokens:
                    yield event([choice(i, {'content': part}, tokens, None)])
                if finish:
                    yield event([choice(i, {}, [], finish)])
        except AnswerError as error:
            yield f'data: {json.dumps({"error": {"message": str(error), "type": "server_error"}})}\n\n'
            return
        if self._request.usage:
            yield event([], self._usage())
        yield 'data: [DONE]\n\n'

    async def _parts(self) -> AsyncIterator[tuple[int, str, list[dict[str, Any]], Optional[str]]]:
        """Yield (number of the answer, new text, its tokens, why it ended)."""
        language, request = self._completions.loaded.language, self._request
        streams = [TextStream(language.tokenizer, language.chat.reply_lead, request.stop) for _ in range(request.n)]
        going = set(range(request.n))
        while going:
            i, piece = await self._queue.get()
            if i not in going:
                continue
            if piece.finish == 'error':
                raise AnswerError(piece.error)
            ids = piece.ids[:-1] if piece.finish == 'stop' else piece.ids
            new, finish = streams[i].push(ids), piece.finish
            if finish:
                new += streams[i].finish()
            if streams[i].stopped:
                finish = 'stop'
                self._tickets[i].cancel()
            if finish:
                going.discard(i)
            yield i, new, self._tokens(piece, len(ids)) if request.logprobs else [], finish

    def _tokens(self, piece: Piece, count: int) -> list[dict[str, Any]]:
        """Return the log-probabilities of the tokens of a piece, as JSON."""
        decode = lambda i: text.decode(self._completions.loaded.language.tokenizer, [i])

        def entry(token: int, logprob: float) -> dict[str, Any]:
            said = decode(token)
            return {'token': said, 'logprob': max(logprob, -9999.0),
                    'bytes': None if '\ufffd' in said else list(said.encode())}

        return [entry(token, logprob) | {'top_logprobs': [
                    entry(*pair) for pair in (piece.tops[k] if piece.tops else ())[:self._request.top_logprobs]]}
                for k, (token, logprob) in enumerate(zip(piece.ids[:count], piece.logprobs))]

    def _logprobs(self, tokens: list) -> Optional[dict[str, Any]]:
        return {'content': tokens, 'refusal': None} if self._request.logprobs else None

    def _object(self, kind: str) -> dict[str, Any]:
        return {'id': self.id, 'object': kind, 'created': self._created, 'model': self._request.model,
                'system_fingerprint': self._completions.loaded.version}

    def _usage(self) -> dict[str, Any]:
        said = sum(len(ticket.said) for ticket in self._tickets)
        return {'prompt_tokens': self.prompt, 'completion_tokens': said, 'total_tokens': self.prompt + said,
                'prompt_tokens_details': {'cached_tokens': self._tickets[0].reused}}
