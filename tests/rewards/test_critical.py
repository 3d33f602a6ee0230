"""Parsing answers about critical turns."""

import time

import pytest

from epo_jax.data.sharegpt import DOMAINS, Layout, strategy_indexes
from epo_jax.rewards.critical import AnswerError, question, read_answer, resolve, schema, wording

FIVE = (1, 3, 5, 7, 9)


@pytest.mark.parametrize('text', [
    '{"indexes": [3, 7], "reasoning": "x"}', '```json\n{"indexes": [3, 7]}\n```',
    'Sure! {"indexes": [7, 3]} Done {}.',
    '{"reasoning": "in {turn 3} he {said \\"}\\"} so", "indexes": [3, 7]}', '{"indexes": ["3", " 7 "]}',
    '{"indexes": "3, 7"}', '{"indexes": [3.0, 7.0]}', '{"indexes": [3, 3, 7]}', '{"indexes": ["[3]", "[7]"]}',
    '{"reasoning": "line\nbreak\ttab", "indexes": [3,\n7]}', '{"result": {"indexes": [3, 7]}}',
    '<think>{"indexes": [1]}? No.</think>{"indexes": [3, 7]}', '{"a": 1} {"indexes": [3, 7]} {"b": 2}',
    '{ broken {"indexes": [3, 7]}', '[{"indexes": [3, 7]}]'])
def test_forms_of_answers(text):
    assert read_answer(text, FIVE) == ((3, 7), 'message')


def test_an_empty_list_and_a_single_number_are_answers():
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
def test_text_without_an_answer_is_an_error(text):
    with pytest.raises(AnswerError):
        read_answer(text, FIVE)


@pytest.mark.parametrize('numbers, messages, how', [
    ((1, 3), (1, 3), 'message'), ((9,), (9,), 'message'), ((0, 2), (1, 5), 'from 0'), ((0, 4), (1, 9), 'from 0'),
    ((1, 2), (1, 3), 'from 1'), ((2, 4, 5), (3, 7, 9), 'from 1'), ((4,), (7,), 'from 1'),
    ((2, 8), (1, 7), 'message from 1'), ((10,), (9,), 'message from 1'), ((), (), 'message')])
def test_numbering(numbers, messages, how):
    assert resolve(numbers, FIVE) == (messages, how)


def test_the_canned_ok_is_not_a_strategy():
    assert resolve((1, 3), (3, 5)) == ((3,), 'message')
    with pytest.raises(AnswerError, match='which is not a strategy'):
        resolve((1,), (3, 5))


@pytest.mark.parametrize('domain', [*DOMAINS, 'my.own.game'])
def test_the_question_shows_all_messages_and_all_numbers(domain):
    first = 'OK' if domain in ('webshop', 'alfworld') else 'Be kind.'
    texts = ['Read this.', first, 'The task is {this}.', 'Try that.', 'It [3] happened.', 'Go on.']
    conversation = [{'from': ('human', 'gpt')[i % 2], 'value': text} for i, text in enumerate(texts)]
    strategies = strategy_indexes(conversation, Layout(), domain)
    assert strategies == ((3, 5) if domain in ('webshop', 'alfworld') else (1, 3, 5))
    prompt = question(texts, 0.5, wording(domain), strategies)
    assert all(text in prompt for text in texts) and 'score is 0.5' in prompt
    assert all(f'[{i}] ' in prompt and texts[i] in prompt for i in strategies)
    assert ', '.join(map(str, strategies)) in prompt


def test_a_whole_score_has_no_decimals():
    assert 'score is 7:' in question(['a', 'b'], 7.000000000000001, wording('sotopia'), (1,))


def test_the_schema_allows_the_strategies_only():
    indexes = schema((3, 5))['properties']['indexes']
    assert indexes['items'] == {'type': 'integer', 'enum': [3, 5]}


def test_reasoning_is_no_answer():
    assert read_answer('<think>{"indexes": [1]}</think>{"indexes": [3]}', (1, 3))[0] == (3,)
    with pytest.raises(AnswerError, match='no JSON object'):
        read_answer('<think>Perhaps {"indexes": [1]}', (1, 3))


@pytest.mark.parametrize('unit', ['{"', '{"a":', '{"a":"', '{"a":{"b":1}} ', '{"indexes":', '{"indexes":[1]}', '{ ', '1, '])
def test_the_time_to_read_an_answer_grows_with_its_length(unit):
    def seconds(length):
        times = []
        for _ in range(3):
            start = time.perf_counter()
            try:
                read_answer(unit * (length // len(unit)), (1, 3))
            except AnswerError:
                pass
            times.append(time.perf_counter() - start)
        return min(times)

    assert seconds(400_000) < 10 * seconds(100_000) + 0.1
