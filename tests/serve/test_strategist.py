"""The strategist outside of training: the ids of a rollout, tokens that are read once, and refusals."""

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pytest

from epo_jax.agents.base import Player, Seat
from epo_jax.agents.host import HostAgent, each
from epo_jax.defaults import default_config
from epo_jax.envs.alfworld import prompts as alfworld_prompts
from epo_jax.envs.base import load_domain
from epo_jax.envs.host import HostEnvironment
from epo_jax.roles import local_agent
from epo_jax.rollout import Table, encode, rollout_on_host
from epo_jax.runtime.errors import InputError
from epo_jax.serve import loading
from epo_jax.serve.engine import Options
from epo_jax.serve.strategist import AdviceError, Strategist, start_engine
from epo_jax.serve.views import Brief, Message, make_view

REPLIES = ('Hello there.', 'speak: I would like the lamp,\nplease', 'I leave 40 dollars on the table.', 'Deal.')


@pytest.fixture(scope='module')
def loaded():
    found = loading.load('dummy')
    params = jax.tree.map(lambda x: 3 * x, found.language.params)
    config = default_config('sotopia')
    config.environment.update(max_turns=6, short=True)
    config.strategist.update(capacity=1024, max_tokens=10, temperature=0.7)
    return dataclasses.replace(found, language=dataclasses.replace(found.language, params=params), config=config)


@pytest.fixture(scope='module')
def strategist(loaded):
    with Strategist(loaded, start_engine(loaded, Options(slots=4, chunk=64, step=1024))) as strategist:
        yield strategist


def played(loaded, options, scenario, reply, seat):
    """Return the strategist's conversation of a rollout in which a function acts, and what was said, with its seats."""
    domain = load_domain(options.name)
    language = loaded.language
    said = []

    def act(history, seed):
        said.append(reply(len(said)))
        return said[-1]

    actor = Player(HostAgent(each(act), language.tokenizer, 60), None, language.tokenizer)
    agent = local_agent(language, loaded.config.strategist, 64)
    seats = [Seat(actor)] * domain.seats
    seats[seat] = Seat(actor, Player(agent, language.params, language.tokenizer), trained=True)
    table = Table(HostEnvironment(domain.text_environment(options), tuple(seats), 4096), tuple(seats))
    key = jax.random.fold_in(jax.random.key(7), 0)
    episodes, reasons = rollout_on_host(table, encode(table, [scenario]), key[None], 1)
    assert not reasons
    conversation = jax.tree.map(lambda x: np.asarray(x)[0], episodes.conversations[seat])
    number = 2 * seat
    texts = table.env.texts([scenario], episodes.env)[0]
    return conversation, said, texts, np.asarray(jax.random.key_data(jax.random.fold_in(key, number))).tolist()


@pytest.mark.parametrize('begun', [False, True])
def test_a_session_repeats_a_rollout(strategist, loaded, begun):
    """In SOTOPIA, the strategies of a session and everything it reads are those of the rollout, id by id."""
    config = loaded.config.copy_and_resolve_references()
    config.environment.begun = begun
    own = dataclasses.replace(loaded, config=config)
    view = make_view('sotopia', config.environment)
    brief = Brief('Sell the lamp.', 'Ana sells a lamp.', 'Ana Lopez', 'Ben')
    conversation, said, _, key = played(own, config.environment, view.scenario(brief), lambda n: REPLIES[n % 4], 0)
    session = Strategist(own, strategist.engine).open(**dataclasses.asdict(brief))
    session._sampling = dataclasses.replace(session._sampling, key=tuple(key))
    for turn in range(0, len(said), 2):
        session.advise([Message(i % 2 == 0, text) for i, text in enumerate(said[:turn])])
    length = int(conversation.length)
    assert session.ids == conversation.ids[:length].tolist()
    assert session.turn == conversation.turn[:length].tolist()
    np.testing.assert_allclose(session.logprob, conversation.logprob[:length], atol=1e-4)
    assert session.turns == 3


@pytest.mark.parametrize('name', ['webshop', 'alfworld'])
def test_openings_and_pages_are_those_of_training(loaded, name):
    """What a view shows of an episode equals what the environment showed the strategist."""
    config = default_config(name)
    for short, begun in ((False, False), (True, True)):
        config.environment.update(short=short, begun=begun, max_turns=3)
        domain = load_domain(name)
        env = domain.text_environment(config.environment)
        scenario = domain.scenarios('', config.environment)[0]
        state, ((read, acted),) = env.reset(scenario, (True,))
        view = make_view(name, config.environment)
        actions = ['search[lamp]', 'click[back to search]'] if name == 'webshop' else ['look', 'inventory']
        if name == 'webshop':
            goal, first = state.visit.goal.instruction, acted.rpartition('Observation: ')[2]
        else:
            goal, first = scenario.task, state.situation
        brief = Brief(goal)
        assert view.begin(brief, [Message(False, first)]) == [read]
        assert view.advice == env.advice and view.cue == env.cues(state, 0).strategist
        for action in actions:
            state, step = env.step(state, 0, f'Action: {action}'.removeprefix(env.cues(state, 0).actor))
            seen, answer = step.observations[0]
            assert view.more(brief, [Message(True, f'Action: {action}'), Message(False, answer)]) == [seen]


def test_types_of_all_tasks():
    domain, config = load_domain('alfworld'), default_config('alfworld')
    for scenario in domain.scenarios('', config.environment):
        assert alfworld_prompts.category_of(scenario.task) == scenario.category


def test_twenty_turns_read_every_token_once(strategist):
    session = strategist.open('Agree on a price.', 'general')
    history, read = [], 0
    for turn in range(20):
        history.append({'role': 'user', 'content': f'What about {turn} dollars?'})
        advice = session.advise(history)
        read += advice.read
        history.append({'role': 'assistant', 'content': f'Rather {turn + 5}.'})
        assert advice.text in advice.inserted and len(advice.ids) == len(advice.logprobs)
        assert session.ids[-len(advice.ids):] == list(advice.ids)
        if len(session.ids) > 900:
            break
    assert turn > 5 and read == session.turn.count(-1)


def test_general_prompt():
    view = make_view('general', begun=True)
    brief = Brief('Get a refund.', 'A broken kettle.', 'Kim', 'Shop')
    opening, line = view.begin(brief, [Message(False, 'Hello, how can I help?')])
    assert all(part in opening for part in ('advise Kim', 'talks with Shop', 'A broken kettle.', "Kim's goal: Get a"))
    assert line == '\nShop: Hello, how can I help?' and view.cue == 'Strategy:'
    assert view.more(brief, [Message(True, 'It broke.'), Message(False, 'Sorry.')]) == [
        'Kim: It broke.', '\nShop: Sorry.']


def test_conversations_are_sampled_together(strategist):
    """Each advice is what the session would have got alone."""
    histories = [[Message(False, text)] for text in ('Hi.', 'Good morning to you.', 'No.')]
    open_all = lambda: [strategist.open(f'Goal {i}.', 'general', seed=i) for i in range(3)]
    together = strategist.advise_all(list(zip(open_all(), histories)))
    alone = [session.advise(history) for session, history in zip(open_all(), histories)]
    assert [a.ids for a in together] == [a.ids for a in alone] and len({a.ids for a in alone}) > 1
    assert strategist.advise('Goal 1.', histories[1], 'general', seed=1).ids == alone[1].ids


def test_what_cannot_be_advised(strategist):
    session = strategist.open('Win.', 'general')
    session.advise([Message(False, 'a')])
    with pytest.raises(AdviceError, match='differs'):
        session.advise([Message(False, 'b')])
    with pytest.raises(AdviceError, match="'content'"):
        session.advise([Message(False, 'a'), {'role': 'user', 'content': None}])
    with pytest.raises(InputError, match='1024'):
        session.advise([Message(False, 'a'), Message(False, 'b' * 1000)])
    assert session.turns == 1
    with pytest.raises(InputError, match='general'):
        strategist.open('Win.', 'chess')


def test_importing_the_package_stays_cheap():
    code = 'import sys, epo_jax; print("jax" in sys.modules, "Strategist" in dir(epo_jax))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ['False', 'True']
