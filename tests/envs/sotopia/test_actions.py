"""Replies of models, and the actions they are parsed as."""

import random
import time

import pytest

from epo_jax.envs.sotopia.actions import KINDS, Action, from_code, read_action
from epo_jax.envs.sotopia.prompts import line

SPEAK, GESTURE, ACTION, LEAVE, NONE = KINDS
OWN, OTHER = 'Ava Li', 'Bob Stone'
NOTHING = Action(NONE, '', 'unparsable')


def read(text, allowed=KINDS):
    return read_action(text, OWN, OTHER, allowed)


@pytest.mark.parametrize('text, kind, argument', [
    ('Hello, Bob.', SPEAK, 'Hello, Bob.'),
    ('  Hello there.\n', SPEAK, 'Hello there.'),
    ('I can pay $150.\nIs that all right?', SPEAK, 'I can pay $150. Is that all right?'),
    ('speak: Hello.', SPEAK, 'Hello.'),
    ('Speak : Hello.', SPEAK, 'Hello.'),
    ('say: Hello.', SPEAK, 'Hello.'),
    ('gesture: nods slowly', GESTURE, 'nods slowly'),
    ('non-verbal: nods', GESTURE, 'nods'),
    ('non-verbal communication: nods', GESTURE, 'nods'),
    ('act: opens the window', ACTION, 'opens the window'),
    ('Action: opens the window', ACTION, 'opens the window'),
    ('leave:', LEAVE, ''),
    ('leave: I have to go now.', LEAVE, ''),
    ('wait:', NONE, ''),
    ('none:', NONE, ''),
])
def test_requested_forms_need_no_repair(text, kind, argument):
    assert read(text) == Action(kind, argument)


@pytest.mark.parametrize('text', [
    'Tell Bob: hello',
    'Please tell him this. Bob: hello',
    'I asked, and Bob said: never.',
    'Two names.\nBobby: one\nBarb: two',
    'He said "yes" to me.',
    '"Yes," he said, "of course."',
    '“Yes,” he said, “of course.”',
    'I am reading "Dune',
    "It's John's idea, isn't it?",
    '*smiles* Nice to meet you.',
    '(quietly) I know.',
    '[aside] I know.',
    'Leave me alone.',
    'Please leave the room.',
    'I left my keys here.',
    'I leave it to you.',
    'Nothing is wrong.',
    'None of this is true.',
    'Wait, I have an idea.',
    'Speak to Bob: he knows.',
    'I like {curly} things.',
    'My offer: $150.',
    'Bob, can you hear me?',
    'Turn 3 of the game was mine.',
    'Ava (my name) is short.',
    'Ava is my name.',
    'Ava did nothing wrong.',
    'Listen.\nBob left the conversation too early.',
])
def test_plain_speech_stays_unchanged(text):
    assert read(text) == Action(SPEAK, ' '.join(text.split()))


@pytest.mark.parametrize('text, kind, argument', [
    # The speaker's own name
    ('Ava Li: Hello.', SPEAK, 'Hello.'),
    ('Ava: Hello.', SPEAK, 'Hello.'),
    ('Ava said: "Hello."', SPEAK, 'Hello.'),
    ('Ava Li said: Hello.', SPEAK, 'Hello.'),
    ('Ava: speak: Hello.', SPEAK, 'Hello.'),
    ('Ava: *smiles*', GESTURE, 'smiles'),
    ('Ava: act: opens the window', ACTION, 'opens the window'),
    ('**Ava:** Hello.', SPEAK, 'Hello.'),
    ('**Ava Li**: Hello.', SPEAK, 'Hello.'),
    ('AVA: Hello.', SPEAK, 'Hello.'),
    ('ava said: "Hello."', SPEAK, 'Hello.'),
    ('Ava says: "Hello."', SPEAK, 'Hello.'),
    ('Ava (smiling): Hello.', SPEAK, 'Hello.'),
    ('**Turn #3**\nAva said: "Hello."', SPEAK, 'Hello.'),
    ('Turn 3: Hello.', SPEAK, 'Hello.'),
    ('Turn 3\nHello.', SPEAK, 'Hello.'),
    ('Hello.\n**Bob:** Hi.', SPEAK, 'Hello.'),
    ('Hello.\nBob (nodding): Hi.', SPEAK, 'Hello.'),
    # Lines of the partner after the reply
    ('Hello.\nBob: Hi.', SPEAK, 'Hello.'),
    ('Hello.\n\nBob Stone said: "Hi."\nAva said: "So."', SPEAK, 'Hello.'),
    ('Hello."\nBob said: "Hi."', SPEAK, 'Hello.'),
    ('Ava: Hello.\nAva: Hello again.', SPEAK, 'Hello.'),
    ('Ava: "Hello."\n  Bob : "Hi."', SPEAK, 'Hello.'),
    ('*nods*\nBob: Hi.', GESTURE, 'nods'),
    ('Hello.\nBob left the conversation.', SPEAK, 'Hello.'),
    ('Hello.\nBob [gesture] nods', SPEAK, 'Hello.'),
    # Quotation marks
    ('"Hello."', SPEAK, 'Hello.'),
    ('“Hello.”', SPEAK, 'Hello.'),
    ('"Hello.', SPEAK, 'Hello.'),
    ('Hello."', SPEAK, 'Hello.'),
    ('“Hello.', SPEAK, 'Hello.'),
    ('speak: "Hello."', SPEAK, 'Hello.'),
    # Brackets or asterisks around the kind or the whole reply
    ('[action] opens the door', ACTION, 'opens the door'),
    ('(gesture) shrugs', GESTURE, 'shrugs'),
    ('**speak** Hello.', SPEAK, 'Hello.'),
    ('[speak]: Hello.', SPEAK, 'Hello.'),
    ('*smiles*', GESTURE, 'smiles'),
    ('*smiles warmly*.', GESTURE, 'smiles warmly'),
    ('(nods)', GESTURE, 'nods'),
    ('[waves]', GESTURE, 'waves'),
    ('*leave me alone*', GESTURE, 'leave me alone'),
    # Leaving or doing nothing in words
    ('leave', LEAVE, ''),
    ('I leave.', LEAVE, ''),
    ('I leave the conversation.', LEAVE, ''),
    ('*leaves the room*', LEAVE, ''),
    ('[leave]', LEAVE, ''),
    ('(I left)', LEAVE, ''),
    ('Nothing.', NONE, ''),
    ('[none]', NONE, ''),
    ('*does nothing*', NONE, ''),
    # JSON
    ('{"action_type": "speak", "argument": "Hello."}', SPEAK, 'Hello.'),
    ('{"argument": "Hello.", "action_type": "Speak"}', SPEAK, 'Hello.'),
    ('```json\n{"action_type": "speak",\n "argument": "Hello."}\n```', SPEAK, 'Hello.'),
    ('My choice:\n{"action_type": "action", "argument": "sits"}\nIt shows trust.', ACTION, 'sits'),
    ('{"action_type": "speak", "argument": "Write {x} or }."}', SPEAK, 'Write {x} or }.'),
    ('{"why": {"goal": "win"}, "action_type": "speak", "argument": "Hi"}', SPEAK, 'Hi'),
    ('{"reply": {"action_type": "speak", "argument": "Hi"}}', SPEAK, 'Hi'),
    ('I use {braces}. {"action_type": "speak", "argument": "Hi"}', SPEAK, 'Hi'),
    ('{"action_type": "speak", "argument": "1"} {"action_type": "speak", "argument": "2"}', SPEAK, '1'),
    ('{"action_type": "speak", "argument": "Say \\"please\\"."}', SPEAK, 'Say "please".'),
    ('{"action_type": "speak", "argument": "One.\nTwo."}', SPEAK, 'One. Two.'),
    ('{"action_type": "non-verbal communication", "argument": "nods"}', GESTURE, 'nods'),
    ('{"action_type": "leave", "argument": ""}', LEAVE, ''),
    ('{"action_type": "leave", "argument": null}', LEAVE, ''),
    ('{"action_type": "none"}', NONE, ''),
])
def test_other_forms_that_can_be_parsed_count_as_repaired(text, kind, argument):
    assert read(text) == Action(kind, argument, 'repaired')


@pytest.mark.parametrize('text', [
    '', '   \n\t', '"', '""', '“”', 'Ava:', 'Ava said: ""', 'speak:', 'speak: ""', 'action:', 'gesture: "',
    '{"action_type": "speak"}',
    '{"action_type": "speak", "argument": ""}',
    '{"action_type": "speak", "argument": null}',
    '{"action_type": "speak", "argument": ["Hello."]}',
    '{"action_type": null, "argument": "Hello."}',
    '{"action_type": ["speak"], "argument": "Hello."}',
    '{"action_type": "speak", "argument": "Hello, how are',
    '```json\n{"action_type": "speak", "argument": "Hel',
    '{"action_type": "dance", "argument": "a tango"}',
    "{'action_type': 'speak', 'argument': 'Hello.'}",
])
def test_replies_without_content_are_unparsable(text):
    assert read(text) == NOTHING


@pytest.mark.parametrize('text', ['*smiles*', 'act: sits', 'leave:', 'I leave.', 'wait:', '[none]',
                                  '{"action_type": "leave", "argument": ""}'])
def test_a_kind_that_is_not_allowed_is_unparsable(text):
    assert read(text, (SPEAK,)) == NOTHING
    assert read(text).event != 'unparsable'


@pytest.mark.parametrize('action', [
    Action(SPEAK, 'I can pay $150.'), Action(GESTURE, 'nods slowly'), Action(ACTION, 'opens the door'),
    Action(LEAVE, ''), Action(NONE, '')])
def test_a_line_of_the_transcript_parses_as_the_action_it_shows(action):
    got = read(line('Ava', action))
    assert (got.kind, got.argument, got.event) == (action.kind, action.argument, 'repaired')


def test_special_characters_of_regular_expressions_in_names_are_literal():
    own, other = 'A.J. (Max) O+', 'C*t [x'
    say = lambda text: read_action(text, own, other)
    assert say('A.J. (Max) O+: Hello.') == Action(SPEAK, 'Hello.', 'repaired')
    assert say('A.J. said: "Hello."\nC*t: Hi.') == Action(SPEAK, 'Hello.', 'repaired')
    assert say('Hello.\nC*t [x said: "Hi."') == Action(SPEAK, 'Hello.', 'repaired')
    assert say('AxJx: Hello.') == Action(SPEAK, 'AxJx: Hello.')
    assert say('Hello.\nCCCt: Hi.') == Action(SPEAK, 'Hello. CCCt: Hi.')


def test_names_may_have_one_word():
    assert read_action('Ava: Hello.\nBob: Hi.', 'Ava', 'Bob') == Action(SPEAK, 'Hello.', 'repaired')


PIECES = (
    'Ava', 'Ava Li', 'Bob', 'Bob Stone', ' said', ':', ' ', '\n', '\n\n', '"', '“', '”', "'", '*', '[', ']', '(', ')',
    '{', '}', '\\', '```json', 'action_type', 'argument', '"action_type": "speak"', '"argument": "Hi"', ', ', 'speak',
    'leave', 'left', 'none', 'nothing', 'act', 'action', 'gesture', 'non-verbal', 'I ', '.', '?', '$1,5', 'Hello',
    'null', '[1, {"a": 2}]', '{"action_type": "leave"}', '\x00', '\ufffd', '\u2028', '日本', '🙂', '\t')


def test_random_text_gives_an_allowed_action_or_an_unparsable_one():
    random_ = random.Random(0)
    for _ in range(5000):
        text = ''.join(random_.choices(PIECES, k=random_.randint(0, 12)))
        allowed = (SPEAK, *random_.sample(KINDS[1:], random_.randint(0, 4)))
        action = read(text, allowed)
        assert action.kind in allowed or action == NOTHING, text
        assert (action.argument == '') == (action.kind in (LEAVE, NONE)), text
        assert action.argument == ' '.join(action.argument.split()), text
        assert action.event in (None, 'repaired', 'unparsable'), text
        assert read(text, allowed) == action


@pytest.mark.parametrize('text', [
    '{' * 3000, '[' * 5000, '{"a":' * 3000, '{"a":' + '[' * 100_000, '{"a": ' + '9' * 5000 + '}', '*' * 5000,
    '{"action_type": "speak", "argument": ' + '[' * 3000,
    '\ud800 a lone surrogate', '{"action_type": ["speak"], "argument": {"a": 1}}'], ids=lambda text: text[:9])
def test_pathological_text_raises_no_error(text):
    assert read(text).kind in KINDS


@pytest.mark.parametrize('text, expected', [
    ('<think>He may lie.</think>\n\nHello, Bob.', Action(SPEAK, 'Hello, Bob.', reasoning=True)),
    ('He may lie.</think>Hello, Bob.', Action(SPEAK, 'Hello, Bob.', reasoning=True)),
    ('<THINK>\n{"action_type": "leave"}\n</THINK>gesture: nods', Action(GESTURE, 'nods', reasoning=True)),
    ('<think>a</think>Ava said: "Hello."', Action(SPEAK, 'Hello.', 'repaired', reasoning=True)),
    ('<think>I should say hello', Action(NONE, '', 'unparsable', reasoning=True)),
    ('<think>a</think>', Action(NONE, '', 'unparsable', reasoning=True)),
    ('I think 3 < 5.', Action(SPEAK, 'I think 3 < 5.'))])
def test_reasoning_is_not_spoken_and_counted(text, expected):
    assert read(text) == expected
    assert ('action/reasoning' in read(text).events) == expected.reasoning


@pytest.mark.parametrize('text, expected', [
    ('Turn #3\nAva said: "Hello."', Action(SPEAK, 'Hello.', 'repaired')),
    ('Turn #3: Ava Li said: "Hello."\n\nTurn #4\nBob said: "Hi."', Action(SPEAK, 'Hello.', 'repaired')),
    ('turn # 3\nHello.', Action(SPEAK, 'Hello.', 'repaired')),
    ('Hello.\nTurn #4', Action(SPEAK, 'Hello.', 'repaired')),
    ('Turn #3\n', Action(NONE, '', 'unparsable')),
    ('said: "Hello."', Action(SPEAK, 'Hello.', 'repaired')),
    ('Turn around, Bob.', Action(SPEAK, 'Turn around, Bob.')),
    ('It is turn #3 now.', Action(SPEAK, 'It is turn #3 now.'))])
def test_the_number_of_a_turn_is_not_spoken(text, expected):
    assert read(text) == expected


@pytest.mark.parametrize('text, expected', [
    ('Bob: I can pay $60.', Action(SPEAK, 'Bob: I can pay $60.', None, False, True)),
    ('Bob Stone said: "Hi."\nAva said: "Hello."', Action(SPEAK, 'Hello.', 'repaired', False, True)),
    ('Turn #2\nBob said: Hi.\nTurn #3\nAva: Hello.\nBob: Bye.', Action(SPEAK, 'Hello.', 'repaired', False, True)),
    ('Ava: Hello.\nBob: Hi.', Action(SPEAK, 'Hello.', 'repaired')),
    ('Bob, hello.', Action(SPEAK, 'Bob, hello.'))])
def test_a_line_of_the_partner_is_counted(text, expected):
    assert read(text) == expected
    assert ('action/partner' in read(text).events) == expected.partner


def test_codes_hold_all_events():
    actions = [Action(SPEAK, 'x', event, reasoning, partner) for event in (None, 'repaired', 'unparsable')
               for reasoning in (False, True) for partner in (False, True)]
    assert [from_code(SPEAK, 'x', action.code) for action in actions] == actions
    assert len({action.code for action in actions}) == 12


@pytest.mark.parametrize('unit', ['\n', ' ', '{"', '{"a":', '{"a":"', '{"a":[1,2],"x', '"action_type": ', '\nAva', '*(',
                                  '<think>', '</think>', 'Turn #3\n', '\nBob ', '[', '“'])
def test_the_time_to_read_a_reply_grows_with_its_length(unit):
    def seconds(length):
        text = unit * (length // len(unit))
        times = []
        for _ in range(3):
            start = time.process_time()
            read(text)
            times.append(time.process_time() - start)
        return min(times)

    assert seconds(400_000) < 10 * seconds(100_000) + 0.1
