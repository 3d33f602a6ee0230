"""A strategist outside of training: `Strategist.load(...)`, and sessions that read every token once.

    from epo_jax import Strategist
    strategist = Strategist.load('runs/quickstart')
    session = strategist.open(goal='Sell the bike for at least $120.', name='Ana', partner='Ben')
    history = [{'role': 'user', 'content': 'Hi, is the bike still there?'}]
    print(session.advise(history).text)
"""

import dataclasses
import threading
from typing import Any, Callable, Mapping, Optional, Sequence

import jax
import numpy as np

from epo_jax.data.sharegpt import DOMAINS
from epo_jax.roles import local_agent
from epo_jax.runtime.errors import InputError
from epo_jax.serve import loading
from epo_jax.serve.engine import Engine, Options
from epo_jax.serve.tickets import Piece, Sampling, Ticket
from epo_jax.serve.views import Brief, Message, View, make_view
from epo_jax.text import tokenizer as text

STRATEGIST = 0  # number of the agent in the random keys of a rollout, see `rollout.agent_number`


class AdviceError(InputError):
    """A strategy that cannot be given; the message says why."""


@dataclasses.dataclass(frozen=True)
class Advice:
    """A strategy.

    Attributes:
      text: the strategy, without surrounding blanks.
      inserted: the strategy as the advised agent reads it, with the text around it.
      ids: the sampled ids, the one that ends the strategy included.
      logprobs: their log-probabilities at temperature 1.
      read, reused: tokens of the session that were read for it, and that had been read before.
    """

    text: str
    inserted: str
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    read: int
    reused: int


class Strategist:
    """A strategist that advises in many conversations at once; a context manager that frees the device.

    Attributes:
      loaded: its model.
      engine: what samples.
      domain: where it advises if `open` does not say so: where it was trained, or 'general'.
    """

    def __init__(self, loaded: loading.Loaded, engine: Engine, domain: str = '', short: bool = False,
                 begun: bool = False):
        """Use an engine that runs already; see `load`."""
        agent = local_agent(loaded.language, loaded.strategist, engine.options.chunk)
        trained = loaded.environment.name if loaded.environment else ''
        self.loaded, self.engine, self._sampling = loaded, engine, agent.sampling
        self.domain = domain or (trained if trained in DOMAINS else 'general')
        self._settings = short, begun

    @classmethod
    def load(cls, path: str, domain: str = '', *, chat_template: str = '', dtype: str = 'auto',
             step: Optional[int] = None, slots: int = 8, short: bool = False, begun: bool = False) -> 'Strategist':
        """Load a strategist and start an engine for it.

        Args:
          path: the workdir of a run, or a model as in config.model.path.
          domain: see the class.
          chat_template, dtype, step: see `loading.load`.
          slots: number of conversations that are advised at once, and whose tokens are kept.
          short, begun: the options of the prompts, where the run does not say which ones it trained with.

        Raises:
          InputError, CheckpointError: the strategist cannot be loaded.
        """
        loaded = loading.load(path, chat_template, dtype, step)
        return cls(loaded, start_engine(loaded, Options(slots=slots)), domain, short, begun)

    def open(self, goal: str, domain: str = '', seed: int = 0, situation: str = '', name: str = 'Agent',
             partner: str = 'Partner', about: str = '', about_partner: str = '') -> 'StrategySession':
        """Start a conversation.

        Args:
          goal: what the advised agent wants to reach.
          domain: 'sotopia', 'webshop', 'alfworld' or 'general'; '' for that of the strategist.
          seed: of the strategies.
          situation, name, partner, about, about_partner: see `views.Brief`.

        Raises:
          InputError: there is no such domain.
        """
        short, begun = self._settings
        view = make_view(domain or self.domain, self.loaded.environment, short, begun)
        return StrategySession(self, view, Brief(goal, situation, name, partner, about, about_partner), seed)

    def advise(self, goal: str, history: Sequence[Any], domain: str = '', seed: int = 0, situation: str = '',
               name: str = 'Agent', partner: str = 'Partner') -> Advice:
        """Return a strategy for the next message of one conversation; see `open` and `StrategySession.advise`."""
        return self.open(goal, domain, seed, situation, name, partner).advise(history)

    def advise_all(self, questions: Sequence[tuple['StrategySession', Sequence[Any]]]) -> list[Advice]:
        """Return a strategy for each of several sessions and their histories; they are sampled together."""
        pending = [session.ask(history) for session, history in questions]
        return [question.result() for question in pending]

    def sampling(self, seed: int) -> Sampling:
        """Return how strategies are sampled: as in training."""
        s = self._sampling
        key = jax.random.fold_in(jax.random.key(seed), STRATEGIST)
        return Sampling(s.max_tokens, frozenset(s.stop + s.closing), frozenset(s.banned), s.temperature, s.top_p,
                        s.top_k, s.min_tokens, s.no_repeat > 0, tuple(np.asarray(jax.random.key_data(key)).tolist()))

    def close(self) -> None:
        """Stop the engine."""
        self.engine.close()

    def __enter__(self) -> 'Strategist':
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()


class StrategySession:
    """One conversation with a strategist, which only grows.

    Attributes:
      ids, turn, logprob: as in `models.sampling.Session`: all ids, the number of the strategy for sampled ones (else
        -1), and their log-probabilities (else 0).
      brief: what the strategist knows.
      seen: the messages that it has read.
    """

    def __init__(self, strategist: Strategist, view: View, brief: Brief, seed: int):
        """Start without messages; see `Strategist.open`."""
        self.brief, self.seen = brief, ()
        self.ids, self.turn, self.logprob = [], [], []
        self._strategist, self._view = strategist, view
        self._sampling = strategist.sampling(seed)

    @property
    def turns(self) -> int:
        """Return the number of strategies so far."""
        return max(self.turn, default=-1) + 1

    def advise(self, history: Sequence[Any]) -> Advice:
        """Return a strategy for the next message of the advised agent.

        Args:
          history: all messages so far; those that the strategist has seen must not have changed. A message is a
            mapping with 'role' ('assistant' for the advised agent, any other for the other side) and 'content', or a
            `views.Message`.

        Raises:
          AdviceError: earlier messages have changed, the conversation is too long, or the engine failed.
          Busy: too many requests wait.
        """
        return self.ask(history).result()

    def ask(self, history: Sequence[Any], on_done: Callable[[], None] = lambda: None) -> 'Pending':
        """Begin to sample a strategy, see `advise`; ask for another one only after its result.

        `on_done` is called in the engine's thread when `result` will not wait any longer.
        """
        messages = tuple(map(as_message, history))
        if messages[:len(self.seen)] != self.seen:
            raise AdviceError('the history differs from what the strategist has read; open another session for another '
                              'conversation')
        return Pending(self, messages, self._context(messages[len(self.seen):]), on_done)

    def _context(self, new: Sequence[Message]) -> list[int]:
        """Return the ids that come before the next strategy, put together as in `LocalAgent.respond`."""
        language = self._strategist.loaded.language
        chat, tokenizer = language.chat, language.tokenizer
        first = not self.ids
        pieces = (self._view.begin if first else self._view.more)(self.brief, new)
        leads = [chat.user_lead] + [text.CONTINUATION] * len(pieces)
        before = chat.open if first else ((() if self.ids[-1] == chat.end else (chat.end,)) + chat.between)
        return [*before, *(i for piece, lead in zip(pieces, leads) for i in text.encode(tokenizer, piece, lead)),
                *chat.close, *text.encode(tokenizer, self._view.cue, chat.reply_lead)]

    def answer(self, messages: tuple[Message, ...], context: Sequence[int], ticket: Ticket,
               pieces: Sequence[Piece]) -> Advice:
        """Append what was read and sampled; called by `Pending`."""
        if pieces[-1].finish == 'error':
            raise AdviceError(f'the strategist could not answer: {pieces[-1].error}')
        ids = tuple(i for piece in pieces for i in piece.ids)
        logprobs = tuple(x for piece in pieces for x in piece.logprobs)
        number, language = self.turns, self._strategist.loaded.language
        self.ids += [*context, *ids]
        self.turn += [-1] * len(context) + [number] * len(ids)
        self.logprob += [0.0] * len(context) + list(logprobs)
        self.seen = messages
        said = ids[:-1] if ids[-1] in self._strategist._sampling.stop else ids
        strategy = text.decode(language.tokenizer, said, language.chat.reply_lead)
        before, after = self._view.advice
        return Advice(strategy.strip(), before + strategy + after, ids, logprobs, ticket.read, ticket.reused)


class Pending:
    """A strategy that is being sampled."""

    def __init__(self, session: StrategySession, messages: tuple[Message, ...], context: list[int],
                 on_done: Callable[[], None]):
        """Submit the request of a session."""
        self._session, self._messages, self._context = session, messages, context
        self._pieces: list[Piece] = []
        self._done, self._on_done = threading.Event(), on_done
        strategist = session._strategist
        self._ticket = strategist.engine.submit(session.ids + context, session._sampling, self._deliver)

    def _deliver(self, piece: Piece) -> None:
        self._pieces.append(piece)
        if piece.finish:
            self._done.set()
            self._on_done()

    def result(self) -> Advice:
        """Wait for the strategy; see `StrategySession.advise`."""
        self._done.wait()
        return self._session.answer(self._messages, self._context, self._ticket, self._pieces)


def as_message(message: Any) -> Message:
    """Return a message of a history."""
    if isinstance(message, Message):
        return message
    if not isinstance(message, Mapping) or not isinstance(message.get('content'), str):
        raise AdviceError(f"a message of the history must have 'role' and 'content', both text, unlike {message!r:.80}")
    return Message(message.get('role') == 'assistant', message['content'])


def start_engine(loaded: loading.Loaded, options: Options) -> Engine:
    """Return an engine for a model; conversations are as long as its strategist's may be."""
    role = loaded.strategist
    options = dataclasses.replace(options, capacity=role.capacity, no_repeat=role.no_repeat)
    return Engine(loaded.language.sampler(), loaded.language.params, options)
