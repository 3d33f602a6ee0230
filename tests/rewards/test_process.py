"""The judge's probabilities against full forward passes, and episodes that it cannot judge."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import normalizers

from epo_jax import testing
from epo_jax.models.transformer import Transformer
from epo_jax.rewards import process
from epo_jax.rewards.judge import RATING, REACHED, Judge
from epo_jax.rewards.outcome import load_outcome, with_outcome
from epo_jax.rewards.prompts import CRITICAL, GRADED, JudgePrompt, encode_prompts
from epo_jax.text.chat import chat_segments
from epo_jax.text.tokenizer import encode

CAPACITY, TURNS = 512, 3
TOLERANCE = 2e-5


@functools.cache
def judge():
    """Return a judge with a dummy model, whose logits are scaled so that its probabilities differ."""
    tokenizer, config = testing.byte_tokenizer(), testing.dummy_config()
    params = testing.dummy_params(config, stacked=False)
    params['final_norm']['scale'] = params['final_norm']['scale'] * 12
    return Judge(Transformer(config), params, tokenizer, chat_segments(tokenizer), CAPACITY, chunk=128)


def assess(judge, prompts, turns, method):
    """Return the verdict of a host loop on prompts."""
    rate = any(prompt.reward is None for prompt in prompts)
    conversations = encode_prompts(judge, prompts, turns, method, read=rate or method == 'potential')
    return process.assess(judge, conversations, method, rate)


def prompt(seat=0, lines=4, **changes):
    """Return the prompt of an episode with the given lines, or with that number of lines, seat 0 first."""
    if isinstance(lines, int):
        lines = tuple((i % 2, f'{"AB"[i % 2]} said: "{"Hi no"[:i + 1]}"') for i in range(lines))
    turns = sum(s == seat for s, _ in lines)
    return dataclasses.replace(JudgePrompt(
        'A sells to B.', seat, lines, tuple(f'Plan {t}.' for t in range(turns)), None, True), **changes)


# Seat 0 with two turns; seat 1 with two turns, three lines before the last one; seat 0 with all three turns.
PROMPTS = (prompt(0, 4), prompt(1, 4, prompt='B buys.'), prompt(0, 5, prompt='A has a dog, and B wants it.'))


@functools.cache
def forward():
    """Return a function from ids[1, CAPACITY] to log-probabilities, without a cache."""
    model = judge().model

    @jax.jit
    def logprobs(params, ids):
        hidden, _ = model.apply({'params': params}, ids, jnp.arange(CAPACITY)[None])
        return jax.nn.log_softmax(model.apply({'params': params}, hidden, method='logits'))
    return logprobs


def next_token(user, answer=''):
    """Return the probabilities of the next token after a user message and the beginning of an answer, f64[V]."""
    chat, ids = judge().chat, lambda text: encode(judge().tokenizer, text)
    row = [*chat.open, *ids(user), *chat.close, *ids(answer)]
    padded = np.zeros((1, CAPACITY), np.int32)
    padded[0, :len(row)] = row
    return np.exp(np.asarray(forward()(judge().params, padded), np.float64)[0, len(row) - 1])


def byte(char):
    return encode(judge().tokenizer, char)[0]


def chance_of_yes(p):
    """Return the probability of Yes by the first byte: Y or y against N or n. A space can begin both answers."""
    yes, no = p[byte('Y')] + p[byte('y')], p[byte('N')] + p[byte('n')]
    return yes / (yes + no)


def transcript(lines):
    return ''.join(f'\n{line}' for _, line in lines)


def text_before(p, t):
    """Return all that the judge reads before turn t of the seat of a prompt."""
    own = [i for i, (seat, _) in enumerate(p.lines) if seat == p.seat] + [len(p.lines)] * (TURNS + 1)
    return p.prompt + transcript(p.lines[:own[t]])


def expected_potential(p):
    return [chance_of_yes(next_token(text_before(p, t) + REACHED)) for t in range(p.turns + 1)]


def expected_rating(p):
    """Return the mean of the numbers 0 to 10, where 10 is a '1' followed by a '0'."""
    question = p.prompt + transcript(p.lines) + RATING
    first = next_token(question)[[byte(str(n)) for n in range(10)]]
    ten = first[1] * next_token(question, answer='1')[byte('0')]
    mass = np.array([first[0], first[1] - ten, *first[2:], ten])
    return (mass * np.arange(11)).sum() / mass.sum()


@pytest.mark.parametrize('seat, expected', [
    (0, ['', '\na\nb', '\nc\nd', '\ne']), (1, ['\na', '\nb\nc', '\nd\ne', ''])])
def test_stages_are_cut_before_each_turn_of_the_seat(seat, expected):
    p = prompt(seat, lines=tuple((i % 2, text) for i, text in enumerate('abcde')))
    assert p.stages(3) == expected
    assert p.turns == (3, 2)[seat]
    assert ''.join(p.stages(3)) == transcript(p.lines)
    assert p.stages(4) == [*expected, '']


def test_potential_and_rating_are_those_of_full_forward_passes():
    verdict = assess(judge(), PROMPTS, TURNS, 'potential')
    for n, p in enumerate(PROMPTS):
        potential = expected_potential(p)
        np.testing.assert_allclose(verdict.notes()[n]['potential'], potential, atol=TOLERANCE)
        np.testing.assert_allclose(verdict.process[n, :p.turns], np.diff(potential), atol=TOLERANCE)
        np.testing.assert_allclose(verdict.outcome[n], expected_rating(p) / 10, atol=TOLERANCE)
        np.testing.assert_allclose(verdict.notes()[n]['rating'], expected_rating(p), atol=10 * TOLERANCE)
        assert verdict.notes()[n]['by_rule'] is False
    assert np.abs(verdict.process).max() > 100 * TOLERANCE  # far more than the tolerance
    np.testing.assert_array_equal(verdict.valid, [[1, 1, 0], [1, 1, 0], [1, 1, 1]])
    assert not verdict.process[~verdict.valid].any() and verdict.outcome_valid.all()


def test_a_rating_of_ten_in_two_tokens_is_distinguished_from_one():
    rows = [next_token(p.prompt + transcript(p.lines) + RATING) for p in PROMPTS]
    first = [row[[byte(str(n)) for n in range(10)]] for row in rows]
    wrong = [(mass * np.arange(10)).sum() / mass.sum() for mass in first]
    right = [expected_rating(p) for p in PROMPTS]
    verdict = assess(judge(), PROMPTS, TURNS, 'none')
    assert min(abs(a - b) for a, b in zip(wrong, right)) > 0.001
    np.testing.assert_allclose(10 * verdict.outcome, right, atol=10 * TOLERANCE)


def test_every_strategy_is_judged_critical_or_not_given_the_answers_so_far():
    verdict = assess(judge(), PROMPTS, TURNS, 'critical')
    for n, p in enumerate(PROMPTS):
        listed = ''.join(f'\n{t + 1}. {strategy}' for t, strategy in enumerate(p.strategies))
        question = (p.prompt + transcript(p.lines)
                    + f'{CRITICAL[0]}{expected_rating(p):.1f}{CRITICAL[1]}{listed}{CRITICAL[2]}')
        answer, chances = '', []
        for t in range(p.turns):
            answer += f'Strategy {t + 1}:'
            chances.append(chance_of_yes(next_token(question, answer)))
            answer += ' Yes\n' if chances[-1] >= 0.5 else ' No\n'
        np.testing.assert_allclose(verdict.notes()[n]['critical'], chances, atol=TOLERANCE)
        assert verdict.process[n, :p.turns].tolist() == [float(chance >= 0.5) for chance in chances]
    np.testing.assert_array_equal(verdict.valid, [[1, 1, 0], [1, 1, 0], [1, 1, 1]])


def test_every_strategy_is_graded_given_the_answers_so_far():
    verdict = assess(judge(), PROMPTS, TURNS, 'graded')
    space = len(encode(judge().tokenizer, ' 7')) - 1
    assert space == 1  # this tokenizer spells it, so that a question ends with it
    for n, p in enumerate(PROMPTS):
        listed = ''.join(f'\n{t + 1}. {strategy}' for t, strategy in enumerate(p.strategies))
        question = (p.prompt + transcript(p.lines)
                    + f'{GRADED[0]}{expected_rating(p):.1f}{GRADED[1]}{listed}{GRADED[2]}')
        answer, grades = '', []
        for t in range(p.turns):
            answer += f'Strategy {t + 1}: '
            chances = next_token(question, answer)[[byte(str(digit)) for digit in range(10)]]
            grades.append((chances / chances.sum() * np.arange(10)).sum() / 9)
            answer += f'{chances.argmax()}\n'
        np.testing.assert_allclose(verdict.notes()[n]['graded'], grades, atol=TOLERANCE)
        np.testing.assert_allclose(verdict.process[n, :p.turns], np.array(grades) * verdict.outcome[n], atol=TOLERANCE)
    assert np.ptp(verdict.graded[verdict.valid]) > 100 * TOLERANCE
    np.testing.assert_array_equal(verdict.valid, [[1, 1, 0], [1, 1, 0], [1, 1, 1]])


def test_a_verdict_does_not_depend_on_the_batch_of_the_judge():
    pairs = dataclasses.replace(judge(), batch=2)  # three prompts make a full batch and a padded one
    one, other = (assess(j, PROMPTS, TURNS, 'potential') for j in (judge(), pairs))
    np.testing.assert_allclose(one.process, other.process, atol=TOLERANCE)
    np.testing.assert_allclose(one.outcome, other.outcome, atol=TOLERANCE)
    np.testing.assert_array_equal(one.valid, other.valid)


def test_a_tokenizer_without_a_token_for_every_digit_cannot_judge():
    tokenizer = testing.byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace('7', 'seven')
    with pytest.raises(ValueError, match='no single token for some digit'):
        dataclasses.replace(judge(), tokenizer=tokenizer).answers()


@pytest.mark.parametrize('method', ['potential', 'critical', 'graded', 'none'])
def test_a_conversation_that_does_not_fit_has_no_verdict_and_the_others_keep_theirs(method):
    first, second, _ = PROMPTS
    long = dataclasses.replace(second, lines=((0, 'x' * CAPACITY), *second.lines[1:]))
    fits, overflows = (assess(judge(), (first, p, first), TURNS, method) for p in (second, long))
    assert not overflows.outcome_valid[1] and overflows.outcome[1] == 0 and overflows.notes()[1]['rating'] is None
    # Without a process reward, the reward of a turn is 0 and not missing.
    assert not overflows.process[1].any() and overflows.valid[1].any() == (method == 'none')
    for n in (0, 2):
        np.testing.assert_array_equal(overflows.process[n], fits.process[n])
        assert overflows.outcome[n] == fits.outcome[n] and overflows.outcome_valid[n]
        assert overflows.notes()[n] == fits.notes()[n]


def test_a_prompt_that_fits_without_its_question_has_no_verdict():
    room = CAPACITY - len(judge().chat.open) - len('B.') - 1
    tight = prompt(0, lines=((0, 'x' * (room - 30)),), prompt='B.')
    verdict = assess(judge(), (tight, PROMPTS[0], PROMPTS[0]), TURNS, 'potential')
    assert verdict.notes()[0] == {'by_rule': False, 'potential': [pytest.approx(expected_potential(
        dataclasses.replace(tight, lines=()))[0], abs=TOLERANCE), None], 'rating': None}
    assert not verdict.valid[0].any() and not verdict.outcome_valid[0] and verdict.outcome_valid[1]


@pytest.mark.parametrize('method', ['potential', 'critical', 'graded', 'none'])
def test_episodes_that_were_cut_off_have_no_verdict(method):
    prompts = (dataclasses.replace(PROMPTS[0], complete=False),
               dataclasses.replace(PROMPTS[1], complete=False, reward=0.7), PROMPTS[2])
    verdict = assess(judge(), prompts, TURNS, method)
    assert not verdict.valid[:2].any() and not verdict.outcome_valid[:2].any()
    assert not verdict.process[:2].any() and not verdict.outcome[:2].any()
    assert verdict.valid[2].all() and verdict.outcome_valid[2]


@pytest.mark.parametrize('method', ['potential', 'critical', 'graded'])
def test_a_judge_that_answers_nan_gives_no_verdict(method):
    broken = dataclasses.replace(judge(), params=jax.tree.map(lambda x: x * np.nan, judge().params))
    verdict = assess(broken, PROMPTS, TURNS, method)
    assert not verdict.valid.any() and not verdict.outcome_valid.any()
    assert not verdict.process.any() and not verdict.outcome.any()
    assert all(note['rating'] is None and set(note[method]) == {None} for note in verdict.notes())


def test_rewards_of_the_environment_replace_ratings():
    prompts = (dataclasses.replace(PROMPTS[0], reward=0.75), PROMPTS[1], dataclasses.replace(PROMPTS[2], reward=0.0))
    verdict = assess(judge(), prompts, TURNS, 'potential')
    judged = assess(judge(), PROMPTS, TURNS, 'potential')
    np.testing.assert_allclose(verdict.outcome, [0.75, judged.outcome[1], 0.0])
    assert verdict.outcome_valid.all()
    np.testing.assert_array_equal(verdict.process, judged.process)
    assert [note['by_rule'] for note in verdict.notes()] == [True, False, True]
    assert [note['rating'] for note in verdict.notes()][::2] == [7.5, 0.0]


def test_no_judge_is_needed_if_every_reward_is_known():
    prompts = [dataclasses.replace(p, reward=reward) for p, reward in zip(PROMPTS, (0.0, 0.25, 1.0))]
    verdict = assess(None, prompts, TURNS, 'none')
    np.testing.assert_array_equal(verdict.outcome, [0, 0.25, 1])
    assert verdict.outcome_valid.all() and not verdict.process.any()
    np.testing.assert_array_equal(verdict.valid, [[1, 1, 0], [1, 1, 0], [1, 1, 1]])
    assert verdict.notes()[1] == {'by_rule': True, 'rating': 2.5}


def separate(outcome_judge, process_judge, method, rate=True, given=process.Readings()):
    """Return the verdict of two judges in a host loop on PROMPTS, and how each was asked to read them."""
    reads = []

    def encode_for(judge, method, read):
        reads.append((judge, method, read))
        return encode_prompts(judge, PROMPTS, TURNS, method, read)

    return process.assess_episodes(encode_for, outcome_judge, process_judge, method, rate, given), reads


@pytest.mark.parametrize('method', ['potential', 'critical', 'none'])
def test_one_judge_for_the_outcome_and_another_one_for_the_process(method):
    rater = judge()
    critic = dataclasses.replace(rater, params=jax.tree.map(lambda x: 0.7 * x, rater.params))
    verdict, reads = separate(rater, critic, method)
    assert [read for j, _, read in reads if j is rater] == [True]
    assert [(m, read) for j, m, read in reads if j is critic] == {
        'potential': [('potential', True)], 'critical': [('critical', False)], 'none': []}[method]
    by_rater = assess(rater, PROMPTS, TURNS, 'none')
    np.testing.assert_allclose(verdict.outcome, by_rater.outcome, atol=TOLERANCE)
    # The critic alone, with the outcomes that the rater found.
    rewarded = [dataclasses.replace(p, reward=float(o)) for p, o in zip(PROMPTS, by_rater.outcome, strict=True)]
    by_critic, by_rater = (assess(j, rewarded, TURNS, method) for j in (critic, rater))
    np.testing.assert_allclose(verdict.process, by_critic.process, atol=TOLERANCE)
    np.testing.assert_array_equal(verdict.valid, by_critic.valid)
    assert not verdict.rewarded.any() and by_critic.rewarded.all()
    if method != 'none':
        found, alone, other = (np.asarray(getattr(v, method)) for v in (verdict, by_critic, by_rater))
        np.testing.assert_allclose(found, alone, atol=TOLERANCE)
        assert np.nanmax(np.abs(found - other)) > 100 * TOLERANCE


def test_a_single_judge_reads_the_episodes_once():
    verdict, reads = separate(judge(), None, 'potential')
    assert reads == [(judge(), 'potential', True)]
    together = assess(judge(), PROMPTS, TURNS, 'potential')
    np.testing.assert_array_equal(verdict.process, together.process)
    np.testing.assert_array_equal(verdict.outcome, together.outcome)


def test_given_outcomes_replace_ratings_but_not_rewards():
    outcome = np.array([0.3, np.nan, 0.9])
    verdict, reads = separate(None, judge(), 'potential', given=process.Readings(outcome=outcome))
    assert reads[-1] == (None, 'none', False)
    np.testing.assert_array_equal(verdict.outcome, [0.3, 0, 0.9])
    assert verdict.outcome_valid.tolist() == [True, False, True] and verdict.notes()[1]['rating'] is None
    np.testing.assert_allclose(verdict.process, assess(judge(), PROMPTS, TURNS, 'potential').process, atol=TOLERANCE)
    rewarded = tuple(dataclasses.replace(p, reward=0.5) for p in PROMPTS[:1]) + PROMPTS[1:]
    encode_for = lambda judge, method, read: encode_prompts(judge, rewarded, TURNS, method, read)
    verdict = process.assess_episodes(encode_for, None, None, 'none', True, process.Readings(outcome=outcome))
    np.testing.assert_array_equal(verdict.outcome, [0.5, 0, 0.9])
    assert verdict.rewarded.tolist() == [True, False, False]


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="'shapley'"):
        assess(judge(), PROMPTS, TURNS, 'shapley')


# Outcome functions


def test_an_outcome_function_is_loaded_by_name():
    assert load_outcome('epo_jax.testing:share_of_e') is testing.share_of_e


@pytest.mark.parametrize('name', [
    'epo_jax.testing:nothing', 'epo_jax.nowhere:f', 'epo_jax.testing', 'epo_jax.testing:', '', ':', 'no module:f',
    'epo_jax.testing:CHATML'])
def test_a_name_without_a_function_is_refused(name):
    with pytest.raises(ValueError, match='no outcome function'):
        load_outcome(name)


def test_outcomes_become_rewards():
    prompts = with_outcome(PROMPTS, lambda prompts: [0, 0.25, np.float32(1)])
    assert [p.reward for p in prompts] == [0, 0.25, 1]
    assert [dataclasses.replace(p, reward=None) for p in prompts] == list(PROMPTS)
    assert [p.reward for p in with_outcome([dataclasses.replace(PROMPTS[0], reward=0.3)], lambda prompts: [1])] == [1]


@pytest.mark.parametrize('values', [
    [0.5, 0.5], [0.5] * 4, [0.5, 0.5, 1.01], [0.5, 0.5, -0.1], [0.5, 0.5, float('nan')], [0.5, 0.5, None],
    [0.5, 0.5, 'good'], [0.5, 0.5, 10**400], None, 0.5], ids=lambda values: str(values)[:40])
def test_outcomes_must_be_one_number_from_0_to_1_for_each_prompt(values):
    with pytest.raises(ValueError, match='outcome function'):
        with_outcome(PROMPTS, lambda prompts: values)
