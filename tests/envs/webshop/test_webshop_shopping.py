"""The WebShop TextEnvironment: observations, parsing of replies, rewards, options and presets."""

import json

from ml_collections import ConfigDict
import pytest

from epo_jax.config import defaults_of
from epo_jax.envs.base import Observation
from epo_jax.envs.webshop import nouns
from epo_jax.envs.webshop.domain import DOMAIN
from epo_jax.envs.webshop.scripted import buyer
from epo_jax.envs.webshop.shopping import Scenario, WebShop, read_action


@pytest.fixture
def scenario(small):
    goal = next(i for i, goal in enumerate(small.goals) if len(goal.options) == 2)
    return Scenario('s', 'train', small.goals[goal].category, 'webshop-small-synth-15', small, goal)


def play(env, scenario, *messages, advised=True):
    state, steps = env.reset(scenario, (advised,))[0], []
    for message in messages:
        state, step = env.step(state, 0, message)
        steps.append(step)
    return state, steps


@pytest.mark.parametrize('text, expected', [
    ('Action: search[red shoes]', ('search[red shoes]', None)),
    ('Action: click[Buy Now]', ('click[Buy Now]', None)),
    ('click[< Prev]', ('click[< Prev]', 'repaired')),
    ('Thought: hm.\nAction: Search[x]. And then', ('search[x]', 'repaired')),
    ('Action: search[red shoes', ('search[red shoes]', 'repaired')),
    ('Action: click[a]\nAction: click[b]', ('click[a]', 'repaired')),
    ('I buy it', (None, None)), ('', (None, None)), ('Action: search[ ]', (None, None)),
    ('Action: buy[x]', (None, None))])
def test_read_action(text, expected):
    assert read_action(text) == expected


@pytest.mark.parametrize('text, expected', [
    ('Action: click[large [us 10]]', ('click[large [us 10]]', None)),
    ('Action: click[Large [US 10', ('click[Large [US 10]', 'repaired')),
    ('Action: click[large [us 10]', ('click[large [us 10]]', 'repaired')),
    ('click[large] and then click[buy now]', ('click[large]', 'repaired')),
    ('Action: click[red]', ('click[red]', None))])
def test_clicks_on_what_is_offered_may_contain_brackets(text, expected):
    assert read_action(text, ('large', 'large [us 10]', 'buy now')) == expected


def test_reasoning_is_cut_and_counted(scenario):
    env = WebShop(15)
    _, (step,) = play(env, scenario, '<think>I could click[buy now].</think>Action: search[soap]')
    assert step.events == ('action/search', 'action/reasoning')
    assert step.observations[0].strategist.startswith('Action: search[soap]\n')
    _, (step,) = play(env, scenario, '<think>I could try Action: search[soap]')
    assert step.events == ('action/unparsable', 'action/reasoning')
    _, (step,) = play(WebShop(15, begun=True), scenario, 'soap, hm</think>soap]')
    assert step.events == ('action/search', 'action/reasoning')


def test_strategist_and_actor_read_every_page_once(scenario):
    env = WebShop(15)
    _, (opening,) = env.reset(scenario, (True,))
    instruction = scenario.shop.goals[scenario.goal].instruction
    first = f'Observation: WebShop [SEP] Instruction: [SEP] {instruction} [SEP] Search'
    assert opening.strategist.endswith(first) and opening.actor.endswith(first)
    state, (step,) = play(env, scenario, 'Action: search[shampoo]')
    page = scenario.shop.observe(state.visit)
    assert step.observations == (Observation(f'Action: search[shampoo]\nObservation: {page}', f'Observation: {page}'),)
    assert env.transcript(state, ()) == ((0, f'Action: search[shampoo]\nObservation: {page}'),)
    assert instruction in env.judge_prompt(state, 0)


def test_actor_prompt_mentions_no_thoughts_without_a_strategist(scenario):
    opening = WebShop(15).reset(scenario, (False,))[1][0]
    assert opening.strategist == '' and 'hought' not in opening.actor


def test_begun_replies_and_choices(scenario):
    env = WebShop(15, begun=True, constrained=True)
    state, _ = env.reset(scenario, (True,))
    assert env.cues(state, 0) == Observation('Thought:', 'Action: search[') and env.choices(state, 0) == ()
    state, step = env.step(state, 0, 'mint shampoo]')
    assert step.events == ('action/search',) and env.cues(state, 0) == Observation('Thought:', 'Action:')
    tried = 0
    while not step.done:  # every choice is a valid action
        choices = env.choices(state, 0)
        for choice in choices:
            after, step = env.step(state, 0, choice)
            assert after.visit.invalid == 0 and step.events[0] == 'action/click'
            tried += 1
        state, step = env.step(state, 0, choices[-1])
    assert tried > 10
    assert env.advice == ('\nThought:', '') and env.variant('v') == 'v+constrained'
    with pytest.raises(ValueError, match='needs begun=True'):
        WebShop(15, constrained=True)


def test_unparsable_and_invalid_actions_take_a_turn_and_are_counted(scenario):
    env = WebShop(3)
    state, steps = play(env, scenario, 'no idea', 'Action: click[nothing]', 'click[buy now]')
    assert [step.events for step in steps] == [
        ('action/unparsable',), ('action/invalid',), ('action/invalid', 'action/repaired')]
    assert [step.done for step in steps] == [False, False, True]
    assert state.visit.invalid == 3 and steps[-1].rewards == (0.0,)
    assert 'This is no action' in steps[0].observations[0].actor and 'WebShop [SEP]' in steps[1].observations[0].actor


def test_scripted_buyer_gets_reward_one_and_models_do_not_read_the_reward(scenario):
    env = WebShop(15, script=buyer)
    state, steps = play(env, scenario, '', '', '', '', '')
    assert steps[-1].done and steps[-1].rewards == (1.0,)
    assert steps[-1].events == ('action/click', 'purchase', 'purchase/success')
    assert steps[-1].observations[0].actor == 'Observation: Thank you for shopping with us!'
    facts = json.loads(json.dumps(env.describe(state.scenario, state)))
    assert facts['success'] and facts['bought'] == facts['target'] and facts['environment'].endswith('+buyer')
    assert facts['seats'] == [{'name': 'Shopper', 'goal': facts['situation']}]


def test_short_openings_and_pages_have_a_few_hundred_tokens(small, smollm2_tokenizer):
    env, longest = WebShop(15, short=True, begun=True), 0
    for goal in range(0, len(small.goals), 25):
        state, (opening,) = env.reset(Scenario('s', 'train', 'c', 'v', small, goal), (True,))
        state, step = env.step(state, 0, f'{small.goals[goal].query}]')
        for text in (*opening, *step.observations[0]):
            longest = max(longest, len(smollm2_tokenizer.encode(text)))
    assert 100 < longest < 400


# Domain


def options(**changes):
    return ConfigDict(defaults_of(DOMAIN.options) | changes)


def test_scenarios_and_options():
    scenarios = DOMAIN.scenarios('', options())
    ids = [scenario.id for scenario in scenarios]
    assert len(set(ids)) == len(ids) and {scenario.split for scenario in scenarios} == {'train', 'held_out'}
    assert {scenario.category for scenario in scenarios} == {'beauty', 'electronics', 'fashion', 'garden', 'grocery'}
    assert DOMAIN.check(options()) == [] and DOMAIN.text_environment(options()).max_turns == 15
    assert DOMAIN.text_environment(options(variant='webshop-full-human-200')).max_turns == 10
    assert DOMAIN.text_environment(options(script='buyer')).script is buyer
    errors = DOMAIN.check(options(variant='x', tagger='y', script='z', constrained=True))
    assert len(errors) == 4 and "'webshop-1k-human'" in errors[0]


def test_every_option_that_changes_results_changes_the_variant_name(monkeypatch):
    monkeypatch.setattr(nouns, '_load_spacy', lambda: nouns.words)  # spaCy may not be installed

    def name(**changes):
        config = options(**changes)
        assert DOMAIN.check(config) == []
        env, scenario = DOMAIN.text_environment(config), DOMAIN.scenarios('', config)[0]
        return env.describe(scenario, env.reset(scenario, (True,))[0])['environment']

    default = 'webshop-small-synth-15'
    assert name() == default and name(variant='webshop-small-synth-6') == 'webshop-small-synth-6'
    expected = {
        'tagger': ('spacy', '+spacy'), 'seed': (7, '+seed7'), 'short': (True, '+short'), 'begun': (True, '+begun'),
        'script': ('buyer', '+buyer')}
    assert {*expected} == {*DOMAIN.options} - {'variant', 'constrained'}
    for option, (value, suffix) in expected.items():
        assert name(**{option: value}) == default + suffix
    together = dict({option: value for option, (value, _) in expected.items()}, constrained=True)
    assert name(**together) == default + '+spacy+seed7+constrained+short+buyer'


@pytest.mark.parametrize('preset', ['quickstart', 'tiny', 'llama3_8b'])
def test_presets_are_valid(preset):
    import importlib.util
    import pathlib

    from epo_jax.defaults import validate
    path = pathlib.Path(__file__).parents[3] / 'configs' / 'webshop.py'
    spec = importlib.util.spec_from_file_location('webshop_config', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    validate(module.get_config(preset))
    with pytest.raises(ValueError, match='unknown preset'):
        module.get_config('other')
