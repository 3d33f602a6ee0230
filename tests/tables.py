"""Tables for tests: an environment that is a script, models and functions to sit there, and episodes played out.

The scenarios say how long an episode is and where it goes wrong.
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
from epo_jax.agents.host import HostAgent
from epo_jax.agents.local import LocalAgent
from epo_jax.envs.base import Observation, TextEnvironment, TextStep
from epo_jax.envs.host import HostEnvironment
from epo_jax.models.sampling import SamplingConfig
from epo_jax.models.transformer import Transformer
from epo_jax.rollout import Episodes, Table, TableState, Turn, episode_keys, failure_reasons, open_table, refill, turn
from epo_jax.text.chat import chat_segments

TURNS = 6  # of both seats together
WIDTH = 120
BOTH = (0, 1)
never = threading.Event()  # what waits for it stalls


class Case(NamedTuple):
    """A scenario: its name, its number of actions, and what goes wrong in action number `at`."""

    name: str
    turns: int
    trouble: str = ''
    at: int = 0


CASES = (Case('one', 1), Case('two', 2), Case('five', 5), Case('six', 9))


@dataclasses.dataclass(frozen=True)
class Script(TextEnvironment):
    """A TextEnvironment whose state is (case, messages so far)."""

    cue: str = ''
    orders: tuple[str, ...] = ()  # the only replies of seat 1 in its second turn

    num_seats = 2
    max_turns = TURNS
    advice = ('[', ']')

    def reset(self, case, advised):
        opening = lambda role, seat: f'{case.name} {role}{seat}.'
        return (case, ()), tuple(Observation(opening('S', s) if advised[s] else '', opening('A', s)) for s in (0, 1))

    def step(self, state, seat, message):
        case, said = state
        n = len(said)
        line = f'{n}:{message[:4]};'
        if n == case.at and case.trouble == 'raise':
            raise RuntimeError('the script says so')
        if n == case.at and case.trouble == 'stall':
            never.wait(5)
        if n == case.at and case.trouble == 'exit':
            raise SystemExit('goodbye')
        if n == case.at and case.trouble == 'nothing':
            return None
        if case.trouble == 'flood':  # each fits an observation, but together they outgrow the context
            line = f'{n}' * 55
        if case.trouble == 'observation':  # each fits an observation, but not two of them
            line = f'{n}' * (WIDTH - 20)
        if n == case.at and case.trouble == 'long':
            line = 'x' * (WIDTH + 1)
        own, other = Observation(line, ''), Observation(line, line)
        observations = (own, other) if seat == 0 else (other, own)
        return (case, (*said, message)), TextStep(observations, n + 1 >= case.turns, (1.0, float(n)), (f'event{n}',))

    def cues(self, state, seat):
        return Observation(self.cue, self.cue)

    def choices(self, state, seat):
        return self.orders if len(state[1]) == 3 else ()

    def transcript(self, state, messages):
        return tuple((n % 2, f'{n}:{message[:4]};') for n, message in enumerate(state[1]))

    def judge_prompt(self, state, seat):
        return f'{state[0].name} {seat}'

    def describe(self, scenario, state):
        return {'scenario': state[0].name, 'seats': [{'name': 'A'}, {'name': 'B'}]}


@functools.cache
def tokenizer():
    return testing.byte_tokenizer()


@functools.cache
def other_tokenizer():
    """Bytes again, but with other ids, and with 'th', 'an' as one token."""
    chars = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=True)
    vocab = {token: i for i, token in enumerate([*chars, 'th', 'an'])}
    core = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[('t', 'h'), ('a', 'n')]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(['<|im_end|>'])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, eos_token='<|im_end|>')


@functools.cache
def local():
    """The dummy model; a fifth of all bytes end a message, so that messages differ in length."""
    chat = chat_segments(tokenizer())
    stop = (chat.end, *sorted({*chat.stop, *range(0, 256, 5)} - {chat.end}))
    sampling = SamplingConfig(max_tokens=8, stop=stop)
    agent = LocalAgent(Transformer(testing.dummy_config()), chat, sampling, capacity=320, chunk=32)
    return Player(agent, testing.dummy_params(testing.dummy_config(), stacked=False), tokenizer())


def host(reply, tokens=None, timeout=None):
    tokens = tokens or tokenizer()
    return Player(HostAgent(reply, tokens, 40, timeout), None, tokens)


def plan(history, seed):
    """A strategy that names its reader and the number of its turn: 'plan S0 1'."""
    return f'plan {history[0][1].split()[1][:2]} {len(history) // 2}'


def talk(history, seed):
    return f'line {history[0][1].split()[1][:2]} {len(history) // 2}'


def local_seats():
    return tuple(Seat(local(), local(), trained=True) for _ in BOTH)


def host_seats():
    return tuple(Seat(host(talk), host(plan)) for _ in BOTH)


def episode_numbers(count):
    """The keys of so many episodes."""
    return episode_keys(7, 0, np.arange(count))


def make_table(seats, env=Script(), timeout=None, group=1):
    return Table(HostEnvironment(env, seats, WIDTH, timeout), seats, group)


class Game(NamedTuple):
    """Episodes that were all played at the same time, in the slots of their numbers.

    Attributes:
      table, cases: who played what.
      state: the slots after the last turn.
      episodes, reasons: what was stored.
      turns: every turn.
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
    """Plays a table out by `turn` and `refill`, without a driver, so that memories can be looked at in the end."""
    table, turns = make_table(seats, env, timeout), []
    keys = episode_numbers(len(cases)) if keys is None else keys
    queue = table.env.encode(cases)
    state, episodes = refill(table, *open_table(table, len(cases), len(cases), keys), queue, keys)
    while not state.done.all():
        state, record = turn(table, state, len(turns) % len(seats))
        turns.append(record)
    reasons = failure_reasons(table, state)
    _, episodes = refill(table, state, episodes, queue, keys)
    return Game(table, cases, state, episodes, reasons, turns)
