"""The question in the dimensions of a rubric, and the forms of its answers."""

import json
import random
import time

import numpy as np
import pytest

from epo_jax.envs.base import GOAL, Dimension, EpisodeText
from epo_jax.envs.sotopia.dialogue import Sotopia
from epo_jax.envs.sotopia.profiles import load_scenarios
from epo_jax.envs.sotopia.rubric import RUBRIC
from epo_jax.rewards import rubric
from epo_jax.rewards.rubric import BadAnswer, read_answer

NAMES = ('Ann Lee', 'Bo Reed')
RANGES = {dimension.name: (dimension.low, dimension.high) for dimension in RUBRIC}
SMALL = (Dimension('relationship', -5, 5, 'Better or worse?'), GOAL)
BOTH = [{'relationship': -2, 'goal': 7}, {'relationship': 3, 'goal': 0}]


def scores(text, dimensions=SMALL, names=NAMES):
    """Return the scores in an answer."""
    return [rating.scores for rating in read_answer(text, dimensions, names)]


def episode():
    """Return a dialogue with a gesture, in which one turn does nothing."""
    env = Sotopia()
    scenario = next(s for s in load_scenarios('') if s.story and s.characters[0].secret)
    state, _ = env.reset(scenario, (True, True))
    for turn, message in enumerate(('Hello, did nothing happen?', 'wait:', 'gesture: smiles', 'Take it or leave it.')):
        state, _ = env.step(state, turn % 2, message)
    return scenario, EpisodeText(
        env.describe(scenario, state), env.transcript(state, ()),
        [env.judge_prompt(state, seat) for seat in (0, 1)], overview=env.overview(state, ()))


def test_the_ranges_of_sotopia_are_those_of_its_authors():
    assert RANGES == {
        'believability': (0, 10), 'relationship': (-5, 5), 'knowledge': (0, 10), 'secret': (-10, 0),
        'social_rules': (-10, 0), 'financial_and_material_benefits': (-5, 5), 'goal': (0, 10)}


def test_the_judge_of_sotopia_reads_everything_but_turns_in_which_nothing_was_done():
    scenario, text = episode()
    prompt = rubric.question(text, RUBRIC)
    for character in scenario.characters:
        for part in (character.name, character.occupation, character.public_info, character.personality,
                     character.secret.rstrip('.')):
            assert part in prompt
    goals = scenario.judge_goals or scenario.goals
    assert scenario.text in prompt and scenario.story in prompt and all(goal in prompt for goal in goals)
    lines = [line for _, line in text.lines]
    assert [line in prompt for line in lines] == [True, False, True, True] and 'did nothing.' in lines[1]
    for seat, character in enumerate(scenario.characters):
        assert f'agent_{seat + 1} ({character.name})' in prompt
    for dimension in RUBRIC:
        assert f'- {dimension.name}, from {dimension.low} to {dimension.high}: {dimension.description}' in prompt
        assert prompt.count(f'"{dimension.name}"') == 2  # in the form of the answer, for both seats


def test_a_dialogue_without_words_has_an_overview():
    env = Sotopia()
    state, _ = env.reset(load_scenarios('')[0], (True, True))
    state, _ = env.step(state, 0, 'wait:')
    assert env.overview(state, ()).endswith('Conversation:\n(Nobody said or did anything.)')


def test_other_environments_are_judged_by_their_judge_prompts():
    one = EpisodeText({'seats': [{'name': 'Shopper', 'goal': ''}]}, [(0, 'click[buy]'), (0, 'click[pay]')],
                      ['Judge this visit.\nThe visit:'])
    assert 'Judge this visit.\nThe visit:\nclick[buy]\nclick[pay]\n-----' in rubric.question(one, (GOAL,))
    two = EpisodeText({'seats': [{'name': name, 'goal': ''} for name in NAMES]}, [(0, 'Hi.'), (1, 'Ho.')],
                      ['Ann sells.', 'Bo buys.'])
    prompt = rubric.question(two, (GOAL,))
    for part in ('About agent_1 (Ann Lee): Ann sells.', 'About agent_2 (Bo Reed): Bo buys.', '\nHi.\nHo.\n-----'):
        assert part in prompt


def test_the_schema_describes_the_answers_that_are_accepted():
    form = rubric.schema(RUBRIC, 2)
    assert list(form['properties']) == form['required'] == ['agent_1', 'agent_2']
    for seat in form['properties'].values():
        assert seat['required'] == list(seat['properties']) == list(RANGES) and seat['additionalProperties'] is False
        for name, (low, high) in RANGES.items():
            value = seat['properties'][name]
            assert list(value['properties']) == ['reasoning', 'score']  # the reason is written before the score
            assert value['properties']['score'] == {'type': 'integer', 'enum': list(range(low, high + 1))}
    json.dumps(form)


@pytest.mark.parametrize('text', [
    '{"agent_1": {"relationship": -2, "goal": 7}, "agent_2": {"relationship": 3, "goal": 0}}',
    '{"agent_1_evaluation": {"relationship": ["cold", -2], "goal": ["most", 7]}, '
    '"agent_2_evaluation": {"relationship": ["warm", 3], "goal": ["no", 0]}}',
    '{"agent_1": {"relationship": {"reasoning": "8 of 10", "score": -2}, "goal": {"score": "7"}}, '
    '"agent_2": {"relationship": {"rating": 3, "why": "x"}, "goal": {"score": 0.0, "max": 10}}}',
    '{"evaluations": {"agent_1": {"relationship": "-2", "goal": "7/10"}, "agent_2": {"relationship": "+3", "goal": " 0 "}}}',
    '{"Agent 1": {"REL": "\u22122", "Goal": "7 out of 10"}, "Agent 2": {"REL": 3, "GOAL": 0}}',
    '{"Ann Lee": {"Relationship": -2, "goal completion": 7}, "bo_reed": {"relation": 3, "goal": 0}}',
    '{"Ann": {"relationship": -2, "goal": 7}, "Bo": {"relationship": 3, "goal": 0}}',
    '{"agent_2 (Bo Reed)": {"relationship": 3, "goal": 0}, "agent_1 (Ann Lee)": {"relationship": -2, "goal": 7}}',
    '{"agent_1": {"relationship_reasoning": "a", "relationship_score": -2, "goal": "to sell", "goal_score": 7}, '
    '"agent_2": {"relationship": 3, "goal": 0, "overall": 1.5}}',
    '{"agent_1": {"scores": {"relationship": -2, "goal": 7}, "reasoning": {"goal": "x"}}, '
    '"agent_2": {"ratings": {"relationship": 3, "goal": 0}}}',
    '{"relationship": {"agent_1": -2, "agent_2": ["warm", 3]}, "goal": {"Ann": 7, "agent_2": 0, "reasoning": "x"}}',
    '{"agent_1": {"relationship": -2, "goal": 7}}\nand\n{"agent_2": {"relationship": 3, "goal": 0}}',
    '{"agent_1": {"relationship": 1, "goal": 1}, "agent_2": {"relationship": 1, "goal": 1}} No, wait: '
    '{"agent_1": {"relationship": -2, "goal": 7}, "agent_2": {"relationship": 3, "goal": 0}}'])
def test_forms_of_answers(text):
    assert scores(text) == BOTH
    assert scores(f'<think>{{"agent_1": {{"goal": 1}}}}</think>Sure!\n```json\n{text}\n```\nDone {{}}.') == BOTH


def test_a_single_seat_needs_no_key():
    for text in ('{"goal": 7}', '{"goal": ["why", 7]}', '{"Shopper": {"goal": 7}}', '{"agent_1": {"goal": 7}}',
                 '{"goal": {"agent_1": 7}}', '{"evaluation": {"goal": {"score": 7, "reasoning": ""}}}'):
        assert scores(text, (GOAL,), ['Shopper']) == [{'goal': 7}], text


@pytest.mark.parametrize('text, kind', [
    ('', 'unreadable'), ('I cannot help with that.', 'unreadable'), ('{"agent_1": 3}', 'unreadable'),
    ('<think>{"agent_1": {"relationship": -2, "goal": 7}, "agent_2": {"relationship": 3, "goal": 0}}', 'unreadable'),
    ('{"agent_1": {"relationship": -2, "goal": 7}, "agent_2": {"relationship": 3, "goal": 0}', 'unreadable'),
    ('{"agent_1": {"relationship": -2, "goal": 7}}', 'missing'),
    ('{"agent": {"relationship": -2, "goal": 7}, "agent_2": {"relationship": 3, "goal": 0}}', 'missing'),
    ('{"agent_1": {"relationship": -2}, "agent_2": {"relationship": 3, "goal": 0}}', 'missing'),
    *((f'{{"agent_1": {{"relationship": -2, "goal": {value}}}, "agent_2": {{"relationship": 3, "goal": 0}}}}', kind)
      for value, kind in (
          ('null', 'missing'), ('true', 'missing'), ('7.5', 'missing'), ('"seven"', 'missing'), ('NaN', 'missing'),
          ('Infinity', 'missing'), ('""', 'missing'), ('[7, 8]', 'missing'), ('["x"]', 'missing'), ('{}', 'missing'),
          ('{"score": null, "other": 7}', 'missing'), ('"0.8"', 'missing'), ('[[7]]', 'missing'), ('"7 or 8"', 'missing'),
          ('11', 'out_of_range'), ('-1', 'out_of_range'), ('"12"', 'out_of_range'), ('"7/100"', 'out_of_range'),
          ('["x", 1e300]', 'out_of_range'), ('{"score": 700}', 'out_of_range'))),
    ('{"agent_1": {"relationship": -6, "goal": 7}, "agent_2": {"relationship": 3, "goal": 0}}', 'out_of_range'),
    ('{"agent_1": {"relationship": "4/10", "goal": 7}, "agent_2": {"relationship": 3, "goal": 0}}', 'out_of_range'),
    # The last evaluation counts, also where an earlier one is good.
    ('{"agent_1": {"relationship": 1, "goal": 1}, "agent_2": {"relationship": 1, "goal": 1}} or rather '
     '{"agent_1": {"relationship": -2, "goal": 70}, "agent_2": {"relationship": 3, "goal": 0}}', 'out_of_range')])
def test_an_answer_without_all_scores_is_bad(text, kind):
    with pytest.raises(BadAnswer) as error:
        read_answer(text, SMALL, NAMES)
    assert error.value.kind == kind and '\n' not in str(error.value) and len(str(error.value)) < 200


@pytest.mark.parametrize('dimension', RUBRIC, ids=lambda dimension: dimension.name)
def test_every_score_of_a_range_is_accepted_and_none_beside_it(dimension):
    for score in range(-12, 13):
        answer = {'agent_1': {d.name: ['why', score if d == dimension else d.low] for d in RUBRIC}}
        if dimension.low <= score <= dimension.high:
            assert scores(json.dumps(answer), RUBRIC, NAMES[:1])[0][dimension.name] == score
        else:
            with pytest.raises(BadAnswer, match=f'agent_1 for {dimension.name} is {score}; it must be from'):
                read_answer(json.dumps(answer), RUBRIC, NAMES[:1])


def test_names_that_are_part_of_other_keys_or_shared_confuse_nobody():
    names = ('Eva', 'Goal')
    body = '"agent_1": {"relationship": -2, "goal": 7}, "agent_2": {"relationship": 3, "goal": 0}'
    assert scores(f'{{"evaluations": {{{body}}}}}', names=names) == BOTH
    assert scores(f'{{{body}}}', names=('Agent 2', 'Agent 1')) == BOTH  # keys are numbers of seats first
    with pytest.raises(BadAnswer):  # which Ann?
        read_answer('{"Ann": {"relationship": -2, "goal": 7}, "Ann Lee": {"relationship": 3, "goal": 0}}', SMALL,
                    ('Ann Lee', 'Ann Lee'))


def test_the_reasons_are_kept():
    [first, second] = read_answer(json.dumps({
        'agent_1': {'relationship': ['It cooled.', -2], 'goal': {'score': 7, 'reasoning': 'Nearly sold.'}},
        'agent_2': {'relationship_reasoning': 'It warmed.', 'relationship': 3, 'goal': 0}}), SMALL, NAMES)
    assert first.reasoning == {'relationship': 'It cooled.', 'goal': 'Nearly sold.'}
    assert second.reasoning == {'relationship': 'It warmed.'}


def noisy(draw, ratings):
    """Return an answer with the ratings of two seats in a randomly chosen form, between random text."""
    def number(score):
        return draw.choice((score, float(score), str(score), f' {score} ', f'{score}.0'))

    def value(score):
        why = draw.choice(('', 'Because.', 'It {said} "7".', 'Line\nbreak', '9 times out of 10', 'é"\\'))
        return draw.choice((
            number(score), [why + 'x', number(score)], [number(score), why + 'x'],
            {'reasoning': why, 'score': number(score)}, {'score': number(score), 'analysis': why}))

    def name(dimension):
        return draw.choice((dimension, dimension.upper(), dimension.replace('_', ' '), dimension[:4].title()))

    seats = [{name(dimension): value(score) for dimension, score in rating.items()} for rating in ratings]
    keys = [draw.choice((f'agent_{i + 1}', f'agent_{i + 1}_evaluation', f'Agent {i + 1}', NAMES[i], NAMES[i].split()[0]))
            for i in (0, 1)]
    order = draw.sample((0, 1), 2)
    answer = {keys[i]: dict(draw.sample(list(seats[i].items()), len(seats[i]))) for i in order}
    for _ in range(draw.randrange(3)):
        answer = {draw.choice(('evaluations', 'result', 'answer')): answer}
    text = json.dumps(answer, indent=draw.choice((None, 2)), ensure_ascii=draw.random() < 0.5)
    before = draw.choice(('', 'Here: ', '```json\n', '<think>{"agent_1": {"goal": 3}} hm</think>', '{"a": {"b": [1]}} ', '{'))
    return before + text + draw.choice(('', '\n```', ' Done {}.', ' {"note": "agent_1 was better"}', '}'))


def test_random_forms_of_answers():
    draw = random.Random(5)
    for _ in range(1500):
        ratings = [{name: draw.randint(low, high) for name, (low, high) in RANGES.items()} for _ in NAMES]
        text = noisy(draw, ratings)
        assert scores(text, RUBRIC) == ratings, text


def test_damaged_answers_are_bad_or_right():
    draw = random.Random(6)
    read = bad = 0
    for _ in range(1500):
        ratings = [{name: draw.randint(low, high) for name, (low, high) in RANGES.items()} for _ in NAMES]
        text = json.dumps({f'agent_{i + 1}': {name: {'reasoning': 'x', 'score': score} for name, score in rating.items()}
                           for i, rating in enumerate(ratings)})
        begin = draw.randrange(len(text))
        text = text[:begin] + text[begin + draw.choice((1, 1, 5, 50, len(text))):]
        try:
            found = scores(text, RUBRIC)
        except BadAnswer:
            bad += 1
            continue
        read += 1
        wrong = sum(found[i][name] != score for i, rating in enumerate(ratings) for name, score in rating.items())
        assert wrong <= 1  # the first digit of a 10, or a sign, can be lost
        assert all(low <= rating[name] <= high for rating in found for name, (low, high) in RANGES.items())
    assert read > 100 and bad > 500


@pytest.mark.parametrize('unit', ['{"', '{"agent_1":', '{"agent_1":{"goal":1}} ', '{"goal":{"agent_1":', '{ ', '1, '])
def test_the_time_to_read_an_answer_grows_with_its_length(unit):
    def seconds(length):
        times = []
        for _ in range(3):
            start = time.perf_counter()
            with pytest.raises(BadAnswer):
                read_answer(unit * (length // len(unit)), RUBRIC, NAMES)
            times.append(time.perf_counter() - start)
        return min(times)

    assert seconds(100_000) < 15 * seconds(25_000) + 0.5


def test_outcome_and_overall():
    best = {dimension.name: np.array([dimension.low, dimension.high, 0.0]) for dimension in RUBRIC}
    best['secret'][2] = np.nan
    np.testing.assert_allclose(rubric.overall(best), [-30 / 7, 40 / 7, np.nan])
    np.testing.assert_allclose(rubric.outcome(RUBRIC, best), [0, 1, 0])
    np.testing.assert_allclose(rubric.outcome((Dimension('goal', -5, 5, ''),), {'goal': np.array([-5, 0, 5])}), [0, .5, 1])
