"""Which conversation a request belongs to, and what a conversation has been so far.

A request of a chat agent holds the whole conversation. It continues the conversation whose last request is a proper
prefix of its messages; where several have the same prefix, the next message tells them apart, which should be the
answer that was given. A header can name the conversation instead. Conversations of different clients never meet.
"""

import asyncio
import collections
import dataclasses
import hashlib
import json
from typing import Any, Callable, Iterator, Mapping, Optional, Sequence

from epo_jax.serve.protocol import BadRequest, text_of
from epo_jax.serve.strategist import StrategySession
from epo_jax.serve.views import Message

ADVISE, OBSERVE = 'advise', 'observe'


@dataclasses.dataclass
class Conversation:
    """A conversation of a client with the upstream model.

    Attributes:
      client: digest of who has it; id: its name, unique for the client.
      arm: ADVISE or OBSERVE.
      goal: what the strategist was told.
      session: the strategist's side; None for an observed conversation.
      count, digest: number of messages of the last request, and their digest.
      inserted: by index of a message, the strategy that was appended to it.
      messages: (role, text) of all messages, the last answer included once it has come.
      answered: whether the last request was answered.
      score: the outcome in [0, 1]; None while the conversation is open.
    """

    client: str
    id: str
    arm: str
    goal: str
    session: Optional[StrategySession] = None
    count: int = 0
    digest: str = ''
    inserted: dict[int, str] = dataclasses.field(default_factory=dict)
    messages: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    answered: bool = False
    score: Optional[float] = None
    lock: asyncio.Lock = dataclasses.field(default_factory=asyncio.Lock, repr=False)


class Conversations:
    """The open conversations, found by name or by content. At most `keep` of them; the oldest are forgotten."""

    def __init__(self, keep: int, taken: Callable[[str, str], bool] = lambda client, name: False):
        """Begin without conversations; `taken` says which names cannot be given to new ones."""
        self._keep, self._taken = keep, taken
        self._by_name: collections.OrderedDict[tuple[str, str], Conversation] = collections.OrderedDict()
        self._by_digest: dict[str, list[Conversation]] = collections.defaultdict(list)
        self._openings: collections.Counter = collections.Counter()

    def __len__(self) -> int:
        return len(self._by_name)

    def __iter__(self) -> Iterator[Conversation]:
        return iter(list(self._by_name.values()))

    def get(self, client: str, name: str) -> Optional[Conversation]:
        """Return the conversation of this name; None if it is not known."""
        return self._by_name.get((client, name))

    def find(self, client: str, messages: Sequence[Mapping[str, Any]]) -> Optional[Conversation]:
        """Return the conversation that a request continues or repeats by its content, and take it out of the index.

        A request that repeats the last one is a second attempt only if the first was not answered; otherwise, it
        begins another conversation. `put` returns the conversation to the index.
        """
        for count, digest in reversed(list(enumerate(digests(client, messages), 1))):
            found = self._by_digest.get(digest, [])
            if count == len(messages):
                fitting = [c for c in found if not c.answered]
            else:
                said = message_text(messages[count])
                fitting = [c for c in found if c.answered and c.messages[-1][1] == said] or (
                    [c for c in found if c.answered] if len(found) == 1 else [])
            if fitting:
                self.take(fitting[0])
                return fitting[0]
        return None

    def take(self, conversation: Conversation) -> None:
        """Take a conversation out of the index while a request of it is in progress."""
        same = self._by_digest.get(conversation.digest, [])
        if conversation in same:
            same.remove(conversation)
            if not same:
                del self._by_digest[conversation.digest]

    def put(self, conversation: Conversation) -> None:
        """Make a conversation known, or known again under the digest of its last request."""
        name = conversation.client, conversation.id
        self._by_name[name] = conversation
        self._by_name.move_to_end(name)
        self.take(conversation)
        if conversation.digest:  # a request of it was understood
            self._by_digest[conversation.digest].append(conversation)
        while len(self._by_name) > self._keep:
            _, oldest = self._by_name.popitem(last=False)
            self.take(oldest)

    def drop(self, conversation: Conversation) -> None:
        """Forget a conversation."""
        self._by_name.pop((conversation.client, conversation.id), None)
        self.take(conversation)

    def new_name(self, client: str, messages: Sequence[Mapping[str, Any]]) -> str:
        """Return a name for a new conversation: a digest of its beginning, and of how often this one has occurred."""
        *_, opening = digests(client, messages)
        while True:
            self._openings[opening] += 1
            name = hashlib.sha256(f'{opening} {self._openings[opening]}'.encode()).hexdigest()[:24]
            if (client, name) not in self._by_name and not self._taken(client, name):
                return name


def digests(client: str, messages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the digest of the first message, of the first two, and so on."""
    digest = hashlib.sha256(client.encode())
    for message in messages:
        digest.update(b'\n' + json.dumps(message, sort_keys=True).encode())
        yield digest.hexdigest()


def read_messages(body: Any) -> Optional[list[dict[str, Any]]]:
    """Return the messages of a request that the side-car understands; None for any other request."""
    if not isinstance(body, dict) or body.get('n') not in (None, 1):
        return None
    messages = body.get('messages')
    if not isinstance(messages, list) or not messages or not all(
            isinstance(message, dict) and isinstance(message.get('role'), str) for message in messages):
        return None
    return messages


def message_text(message: Mapping[str, Any]) -> str:
    """Return a message as text, with a note in place of calls of tools and of parts that are not text."""
    content = message.get('content')
    if isinstance(content, list):
        content = ''.join(
            part.get('text') or '' if isinstance(part, dict) and part.get('type') == 'text' else
            f'[{part.get("type") if isinstance(part, dict) else "part"}]' for part in content)
    parts = [text_of(content) or ''] if content else []
    for call in message.get('tool_calls') or ():
        function = call.get('function') or {} if isinstance(call, dict) else {}
        parts.append(f'[calls {function.get("name")}({function.get("arguments")})]')
    return '\n'.join(parts)


def history(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Return what the strategist reads of the messages: all but the instructions of the system."""
    return [Message(message['role'] == 'assistant', message_text(message)) for message in messages
            if message['role'] not in ('system', 'developer')]


def instructions(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the instructions of the system."""
    return '\n'.join(message_text(m) for m in messages if m['role'] in ('system', 'developer'))


def insert(messages: Sequence[Mapping[str, Any]], inserted: Mapping[int, str]) -> list[dict[str, Any]]:
    """Return messages with strategies at the end of some of them."""
    changed = [dict(message) for message in messages]
    for i, strategy in inserted.items():
        if i < 0:  # had no message to go to
            continue
        content = changed[i].get('content')
        changed[i]['content'] = ([*content, {'type': 'text', 'text': strategy}] if isinstance(content, list)
                                 else (content or '') + strategy)
    return changed


def insert_in_system(messages: Sequence[Mapping[str, Any]], strategy: str) -> list[dict[str, Any]]:
    """Return messages with a strategy at the end of the first message of the system, or in a new one."""
    at = next((i for i, message in enumerate(messages) if message['role'] in ('system', 'developer')), None)
    if at is None:
        return [{'role': 'system', 'content': strategy.strip()}, *messages]
    return insert(messages, {at: strategy})


def place_of(messages: Sequence[Mapping[str, Any]]) -> Optional[int]:
    """Return the index of the message to which a strategy belongs: the last of the user or of a tool."""
    return next((i for i in reversed(range(len(messages))) if messages[i]['role'] in ('user', 'tool')), None)


def check_name(name: str) -> str:
    """Return the name of a conversation that a client gave; raise BadRequest if it cannot be used."""
    if len(name) > 128 or not name.isprintable():
        raise BadRequest('the name of a conversation must be at most 128 printable characters')
    return name
