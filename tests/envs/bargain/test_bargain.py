"""The bargaining game against a reference implementation, and inside traced loops."""

from bargain_reference import Table
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epo_jax.envs.bargain import language, opponents
from epo_jax.envs.bargain.game import Bargain
from epo_jax.envs.bargain.scenarios import BOARDS, Scenario, encode, every_scenario
from epo_jax.text.tokens import Tokens, pack

FAMILY, SEATS = Bargain('family'), Bargain('seat')
MESSAGES = (*language.INTENTS, 'silent', 'books:1')  # the last two are not intents


def say(words):
    return Tokens(jnp.array([[language.IDS[word]] for word in words], jnp.int32), jnp.ones(len(words), jnp.int32))


def start(env, scenarios):
    batch = len(scenarios)
    return env.reset(env.start(batch), env.encode(scenarios), jnp.arange(batch), jnp.ones(batch, bool))


def texts(tokens):
    return [' '.join(language.WORDS[i] for i in row) for row in tokens.rows()]


def pick(opponent, count, seed=0):
    scenarios = every_scenario(opponent)
    return [scenarios[i] for i in np.random.default_rng(seed).choice(len(scenarios), count, replace=False)]


@pytest.mark.parametrize('env', [FAMILY, SEATS, Bargain('family', 6), Bargain('seat', 1)],
                         ids=lambda env: f'{env.opponent}{env.rounds}')
def test_random_messages_have_the_same_effects_as_in_the_reference(env):
    scenarios = pick(env.opponent, 200)
    rng = np.random.default_rng(1)
    state, _ = start(env, scenarios)
    tables = [Table(scenario, env.rounds, env.opponent == 'family') for scenario in scenarios]
    live, total = np.ones(200, bool), np.zeros((200, env.num_seats))
    for t in range(env.max_turns):
        seat = t % env.num_seats
        words = rng.choice(MESSAGES, 200, p=[.08] * 8 + [.1, .08, .06, .06, .06])
        state, step = env.step(state, seat, say(words), jnp.array(live))
        reader = 0 if env.opponent == 'family' else 1 - seat
        observed = texts(step.observations[reader].strategist)
        total += np.asarray(step.reward)
        for b in np.flatnonzero(live):
            speaker, before = 1 - reader, len(tables[b].offers[1 - reader])
            tables[b].say(seat, words[b])
            assert bool(step.done[b]) == tables[b].over
            made = tables[b].offers[speaker][before:]
            if tables[b].over:
                assert observed[b] == ''
            elif made:
                items = ' '.join(f'{item}:{n}' for item, n in zip(language.ITEMS, made[-1][reader]))
                worth = tables[b].points(reader, made[-1])
                assert observed[b] == f'turn:{tables[b].taken // 2 + 1} {items} worth:{worth}'
            else:
                assert observed[b] == f'turn:{tables[b].taken // 2 + 1} silent'
        live &= ~np.asarray(step.done)
    assert not live.any()
    assert {table.deal is None for table in tables} == {True, False}
    np.testing.assert_allclose(total, [table.rewards()[:env.num_seats] for table in tables], rtol=1e-6)
    assert np.asarray(state.invalid).tolist() == [table.invalid for table in tables]
    assert env.rounds == 1 or any(table.deal is not None and sum(table.invalid) for table in tables)


def test_every_scenario_follows_the_rules_and_no_valuation_is_in_both_splits():
    scenarios = every_scenario('family')
    assert len({scenario.id for scenario in scenarios}) == len(scenarios)
    for s in scenarios[::7]:
        assert 5 <= sum(s.counts) <= 7 and min(s.counts) >= 1
        assert all(np.dot(s.counts, values) == 10 for values in s.values)
        assert all(map(any, zip(*s.values))) and any(map(all, zip(*s.values)))
    pairs = lambda split: {(s.counts, frozenset(s.values)) for s in scenarios if s.split == split}
    assert not pairs('train') & pairs('held_out')
    kinds = [s.category for s in scenarios if s.split == 'held_out'][:10 * len(opponents.NAMES)]
    assert all(kinds.count(name) == 10 for name in opponents.NAMES)


def test_the_first_observation_contains_the_own_values_only():
    scenario = Scenario((2, 1, 3), ((2, 6, 0), (5, 0, 0)), None, 'train')
    _, openings = start(SEATS, [scenario])
    assert texts(openings[0].strategist) == ['books:2 hats:1 balls:3 books=2 hats=6 balls=0']
    assert texts(openings[1].strategist) == ['books:2 hats:1 balls:3 books=5 hats=0 balls=0']
    assert all(np.asarray(opening.actor.length).tolist() == [0] for opening in openings)


@pytest.mark.parametrize('change', [
    dict(counts=(1, 1, 1)), dict(values=((2, 6, 0), (4, 0, 0))), dict(values=((6, -2, 0), (5, 0, 0))),
    dict(opponent='kind')])
def test_a_scenario_against_the_rules_is_refused_by_number(change):
    good = dict(counts=(2, 1, 3), values=((2, 6, 0), (5, 0, 0)), opponent='eager', split='train')
    with pytest.raises(ValueError, match='scenario 1 .*needs'):
        encode([Scenario(**good), Scenario(**good | change)])


def test_reset_and_step_change_only_the_given_rows():
    scenarios = pick('family', 8)
    state, _ = start(FAMILY, scenarios)
    rows = jnp.arange(8) % 2 == 0
    stepped, step = FAMILY.step(state, 0, say(['ask:6'] * 8), rows)
    unchanged = jax.tree.map(lambda new, old: (new[1::2] == old[1::2]).all(), stepped, state)
    assert all(jax.tree.leaves(unchanged))
    assert np.asarray(step.observations[0].strategist.length)[1::2].tolist() == [0] * 4 and not step.reward[1::2].any()
    restarted, openings = FAMILY.reset(stepped, FAMILY.encode(scenarios), jnp.full(8, 3), ~rows)
    assert all(jax.tree.leaves(jax.tree.map(lambda new, old: (new[::2] == old[::2]).all(), restarted, stepped)))
    assert np.asarray(openings[0].strategist.length).tolist() == [0, 6] * 4
    assert (restarted.values[1::2] == jnp.array(scenarios[3].values)).all()


@pytest.mark.parametrize('message', [[], [9999], [-1], [0]])
def test_a_message_without_an_intent_has_no_effect_but_is_counted(message):
    state, _ = start(FAMILY, pick('family', 2))
    waited, _ = FAMILY.step(state, 0, say(['wait'] * 2), jnp.ones(2, bool))
    state, step = FAMILY.step(state, 0, pack([message] * 2, 1), jnp.ones(2, bool))
    assert np.asarray(state.invalid)[:, 0].tolist() == [1, 1] and not step.failed.any()
    assert all(jax.tree.leaves(jax.tree.map(
        lambda a, b: bool((a == b).all()), state.replace(invalid=waited.invalid), waited)))


def test_a_bargain_in_one_traced_loop_equals_one_step_by_step():
    scenarios = pick('seat', 64)
    queue = SEATS.encode(scenarios)
    ids = jnp.array(language.INTENT_IDS)
    words = jax.random.randint(jax.random.key(0), (SEATS.max_turns, 64), 0, len(ids))

    def both(state, live, reward, t):
        for seat in (0, 1):
            message = Tokens(ids[words[t + seat]][:, None], jnp.ones(64, jnp.int32))
            state, step = SEATS.step(state, seat, message, live)
            live, reward = live & ~step.done, reward + step.reward
        return state, live, reward, t + 2

    @jax.jit
    def play():
        state, _ = SEATS.reset(SEATS.start(64), queue, jnp.arange(64), jnp.ones(64, bool))
        return jax.lax.while_loop(
            lambda carry: carry[1].any(), lambda carry: both(*carry),
            (state, jnp.ones(64, bool), jnp.zeros((64, 2)), 0))

    state, live, reward, _ = play()
    stepwise = start(SEATS, scenarios)[0], jnp.ones(64, bool), jnp.zeros((64, 2)), 0
    for _ in range(SEATS.rounds):
        stepwise = both(*stepwise)
    assert not live.any() and reward.any()
    assert all(jax.tree.leaves(jax.tree.map(
        lambda a, b: (a == b).all(), (state, reward), (stepwise[0], stepwise[2]))))


def test_texts_describe_a_finished_bargain():
    scenario = Scenario((2, 1, 3), ((2, 6, 0), (5, 0, 0)), None, 'train')
    state, _ = start(SEATS, [scenario])
    for seat, word in ((0, 'ask:10'), (1, 'hello'), (0, 'ask:6'), (1, 'accept')):
        message = pack([[language.IDS.get(word, language.IDS['<unknown>'])]], 1)
        state, step = SEATS.step(state, seat, message, jnp.ones(1, bool))
    (episode,) = SEATS.texts([scenario], state)
    assert episode.lines == [
        (0, 'Ada offers Ben 3 balls and keeps 2 books and 1 hat (10 points).'), (1, 'Ben says nothing.'),
        (0, 'Ada offers Ben 2 books and 3 balls and keeps 1 hat (6 points).'), (1, 'Ben accepts (10 points).')]
    # Ada gets 6 of 10 points, and the joint 16 points are the largest possible number. Ben sent one invalid message.
    np.testing.assert_allclose(step.reward, [[0.6, 0.9]], rtol=1e-6)
    assert episode.facts['points'] == [6, 10] and episode.facts['ended'] == 'deal'
    assert episode.events == ['bargain/deal', 'action/invalid']
    assert episode.facts['scenario'] == '2-1-3/2-6-0/5-0-0/seat'


def test_texts_against_the_family_have_the_answer_of_the_opponent_in_the_same_line():
    scenario = Scenario((2, 1, 3), ((2, 6, 0), (5, 0, 0)), 'eager', 'train')
    state, _ = start(FAMILY, [scenario])
    state, _ = FAMILY.step(state, 0, say(['wait']), jnp.ones(1, bool))
    state, step = FAMILY.step(state, 0, say(['walk']), jnp.ones(1, bool))
    (episode,) = FAMILY.texts([scenario], state)
    assert [seat for seat, _ in episode.lines] == [0, 0]
    assert episode.lines[0][1].startswith('Ada says nothing. Ben offers Ada ')
    assert episode.lines[1][1] == 'Ada walks away.' and step.reward.tolist() == [[0.0]]


@pytest.mark.parametrize('fields', [('other', 4), ('family', 0), ('seat', 10)])
def test_impossible_settings_are_refused(fields):
    with pytest.raises(ValueError, match='opponent must be'):
        Bargain(*fields)


def test_the_number_of_sets_of_items():
    assert len(BOARDS) == 6 + 10 + 15  # compositions of 5, 6 and 7 into three positive parts
