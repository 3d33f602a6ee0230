"""Goals that are scored by a rule: the agreed price and its score."""

import pytest

from epo_jax.envs.sotopia.actions import Action
from epo_jax.envs.sotopia.goals import RuleError, agreed_price, check_rule, score

SELLER = {'kind': 'price', 'reserve': 110, 'target': 170}
BUYER = {'kind': 'price', 'reserve': 165, 'target': 120}


def talk(*lines):
    """Return the actions of a dialogue in which the seats speak in turn."""
    return [(i % 2, Action('speak', text)) for i, text in enumerate(lines)]


@pytest.mark.parametrize('words', [
    'Deal.', 'deal!', 'OK, deal.', "It's a deal.", 'Its a deal', 'Agreed.', 'I agree.', 'I accept.',
    'I accept your offer, thank you.', 'Accepted.', 'Sold!', "I'll take it.", 'Ill take it then', 'We have a deal.',
    'That works for me.', "You've got a deal.", "Then you've got yourself a deal!", "Let's shake on it.",
    'It’s a deal.', 'I’ll take it.', 'Deal, $160 it is.', 'Agreed: 160 dollars.', 'Deal! When can I pick it up?',
    'I accept. Would you help me carry it?'])
def test_accepting_in_words_agrees_to_the_last_price_of_the_other_side(words):
    assert agreed_price(talk('I want $180.', 'I can pay $140.', 'Then $160.', words)) == 160
    assert agreed_price(talk('I can pay 140 dollars.', 'Make it 160 dollars.', words)) == 160


@pytest.mark.parametrize('words', [
    'No deal.', 'That is not a deal.', "I don't think we have a deal.", "That isn't a deal I can make.",
    'I don’t think that works for me.', "We won't shake on it.", "I can't say it's a deal.",
    'Deal?', 'Would that be a deal?', "I'll take it if you fix the brake.", 'Deal, unless it rains.', 'Hm.',
    'That is a great deal for a bicycle like this.', 'I agree that the brake squeals.',
    '$160 is too much for me.', '160 dollars is way too high.', "I won't pay $160.", 'I cannot go to $160.',
    '$160?', 'Why $160?'])
def test_refusals_questions_and_conditions_are_no_agreement(words):
    assert agreed_price(talk('I want $180.', 'I can pay $140.', 'Then $160.', words)) is None


@pytest.mark.parametrize('lines, price', [
    ((), None),
    (('Hello.', 'Hello. Deal!'), None),                                     # no price was named
    (('I can pay $150.', 'Hm.', 'Deal!'), None),                            # nobody accepts their own offer
    (('I want $180.', 'I pay $150.', 'I want $170.'), None),
    (('I want $180.', 'How about $150?', '$165.', '$165 is fine.'), 165),   # the last prices are the same
    (('Would you take $150?', 'Yes, $150.'), 150),
    (('I want $180.', 'Deal, for $150.'), None),                            # another price is a new offer ...
    (('I want $180.', 'Deal, for $150.', 'Agreed.'), 150),                  # ... which the other side can accept
    (('I want $180.', 'Hm.', 'Well, $170.', 'Deal.'), 170),                 # the last price counts
    (('I paid $300 for it, so $180 is fair.', 'Deal.'), 180),               # the last amount of a line counts
    (('$180, or $170 in cash.', 'I accept.'), 170),
    (('$180.', 'Deal.', 'Or rather $200.', 'Agreed.'), 180),                # the first agreement counts
    (('It costs $1,200.50 now.', 'Agreed.'), 1200.5),
    (('It costs $1,200.', 'Agreed.'), 1200),
    (('It costs $ 150, cash.', 'Agreed.'), 150),
    (('It costs 1,500 USD.', 'Agreed.'), 1500),
    (('99.90 bucks.', 'Agreed.'), 99.9),
    (('I have 3 bicycles and 2 locks.', 'Deal.'), None),                    # numbers without a currency
])
def test_agreed_price(lines, price):
    assert agreed_price(talk(*lines)) == price


def test_only_speech_counts():
    offer = (0, Action('speak', 'I want $180.'))
    for kind in ('action', 'non-verbal communication'):
        assert agreed_price([offer, (1, Action(kind, 'Deal'))]) is None
        assert agreed_price([(0, Action(kind, 'shows $90')), (1, Action('speak', 'Deal'))]) is None
    assert agreed_price([offer, (1, Action('leave', ''))]) is None


@pytest.mark.parametrize('rule, price, expected', [
    (SELLER, 170, 10), (SELLER, 140, 5), (SELLER, 110, 0), (SELLER, 125, 2.5), (SELLER, 200, 10), (SELLER, 90, 0),
    (BUYER, 120, 10), (BUYER, 142.5, 5), (BUYER, 165, 0), (BUYER, 156, 2), (BUYER, 80, 10), (BUYER, 180, 0)])
def test_score_is_linear_between_reserve_and_target_and_clipped(rule, price, expected):
    assert score(rule, talk(f'${price}.', 'Deal.')) == pytest.approx(expected)


@pytest.mark.parametrize('rule', [SELLER, BUYER])
def test_no_deal_scores_zero(rule):
    assert score(rule, talk('$140.', 'No deal.')) == 0
    assert score(rule, []) == 0


@pytest.mark.parametrize('rule, message', [
    ({}, 'kind'),
    ({'kind': 'points', 'reserve': 1, 'target': 2}, "'points'"),
    ({'kind': 'price', 'reserve': 1}, 'reserve and target'),
    ({'kind': 'price', 'target': 1}, 'reserve and target'),
    ({'kind': 'price', 'reserve': '1', 'target': 2}, 'two different numbers'),
    ({'kind': 'price', 'reserve': 5, 'target': 5.0}, 'two different numbers'),
    ({'kind': 'price', 'reserve': float('nan'), 'target': 5}, 'two different numbers'),
    ({'kind': 'price', 'reserve': 0, 'target': float('inf')}, 'two different numbers'),
    ({'kind': 'price', 'reserve': True, 'target': 5}, 'two different numbers'),
])
def test_a_rule_that_cannot_be_scored_is_refused(rule, message):
    with pytest.raises(RuleError, match=message):
        check_rule(rule)
    with pytest.raises(RuleError, match=message):
        score(rule, [])


def test_valid_rules_pass():
    check_rule(SELLER)
    check_rule(BUYER | {'unit': 'dollars'})
