"""Reasoning and JSON objects in replies."""

import pytest

from epo_jax.envs.replies import cut_reasoning, find_objects


@pytest.mark.parametrize('text, expected', [
    ('Hello.', ('Hello.', False)), ('', ('', False)), ('3 < 5, I think>', ('3 < 5, I think>', False)),
    ('<think>hm</think>Hello.', ('Hello.', True)), ('<think>\nhm\n</think>\n\nHello.', ('\n\nHello.', True)),
    ('hm</think>Hello.', ('Hello.', True)), ('<think>hm', ('', True)), ('Hello. <think>hm', ('Hello. ', True)),
    ('a <think>b</think> c <think>d</think> e', ('a  c  e', True)), ('<think></think>', ('', True)),
    ('<think>a <think> b</think>Hello.', ('Hello.', True)), ('<think>a<think>b</think>c</think>Hello.', ('Hello.', True)),
    ('<THINK>hm</Think >Hello.', ('Hello.', True)), ('<thinking>hm</thinking>Hello.', ('Hello.', True)),
    ('<think type="long">hm', ('', True)), ('<thought>hm</thought>Hello.', ('Hello.', True)),
    ('<reasoning>hm</reasoning>Hello.', ('Hello.', True)), ('[THINK]hm[/THINK]Hello.', ('Hello.', True)),
    ('\u25c1think\u25b7hm\u25c1/think\u25b7Hello.', ('Hello.', True)),
    ('[thinking] Hm. <thinks> <3 [think]', ('[thinking] Hm. <thinks> <3 [think]', False))])
def test_reasoning_is_cut(text, expected):
    assert cut_reasoning(text) == expected


@pytest.mark.parametrize('text, expected', [
    ('', []), ('{}', []), ('{"a": 1}', [{'a': 1}]), ('x {"a": {"b": 1}} y', [{'a': {'b': 1}}, {'b': 1}]),
    ('{ "a": 1 } {"b" 2} {"c": 3}', [{'a': 1}, {'c': 3}]), ('{"a": "line\nbreak }"}', [{'a': 'line\nbreak }'}]),
    ('{"a": {"b": 1}', [{'b': 1}]), ('{"a": ' + '9' * 5000 + '} {"b": 1}', [{'b': 1}])])
def test_objects_are_found_between_other_text(text, expected):
    found = [*find_objects(text)]
    assert [value for value, _, _ in found] == expected
    assert all(text[begin] == '{' and text[end - 1] == '}' for _, begin, end in found)
