"""Profiles: the packaged set, sets in the format of the sotopia package, and errors."""

import collections
import json
import pathlib
import re
import shutil

import pytest

import epo_jax.envs.sotopia
from epo_jax.envs.sotopia import markup, prompts
from epo_jax.envs.sotopia.actions import Action
from epo_jax.envs.sotopia.profiles import FAMILY, STRANGER, Character, ProfileError, load_scenarios
from epo_jax.presets import load_config

ROOT = pathlib.Path(__file__).parents[3]
PACKAGED = pathlib.Path(epo_jax.envs.sotopia.__file__).parent / 'data'
REAL = ROOT.parent / 'shared' / 'data' / 'sotopia'

ENVIRONMENT = {
    'env_id': 'e1', 'scenario': 'Two people\n meet.', 'relationship': '3', 'source': 'tests',
    'agent_goals': ['Sell it (<extra_info>for 90 dollars</extra_info>)', 'Buy it']}
AGENTS = [
    {'agent_id': 'a1', 'first_name': 'Ava', 'last_name': 'Li', 'age': 30, 'occupation': 'Nurse', 'gender': 'Woman',
     'gender_pronoun': 'She/her', 'public_info': 'Has a dog.', 'personality_and_values': 'Calm.', 'secret': 'Moves.'},
    {'agent_id': 'a2', 'first_name': 'Bob', 'last_name': 'Stone', 'age': 41, 'secret': None}]
RELATIONSHIP = {'agent1_id': 'a2', 'agent2_id': 'a1', 'relationship': '3', 'background_story': 'Old friends.'}
COMBO = {'combo_id': 'c1', 'env_id': 'e1', 'agent_ids': ['a1', 'a2']}
PRICE = {'kind': 'price', 'reserve': 50, 'target': 90}


def rows(path):
    return [json.loads(line) for line in path.read_text('utf-8').split('\n') if line.strip()]


def write(path, content):
    text = json.dumps(content) if path.suffix == '.json' else '\n'.join(map(json.dumps, content)) + '\n'
    path.write_text(text, 'utf-8')


def folder(path, environments=(ENVIRONMENT,), agents=AGENTS, relationships=(RELATIONSHIP,), combos=(COMBO,)):
    """Write a small folder of profiles and return its path; None leaves a file out."""
    for name, content in dict(environments=environments, agents=agents, relationships=relationships,
                              combos=combos).items():
        if content is not None:
            write(path / f'{name}.jsonl', content)
    return str(path)


def environment(**changes):
    return [ENVIRONMENT | changes]


# The packaged set


def test_the_packaged_set_has_enough_scenarios_of_every_kind():
    environments, agents = rows(PACKAGED / 'environments.jsonl'), rows(PACKAGED / 'agents.jsonl')
    assert len(environments) >= 48 and len(agents) >= 20
    assert all(count >= 8 for count in collections.Counter(row['category'] for row in environments).values())
    assert sum(row['split'] == 'held_out' for row in environments) == 16
    assert {row['split'] for row in environments} == {'train', 'held_out'}
    assert sum(row['hard'] for row in environments) == 12


def test_every_reference_in_the_packaged_set_resolves_and_every_profile_is_used():
    environments, agents = rows(PACKAGED / 'environments.jsonl'), rows(PACKAGED / 'agents.jsonl')
    combos, relationships = rows(PACKAGED / 'combos.jsonl'), rows(PACKAGED / 'relationships.jsonl')
    ids = {row['agent_id'] for row in agents}
    assert len(ids) == len(agents)
    assert {row['env_id'] for row in combos} == {row['env_id'] for row in environments}
    assert {agent for row in combos for agent in row['agent_ids']} == ids
    assert all({row['agent1_id'], row['agent2_id']} < ids for row in relationships)
    assert all(len(set(row['agent_ids'])) == 2 for row in combos)
    assert len({row['combo_id'] for row in combos}) == len(combos) == len(load_scenarios())


def test_packaged_characters_have_the_relationship_of_their_scenario():
    levels = {frozenset((row['agent1_id'], row['agent2_id'])): int(row['relationship'])
              for row in rows(PACKAGED / 'relationships.jsonl')}
    for scenario in load_scenarios():
        pair = frozenset(person.id for person in scenario.characters)
        assert levels.get(pair, STRANGER) == scenario.relationship, scenario.id
        assert bool(scenario.story) == (scenario.relationship != STRANGER), scenario.id


def test_packaged_price_rules_have_the_numbers_of_their_goals():
    with_rules = [scenario for scenario in load_scenarios() if any(scenario.goal_rules)]
    assert with_rules
    for scenario in with_rules:
        for goal, rule in zip(scenario.goals, scenario.goal_rules):
            assert {str(rule['reserve']), str(rule['target'])} <= set(re.findall(r'\d+', goal)), scenario.id
        first, second = scenario.goal_rules
        assert (first['target'] > first['reserve']) != (second['target'] > second['reserve']), scenario.id
        sells = [goal.split()[0] in ('Sell', 'Rent', 'Get') and rule['target'] > rule['reserve']
                 for goal, rule in zip(scenario.goals, scenario.goal_rules)]
        assert sum(sells) == 1, scenario.id


def test_packaged_texts_contain_no_markup_and_no_name_of_a_character():
    for scenario in load_scenarios():
        for text in (scenario.text, *scenario.goals, scenario.story):
            assert not re.search(r'[<>{}\n]', text), scenario.id
        names = {person.first_name for person in scenario.characters}
        assert len(names) == 2
        assert not names & set(re.findall(r'\w+', ' '.join((scenario.text, *scenario.goals)))), scenario.id


def test_packaged_openings_fit_the_quickstart(smollm2_tokenizer):
    config = load_config('sotopia:quickstart')
    allowed, short = tuple(config.environment.allowed), config.environment.short
    first_lines, openings = [], []
    for scenario in load_scenarios():
        for seat in (0, 1):
            openings += [prompts.strategist_opening(scenario, seat, short),
                         prompts.actor_opening(scenario, seat, True, allowed, short),
                         prompts.actor_opening(scenario, seat, False, allowed, short)]
        first_lines.append('\n' + prompts.line(scenario.characters[0].first_name, Action('speak', '')))
    count = lambda texts: max(map(len, smollm2_tokenizer(texts, add_special_tokens=False)['input_ids']))
    longest = count(openings), count(first_lines) + config.actor.max_tokens
    print('longest opening and first line of the partner, in tokens:', longest)
    assert sum(longest) <= config.rollout.view_tokens  # seat 1 reads both at once


# Loading


def test_a_scenario_combines_its_rows(tmp_path):
    scenario, = load_scenarios(folder(tmp_path, environment(goal_rules=[PRICE, None], category='trade', hard=True)))
    ava, bob = scenario.characters
    assert ava == Character('a1', 'Ava', 'Li', 30, 'Nurse', 'Woman', 'She/her', 'Has a dog.', 'Calm.', 'Moves.')
    assert (bob.name, bob.age, bob.secret, bob.occupation) == ('Bob Stone', 41, '', '')
    assert (scenario.id, scenario.environment) == ('c1', 'e1')
    assert scenario.text == 'Two people meet.'
    assert scenario.goals == ('Sell it (for 90 dollars)', 'Buy it')
    assert scenario.goal_rules == (PRICE, None)
    assert (scenario.relationship, scenario.story) == (3, 'Old friends.')
    assert (scenario.category, scenario.split, scenario.hard) == ('trade', 'train', True)


def test_json_lists_and_pk_ids_are_read_like_jsonl(tmp_path):
    move = lambda row, key: {'pk': row[key]} | {k: v for k, v in row.items() if k != key}
    write(tmp_path / 'environment_profiles.json', [move(ENVIRONMENT, 'env_id')])
    write(tmp_path / 'agent_profiles.json', [move(row, 'agent_id') for row in AGENTS])
    write(tmp_path / 'env_agent_combo_storages.json', [move(COMBO, 'combo_id')])
    write(tmp_path / 'relationship_profiles.json', [RELATIONSHIP])
    ours = tmp_path / 'ours'
    ours.mkdir()
    assert load_scenarios(str(tmp_path)) == load_scenarios(folder(ours))


def test_relationships_are_optional_and_combos_without_an_id_get_unique_ones(tmp_path):
    combo = {key: COMBO[key] for key in ('env_id', 'agent_ids')}
    scenarios = load_scenarios(folder(tmp_path, relationships=None, combos=[combo, combo]))
    assert [scenario.story for scenario in scenarios] == ['', '']
    assert len({scenario.id for scenario in scenarios}) == 2


def test_only_the_story_of_the_same_relationship_is_used_and_none_of_strangers(tmp_path):
    both = [RELATIONSHIP, RELATIONSHIP | {'relationship': '0', 'background_story': 'They met once.'}]
    story = lambda level: load_scenarios(
        folder(tmp_path, environment(relationship=level), relationships=both))[0].story
    assert [story(level) for level in (3, '3', 2, 0)] == ['Old friends.', 'Old friends.', '', '']


@pytest.mark.parametrize('level', [3, 3.0, '3', '3.0', ' 3'])
def test_whole_numbers_are_read_alike_in_every_file(tmp_path, level):
    agents = [AGENTS[0], AGENTS[1] | {'age': type(level)('41')}]
    scenario, = load_scenarios(folder(tmp_path, environment(relationship=3), agents,
                                      [RELATIONSHIP | {'relationship': level}]))
    assert (scenario.story, scenario.characters[1].age) == ('Old friends.', 41)
    assert load_scenarios(folder(tmp_path, environment(relationship=level)))[0].relationship == 3


def test_every_file_may_begin_with_a_byte_order_mark(tmp_path):
    path = folder(tmp_path)
    write(tmp_path / 'env_splits.json', {'sotopia_hard_env': ['e1']})
    expected = load_scenarios(path)
    for file in tmp_path.iterdir():
        file.write_bytes(b'\xef\xbb\xbf' + file.read_bytes())
    assert load_scenarios(path) == expected and expected[0].hard


def test_line_separators_within_texts_do_not_end_a_row(tmp_path):
    path = pathlib.Path(folder(tmp_path)) / 'environments.jsonl'
    row = json.dumps(ENVIRONMENT | {'scenario': 'One\u2028two\x85three.'}, ensure_ascii=False)
    path.write_text(row + '\n\n', 'utf-8')
    assert load_scenarios(str(tmp_path))[0].text == 'One two three.'


def test_parts_for_one_viewer_are_hidden_from_the_others(tmp_path):
    part = lambda viewer: f' <p viewer="{viewer}">For {viewer}.</p>'
    scenario, = load_scenarios(folder(tmp_path, environment(
        scenario='A party.' + part('environment') + part('agent_0') + ' Music.',
        agent_goals=['Win.' + part('agent_0') + part('agent_1')] * 2)))
    assert scenario.text == 'A party. Music.'
    assert scenario.goals == ('Win. For agent_0.', 'Win. For agent_1.')
    assert 'A party. For environment. For agent_0. Music.' in prompts.judge_opening(scenario, 0)
    assert 'A party. For agent_0. Music.\n' in prompts.actor_opening(scenario, 0, True)
    assert 'A party. Music.\n' in prompts.strategist_opening(scenario, 1)
    assert "Bob's goal: Win. For agent_0. For agent_1." in prompts.judge_opening(scenario, 0)


@pytest.mark.parametrize('secret', [
    "<p viewer='environment'>S3CRET</p>", '<p id="1" viewer = environment >S3CRET</p >', '<secret>S3CRET</secret>',
    '<p viewer="environment"><p viewer="agent_0">S3CRET</p></p>', '<p viewer="environment">S3CRET'])
def test_only_the_judge_reads_what_is_for_the_environment(tmp_path, secret):
    agents = [row | {name: f'Public. {secret}' for name in ('public_info', 'personality_and_values')} for row in AGENTS]
    scenario, = load_scenarios(folder(
        tmp_path, environment(scenario=f'A party. {secret}', agent_goals=[f'Win. {secret}', f'Lose. {secret}']), agents,
        [RELATIONSHIP | {'background_story': f'Old friends. {secret}'}]))
    for seat in (0, 1):
        for short in (False, True):
            assert 'S3CRET' not in prompts.strategist_opening(scenario, seat, short)
            assert 'S3CRET' not in prompts.actor_opening(scenario, seat, True, short=short)
        assert prompts.judge_opening(scenario, seat).count('S3CRET') == 3


@pytest.mark.parametrize('text, expected', [
    ('Win (<extra_info>in secret</extra_info>)', 'Win (in secret)'),
    ('<p viewer="agent_0">x</p> y', 'x y'),
    ('<clarification_hint>a<strategy_hint>b</strategy_hint></clarification_hint>', 'ab'),
    ('3 < 5 and 5 > 3', '3 < 5 and 5 > 3'),
    ('plain', 'plain')])
def test_tags_are_removed_and_their_content_stays(text, expected):
    assert markup.visible(text, markup.ENVIRONMENT) == expected


def test_every_fifth_environment_is_held_out_and_hard_ones_come_from_the_split_file(tmp_path):
    names = [f'e{i}' for i in range(10)]
    path = folder(tmp_path, [ENVIRONMENT | {'env_id': name} for name in names[::-1]],
                  combos=[COMBO | {'env_id': name, 'combo_id': name} for name in names])
    write(tmp_path / 'env_splits.json', {'sotopia_hard_env': ['e2', 'e7']})
    scenarios = load_scenarios(path)
    assert [s.id for s in scenarios if s.split == 'held_out'] == ['e4', 'e9']
    assert [s.id for s in scenarios if s.hard] == ['e2', 'e7']


# Errors


@pytest.mark.parametrize('changes, message', [
    (dict(environments=None), 'no environment file.*environments.json'),
    (dict(agents=None), 'no character file'),
    (dict(combos=None), 'no combo file'),
    (dict(combos=[]), 'there are no scenarios in'),
    (dict(combos=[COMBO | {'env_id': 'e9'}]), "combo c1: there is no environment 'e9'"),
    (dict(combos=[COMBO | {'agent_ids': ['a1', 'a9']}]), "combo c1: .*'a9'"),
    (dict(combos=[COMBO | {'agent_ids': ['a1']}]), 'combo c1: .* two known characters'),
    (dict(combos=[COMBO | {'agent_ids': ['a1', 'a2', 'a1']}]), 'combo c1: .* two known characters'),
    (dict(combos=[{'env_id': 'e1', 'agent_ids': None}]), 'combo 0: .* two known characters'),
    (dict(combos=[{'agent_ids': ['a1', 'a2']}]), 'combo 0: there is no environment None'),
    (dict(environments=[ENVIRONMENT, ENVIRONMENT]), "environments.jsonl, row 2: env_id .*'e1'"),
    (dict(environments=environment(env_id='')), 'environments.jsonl, row 1: env_id'),
    (dict(agents=[*AGENTS, AGENTS[0]]), "agents.jsonl, row 3: agent_id .*'a1'"),
    (dict(agents=[AGENTS[1], {'agent_id': 'a1', 'first_name': ''}]), 'character a1: .* first_name is missing'),
    (dict(agents=[AGENTS[1], {'agent_id': 'a1', 'first_name': ' '}]), 'character a1: .* first_name is missing'),
    (dict(agents=[AGENTS[1], AGENTS[0] | {'age': 'old'}]), 'character a1: .*age'),
    (dict(environments=environment(agent_goals=['Win'])), 'environment e1: .* two goals, not 1'),
    (dict(environments=environment(agent_goals=['a', 'b', 'c'])), 'environment e1: .* two goals, not 3'),
    (dict(environments=environment(agent_goals=None)), 'environment e1: .* two goals, not 0'),
    (dict(environments=environment(scenario=None)), 'environment e1: .*scenario is missing'),
    (dict(environments=environment(relationship='6')), "environment e1: relationship .*'6'"),
    (dict(environments=environment(relationship=-1)), 'environment e1: relationship'),
    (dict(environments=environment(relationship='friend')), "environment e1: relationship .*'friend'"),
    (dict(environments=environment(relationship=None)), 'environment e1: relationship'),
    (dict(environments=environment(goal_rules=[PRICE | {'kind': 'votes'}, None])), "environment e1: .*'votes'"),
    (dict(environments=environment(goal_rules=[None, {'kind': 'price'}])), 'environment e1: .*two different numbers'),
    (dict(environments=environment(goal_rules=[PRICE])), 'environment e1: .*goal_rules'),
    (dict(environments=environment(split='test')), "environment e1: split .*'test'"),
    (dict(environments=environment(split=['train'])), 'environments.jsonl, row 1: environment e1: split'),
    (dict(environments=environment(relationship=True)), 'environment e1: relationship must be a whole number'),
    (dict(environments=environment(relationship=2.5)), 'environment e1: relationship must be a whole number'),
    (dict(environments=environment(relationship='nan')), 'environment e1: relationship must be a whole number'),
    (dict(environments=environment(scenario=['A party'])), r"environment e1: the field scenario must be text, not \['A"),
    (dict(environments=environment(scenario='<p viewer="environment">x</p>')), 'e1: the field scenario .* empty'),
    (dict(environments=environment(scenario='A <p viewer="judge">x</p>')), 'e1: the field scenario has unclear mark-up'),
    (dict(environments=environment(agent_goals='ab')), "environment e1: agent_goals must be two goals, not 'ab'"),
    (dict(environments=environment(agent_goals=[None, 'Buy'])), 'row 1: environment e1: a goal .* missing or empty'),
    (dict(environments=environment(agent_goals=['Sell', ' '])), 'environment e1: a goal .* missing or empty'),
    (dict(environments=environment(agent_goals=['Sell', 7])), 'environment e1: a goal must be text, not 7'),
    (dict(environments=environment(agent_goals=['Sell <p viewer="agent_0"', 'Buy'])), 'e1: a goal has unclear mark-up'),
    (dict(environments=environment(goal_rules=5)), 'row 1: environment e1: goal_rules must be a list of two .* not 5'),
    (dict(environments=environment(goal_rules={})), 'environment e1: goal_rules must be a list of two'),
    (dict(environments=environment(goal_rules='ab')), 'environment e1: goal_rules must be a list of two'),
    (dict(environments=environment(goal_rules=[{}, None])), 'environment e1: a goal rule has the unknown kind'),
    (dict(environments=environment(goal_rules=['x', None])), 'environment e1: a goal rule must be a mapping'),
    (dict(environments=environment(goal_rules=[PRICE | {'target': float('nan')}, None])), 'environments.jsonl, row 1: .*NaN'),
    (dict(environments=environment(goal_rules=[PRICE | {'target': '90'}, None])), 'e1: .*two different numbers'),
    (dict(environments=environment(hard='false')), "environments.jsonl, row 1: environment e1: hard .* not 'false'"),
    (dict(environments=environment(category=3)), 'environment e1: category must be text, not 3'),
    (dict(environments=environment(env_id=None)), 'environments.jsonl, row 1: env_id must be present'),
    (dict(environments=environment(env_id=['e1'])), 'environments.jsonl, row 1: env_id must be present, text'),
    (dict(agents=[AGENTS[0], {'first_name': 'Bob'}]), 'agents.jsonl, row 2: agent_id must be present'),
    (dict(agents=[AGENTS[0], AGENTS[1] | {'age': float('inf')}]), 'agents.jsonl, row 2: .*Infinity'),
    (dict(agents=[AGENTS[0], AGENTS[1] | {'age': 1.5}]), 'agents.jsonl, row 2: character a2: age .*, not 1.5'),
    (dict(agents=[AGENTS[0], AGENTS[1] | {'age': -3}]), 'character a2: age must be a whole number from 0 to 999, not -3'),
    (dict(agents=[AGENTS[0], AGENTS[1] | {'secret': {}}]), 'character a2: secret must be text'),
    (dict(combos=[COMBO, COMBO]), "combos.jsonl, row 2: combo c1: the id 'c1' is that of another combo too"),
    (dict(combos=[COMBO | {'combo_id': 5}]), 'combos.jsonl, row 1: combo 5: combo_id must be text'),
    (dict(combos=[COMBO | {'env_id': ['e1']}]), 'combos.jsonl, row 1: combo c1: there is no environment'),
    (dict(combos=[COMBO | {'agent_ids': ['a1', 'a1']}]), 'combo c1: .* two known characters'),
    (dict(agents=[AGENTS[0], AGENTS[0] | {'agent_id': 'a2'}]), 'combo c1: both characters are named '),
    (dict(combos=[COMBO | {'agent_ids': 'a1'}]), 'combo c1: .* two known characters'),
    (dict(combos=[COMBO | {'agent_ids': [['a1'], 'a2']}]), 'combo c1: .* two known characters'),
    (dict(relationships=[RELATIONSHIP | {'relationship': '7'}]), "relationships.jsonl, row 1: relationship .* '7'"),
    (dict(relationships=[RELATIONSHIP | {'relationship': 'friend'}]), 'relationships.jsonl, row 1: relationship'),
    (dict(relationships=[RELATIONSHIP | {'relationship': None}]), 'relationships.jsonl, row 1: .* relationship is missing'),
    (dict(relationships=[RELATIONSHIP | {'agent1_id': 'a9'}]), "relationships.jsonl, row 1: .*'a9'"),
    (dict(relationships=[RELATIONSHIP | {'agent1_id': 'a1'}]), 'relationships.jsonl, row 1: .* two known characters'),
    (dict(relationships=[RELATIONSHIP, RELATIONSHIP | {'relationship': 3.0}]), 'relationships.jsonl, row 2: an earlier row'),
    (dict(relationships=[RELATIONSHIP | {'background_story': 1}]), 'relationships.jsonl, row 1: background_story'),
])
def test_an_error_names_the_row_and_field(tmp_path, changes, message):
    with pytest.raises(ProfileError, match=message):
        load_scenarios(folder(tmp_path, **changes))


@pytest.mark.parametrize('name, text', [
    ('environments.jsonl', '{"env_id": "e1"'), ('agents.jsonl', '[1]\n'), ('combos.jsonl', '"text"\n'),
    ('relationships.jsonl', '{"agent1_id": "a1"}\n'), ('env_splits.json', '{'), ('env_splits.json', '[]'),
    ('env_splits.json', '{"sotopia_hard_env": ["e9"]}'), ('env_splits.json', '{"sotopia_hard_env": "e1"}'), ('env_splits.json', '{"sotopia_hard_env": [1]}')])
def test_an_error_names_a_damaged_file(tmp_path, name, text):
    path = folder(tmp_path)
    (tmp_path / name).write_text(text, 'utf-8')
    with pytest.raises(ProfileError, match=name):
        load_scenarios(path)


def test_invalid_utf_8_and_json_that_is_not_a_list_are_refused(tmp_path):
    path = folder(tmp_path, agents=None)
    (tmp_path / 'agents.jsonl').write_bytes(b'{"agent_id": "\xff"}')
    with pytest.raises(ProfileError, match='agents.jsonl'):
        load_scenarios(path)
    (tmp_path / 'agents.jsonl').unlink()
    write(tmp_path / 'agents.json', {'a1': AGENTS[0]})
    with pytest.raises(ProfileError, match='agents.json: must be a list'):
        load_scenarios(path)


def test_an_error_names_a_missing_folder(tmp_path):
    with pytest.raises(ProfileError, match='nowhere has no environment file'):
        load_scenarios(str(tmp_path / 'nowhere'))


# The profiles of SOTOPIA


@pytest.fixture
def real():
    """Return the folder of SOTOPIA's own profiles; skip where it is absent."""
    if not (REAL / 'environment_profiles.jsonl').is_file():
        pytest.skip(f'the SOTOPIA profiles are not in {REAL}')
    return REAL


def test_the_profiles_of_sotopia_load(real):
    scenarios = load_scenarios(str(real))
    assert len(scenarios) == 450 and len({s.environment for s in scenarios}) == 90
    hard = json.loads((real / 'hard_combos.json').read_text('utf-8'))
    assert {s.id for s in scenarios if s.hard} == {combo['pk'] for combo in hard}
    assert sum(s.hard for s in scenarios) == 70
    assert collections.Counter(s.split for s in scenarios)['held_out'] == 90
    assert {s.relationship for s in scenarios} <= set(range(FAMILY + 1))
    assert not any(s.story for s in scenarios if s.relationship == STRANGER)
    assert sum(bool(s.story) for s in scenarios) > 100
    for s in scenarios:
        assert s.text and all(s.goals) and s.category
        assert not re.search(r'</?\w+[^<>]*>', ' '.join((s.text, *s.goals, s.story, s.judge_text))), s.id
    for s in scenarios:
        if s.category == 'mutual_friends':  # only the judge knows the common friends
            assert s.text == '2 strangers are meeting at a party.'
            assert re.search('They have 1 common friends: [A-Z]', prompts.judge_opening(s, 0))


def test_the_extra_scenarios_load_with_the_characters_of_the_first_set(real, tmp_path):
    for name in ('environment_profiles.jsonl', 'env_agent_combo_storages.jsonl'):
        shutil.copy(real / 'extra303' / name, tmp_path)
    with pytest.raises(ProfileError, match='no character file'):
        load_scenarios(str(tmp_path))
    for name in ('agent_profiles.jsonl', 'relationship_profiles.jsonl'):
        shutil.copy(real / name, tmp_path)
    scenarios = load_scenarios(str(tmp_path))
    assert len(scenarios) == 2760 and len({s.environment for s in scenarios}) == 276
