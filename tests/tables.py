"""Tables for tests: a scripted environment, local models and Python functions as agents, and finished episodes.

A scenario (`Case`) says how many actions its episode has and what goes wrong in which of them.
"""

import dataclasses
import functools
import threading
from typing import NamedTuple

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers
import transformers

from epo_jax import testing
from epo_jax.agents.base import Player, Seat
from epo_jax.agents.host import HostAgent, each
from epo_jax.agents.local import LocalAgent
from epo_jax.envs.base import Observation, TextEnvironment, TextStep
from epo_jax.envs.host import HostEnvironment
from epo_jax.models.sampling import SamplingConfig
from epo_jax.models.transformer import Transformer
from epo_jax.rollout import (
    Episodes,
    Table,
    TableState,
    Turn,
    encode,
    episode_keys,
    failure_reasons,
    open_table,
    refill,
    turn,
)
from epo_jax.text.chat import chat_segments

TURNS = 6  # largest number of actions of both seats together
WIDTH = 120
BOTH = (0, 1)
never = threading.Event()  # is never set: a call that waits for it stalls


class Case(NamedTuple):
    """A scenario: its name, its number of actions, and what goes wrong in action number `at`.

    `trouble` is 'raise', 'stall', 'exit', 'long', 'flood' or 'observation' (see Script), or a key of WRONG_RESULTS.
    """

    name: str
    turns: int
    trouble: str = ''
    at: int = 0


# By name, functions from a correct (state, TextStep) to a result that breaks the contract of TextEnvironment.step.
WRONG_RESULTS = {
    'nothing': lambda state, step: None,
    'no state': lambda state, step: step,
    'observations of one seat': lambda state, step: (state, step._replace(observations=step.observations[:1])),
    'observations of three seats': lambda state, step: (state, step._replace(observations=step.observations * 2)),
    'bytes': lambda state, step: (state, step._replace(observations=(Observation(b'a', b'b'),) * 2)),
    'done as text': lambda state, step: (state, step._replace(done='no')),
    'one reward': lambda state, step: (state, step._replace(rewards=(1.0,))),
    'NaN': lambda state, step: (state, step._replace(rewards=(float('nan'), None))),
    'events as text': lambda state, step: (state, step._replace(events='event')),
}

CASES = (Case('one', 1), Case('two', 2), Case('five', 5), Case('six', 9))


@dataclasses.dataclass(frozen=True)
class Script(TextEnvironment):
    """A TextEnvironment whose state is (case, messages so far).

    Attributes:
      cue: beginning of every reply.
      orders: the only replies that seat 1 may give in its second turn.
    """

    cue: str = ''
    orders: tuple[str, ...] = ()

    num_seats = 2
    max_turns = TURNS
    advice = ('[', ']')

    def reset(self, case, advised):
        opening = lambda role, seat: f'{case.name} {role}{seat}.'
        return (case, ()), tuple(Observation(opening('S', s) if advised[s] else '', opening('A', s)) for s in (0, 1))

    def step(self, state, seat, message):
        case, messages = state
        n = len(messages)
        line = f'{n}:{message[:4]};'
        if n == case.at and case.trouble == 'raise':
            raise RuntimeError('the script says so')
        if n == case.at and case.trouble == 'stall':
            never.wait(5)
        if n == case.at and case.trouble == 'exit':
            raise SystemExit('goodbye')
        if case.trouble == 'flood':  # every line fits an observation, but all together exceed the capacity of an agent
            line = f'{n}' * 55
        if case.trouble == 'observation':  # one line fits an observation, but two do not
            line = f'{n}' * (WIDTH - 20)
        if n == case.at and case.trouble == 'long':
            line = 'x' * (WIDTH + 1)
        own, other = Observation(line, ''), Observation(line, line)
        observations = (own, other) if seat == 0 else (other, own)
        step = TextStep(observations, n + 1 >= case.turns, (1.0, float(n)), (f'event{n}',))
        if n == case.at and case.trouble in WRONG_RESULTS:
            return WRONG_RESULTS[case.trouble]((case, (*messages, message)), step)
        return (case, (*messages, message)), step

    def cues(self, state, seat):
        return Observation(self.cue, self.cue)

    def choices(self, state, seat):
        return self.orders if len(state[1]) == 3 else ()

    def transcript(self, state, messages):
        return tuple((n % 2, f'{n}:{message[:4]};') for n, message in enumerate(state[1]))

    def judge_prompt(self, state, seat):
        return f'{state[0].name} {seat}'

    def overview(self, state, messages):
        return f'{state[0].name}: ' + ' '.join(line for _, line in self.transcript(state, messages))

    def describe(self, scenario, state):
        return {'scenario': state[0].name, 'seats': [{'name': 'A'}, {'name': 'B'}]}


@functools.cache
def tokenizer():
    return testing.byte_tokenizer()


@functools.cache
def other_tokenizer():
    """Return a byte tokenizer with other ids, in which 'th' and 'an' are one token."""
    chars = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=True)
    vocab = {token: i for i, token in enumerate([*chars, 'th', 'an'])}
    core = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[('t', 'h'), ('a', 'n')]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(['<|im_end|>'])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, eos_token='<|im_end|>')


@functools.cache
def local():
    """Return a player with the dummy model. A fifth of all bytes end a message, so messages differ in length."""
    chat = chat_segments(tokenizer())
    stop = (chat.end, *sorted({*chat.stop, *range(0, 256, 5)} - {chat.end}))
    sampling = SamplingConfig(max_tokens=8, stop=stop)
    agent = LocalAgent(Transformer(testing.dummy_config()), chat, sampling, capacity=320, chunk=32)
    return Player(agent, testing.dummy_params(testing.dummy_config(), stacked=False), tokenizer())


def host(reply, tokens=None, timeout=None):
    """Return a player whose replies are reply(history, seed)."""
    tokens = tokens or tokenizer()
    return Player(HostAgent(each(reply, timeout), tokens, 40), None, tokens)


def plan(history, seed):
    """Return a strategy that names its strategist and turn, such as 'plan S0 1'."""
    return f'plan {history[0][1].split()[1][:2]} {len(history) // 2}'


def talk(history, seed):
    """Return a message that names its actor and turn, such as 'line A0 1'."""
    return f'line {history[0][1].split()[1][:2]} {len(history) // 2}'


def local_seats():
    return tuple(Seat(local(), local(), trained=True) for _ in BOTH)


def host_seats():
    return tuple(Seat(host(talk), host(plan)) for _ in BOTH)


def make_keys(count):
    """Return the keys of `count` episodes."""
    return episode_keys(7, 0, np.arange(count))


def make_table(seats, env=Script(), timeout=None, group=1):
    return Table(HostEnvironment(env, seats, WIDTH, timeout), seats, group)


class Game(NamedTuple):
    """Episodes that were all played at the same time; the number of an episode is that of its slot.

    Attributes:
      table: the table.
      cases: the scenarios.
      state: the slots after the last turn.
      episodes: the finished episodes.
      reasons: see rollout_on_host.
      turns: all turns in order.
    """

    table: Table
    cases: tuple
    state: TableState
    episodes: Episodes
    reasons: dict[int, str]
    turns: list[Turn]

    def texts(self):
        return self.table.env.texts(self.cases, self.episodes.env)


def perform(seats, cases, env=Script(), timeout=None, keys=None) -> Game:
    """Play all episodes with `turn` and `refill`, without a driver, so a test can inspect the final memories."""
    table, turns = make_table(seats, env, timeout), []
    keys = make_keys(len(cases)) if keys is None else keys
    queue = encode(table, cases)
    state, episodes = refill(table, *open_table(table, len(cases), len(cases), keys), queue, keys)
    while not state.done.all():
        state, record = turn(table, state, len(turns) % len(seats))
        turns.append(record)
    reasons = failure_reasons(table, state)
    _, episodes = refill(table, state, episodes, queue, keys)
    return Game(table, cases, state, episodes, reasons, turns)
