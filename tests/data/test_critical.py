"""Reading answers about critical turns."""

import json

import pytest

from epo_jax.data.critical import AnswerError, question, read_answer, resolve, strategy_indexes
from epo_jax.data.sharegpt import DOMAINS, Layout

FIVE = (1, 3, 5, 7, 9)


@pytest.mark.parametrize('text', [
    '{"indexes": [3, 7], "reasoning": "x"}', '```json\n{"indexes": [3, 7]}\n```',
    'Sure! {"indexes": [7, 3]} Done {}.',
    '{"reasoning": "in {turn 3} he {said \\"}\\"} so", "indexes": [3, 7]}', '{"indexes": ["3", " 7 "]}',
    '{"indexes": "3, 7"}', '{"indexes": [3.0, 7.0]}', '{"indexes": [3, 3, 7]}', '{"indexes": ["[3]", "[7]"]}',
    '{"reasoning": "line\nbreak\ttab", "indexes": [3,\n7]}', '{"result": {"indexes": [3, 7]}}',
    '<think>{"indexes": [1]}? No.</think>{"indexes": [3, 7]}', '{"a": 1} {"indexes": [3, 7]} {"b": 2}',
    '{ broken {"indexes": [3, 7]}', '[{"indexes": [3, 7]}]'])
def test_forms(text):
    assert read_answer(text, FIVE) == ((3, 7), 'message')


def test_none_is_an_answer_and_one_need_not_be_a_list():
    assert read_answer('{"indexes": []}', FIVE) == ((), 'message')
    assert read_answer('{"indexes": ""}', FIVE) == ((), 'message')
    assert read_answer('{"indexes": 5}', FIVE) == ((5,), 'message')


@pytest.mark.parametrize('text', [
    '', 'I cannot help with that.', '{"index": [3]}', '{"indexes": [3, 7]', '{"indexes": null}',
    '{"indexes": [true]}',
    '{"indexes": [1.5]}', '{"indexes": ["first"]}', '{"indexes": {"a": 1}}', '{"indexes": [[3]]}',
    '{"indexes": [3, 99]}',
    '{"indexes": [-1]}', '{"indexes": [0, 5]}', '{"indexes": [2, 9]}', '{"indexes": [11]}', '{"indexes": [1e999]}',
    '{"indexes": [NaN]}', '{"indexes": "all"}', '{' * 100_000])
def test_what_is_no_answer_is_an_error(text):
    with pytest.raises(AnswerError):
        read_answer(text, FIVE)


@pytest.mark.parametrize('numbers, messages, how', [
    ((1, 3), (1, 3), 'message'), ((9,), (9,), 'message'), ((0, 2), (1, 5), 'from 0'), ((0, 4), (1, 9), 'from 0'),
    ((1, 2), (1, 3), 'from 1'), ((2, 4, 5), (3, 7, 9), 'from 1'), ((4,), (7,), 'from 1'),
    ((2, 8), (1, 7), 'message from 1'), ((10,), (9,), 'message from 1'), ((), (), 'message')])
def test_numbering(numbers, messages, how):
    assert resolve(numbers, FIVE) == (messages, how)


def test_the_canned_ok_is_dropped():
    assert resolve((1, 3), (3, 5)) == ((3,), 'message')
    with pytest.raises(AnswerError, match='no strategy'):
        resolve((1,), (3, 5))


@pytest.mark.parametrize('domain', DOMAINS)
def test_question_shows_everything_and_every_number(domain):
    first = 'OK' if domain != 'sotopia' else 'Be kind.'
    texts = ['Read this.', first, 'The task is {this}.', 'Try that.', 'It [3] happened.', 'Go on.']
    found = [{'from': ('human', 'gpt')[i % 2], 'value': text} for i, text in enumerate(texts)]
    before = json.dumps(found)
    asked = question(found, 0.5, Layout(), domain)
    strategies = strategy_indexes(found, Layout(), domain)
    assert strategies == ((1, 3, 5) if domain == 'sotopia' else (3, 5))
    assert all(text in asked for text in texts) and 'score is 0.5' in asked and json.dumps(found) == before
    assert all(f'[{i}] ' in asked and texts[i] in asked for i in strategies)
    assert ', '.join(map(str, strategies)) in asked
