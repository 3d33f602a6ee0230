"""Slots: an episode does not depend on where and when it is played, and both drivers give the same episodes."""

import dataclasses
import functools

from counting import Counting, Scenario
import jax
import numpy as np
import pytest
from tables import BOTH, Case, host, host_seats, local, local_seats, make_keys, make_table, perform, talk

from epo_jax import testing
from epo_jax.agents.base import Player, Seat
from epo_jax.agents.scripted import Echo
from epo_jax.models.transformer import Transformer
from epo_jax.rl.trajectory import trajectories
from epo_jax.rollout import (
    ENVIRONMENT,
    OBSERVATION,
    Table,
    agent_number,
    encode,
    open_table,
    refill,
    rollout_compiled,
    rollout_on_host,
    turn,
)

CASES = tuple(Case(f'case{n}', turns) for n, turns in enumerate((6, 1, 3, 2, 5, 4, 1, 1, 6, 2, 3, 6, 1, 4, 5, 2)))


def contents(stored):
    """Return, for every episode, all that is exact: strategies, messages, and the ids and turns of both strategists."""
    rows = [np.asarray(x) for conversation in stored.conversations if conversation is not None
            for x in (conversation.ids, conversation.turn, conversation.length, conversation.turns)]
    written = [[tokens.ids[e, n, :tokens.length[e, n]].tolist() for n in range(stored.actions[e])]
               for e in range(len(stored.cause)) for tokens in (stored.strategies, stored.messages)]
    return [(written[2 * e:2 * e + 2], [row[e].tolist() for row in rows], stored.cause[e], stored.actions[e],
             stored.reward[e].tolist()) for e in range(len(stored.cause))]


def logprobs(stored):
    return np.stack([np.asarray(conversation.logprob) for conversation in stored.conversations])


@functools.cache
def in_four_slots():
    table = make_table(local_seats())
    return table, rollout_on_host(table, CASES, make_keys(16), 4)[0]


def assert_same(one, other):
    """Assert that episodes are equal; log-probabilities may differ by the rounding of another batch size."""
    assert contents(one) == contents(other)
    np.testing.assert_allclose(logprobs(one), logprobs(other), atol=1e-5)


# Independence of slots


def test_an_episode_does_not_depend_on_the_number_of_slots():
    _, four = in_four_slots()
    sixteen = perform(local_seats(), CASES, keys=make_keys(16)).episodes
    assert_same(four, sixteen)
    assert len({str(written) for written, *_ in contents(four)}) == 16  # all episodes differ
    assert four.env.episodes.tolist() == sixteen.env.episodes.tolist()
    assert not four.cause.any()
    assert [len(messages) for _, messages in four.env.episodes] == [case.turns for case in CASES]


def test_an_episode_does_not_depend_on_its_slot_and_neighbors():
    table, straight = in_four_slots()
    order = np.random.default_rng(0).permutation(16)
    mixed, _ = rollout_on_host(table, [CASES[n] for n in order], make_keys(16)[order], 4)
    assert_same(mixed, jax.tree.map(lambda x: np.asarray(x)[order], straight))


def test_a_shared_opening_gives_the_same_episodes():
    keys, cases = make_keys(12), [case for case in CASES[:6] for _ in BOTH]
    alone, _ = rollout_on_host(make_table(local_seats()), cases, keys, 4)
    table = make_table(local_seats(), group=2)
    shared, _ = rollout_on_host(table, cases, keys, 4)
    assert_same(alone, shared)
    assert all(a != b for a, b in zip(contents(shared)[::2], contents(shared)[1::2]))  # the replies differ
    rows = trajectories(table, shared, np.arange(12), 2)
    assert rows.group.tolist() == [2 * (n // 2) for n in range(12)] + [2 * (n // 2) + 1 for n in range(12)]


# Schedule


def schedule(lengths, batch, group=1):
    """Return the expected episodes of each round: a group of slots that is free takes the next group of episodes."""
    waiting = [range(e, min(e + group, len(lengths))) for e in range(0, len(lengths), group)]
    slots, rounds = [[] for _ in range(batch // group)], []
    while True:
        for i, slot in enumerate(slots):
            if all(left <= 0 for _, left in slot):
                slots[i] = [(e, -(-lengths[e] // 2)) for e in waiting.pop(0)] if waiting else []
        if not any(slots):
            return rounds
        rounds.append(sorted(e for slot in slots for e, left in slot if left > 0))
        slots = [[(e, left - 1) for e, left in slot] for slot in slots]


def played(cases, batch, group=1):
    """Return the episodes that a table played in each round."""
    replied, rounds = [], []

    def reply(history, seed):
        replied.append(int(history[0][1].split()[0].removeprefix('case')))
        return talk(history, seed)

    def on_turn(record):
        if record.seat == 0:
            rounds.append(sorted(replied))
            assert len(replied) == record.live.sum()
        replied.clear()

    table = make_table(tuple(Seat(host(reply)) for _ in BOTH), group=group)
    stored, reasons = rollout_on_host(table, cases, make_keys(len(cases)), batch, on_turn)
    assert not reasons and stored.actions.tolist() == [case.turns for case in cases]
    return rounds


@pytest.mark.parametrize('count, batch', [(16, 4), (16, 16), (13, 4), (3, 8), (1, 1), (7, 1), (5, 4)])
def test_a_slot_starts_the_next_episode_as_soon_as_its_own_is_over(count, batch):
    rounds = played(CASES[:count], batch)
    assert rounds == schedule([case.turns for case in CASES[:count]], batch)
    for at, busy in enumerate(rounds):  # no slot is idle while an episode waits
        assert len(busy) == min(batch, count - len({e for before in rounds[:at] for e in before} - set(busy)))


@pytest.mark.parametrize('count, batch, group', [(16, 4, 2), (16, 8, 4), (6, 4, 2), (4, 4, 4), (2, 8, 2)])
def test_a_group_starts_together_in_neighboring_slots(count, batch, group):
    rounds = played(CASES[:count], batch, group)
    assert rounds == schedule([case.turns for case in CASES[:count]], batch, group)
    first = {e: next(r for r, busy in enumerate(rounds) if e in busy) for e in range(count)}
    assert all(first[e] == first[e - e % group] for e in first)


def test_sixteen_short_and_long_episodes_need_fewer_rounds_than_four_full_batches():
    rounds = played(CASES, 4)
    batches = sum(max(-(-case.turns // 2) for case in CASES[i:i + 4]) for i in range(0, 16, 4))
    assert len(rounds) < batches and sum(map(len, rounds)) == sum(-(-case.turns // 2) for case in CASES)


def test_agents_in_empty_slots_never_reply():
    table = make_table(host_seats())
    state, stored = open_table(table, 4, 2, make_keys(2))
    assert state.done.all() and (state.episode == 2).all()
    state, stored = refill(table, state, stored, CASES[:2], make_keys(2))
    assert state.done.tolist() == [False, False, True, True] and state.episode.tolist() == [0, 1, 2, 2]
    state, record = turn(table, state, 0)
    assert record.live.tolist() == [True, True, False, False]
    assert [len(history) for history in state.actors[0].histories] == [2, 2, 0, 0]
    assert state.env.episodes[2:].tolist() == [None, None] and state.actions.tolist() == [1, 1, 0, 0]


def test_an_episode_is_not_stored_before_it_is_over():
    table = make_table(host_seats())
    opened = refill(table, *open_table(table, 2, 2, make_keys(2)), CASES[:2], make_keys(2))
    state, _ = turn(table, opened[0], 0)
    after, stored = refill(table, state, opened[1], CASES[:2], make_keys(2))
    assert after.done.tolist() == [False, True] and stored.actions.tolist() == [0, 1]  # episode 1 took one action
    assert not stored.env.episodes[0] and stored.env.episodes[1][0] == CASES[1]


# Host loop and compiled loop

SCENARIOS = [Scenario(case.name, case.turns) for case in CASES[:11]]
SCENARIOS[4] = SCENARIOS[4]._replace(broken=2)
SCENARIOS[8] = SCENARIOS[8]._replace(loud=1)


def counting_table(echo_actors=False, group=1):
    """Return a table on the device.

    Both strategists and, unless `echo_actors`, one actor are models; the other actors echo. Long conversations exceed
    the capacity of the models.
    """
    config, agent = dataclasses.replace(testing.dummy_config(), num_layers=1), local().agent
    model = Player(dataclasses.replace(agent, model=Transformer(config), capacity=88),
                   testing.dummy_params(config, stacked=False), local().tokenizer)
    echo = Player(Echo(8), None, local().tokenizer)
    seats = (Seat(echo if echo_actors else model, model, trained=True), Seat(echo, model, trained=True))
    table = Table(Counting(width=48), seats, group)
    assert table.on_device
    return table


@functools.partial(jax.jit, static_argnums=3)
def compiled_play(table, queue, keys, batch):
    return rollout_compiled(table, queue, keys, batch)


def assert_identical(x, y):
    assert (x.shape, x.dtype) == (y.shape, y.dtype)
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_both_drivers_give_the_same_episodes():
    table = counting_table()
    queue, keys = encode(table, SCENARIOS), make_keys(11)
    traced = compiled_play(table, queue, keys, 4)
    hosted, reasons = rollout_on_host(table, queue, keys, 4)
    assert jax.tree.structure(traced) == jax.tree.structure(hosted)
    jax.tree.map(assert_identical, traced, hosted)
    # The comparison is meaningful: lengths differ, slots are reused, and every kind of end occurs.
    causes = set(traced.cause.tolist())
    assert {0, OBSERVATION, ENVIRONMENT} < causes and causes & {1 + agent_number(s, a) for s in BOTH for a in BOTH}
    assert set(reasons) == set(np.flatnonzero(np.asarray(traced.cause) > 0).tolist())
    assert len(set(traced.actions.tolist())) > 3 and np.nansum(traced.reward)
    for e, scenario in enumerate(SCENARIOS):
        assert traced.actions[e] == scenario.turns or traced.cause[e] and traced.actions[e] < scenario.turns
        # In its second turn, seat 0 wrote one of the words that it may choose.
        if traced.actions[e] > 2 and traced.cause[e] != 1 + agent_number(0, True):
            words = [[i + e % 5 for i in word] for word in ([70, 71, 72], [70, 71], [73])]
            assert traced.messages.ids[e, 2, :traced.messages.length[e, 2]].tolist() in words
    rows = [trajectories(table, stored, np.arange(11), 1) for stored in (traced, hosted)]
    jax.tree.map(np.testing.assert_array_equal, *rows)


def test_both_drivers_give_the_same_episodes_in_groups():
    table = counting_table(echo_actors=True, group=2)
    queue, keys = encode(table, [SCENARIOS[n] for n in (0, 0, 1, 1, 2, 2)]), make_keys(6)
    queue = queue.at[1::2, 0].set(queue[::2, 0])  # the same scenario, and so the same opening
    traced, (hosted, _) = compiled_play(table, queue, keys, 4), rollout_on_host(table, queue, keys, 4)
    jax.tree.map(assert_identical, traced, hosted)
    for conversation in traced.conversations:
        opening = np.asarray(conversation.ids)[:, :len(local().agent.chat.open) + 3]
        assert (opening[::2] == opening[1::2]).all() and len(np.unique(opening, axis=0)) == 3
    strategies = np.asarray(traced.strategies.ids)[:, 0]
    assert (strategies[::2] != strategies[1::2]).any(axis=1).all()
