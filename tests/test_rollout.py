"""Episodes: who reads what, what is recorded, and that one that breaks leaves the others alone.

The environment is a script: its scenarios say how long an episode is and where it goes wrong.
"""

import dataclasses
import functools
import threading
from typing import NamedTuple

import jax
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers
import transformers

from epo_jax import testing
from epo_jax.agents.base import Player, Seat
from epo_jax.agents.host import HostAgent
from epo_jax.agents.local import LocalAgent
from epo_jax.envs.base import TextStep, View
from epo_jax.envs.host import HostEnvironment
from epo_jax.envs.sotopia.dialogue import Sotopia
from epo_jax.envs.sotopia.profiles import load_scenarios
from epo_jax.models.transformer import Transformer
from epo_jax.records import episode_records, failure_reason, failures
from epo_jax.rewards.process import Verdict
from epo_jax.rewards.reading import readings
from epo_jax.rollout import Table, episode_keys, rollout, trajectory
from epo_jax.sampling import SamplingConfig
from epo_jax.text.chat import chat_segments
from epo_jax.text.tokenizer import decode, encode

TURNS = 6  # of both seats together
WIDTH = 120
never = threading.Event()  # what waits for it stalls


class Case(NamedTuple):
    """A scenario: its name, its number of actions, and what goes wrong in action number `at`."""

    name: str
    turns: int
    trouble: str = ''
    at: int = 0


@dataclasses.dataclass(frozen=True)
class Script:
    """A TextEnvironment whose state is (case, messages so far)."""

    cue: str = ''

    num_seats = 2
    max_turns = TURNS
    advice = ('[', ']')

    def reset(self, case, advised):
        opening = lambda role, seat: f'{case.name} {role}{seat}.'
        return (case, ()), tuple(View(opening('S', s) if advised[s] else '', opening('A', s)) for s in (0, 1))

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
        if case.trouble == 'flood':  # each fits a view, but together they outgrow the context
            line = f'{n}' * 55
        if n == case.at and case.trouble == 'long':
            line = 'x' * (WIDTH + 1)
        own, other = View(line, ''), View(line, line)
        views = (own, other) if seat == 0 else (other, own)
        return (case, (*said, message)), TextStep(views, n + 1 >= case.turns, (1.0, float(n)), (f'event{n}',))

    def cues(self, state, seat):
        return View(self.cue, self.cue)

    def transcript(self, state):
        return tuple((n % 2, f'{n}:{message[:4]};') for n, message in enumerate(state[1]))

    def brief(self, state, seat):
        return f'{state[0].name} {seat}'

    def score(self, state, seat):
        return None


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
    stop = tuple(sorted({*chat.stop, *range(0, 256, 5)}))
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


def play(seats, cases, env=Script(), timeout=None, count=None, keys=None):
    """(table, episodes)"""
    table = Table(HostEnvironment(env, seats, WIDTH, timeout), seats)
    keys = episode_keys(jax.random.key(7), 0, np.arange(len(cases))) if keys is None else keys
    return table, rollout(table, cases, keys, count)


CASES = (Case('one', 1), Case('two', 2), Case('five', 5), Case('six', 9))
BOTH = (0, 1)


def local_seats():
    return tuple(Seat(local(), local(), trained=True) for _ in BOTH)


@functools.cache
def local_game():
    return play(local_seats(), CASES)


def conversations(episodes, who, seat):
    """Every row of a session as (ids, turn, logprob), cut to its length."""
    session = getattr(episodes.state, who)[seat]
    ids, turn, logprob = (np.asarray(getattr(session, name)) for name in ('ids', 'turn', 'logprob'))
    return [(ids[b, :n], turn[b, :n], logprob[b, :n]) for b, n in enumerate(np.asarray(session.length))]


def as_chat(ids, turn):
    """A conversation as if the end of a turn were the only token that ends a message."""
    chat, stop = local().agent.chat, local().agent.sampling.stop
    ids = [i for i, t in zip(ids.tolist(), turn) if t < 0 or i not in stop or i == chat.end]
    return ids if not ids or ids[-1] == chat.end else [*ids, chat.end]


# What is recorded


def test_episodes_of_unequal_length_are_kept_apart():
    table, episodes = local_game()
    lived = np.array([turn.live for turn in episodes.turns])
    assert [turn.seat for turn in episodes.turns] == [0, 1, 0, 1, 0, 1]
    assert lived.sum(axis=0).tolist() == [1, 2, 5, 6]
    assert [len(said) for _, said in episodes.state.env.episodes] == [1, 2, 5, 6]
    assert episodes.max_turns == 3 and not episodes.state.failed.any()
    rows = trajectory(table, episodes, [4, 4, 5, 6])
    assert rows.episode.tolist() == [0, 1, 2, 3] * 2 and rows.seat.tolist() == [0] * 4 + [1] * 4
    assert rows.turn_mask.sum(axis=1).tolist() == [1, 1, 3, 3, 0, 1, 2, 3]
    assert rows.group.tolist() == [8, 8, 10, 12, 9, 9, 11, 13]
    assert not rows.truncated.any()


def test_only_the_last_episode_reaches_the_limit_of_turns():
    _, episodes = local_game()
    assert episodes.state.done.tolist() == [True, True, True, False]


def test_rewards_of_the_environment_add_up():
    _, episodes = local_game()
    assert episodes.state.reward.tolist() == [[1, 0], [2, 1], [5, 10], [6, 15]]
    assert episodes.state.env.events[2] == tuple(f'event{n}' for n in range(5))


def test_trained_ids_are_the_sampled_ids_that_reached_actor_and_environment():
    table, episodes = local_game()
    rows = trajectory(table, episodes, range(4))
    stop = local().agent.sampling.stop
    taken = np.zeros(len(rows.ids), int)
    lengths = set()
    for t, turn in enumerate(episodes.turns):
        for b in np.flatnonzero(turn.live):
            n = turn.seat * 4 + b
            ids = rows.ids[n][rows.turn[n] == taken[n]].tolist()
            strategy = turn.strategy.rows()[b]
            assert ids[:len(strategy)] == strategy and len(ids) <= local().agent.sampling.max_tokens
            assert len(ids) == len(strategy) or (len(ids) == len(strategy) + 1 and ids[-1] in stop)
            assert (rows.logprob[n][rows.turn[n] == taken[n]] < 0).all()
            taken[n] += 1
            lengths.add(len(strategy))
            # The actor's conversation has it between the marks of advice.
            context, marks, _ = conversations(episodes, 'actors', turn.seat)[b]
            text = ' '.join(map(str, context[marks < 0]))
            assert ' '.join(map(str, [*encode(tokenizer(), '['), *strategy, *encode(tokenizer(), ']')])) in text
            # What the environment got is the text of what the actor sampled.
            assert episodes.state.env.episodes[b][1][t] == decode(tokenizer(), turn.message.rows()[b])
    assert taken.tolist() == rows.turn_mask.sum(axis=1).tolist()
    assert len(lengths) > 2  # stopped early and cut off
    for n, mask in enumerate(rows.turn):
        assert (mask[rows.length[n]:] == -1).all() and not rows.logprob[n][mask == -1].any()


def test_every_conversation_is_the_chat_of_what_was_read_and_said_token_for_token():
    _, episodes = local_game()
    encoded = lambda text: encode(tokenizer(), text)
    turns = {(b, n): (turn.strategy.rows()[b], turn.message.rows()[b]) for b in range(4)
             for n, turn in enumerate(episodes.turns) if turn.live[b]}
    for b, case in enumerate(CASES):
        said = episodes.state.env.episodes[b][1]
        line = [encoded(f'{n}:{message[:4]};') for n, message in enumerate(said)]
        for seat in BOTH:
            own = [n for n in range(len(said)) if n % 2 == seat]
            advised, acted = [], []
            for n in own:
                start = n < 2
                news = line[max(n - 2, 0):n]
                strategy, message = turns[b, n]
                opening = encoded(f'{case.name} S{seat}.') if start else []
                advised += [sum(news, opening), strategy]
                opening = encoded(f'{case.name} A{seat}.') if start else []
                heard = line[n - 1] if n else []
                acted += [[*opening, *heard, *encoded('['), *strategy, *encoded(']')], message]
            for who, messages in (('strategists', advised), ('actors', acted)):
                ids, turn, _ = conversations(episodes, who, seat)[b]
                chat = local().agent.chat
                assert as_chat(ids, turn) == (chat.join(messages) if messages else [])


def test_cues_stand_before_what_is_sampled_and_are_not_trained():
    table, episodes = play(local_seats(), CASES, Script(cue='Go: '))
    rows = trajectory(table, episodes, range(4))
    cue = encode(tokenizer(), 'Go: ')
    for n in range(8):
        starts = np.flatnonzero((rows.turn[n][1:] >= 0) & (rows.turn[n][1:] != rows.turn[n][:-1])) + 1
        assert len(starts) == rows.turn_mask[n].sum()
        for at in starts:
            assert rows.ids[n][at - len(cue):at].tolist() == cue


def test_a_table_without_a_trained_seat_has_no_trajectory():
    seats = (Seat(host(talk)), Seat(host(talk), host(plan)))
    table, episodes = play(seats, CASES)
    with pytest.raises(ValueError, match='trained'):
        trajectory(table, episodes, range(4))


def test_one_trained_seat_gives_one_row_an_episode():
    seats = (Seat(host(talk)), Seat(local(), local(), trained=True))
    table, episodes = play(seats, CASES)
    rows = trajectory(table, episodes, [0, 1, 2, 3])
    assert rows.seat.tolist() == [1] * 4 and rows.group.tolist() == [1, 3, 5, 7]
    assert rows.turn_mask.sum(axis=1).tolist() == [0, 1, 2, 3]


# Who reads what


def test_an_actor_reads_its_own_sides_advice_and_never_the_partners():
    seats = tuple(Seat(host(talk), host(plan)) for _ in BOTH)
    _, episodes = play(seats, CASES)
    for seat in BOTH:
        for b, case in enumerate(CASES):
            acted, advised = (getattr(episodes.state, who)[seat].histories[b] for who in ('actors', 'strategists'))
            turns = (min(case.turns, TURNS) + 1 - seat) // 2
            assert len(acted) == len(advised) == 2 * turns
            for t in range(turns):
                assert acted[2 * t][1].endswith(f'[plan S{seat} {t}]')
                assert advised[2 * t + 1] == ('assistant', f'plan S{seat} {t}')
                assert acted[2 * t + 1] == ('assistant', f'line A{seat} {t}')
            everything = ''.join(text for _, text in (*acted, *advised))
            assert f'S{1 - seat}' not in everything and f'A{1 - seat}' not in everything
            assert '[' not in ''.join(text for _, text in advised)


def test_what_is_read_is_what_happened_since_the_last_turn():
    seats = tuple(Seat(host(talk), host(plan)) for _ in BOTH)
    _, episodes = play(seats, CASES)
    users = lambda who, seat: [text for _, text in getattr(episodes.state, who)[seat].histories[3][::2]]
    assert users('strategists', 0) == ['six S0.', '0:line;1:line;', '2:line;3:line;']
    assert users('strategists', 1) == ['six S1.0:line;', '1:line;2:line;', '3:line;4:line;']
    assert users('actors', 0) == ['six A0.[plan S0 0]', '1:line;[plan S0 1]', '3:line;[plan S0 2]']
    assert users('actors', 1) == ['six A1.0:line;[plan S1 0]', '2:line;[plan S1 1]', '4:line;[plan S1 2]']


def test_a_seat_without_strategist_gets_no_advice():
    seats = (Seat(host(talk)), Seat(host(talk), host(plan)))
    table, episodes = play(seats, CASES)
    assert episodes.state.strategists[0] is None
    assert all('[' not in text for _, text in episodes.state.actors[0].histories[3])
    assert '[plan S1 0]' in episodes.state.actors[1].histories[3][0][1]
    assert [turn.strategy is None for turn in episodes.turns] == [True, False] * 3
    told = readings(table, episodes)
    assert told[3].strategies == ('', '', '') and told[7].strategies == ('plan S1 0', 'plan S1 1', 'plan S1 2')


# What breaks


def host_state(episodes, b):
    """All there is of an episode."""
    state = episodes.state
    return (state.env.episodes[b][1], state.env.events[b], state.reward[b].tolist(), bool(state.failed[b]),
            bool(state.done[b]), [m.histories[b] for m in (*state.strategists, *state.actors)])


def reasons(episodes, b):
    """Why an episode failed, wherever that is kept."""
    memories = (*episodes.state.strategists, *episodes.state.actors)
    return [r for r in (episodes.state.env.failures[b], *(m.failures[b] for m in memories)) if r]


def troubled(reply, trouble):
    """A reply function that fails in the episode named 'bad', in its second turn."""
    def answer(history, seed):
        if history[0][1].startswith('bad') and len(history) == 3:
            if trouble == 'raise':
                raise ConnectionError('endpoint down')
            if trouble == 'stall':
                never.wait(5)
            return None
        return reply(history, seed)
    return answer


@pytest.mark.parametrize('trouble, reason', [
    ('raise', 'RuntimeError: the script says so'), ('stall', 'no answer within 1 s'), ('long', '121 tokens'),
    ('exit', 'SystemExit: goodbye'), ('nothing', 'TypeError')])
def test_an_environment_that_breaks_ends_its_own_episode_only(trouble, reason):
    seats = tuple(Seat(host(talk), host(plan)) for _ in BOTH)
    timeout = 1.0 if trouble == 'stall' else None
    cases = list(CASES)
    cases[2] = Case('five', 5, trouble, at=2)
    _, sound = play(seats, CASES)
    _, broken = play(seats, cases, timeout=timeout)
    for b in (0, 1, 3):
        assert host_state(broken, b) == host_state(sound, b)
    assert broken.state.failed.tolist() == [False, False, True, False]
    assert broken.state.done[2] and reason in ' '.join(reasons(broken, 2))
    assert np.array([turn.live for turn in broken.turns]).sum(axis=0).tolist() == [1, 2, 3, 6]


@pytest.mark.parametrize('who, turns', [('strategist', 3), ('actor', 3), ('second actor', 4)])
@pytest.mark.parametrize('trouble, reason', [
    ('raise', 'ConnectionError: endpoint down'), ('stall', 'no answer within 1 s'), ('nothing', 'TypeError')])
def test_an_agent_that_breaks_ends_its_own_episode_only(who, turns, trouble, reason):
    timeout = 1.0 if trouble == 'stall' else None
    bad = lambda reply, name: host(troubled(reply, trouble) if who == name else reply, timeout=timeout)
    seats = (Seat(bad(talk, 'actor'), bad(plan, 'strategist')), Seat(bad(talk, 'second actor'), host(plan)))
    cases = [CASES[0], Case('bad', 6), *CASES[2:]]
    _, sound = play(tuple(Seat(host(talk), host(plan)) for _ in BOTH), cases)
    _, broken = play(seats, cases)
    for b in (0, 2, 3):
        assert host_state(broken, b) == host_state(sound, b)
    assert broken.state.failed.tolist() == [False, True, False, False] and broken.state.done[1]
    assert reason in ' '.join(reasons(broken, 1))
    assert np.array([turn.live for turn in broken.turns]).sum(axis=0).tolist() == [1, turns, 5, 6]
    assert len(broken.state.env.episodes[1][1]) == turns - 1  # the environment was not asked


@pytest.mark.parametrize('trouble', ['raise', 'flood', 'long'])
def test_an_episode_that_breaks_leaves_the_models_other_conversations_as_they_were(trouble):
    cases = list(CASES)
    cases[3] = Case('six', 9, trouble, at=1)
    table, sound = local_game()
    _, broken = play(local_seats(), cases)
    assert broken.state.failed.tolist() == [False, False, False, True] and broken.state.done[3]
    for who in ('strategists', 'actors'):
        for seat in BOTH:
            before, after = (conversations(e, who, seat) for e in (sound, broken))
            for b in (0, 1, 2):
                for x, y in zip(before[b], after[b]):
                    np.testing.assert_array_equal(x, y)
    assert broken.state.env.episodes[:3] == sound.state.env.episodes[:3]
    if trouble == 'flood':
        sessions = (*broken.state.strategists, *broken.state.actors)
        assert np.array([session.overflow for session in sessions]).any(axis=0).tolist() == [False] * 3 + [True]
        assert failures(table, broken)[3].endswith('the conversation does not fit its capacity')
    assert failures(table, broken)[:3] == [None] * 3 and failures(table, broken)[3]
    rows = trajectory(table, broken, range(4))
    assert rows.truncated.tolist() == [False, False, False, True] * 2
    told = readings(table, broken)
    assert [r.complete for r in told] == [True, True, True, False] * 2


def test_an_opening_that_does_not_fit_stops_the_run_and_names_the_option():
    with pytest.raises(ValueError, match='rollout.view_tokens'):
        play(tuple(Seat(host(talk)) for _ in BOTH), [Case('x' * WIDTH, 2)])


@pytest.mark.parametrize('where', ['environment', 'strategist', 'actor'])
def test_the_record_of_a_broken_episode_says_why(where):
    def down(history, seed):
        raise ConnectionError('endpoint down')

    class Broken(Sotopia):
        def step(self, state, seat, message):
            raise RuntimeError('endpoint down')

    pick = lambda name, reply: host(down if where == name else reply)
    hello = lambda history, seed: 'Hello.'
    seats = tuple(Seat(pick('actor', hello), pick('strategist', hello)) for _ in BOTH)
    env = (Broken if where == 'environment' else Sotopia)(max_turns=2, short=True)
    table = Table(HostEnvironment(env, seats, 4000), seats)
    episodes = rollout(table, load_scenarios()[:2], episode_keys(jax.random.key(0), 0, np.arange(2)))
    nothing = np.zeros(4, bool)
    verdict = Verdict(np.zeros((4, 1)), nothing[:, None], np.zeros(4), nothing, ({},) * 4)
    saved = episode_records(table, ('policy', 'policy'), episodes, readings(table, episodes), verdict, (0, 1))
    assert [record['truncated'] for record in saved] == [True, True]
    assert all('endpoint down' in record['failure'] for record in saved)
    assert 'endpoint down' in failure_reason(saved)


# Batches


def test_an_episode_does_not_depend_on_the_size_of_the_batch():
    keys = episode_keys(jax.random.key(7), 0, np.arange(8))
    more = [*CASES, Case('seven', 6), Case('eight', 3), Case('nine', 4), Case('ten', 1)]
    _, four = local_game()
    _, eight = play(local_seats(), more, keys=keys)
    _, second = play(local_seats(), more[4:], keys=keys[4:])
    assert four.state.env.episodes + second.state.env.episodes == eight.state.env.episodes
    for who in ('strategists', 'actors'):
        for seat in BOTH:
            parts = conversations(four, who, seat) + conversations(second, who, seat)
            for (ids, turn, logprob), (ids8, turn8, logprob8) in zip(parts, conversations(eight, who, seat)):
                np.testing.assert_array_equal(ids, ids8)
                np.testing.assert_array_equal(turn, turn8)
                np.testing.assert_allclose(logprob, logprob8, atol=1e-5)


def test_other_keys_give_other_episodes():
    _, episodes = play(local_seats(), CASES, keys=episode_keys(jax.random.key(8), 0, np.arange(4)))
    assert all(a[1] != b[1] for a, b in zip(episodes.state.env.episodes[2:], local_game()[1].state.env.episodes[2:]))


def test_rows_that_fill_up_a_batch_play_nothing():
    table, episodes = play(local_seats(), CASES[::-1], count=2)
    assert np.array([turn.live for turn in episodes.turns]).sum(axis=0).tolist() == [6, 5, 0, 0]
    assert [said for _, said in episodes.state.env.episodes[2:]] == [(), ()]
    rows = trajectory(table, episodes, range(4))
    for n in (2, 3, 6, 7):
        assert rows.length[n] == 0 and not rows.turn_mask[n].any() and (rows.turn[n] == -1).all()
    asked = []

    def reply(history, seed):
        asked.append(history[0][1])
        return 'Hi.'

    play(tuple(Seat(host(reply)) for _ in BOTH), CASES[::-1], count=1)
    assert len(asked) == TURNS and all(text.startswith('six') for text in asked)


def test_progress_is_told_of_every_turn():
    seats, seen = tuple(Seat(host(talk)) for _ in BOTH), []
    table = Table(HostEnvironment(Script(), seats, WIDTH), seats)
    episodes = rollout(table, CASES[:2], episode_keys(jax.random.key(0), 0, np.arange(2)), on_turn=seen.append)
    assert seen == episodes.turns and [turn.seat for turn in seen] == [0, 1]


# Two tokenizers


def test_advice_crosses_from_one_tokenizer_to_another_as_text():
    own, other = tokenizer(), other_tokenizer()
    thank = lambda history, seed: f'thank them, {len(history) // 2}'
    seats = (Seat(host(talk, other), host(thank, own)), Seat(host(talk, own), host(thank, other)))
    table, episodes = play(seats, CASES)
    for seat in BOTH:
        for t in range(3):
            text = f'thank them, {t}'
            assert f'[{text}]' in episodes.state.actors[seat].histories[3][2 * t][1]
            turn = episodes.turns[2 * t + seat]
            assert turn.strategy.rows()[3] == encode((own, other)[seat], text)
            assert turn.message.rows()[3] == encode((other, own)[seat], f'line A{seat} {t}')
    assert encode(own, 'thank') != encode(other, 'thank')
    assert readings(table, episodes)[3].strategies == tuple(f'thank them, {t}' for t in range(3))
    assert episodes.state.env.episodes[3][1] == tuple(f'line A{n % 2} {n // 2}' for n in range(TURNS))


def test_advice_that_grows_in_another_tokenizer_does_not_stop_the_run():
    # Bytes that are no text become U+FFFD, which is three bytes in the actor's tokenizer.
    seats = tuple(Seat(host(talk, other_tokenizer()), local(), trained=True) for _ in BOTH)
    table, episodes = play(seats, CASES)
    assert not episodes.state.failed.any()
    for seat in BOTH:
        for t, turn in enumerate(episodes.turns[seat::2]):
            advice = decode(tokenizer(), turn.strategy.rows()[3])
            assert f'[{advice}]' in episodes.state.actors[seat].histories[3][2 * t][1]
