"""The side-car: a proxy between an agent and its model that puts a strategy into every request.

The agent changes its base URL and nothing else. Requests that are no chat completions pass through as they are.
"""

import asyncio
import collections
import contextlib
import dataclasses
import hashlib
import json
import math
import sqlite3
import sys
from typing import Any, Mapping, Optional, Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from epo_jax.runtime.errors import InputError
from epo_jax.serve import conversations as talk
from epo_jax.serve.app import Guard, engine_metrics, metric, read_body, status_metrics
from epo_jax.serve.conversations import ADVISE, OBSERVE, Conversation, Conversations
from epo_jax.serve.protocol import BadRequest, parse_json
from epo_jax.serve.recording import Recorder
from epo_jax.serve.relay import Upstream
from epo_jax.serve.strategist import Strategist
from epo_jax.serve.tickets import Busy
from epo_jax.serve.views import Message

NAME, GOAL, OUTCOME = 'x-epo-conversation', 'x-epo-goal', 'x-epo-outcome'  # headers
METHODS = ['GET', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS', 'HEAD']


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the side-car treats conversations.

    Attributes:
      mode: 'advise' all, 'observe' all (the control arm), or 'ab': advise a share of them.
      share: of the conversations that are advised with 'ab'.
      seed: of the draw; a conversation of the same name is always in the same arm.
      place: where a strategy goes: 'user' (end of the last message that the agent reads, where training puts it;
        earlier ones stay where they were) or 'system' (end of the system message).
      goal: of conversations that do not say; '' takes the instructions of the system.
      situation, name, partner: see `views.Brief`; '' for the situation takes the instructions of the system.
    """

    mode: str = 'advise'
    share: float = 0.5
    seed: int = 0
    place: str = 'user'
    goal: str = ''
    situation: str = ''
    name: str = 'Agent'
    partner: str = 'Partner'

    def arm(self, client: str, name: str) -> str:
        """Return the arm of a conversation."""
        if self.mode != 'ab':
            return ADVISE if self.mode == 'advise' else OBSERVE
        digest = hashlib.sha256(f'{self.seed} {client} {name}'.encode()).digest()
        return ADVISE if int.from_bytes(digest[:8], 'big') < self.share * 2**64 else OBSERVE


class Sidecar:
    """The handlers of the side-car.

    Attributes:
      strategist: who advises.
      conversations: those that are open.
      counts: what was done so far, by name; see `metrics`.
    """

    def __init__(self, strategist: Strategist, upstream: Upstream, plan: Plan, guard: Guard,
                 recorder: Optional[Recorder] = None, forward_key: bool = True, keep: int = 10_000):
        """Put a strategist before an endpoint.

        Args:
          strategist: who advises.
          upstream: who answers.
          plan: how.
          guard: whom to let in.
          recorder: keeps conversations; None keeps nothing.
          forward_key: whether the API keys of clients are sent on.
          keep: number of open conversations that are known at once.
        """
        self.strategist, self._upstream, self._plan, self._recorder = strategist, upstream, plan, recorder
        self._guard, self._forward_key, self.counts = guard, forward_key, collections.Counter()
        self.conversations = Conversations(keep, recorder.knows if recorder else lambda client, name: False)
        for state in recorder.open_states() if recorder else ():
            self.conversations.put(self._restored(state))

    def routes(self) -> list[Route]:
        """Return the routes."""
        guarded = self._guard
        return [
            Route('/v1/chat/completions', guarded(self.chat), methods=['POST']),
            Route('/v1/outcomes', guarded(self.outcome), methods=['POST']),
            Route('/health', self.health, methods=['GET']), Route('/metrics', self.metrics, methods=['GET']),
            Route('/{path:path}', guarded(self.other), methods=METHODS)]

    async def other(self, request: Request) -> Response:
        """Forward a request that is none of ours."""
        return self._upstream.relay(request, await read_body(request, self._guard.limits), self._forward_key)

    async def chat(self, request: Request) -> Response:
        """Forward a request for a chat completion, with a strategy."""
        body = await read_body(request, self._guard.limits)
        try:
            wanted = parse_json(body)
        except BadRequest:
            wanted = None
        messages, client = talk.read_messages(wanted), client_of(request)
        if messages is None:
            self.counts['not_understood'] += 1
            return self._upstream.relay(request, body, self._forward_key)
        score = read_score(request.headers[OUTCOME]) if OUTCOME in request.headers else None
        conversation = self._conversation(request, client, messages)
        await conversation.lock.acquire()  # until the answer is there
        try:
            if conversation.score is not None:
                raise BadRequest(f'the conversation {conversation.id!r} is closed', status=409)
            advised = await self._advised(conversation, messages)
            if advised is not messages:
                body = json.dumps(wanted | {'messages': advised}).encode()
            return self._upstream.relay(
                request, body, self._forward_key, {NAME: conversation.id},
                lambda answer: self._answered(conversation, messages, answer, score))
        except BaseException:
            if conversation.score is None:
                self.conversations.put(conversation)
            conversation.lock.release()
            raise

    def _conversation(self, request: Request, client: str, messages: Sequence[Mapping[str, Any]]) -> Conversation:
        """Return the conversation of a request, which may be new."""
        name = talk.check_name(request.headers.get(NAME, ''))
        found = self.conversations.get(client, name) if name else self.conversations.find(client, messages)
        if found:
            return found
        if name and self._recorder and self._recorder.knows(client, name):
            raise BadRequest(f'the conversation {name!r} is closed; give another one another name', status=409)
        name = name or self.conversations.new_name(client, messages)
        arm, text = self._plan.arm(client, name), talk.instructions(messages)
        goal = request.headers.get(GOAL) or self._plan.goal or text or 'reach the best result in this conversation'
        conversation = Conversation(client, name, arm, goal)
        if arm == ADVISE:
            conversation.session = self._session(goal, self._plan.situation or ('' if goal == text else text), name)
        self.conversations.put(conversation)
        self.conversations.take(conversation)
        self.counts['conversations'] += 1
        return conversation

    def _session(self, goal: str, situation: str, name: str):
        seed = int.from_bytes(hashlib.sha256(f'{self._plan.seed} {name}'.encode()).digest()[:4], 'big') >> 1
        return self.strategist.open(goal, '', seed, situation, self._plan.name, self._plan.partner)

    async def _advised(self, c: Conversation, messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """Return the messages with strategies; the same messages if the conversation is not advised."""
        digests = list(talk.digests(c.client, messages))
        continues = c.count <= len(messages) and (not c.count or digests[c.count - 1] == c.digest)
        if not continues:  # the agent has changed its history, so that only what it says now can be understood
            self.counts['restarted'] += 1
            c.inserted = {}
            if c.session:
                c.session = self._session(c.session.brief.goal, c.session.brief.situation, c.id)
        again = continues and c.count == len(messages)
        c.count, c.digest, c.answered = len(messages), digests[-1], False
        c.messages = [(message['role'], talk.message_text(message)) for message in messages]
        if c.session is None:
            return messages
        place = talk.place_of(messages)
        place = -1 if place is None else place
        if not (again and place in c.inserted):
            advice = await self._ask(c, talk.history(messages))
            if advice is not None:
                c.inserted[place] = advice
        if self._plan.place == 'system' or place < 0:
            return talk.insert_in_system(messages, c.inserted[place]) if place in c.inserted else messages
        return talk.insert(messages, c.inserted)

    async def _ask(self, c: Conversation, history: list[Message]) -> Optional[str]:
        """Return a strategy as the agent reads it; None if there is none."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        try:
            pending = c.session.ask(history, lambda: loop.call_soon_threadsafe(done.set))
            await done.wait()
            advice = pending.result()
        except (InputError, Busy):  # too long, or too many: the agent goes on without advice
            self.counts['unadvised'] += 1
            return None
        self.counts['strategies'] += 1
        self.counts['tokens_read'] += advice.read
        return advice.inserted

    async def _answered(self, c: Conversation, messages: Sequence[Mapping[str, Any]], answer: Optional[str],
                        score: Optional[float]) -> None:
        """Keep an answer; None if it was not complete, so that the agent may ask again."""
        try:
            if answer is not None:
                c.answered = True
                c.messages.append(('assistant', answer))
                self.counts['answers'] += 1
            self.conversations.put(c)
            if self._recorder:
                self._recorder.save(c)
                if answer is not None and score is not None:
                    await self._close(c.client, c.id, score)
        except (OSError, sqlite3.Error) as error:  # the agent must not suffer from a full disk
            self.counts['record_errors'] += 1
            print(f'warning: a conversation could not be kept: {error}', file=sys.stderr, flush=True)
        finally:
            c.lock.release()

    async def outcome(self, request: Request) -> Response:
        """Answer POST /v1/outcomes: close a conversation."""
        body = parse_json(await read_body(request, self._guard.limits))
        if self._recorder is None:
            raise BadRequest('this side-car keeps no conversations; start it with --record=DIR', status=409)
        if not isinstance(body, dict) or not isinstance(body.get('conversation'), str):
            raise BadRequest("the body must be an object with 'conversation', the value of the header "
                             f"{NAME} of its answers, and 'score'")
        name, score = body['conversation'], read_score(body.get('score'))
        known = self.conversations.get(client_of(request), name)
        async with known.lock if known else contextlib.nullcontext():
            closed = await self._close(client_of(request), name, score)
        if closed is None:
            raise BadRequest(f'there is no conversation {name!r:.140}', 'conversation', 404)
        return JSONResponse({'conversation': name, 'closed': True, 'already': not closed})

    async def _close(self, client: str, name: str, score: float) -> Optional[bool]:
        closed = self._recorder.close_conversation(client, name, score)
        if closed:
            self.counts['closed'] += 1
            if known := self.conversations.get(client, name):
                known.score = score
                self.conversations.drop(known)
            await asyncio.to_thread(self._recorder.write_files)
        return closed

    def _restored(self, state: dict[str, Any]) -> Conversation:
        """Return a conversation that an earlier process has kept."""
        c = Conversation(state['client'], state['id'], state['arm'], state['goal'], None, state['count'],
                         state['digest'], {int(i): text for i, text in state['inserted']},
                         [tuple(message) for message in state['messages']], state['answered'])
        if 'session' in state:
            text = '\n'.join(text for role, text in c.messages if role in ('system', 'developer'))
            c.session = self._session(c.goal, self._plan.situation or ('' if c.goal == text else text), c.id)
            kept = state['session']
            c.session.ids, c.session.turn, c.session.logprob = kept['ids'], kept['turn'], kept['logprob']
            c.session.seen = tuple(Message(*message) for message in kept['seen'])
        return c

    async def health(self, request: Request) -> Response:
        """Answer GET /health."""
        failure = self.strategist.engine.failure
        return JSONResponse({'status': failure or 'ok'}, 503 if failure else 200)

    async def metrics(self, request: Request) -> Response:
        """Answer GET /metrics."""
        names = ('conversations', 'strategies', 'unadvised', 'answers', 'closed', 'restarted', 'not_understood',
                 'record_errors')
        return PlainTextResponse(
            engine_metrics(self.strategist.engine) + status_metrics(self._guard.statuses)
            + ''.join(metric(f'sidecar_{name}_total', f'Number of {name} so far.', 'counter', {'': self.counts[name]})
                      for name in names)
            + metric('sidecar_open', 'Open conversations.', 'gauge', {'': len(self.conversations)}),
            media_type='text/plain; version=0.0.4')

    async def close(self) -> None:
        """Close connections and recordings, and stop the engine."""
        await self._upstream.close()
        await asyncio.to_thread(self.strategist.close)
        if self._recorder:
            self._recorder.__exit__()


def client_of(request: Request) -> str:
    """Return a digest of who sends a request: its API key, or its host where it has none."""
    key = request.headers.get('authorization', '')
    host = request.client.host if request.client and not key else ''
    return hashlib.sha256(f'{key}\n{host}'.encode()).hexdigest()[:16]


def read_score(value: Any) -> float:
    """Return an outcome; raise BadRequest if it is none."""
    try:
        score = math.nan if isinstance(value, bool) or value is None else float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not 0 <= score <= 1:
        raise BadRequest(f'the score of a conversation must be a number from 0 to 1, not {value!r:.40}', 'score')
    return score
