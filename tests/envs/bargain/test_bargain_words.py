"""Bargaining in English: sentences, legal moves, and the same games as text, on the device and in array code."""

import dataclasses
import functools

from bargain_reference import Table
from hypothesis import given, settings, strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epo_jax import rollout
from epo_jax.agents.base import Player, Seat
from epo_jax.agents.host import HostAgent
from epo_jax.config import ConfigError
from epo_jax.defaults import default_config, validate
from epo_jax.envs.bargain import opponents, optimum, words
from epo_jax.envs.bargain.dialogue import WordBargain
from epo_jax.envs.bargain.game import Bargain
from epo_jax.envs.bargain.language import INTENTS
from epo_jax.envs.bargain.scenarios import every_scenario
from epo_jax.envs.bargain.tokens import TokenBargain
from epo_jax.envs.base import load_domain
from epo_jax.envs.host import HostEnvironment
from epo_jax.evaluation import describe_protocol, select
from epo_jax.roles import build_roles
from epo_jax.runtime.errors import InputError
from epo_jax.runtime.parallel import make_mesh
from epo_jax.testing import byte_tokenizer
from epo_jax.text import tokenizer as text
from epo_jax.text.tokens import TooLongError, pack
from epo_jax.tools import bargain_lesson as lesson

GAMES, ROUNDS, WIDTH = 8, 3, 480
NONSENSE = 'Hello there.'
PANELS = {'held_out_98': '472513bb', 'eager_98': 'd59858c7'}  # hashes of the ids in their order


@functools.cache
def tokenizer():
    return byte_tokenizer()


def scenarios(opponent):
    return every_scenario(opponent)[:GAMES]


def both_forms(opponent, constrained):
    """Return the environment in text, driven on the host, and the one on the device."""
    game = Bargain(opponent, ROUNDS)
    player = Player(HostAgent(None, tokenizer(), 64), None, tokenizer())
    host = HostEnvironment(WordBargain(game, constrained), (Seat(player, player),) * game.num_seats, WIDTH)
    return host, TokenBargain(game, tokenizer(), WIDTH, constrained)


def rows(tokens):
    return [text.decode(tokenizer(), row) for row in tokens.rows()]


def start(env, opponent):
    queue = env.encode(scenarios(opponent), [True] * env.num_seats)
    return env.reset(env.start(GAMES), queue, np.arange(GAMES), np.ones(GAMES, bool))


def choices(env, state, seat):
    found = env.choices(state, seat)
    return None if found is None else [
        [text.decode(tokenizer(), row[:n]) for row, n in zip(ids, length) if n]
        for ids, length in zip(np.asarray(found.ids), np.asarray(found.length))]


def replies(legal, rng):
    """Return a random legal reply in every row; in one of five rows, or if all are legal, also others."""
    if legal is None:
        said = (*words.MOVES, NONSENSE, 'I ask for 7 points, not more.', 'I accept.')
        return [said[i] for i in rng.integers(len(said), size=GAMES)]
    return [NONSENSE if rng.random() < 0.1 else row[rng.integers(len(row))] for row in legal]


@pytest.mark.parametrize('opponent, constrained', [('family', True), ('seat', False)])
def test_both_forms_are_the_same_game_as_the_reference(opponent, constrained):
    host, device = both_forms(opponent, constrained)
    (state, openings), (on_device, device_openings) = start(host, opponent), start(device, opponent)
    reading = lambda observations: [rows(part) for observation in observations for part in observation]
    assert reading(openings) == reading(device_openings) and host.max_turns == device.max_turns
    tables = [Table(scenario, ROUNDS, opponent == 'family') for scenario in scenarios(opponent)]
    rng, live, earned = np.random.default_rng(0), np.ones(GAMES, bool), np.zeros((GAMES, host.num_seats))
    for turn in range(host.max_turns):
        seat = turn % host.num_seats
        legal = choices(host, state, seat)
        assert legal == choices(device, on_device, seat)
        assert rows(host.cues(state, seat).actor) == rows(device.cues(on_device, seat).actor)
        said = replies(legal, rng)
        message = pack([text.encode(tokenizer(), reply) for reply in said], 64)
        state, step = host.step(state, seat, message, live)
        on_device, same = device.step(on_device, seat, jax.tree.map(jnp.asarray, message), live)
        assert reading(step.observations) == reading(same.observations)
        assert step.done[live].tolist() == np.asarray(same.done)[live].tolist()
        np.testing.assert_array_equal(step.reward[live], np.asarray(same.reward)[live])
        for b in np.flatnonzero(live):
            intent = words.read_move(said[b])
            tables[b].say(seat, INTENTS[intent] if intent >= 0 else '')
            assert tables[b].over == step.done[b]
        earned += np.nan_to_num(step.reward)
        live = live & ~step.done
    assert not live.any() and earned.any()
    np.testing.assert_allclose(earned, [table.rewards()[:host.num_seats] for table in tables], rtol=1e-6)
    told = lambda env, state: [(episode.facts, list(episode.lines), list(episode.events))
                               for episode in env.texts(scenarios(opponent), state)]
    assert told(host, state) == told(device, on_device)


def test_a_seat_reads_its_own_points_and_what_its_strategist_cannot_know():
    env = WordBargain(Bargain('seat', 2))
    scenario = next(s for s in every_scenario('seat') if s.counts == (2, 1, 3) and s.values[0] != s.values[1])
    state, (first, second) = env.reset(scenario, (True, False))
    point = lambda seat: f'book {words.NUMBERS[scenario.values[seat][0]]}, hat {words.NUMBERS[scenario.values[seat][1]]}'
    assert point(0) in first.strategist and point(0) in first.actor and 'advice' in first.actor
    assert point(1) in second.actor and 'advice' not in second.actor
    assert 'two books, one hat and three balls' in first.actor
    state, step = env.step(state, 0, ' Ask for ten points.')
    assert step.observations[0] == ('', '') and step.observations[1].actor.startswith('\nAda offers ')
    state, step = env.step(state, 1, ' Wait.')
    assert step.observations[0].strategist == (
        'Ada asked for ten points. Ben says nothing. It is the last turn.')
    assert step.observations[0].actor == 'Ben says nothing. It is the last turn.'
    _, step = env.step(state, 0, 'Hm.')
    assert step.observations[1].strategist == 'Ben waited. Ada says nothing. It is the last turn.'


@pytest.mark.parametrize('reply, intent', [
    ('I would ask for 7 points.', 'ask:7'), ('asking for at least ten, please', 'ask:10'), ('ACCEPT', 'accept'),
    ("I don't accept. I ask for four points.", 'ask:4'), ('I will not wait; I walk away', 'walk'), ('', None),
    ('Ask for two points.', None), ('Ask for 700 points.', None), ('Give me all books.', None)])
def test_free_replies_are_read(reply, intent):
    assert words.read_move(reply) == (-1 if intent is None else INTENTS.index(intent))


def test_every_move_is_read_as_itself():
    assert [words.read_move(f' {move}') for move in words.MOVES] == list(range(len(INTENTS)))
    assert len(set(words.MOVES)) == len(words.MOVES)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(0, GAMES - 1), st.lists(st.integers(0, 99), min_size=2 * ROUNDS, max_size=2 * ROUNDS))
def test_legal_moves_have_an_effect_and_all_others_cost_reward(game, picks):
    env = WordBargain(Bargain('seat', ROUNDS))
    state, _ = env.reset(scenarios('seat')[game], (True, True))
    for turn, pick in enumerate(picks):
        seat, legal = turn % 2, [choice.strip() for choice in env.choices(state, turn % 2)]
        assert set(words.MOVES) - set(legal) == ({'Accept the offer.'} if state.slot.offers[0, 1 - seat] < 0 else set())
        for move in set(words.MOVES) - set(legal):
            assert env.step(state, seat, move)[0].slot.invalid[0, seat] == state.slot.invalid[0, seat] + 1
        state, step = env.step(state, seat, legal[pick % len(legal)])
        assert not state.slot.invalid.any() and all(0 <= reward <= 1 for reward in step.rewards)
        if step.done:
            break
    assert step.done


def test_the_best_sequence_of_moves_earns_the_optimum():
    env, played = WordBargain(Bargain('family', 2)), scenarios('family')[:3]
    rewards = np.asarray(optimum.try_sequences(env.game, env.game.encode(played))[0])
    for scenario, column, best in zip(played, rewards.argmax(axis=1), rewards.max(axis=1)):
        state, _ = env.reset(scenario, (True,))
        total = 0.0
        for intent in optimum.intents_of_column(env.game, int(column)):
            state, step = env.step(state, 0, words.move(intent))
            total += step.rewards[0]
            if step.done:
                break
        np.testing.assert_allclose(total, best, rtol=1e-6)


def test_replies_that_are_too_short_for_a_move_are_refused():
    _, device = both_forms('family', True)
    state, _ = start(device, 'family')
    with pytest.raises(TooLongError, match='actor.max_tokens to 23 or more'):
        device.step(state, 0, pack([[1]] * GAMES, 8), np.ones(GAMES, bool))


@pytest.mark.parametrize('name', ['bargain_words', 'bargain_words_selfplay'])
def test_the_domains_make_both_forms(name):
    domain, options = load_domain(name), default_config(name).environment
    options.update(rounds=2, constrained=False)
    assert domain.text_environment(options) == WordBargain(Bargain(domain_opponent(domain), 2), False)
    assert domain.device_environment(options, tokenizer(), WIDTH).constrained is False
    with pytest.raises(ValueError, match='generates its own scenarios'):
        domain.scenarios('somewhere', options)


def domain_opponent(domain):
    return 'family' if domain.seats == 1 else 'seat'


def test_fixed_panels_are_the_same_games_in_the_same_order_for_every_run():
    config, domain = default_config('bargain_words'), load_domain('bargain_words')
    held_out = [s for s in domain.scenarios('', config.environment) if s.split == 'held_out']
    chosen = {}
    for name, panel in PANELS.items():
        config.evaluation.set = name
        chosen[name] = select(held_out, config, domain)
        protocol = describe_protocol(config, domain, chosen[name])
        assert (protocol['set'], protocol['panel'], protocol['scenarios']) == (name, panel, 98)
        for seed, batch, episodes in ((1, 7, 4), (2, 2, 1000)):
            config.seed, config.evaluation.episodes = seed, episodes
            config.rollout.update(batch=batch, parts=2)
            assert select(held_out[::-1], config, domain) == chosen[name]
    kinds = [scenario.opponent for scenario in chosen['held_out_98']]
    assert kinds == 14 * list(opponents.NAMES)
    assert len({(scenario.counts, frozenset(scenario.values)) for scenario in chosen['held_out_98']}) == 98
    assert [dataclasses.replace(s, opponent=kind) for s, kind in zip(chosen['eager_98'], kinds)] == (
        chosen['held_out_98'])
    config.environment.opponents = ('eager',)
    assert domain.variant(config.environment) == 'bargain_words+eager'
    few = [s for s in domain.scenarios('', config.environment) if s.split == 'held_out']
    assert {s.opponent for s in few} == {'eager'} and select(few, config, domain) == chosen['eager_98']
    with pytest.raises(InputError, match="there is no '1-1-5/1-4-1/5-5-0/slow'"):
        config.evaluation.set = 'held_out_98'
        select(few, config, domain)


@pytest.mark.parametrize('kinds, message', [((), 'at least one kind'), (('eager', 'kind'), 'environment.opponents')])
def test_impossible_opponents_are_refused(kinds, message):
    config = default_config('bargain_words')
    config.environment.opponents = kinds
    with pytest.raises(ConfigError, match=message):
        validate(config)


def test_a_lesson_shows_the_curve_and_the_same_games_before_and_after():
    assert lesson.sparkline([0, 7, float('nan'), 3.5, 7]) == '▁█ ▅█' and lesson.sparkline([2, 2]) == '▁▁'
    assert '(4.00 at first, 6.00 at last)' in lesson.curve([{'outcome/mean': 0.4}, {'outcome/mean': 0.6}])
    record = lambda condition, episode, outcome: dict(
        condition=condition, episode=episode, repetition=0, situation='Ada and Ben divide.',
        seats=[dict(outcome=outcome)], turns=[dict(strategy=f'by {condition}', line='Ada waits.')])
    records = [record('policy', 1, 0.7), record('none', 0, 0.1), record('policy', 0, 0.5), record('prompted', 0, None)]
    assert list(lesson.games(records, 1)) == [
        'Ada and Ben divide. prompted: missing', '  strategy: by prompted', '  Ada waits.',
        'Ada and Ben divide. policy: 5.00', '  strategy: by policy', '  Ada waits.']


@pytest.mark.slow
@pytest.mark.parametrize('name', ['bargain_words', 'bargain_words_selfplay'])
def test_a_compiled_rollout_plays_the_games_of_a_host_loop(name):
    """Dummy models in all roles: conversations, moves and rewards are the same."""
    config, domain = default_config(name), load_domain(name)
    config.model.update(path='dummy', remat='none')
    config.strategist.update(capacity=1200, max_tokens=30)
    config.actor.update(capacity=1200, max_tokens=30)
    config.rollout.update(episodes=GAMES, batch=4, group=2, view_tokens=WIDTH)
    roles = build_roles(config, make_mesh((1, 1, 1)), domain)
    strategist = Player(roles.strategist_agent, roles.strategist.params, roles.strategist.tokenizer)
    seats = (Seat(roles.actor, strategist, trained=True),) * domain.seats
    played = [scenario for scenario in domain.scenarios('', config.environment)[:GAMES // 2] for _ in (0, 1)]
    keys = rollout.episode_keys(0, 0, np.arange(GAMES))
    host = rollout.Table(HostEnvironment(domain.text_environment(config.environment), seats, WIDTH), seats, 2)
    device = rollout.Table(domain.device_environment(config.environment, roles.actor.tokenizer, WIDTH), seats, 2)
    one, _ = rollout.rollout_on_host(host, rollout.encode(host, played), keys, 4)
    other = jax.jit(lambda table, queue, keys: rollout.rollout_compiled(table, queue, keys, 4))(
        device, rollout.encode(device, played), keys)
    for field in ('conversations', 'cause', 'actions', 'reward', 'strategies', 'messages'):
        same = jax.tree.map(lambda a, b: np.allclose(a, b, atol=1e-4), getattr(one, field), getattr(other, field))
        assert all(jax.tree.leaves(same)), field
    assert (one.cause == 0).all() and one.reward.any()
    told = lambda table, episodes: [(episode.facts, list(episode.lines)) for episode in
                                    table.env.texts(played, episodes.env)]
    assert told(host, one) == told(device, other)
