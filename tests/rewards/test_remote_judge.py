"""A chat model as judge, with a client that answers as it is told to."""

import collections
import json
import random

import numpy as np
import pytest

from epo_jax.agents.address import Address
from epo_jax.agents.remote import Answer
from epo_jax.envs.base import GOAL, Dimension, EpisodeText
from epo_jax.rewards import critical, process, remote_judge, rubric
from epo_jax.rewards.prompts import JudgePrompt, encode_prompts
from epo_jax.rewards.remote_judge import NOT_ASKED, Missing, RemoteJudge, to_readings
from epo_jax.runtime.errors import InputError
from epo_jax.runtime.hostcalls import Failure

RUBRIC = (Dimension('relationship', -5, 5, 'Better or worse?'), GOAL)
ADDRESS = Address('m', 'http://localhost:1/v1')
GOOD = [{'relationship': -2, 'goal': 7}, {'relationship': 3, 'goal': 0}]


def answer(text, problem=None, cut=False):
    return Answer(text=text, problem=problem, cut=cut, prompt_tokens=5, completion_tokens=5, cached=False)


def form(ratings):
    return json.dumps({f'agent_{i + 1}': {name: [f'{name}!', score] for name, score in rating.items()}
                       for i, rating in enumerate(ratings)})


class Client:
    """A client that answers a request by a function, and keeps the requests."""

    def __init__(self, reply):
        self.reply, self.requests = reply, []

    def check(self, address):
        raise InputError(f'no key for {address.name}')

    def complete(self, requests):
        self.requests += requests
        return [reply if isinstance(reply, (Answer, Failure)) else answer(reply) for reply in map(self.reply, requests)]


def judge(reply, **options):
    return RemoteJudge(Client(reply), ADDRESS, **({'rubric': RUBRIC} | options))


def episode(number):
    facts = {'seats': [{'name': name, 'goal': ''} for name in ('Ann Lee', 'Bo Reed')]}
    return EpisodeText(facts, [(0, 'Hi.'), (1, f'Line {number}.')], ['Ann sells.', 'Bo buys.'])


def number(request):
    """Return the number of the episode that a request is about."""
    return int(request.messages[0][1].split('Line ')[1].split('.')[0])


def test_one_question_for_all_seats_at_temperature_0():
    asked = judge(lambda request: form(GOOD))
    [ratings] = asked.rate([episode(0)], [True])
    assert [rating.scores for rating in ratings] == GOOD
    assert ratings[1].reasoning == {'relationship': 'relationship!', 'goal': 'goal!'}
    [request] = asked.remote.requests
    assert request.temperature == 0 and request.role == 'judge' and request.address == ADDRESS
    assert request.messages == (('user', rubric.question(episode(0), RUBRIC)),)
    assert request.schema == rubric.schema(RUBRIC, 2)
    assert asked.take_metrics() == {'judge/asked': 1, 'judge/bad_answers': 0, 'judge/missing': 0}


def test_a_bad_answer_is_asked_again_with_the_reason():
    replies = iter(['Hm.', form([GOOD[0], {'relationship': 3, 'goal': 70}]), form(GOOD)])
    asked = judge(lambda request: next(replies))
    [ratings] = asked.rate([episode(0)], [True])
    assert [rating.scores for rating in ratings] == GOOD
    first, second, third = asked.remote.requests
    assert [request.attempt for request in asked.remote.requests] == [0, 1, 2]
    assert second.messages[:2] == (*first.messages, ('assistant', 'Hm.'))
    assert 'no JSON object' in second.messages[2][1] and '70; it must be from 0 to 10' in third.messages[2][1]
    assert [role for role, _ in third.messages] == ['user', 'assistant', 'user']
    assert asked.take_metrics() == {'judge/asked': 3, 'judge/bad_answers': 2, 'judge/missing': 0,
                                    'judge/bad/out_of_range': 1, 'judge/bad/unreadable': 1}
    assert asked.take_metrics() == {'judge/asked': 0, 'judge/bad_answers': 0, 'judge/missing': 0}


@pytest.mark.parametrize('reply, kind, requests, reason', [
    ('Hm.', 'unreadable', 3, 'no JSON object'), ('', 'declined', 3, 'the answer is empty'),
    (answer(None, 'content filter'), 'declined', 3, 'content filter'),
    (answer(None, 'nothing but reasoning', cut=True), 'cut_off', 3, 'nothing but reasoning'),
    (answer('{"agent_1": {"goal": 1', cut=True), 'cut_off', 3, 'cut off at 4096 tokens'),
    (Failure('no answer within 5 s'), 'failed', 1, 'no answer within 5 s'),
    (form([{'relationship': 0, 'goal': 11}, GOOD[1]]), 'out_of_range', 3, 'agent_1 for goal is 11'),
    (form([{'relationship': 0}, GOOD[1]]), 'missing', 3, 'agent_1 for goal is missing')])
def test_an_answer_that_stays_bad_is_missing_with_its_reason(reply, kind, requests, reason):
    asked = judge(lambda request: form(GOOD) if number(request) else reply)
    bad, good, skipped = asked.rate([episode(0), episode(1), episode(2)], [True, True, False])
    assert [rating.scores for rating in good] == GOOD and skipped == [NOT_ASKED] * 2
    assert all(isinstance(rating, Missing) and reason in rating.reason for rating in bad) and reason in asked.problem
    assert asked.take_metrics() == {'judge/asked': requests + 1, 'judge/bad_answers': requests, 'judge/missing': 1,
                                    f'judge/bad/{kind}': requests}
    readings = to_readings([bad, good, skipped], RUBRIC)
    np.testing.assert_array_equal(readings.outcome, [np.nan, .7, np.nan, np.nan, 0, np.nan])  # seat-major
    assert [reason in comment.get('missing', '') for comment in readings.comments[[0, 3]]] == [True, True]
    assert readings.comments[2] == {} and readings.comments[1]['reasoning']['goal'] == 'goal!'


def test_a_good_answer_that_was_cut_off_after_its_object_counts():
    [ratings] = judge(lambda request: answer(form(GOOD) + ' Furthermore', cut=True)).rate([episode(0)], [True])
    assert [rating.scores for rating in ratings] == GOOD


def test_equal_questions_are_asked_once():
    asked = judge(lambda request: form(GOOD))
    ratings = asked.rate([episode(3), episode(3), episode(4)], [True] * 3)
    assert len(asked.remote.requests) == 2 and ratings[0] == ratings[1]


def test_random_answers_never_become_a_score_that_the_judge_did_not_give():
    draw, said = random.Random(2), {}
    damages = (lambda text: text, lambda text: text[:draw.randrange(len(text))], lambda text: f'```json\n{text}\n```',
               lambda text: answer(None, 'refused'), lambda text: Failure('down'), lambda text: text.replace('goal', 'aim'),
               lambda text: f'<think>{text}', lambda text: text.replace('[', '[1, '))

    def reply(request):
        given = [{d.name: draw.randint(d.low - 1, d.high + 1) for d in RUBRIC} for _ in range(2)]
        said[number(request)] = given
        return draw.choice(damages)(form(given))

    asked = judge(reply)
    ratings = asked.rate([episode(i) for i in range(400)], [True] * 400)
    missing = 0
    for i, seats in enumerate(ratings):
        for given, rating in zip(said[i], seats, strict=True):
            if isinstance(rating, Missing):
                assert rating.reason
                continue
            for name, score in rating.scores.items():
                # Without its sign, a score is another one that is in range for a relationship.
                assert score == given[name] or name == 'relationship' and score == -given[name]
        missing += isinstance(seats[0], Missing)
    metrics = asked.take_metrics()
    assert 20 < missing < 380 and metrics['judge/missing'] == missing
    assert metrics['judge/asked'] == len(asked.remote.requests) == metrics['judge/bad_answers'] + 400 - missing
    assert sum(count for name, count in metrics.items() if '/bad/' in name) == metrics['judge/bad_answers']


@pytest.mark.parametrize('processes', [2, 3])
def test_every_process_asks_its_part_and_gets_everything(monkeypatch, processes):
    shares = []
    for index in range(processes):  # what each process contributes
        monkeypatch.setattr(remote_judge.hosts, 'local_slots', lambda slots, index=index: (
            np.arange(slots) * processes // slots == index))
        monkeypatch.setattr(remote_judge.hosts, 'share_all', lambda call: shares.append(call()) or {
            row: remote_judge._Asked(Missing('elsewhere')) for row in range(5)})
        judge(lambda request: form(GOOD)).rate([episode(i) for i in range(5)], [True] * 5)
    assert sorted(row for share in shares for row in share) == list(range(5))
    everything = {row: asked for share in shares for row, asked in share.items()}
    monkeypatch.setattr(remote_judge.hosts, 'local_slots', lambda slots: np.zeros(slots, bool))
    monkeypatch.setattr(remote_judge.hosts, 'share_all', lambda call: everything | call())
    idle = judge(lambda request: pytest.fail('asked again'))
    ratings = idle.rate([episode(i) for i in range(5)], [True] * 5)
    assert all([rating.scores for rating in seats] == GOOD for seats in ratings)
    assert idle.take_metrics()['judge/asked'] == 5


def test_an_error_of_the_client_ends_the_call():
    def refuse(request):
        raise InputError('HTTP 401')

    with pytest.raises(InputError, match='401'):
        judge(refuse).rate([episode(0)], [True])


@pytest.mark.parametrize('options', [{'attempts': 0}, {'max_tokens': -1}, {'temperature': float('nan')}])
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(InputError, match='judge: attempts must be positive'):
        judge(None, **options)


def test_the_check_of_the_client_is_that_of_the_judge():
    with pytest.raises(InputError, match='no key for m'):
        judge(None).check()


# Critical turns

TALKS = (['Read.', 'Be kind.', 'A: x', 'Ask.', 'B: y', 'Go.'], ['Read that.', 'Stay.'], (), ['Read.', 'Run.', 'A: z', 'Go.'])


@pytest.mark.parametrize('environment, score', [('sotopia', '7'), ('webshop', '0.7'), ('my.own.game', '0.7')])
def test_critical_turns_are_asked_for_as_label_does(environment, score):
    asked = judge(lambda request: '{"reasoning": "x", "indexes": [1, 5]}' if 'Ask.' in request.messages[0][1] else
                  'Sure: ```{"indexes": []}```', role='process')
    values, _ = asked.critical(TALKS, np.array([.7, 0, 1, np.nan]), environment, 4)
    np.testing.assert_array_equal(
        values, [[1, 0, 1, np.nan], [0, np.nan, np.nan, np.nan], [np.nan] * 4, [np.nan] * 4])
    first, second = asked.remote.requests
    words = critical.wording(environment)
    assert first.messages == (('user', critical.question(TALKS[0], float(score), words, (1, 3, 5))),)
    assert f'The final score is {score}: {words.scale}' in first.messages[0][1] and first.role == 'process'
    assert second.schema == critical.schema((1,))
    assert asked.take_metrics() == {'process/asked': 2, 'process/bad_answers': 0, 'process/missing': 0}


def test_critical_turns_that_stay_unclear_are_missing():
    asked = judge(lambda request: '{"indexes": [99]}', role='process', attempts=2)
    values, comments = asked.critical(TALKS[:2], np.array([.5, .5]), 'sotopia', 3)
    assert np.isnan(values).all() and all(comment['critical_missing'] for comment in comments)
    assert asked.take_metrics() == {'process/asked': 4, 'process/bad_answers': 4, 'process/missing': 2,
                                    'process/bad/unreadable': 4}


# The verdict on what remote judges said


def prompts():
    lines = ((0, 'Hi.'), (1, 'Line 0.'), (0, 'Bye.'))
    return [JudgePrompt('', seat, lines, ('a', 'b')[:2 - seat], reward, complete) for seat in (0, 1)
            for reward, complete in ((None, True), (.25, True), (None, False), (None, True))]


def test_verdicts_use_the_answers_of_remote_judges():
    replies = collections.Counter()

    def reply(request):
        replies[request.role] += 1
        if request.role == 'process':
            return '{"indexes": [1]}'
        return Failure('down') if number(request) == 3 else form(GOOD)

    rater, critic = judge(reply), judge(reply, role='process')
    given = to_readings(rater.rate([episode(i) for i in range(4)], [True, True, False, True]), RUBRIC)
    talks = [(f'Read {n}.', 'a', 'Hi.', 'b')[:4 - 2 * (n >= 4)] for n in range(8)]
    given = process.Readings(
        given.outcome, lambda outcomes: critic.critical(talks, outcomes, 'sotopia', 2), given.dimensions, given.comments)
    encode = lambda judge, method, read: encode_prompts(judge, prompts(), 2, method, read)
    verdict = process.assess_episodes(encode, None, None, 'critical', True, given)
    np.testing.assert_array_equal(verdict.outcome, [.7, .25, 0, 0, 0, .25, 0, 0])
    np.testing.assert_array_equal(verdict.outcome_valid, [1, 1, 0, 0, 1, 1, 0, 0])
    np.testing.assert_array_equal(verdict.process, [[1, 0], [1, 0], [0, 0], [0, 0], [1, 0], [1, 0], [0, 0], [0, 0]])
    np.testing.assert_array_equal(verdict.valid, [[1, 1], [1, 1], [0, 0], [0, 0], [1, 0], [1, 0], [0, 0], [0, 0]])
    assert replies == {'judge': 3, 'process': 4}  # nothing about outcomes that are missing
    notes = verdict.notes()
    assert notes[0] == {'by_rule': False, 'rating': 7, 'critical': [1, 0], 'scores': GOOD[0],
                        'reasoning': {'relationship': 'relationship!', 'goal': 'goal!'}}
    assert notes[1]['by_rule'] and notes[1]['rating'] == 2.5 and notes[1]['scores'] == GOOD[0]
    assert notes[3] == {'by_rule': False, 'rating': None, 'critical': [None, None], 'missing': 'down',
                        'scores': {'relationship': None, 'goal': None}}
    assert notes[2]['scores'] == {'relationship': None, 'goal': None} and 'missing' not in notes[2]
    part = verdict[np.array([4, 0])]
    assert part.notes() == [notes[4], notes[0]]
