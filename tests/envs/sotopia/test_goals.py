"""Goals that are scored by a rule: the agreed price and its score."""

import pytest

from epo_jax.envs.sotopia.actions import Action
from epo_jax.envs.sotopia.goals import NO_DEAL, UNCLEAR, Agreement, RuleError, check_rule, read_agreement, score

SELLER = {'kind': 'price', 'reserve': 110, 'target': 170}
BUYER = {'kind': 'price', 'reserve': 165, 'target': 120}


def talk(*lines):
    """Return the actions of a dialogue in which the seats speak in turn."""
    return [(i % 2, Action('speak', text)) for i, text in enumerate(lines)]


def bargain(words):
    """Return the same reply to an offer of $160 in two dialogues."""
    return (talk('I want $180.', 'I can pay $140.', 'Then $160.', words),
            talk('I can pay 140 dollars.', 'Make it 160 dollars.', words))


@pytest.mark.parametrize('words', [
    'Deal.', 'deal!', 'OK, deal.', "It's a deal.", 'Its a deal', 'Agreed.', 'I agree.', 'I accept.',
    'I accept your offer, thank you.', 'Accepted.', 'Sold!', "I'll take it.", 'Ill take it then', 'We have a deal.',
    'That works for me.', "You've got a deal.", "Then you've got yourself a deal!", "Let's shake on it.",
    'It’s a deal.', 'I’ll take it.', 'Deal, $160 it is.', 'Agreed: 160 dollars.', 'Deal! When can I pick it up?',
    'I accept. Would you help me carry it?', "Let's shake hands on it.", '$160 it is.', '160 it is!',
    'Yes, $160 works for me.', 'Okay, $160, fine.', "Sounds good, it's a deal.", "No problem, I'll pay $160.",
    'Great, you have a deal at $160!', 'Deal! See you tomorrow.', "You're on.", 'Alright, I can do $160.',
    "I'd be happy to accept $160.", "Perfect, I'll take it for $160."])
def test_accepting_in_words_agrees_to_the_last_price_of_the_other_side(words):
    for dialogue in bargain(words):
        assert read_agreement(dialogue) == Agreement(160, True)


@pytest.mark.parametrize('words', [
    'No deal.', 'That is not a deal.', "I don't think we have a deal.", "That isn't a deal I can make.",
    'I don’t think that works for me.', "We won't shake on it.", "I can't say it's a deal.", 'Deal?',
    'Would that be a deal?', 'Hm.', '$160 is too much for me.', '160 dollars is way too high.', "I won't pay $160.",
    'I cannot go to $160.', '$160?', 'Why $160?', "That's a deal-breaker for me.", '$160 is out of my range.',
    'You have a deal at $155.', "Are you sure you want $160? That's steep."])
def test_refusals_questions_and_other_prices_are_no_agreement(words):
    for dialogue in bargain(words):
        assert read_agreement(dialogue) == NO_DEAL


@pytest.mark.parametrize('words', [
    "I'll take it if you fix the brake.", 'Deal, unless it rains.', 'That is a great deal for a bicycle like this.',
    'I agree that the brake squeals.', 'I agree with you, the brake squeals.', 'Agreed, but the brake squeals.',
    'You have a deal at 155.', '$160.', "Thanks, I'll think about it.", 'OK.', 'I could almost shake on $160.',
    "I'll take it under consideration.", "I can't pay more than $160.", 'You said $160, right.',
    'That price would be a deal for someone else.', 'Cash works for me.'])
def test_conditions_repetitions_and_friendly_words_are_unclear(words):
    for dialogue in bargain(words):
        assert read_agreement(dialogue) == UNCLEAR


@pytest.mark.parametrize('words', [
    'I doubt that $160 works for me.', "I'll take it for less.", "I'll take it for half that.", 'Agreed to disagree!',
    "I'll take it when the price drops.", "I'll take it after you fix the brake.", "I'll take it for a test ride.",
    'We have a deal with your neighbor at $160.', "Throw in your watch and it's a deal.", 'Nobody agreed to that.',
    'I accept Visa.', 'I accept your apology.', "You're on thin ice.", "It's settled then, I keep the bike.",
    "It's a deal from hell.", 'Okay, deal me out.', 'Call it a deal-killer.', 'Great, another overpriced bike.',
    'I agree the bike is nice.', 'Sure, and pigs fly.', '$160 is a great price for you.', 'Deal, minus shipping.',
    'Deal for both bikes.', 'Consider it a deal lost.', "I'm done.", 'You call that a deal?', 'The last buyer agreed.',
    'Deal, in three weeks.', 'I accept defeat, not your price.', "That's fair, bye."])
def test_words_of_consent_among_other_words_are_never_a_deal(words):
    for dialogue in bargain(words):
        assert read_agreement(dialogue).price is None


@pytest.mark.parametrize('words', [
    'Take my money!', "I can't refuse that.", "You won't regret it, deal.", 'No objections.', "I'm in.", 'Count me in.',
    "I'm not going to argue, deal.", "I don't have a problem with $160.", 'Why would I refuse?', "Let's do it.",
    'Not too bad. Deal.', 'Here you go, the cash.', 'I give in.'])
def test_consent_in_other_words_is_not_taken_for_a_refusal(words):
    for dialogue in bargain(words):
        assert read_agreement(dialogue) in (UNCLEAR, Agreement(160, True))


@pytest.mark.parametrize('words', [
    'Wait, I changed my mind.', 'Sorry, it is no longer for sale.', 'Actually, I keep the bike.', "Forget it, I'm out.",
    "Hold on, I can't let it go.", 'On second thought, no.', 'Unless it rains.', 'Add $10 for the lock.', 'Just kidding!'])
def test_second_thoughts_after_a_deal_are_unclear(words):
    assert read_agreement(talk('I want $160.', 'Deal.', words)) == UNCLEAR
    assert read_agreement(talk('I want $160.', 'Deal.', 'Great, here it is!')) == Agreement(160, True)


@pytest.mark.parametrize('words', [
    "Let's split the difference.", 'Meet me in the middle?', 'Take 10% off.', 'Half of that?', 'Add $5 for delivery.',
    'Knock off $5.', '$40 per month for a year.', '$40 each.', '$40 a week.', '$50-60.', 'Between $50 and 60 for the bike.',
    '$50 to $60.', '€1.500 for the car.', '€1.500,00.', '$1,5.'])
def test_an_offer_that_is_not_one_amount_leaves_the_price_unclear(words):
    assert read_agreement(talk('I pay $40.', 'I want $50.', words, 'Deal!')) == UNCLEAR


@pytest.mark.parametrize('words, price', [
    ('60$', 60), ('60 €', 60), ('¥6000', 6000), ('$2 thousand', 2000), ('$2.5k', 2500), ('$2M', 2e6), ('$2 million', 2e6),
    ('$250 grand', 250e3), ('2 thousand dollars', 2000)])
def test_spellings_of_amounts(words, price):
    assert read_agreement(talk(f'I want {words} for it.', 'Deal.')) == Agreement(price, True)


@pytest.mark.parametrize('lines, expected', [
    ((), NO_DEAL),
    (('Hello.', 'Hello. Deal!'), NO_DEAL),                                  # no price was named
    (('I can pay $150.', 'Hm.', 'Deal!'), UNCLEAR),                         # nobody accepts their own offer
    (('I want $180.', 'I pay $150.', 'I want $170.'), NO_DEAL),
    (('I want $180.', 'How about $150?', '$165.', '$165 is fine.'), 165),
    (('Would you take $150?', 'Yes, $150.'), 150),
    (('Would you take $150?', 'Yes.'), 150),
    (('I want $180. Did you see the brake?', 'Yes.'), UNCLEAR),             # the answer to another question
    (('I want $180.', 'How about $150?', 'Hm, $160. Deal?', 'Yes!'), 160),
    (('I want $180.', '$150.', 'Deal?', 'Yes.'), 150),                      # "Deal?" proposes the price of the other side
    (('I want $180.', 'Deal, for $150.'), NO_DEAL),                         # another price is a new offer ...
    (('I want $180.', 'Deal, for $150.', 'Agreed.'), 150),                  # ... which the other side can accept
    (('I want $180.', 'Hm.', 'Well, $170.', 'Deal.'), 170),                 # the last price counts
    (('I want $60 for the bike.', 'You have a deal at 55.'), UNCLEAR),
    (('Make it 55.', 'Deal.'), UNCLEAR),                                    # a number without a currency
    (('I want $60.', 'I can offer fifty-five.', 'Deal.'), UNCLEAR),         # a price in words
    (('I paid $300 for it, so $180 is fair.', 'Deal.'), 180),               # what something cost is no offer
    (("I can't do $140, but $160 works.", 'Deal.'), 160),
    (('$180 is fair, I paid $300 for it.', 'Deal.'), 180),
    (('$180, or $170 in cash.', 'I accept.'), UNCLEAR),                     # either price may be meant
    (('$180.', 'Deal.', 'Or rather $200.', 'Agreed.'), UNCLEAR),            # a price after the deal
    (('$180.', 'Sounds good.', 'So?', 'I pay $150, no more.'), NO_DEAL),    # a new offer ends the doubt
    (('It costs $1,200.50 now.', 'Agreed.'), 1200.5),
    (('It costs $1,200.', 'Agreed.'), 1200),
    (('It costs $ 150, cash.', 'Agreed.'), 150),
    (('It costs 1,500 USD.', 'Agreed.'), 1500),
    (('I want $1.2k for the car.', 'Agreed.'), 1200),
    (('I want 60 euros.', 'Agreed.'), 60),
    (('99.90 bucks.', 'Agreed.'), 99.9),
    (('I have 3 bicycles and 2 locks.', 'Deal.'), NO_DEAL),                 # numbers that are not prices
])
def test_agreement(lines, expected):
    assert read_agreement(talk(*lines)) == (expected if isinstance(expected, Agreement) else Agreement(expected, True))


def test_only_speech_agrees_and_a_gesture_leaves_it_unclear():
    offer = (0, Action('speak', 'I want $180.'))
    for kind in ('action', 'non-verbal communication'):
        assert read_agreement([offer, (1, Action(kind, 'shake hands'))]) == UNCLEAR
        assert read_agreement([offer, (1, Action(kind, 'shake their head'))]).price is None
        assert read_agreement([(0, Action(kind, 'shows $90')), (1, Action('speak', 'Deal'))]) == NO_DEAL
    assert read_agreement([offer, (1, Action('leave', ''))]) == NO_DEAL


@pytest.mark.parametrize('rule, price, expected', [
    (SELLER, 170, 10), (SELLER, 140, 5), (SELLER, 110, 0), (SELLER, 125, 2.5), (SELLER, 200, 10), (SELLER, 90, 0),
    (BUYER, 120, 10), (BUYER, 142.5, 5), (BUYER, 165, 0), (BUYER, 156, 2), (BUYER, 80, 10), (BUYER, 180, 0)])
def test_score_is_linear_between_reserve_and_target_and_clipped(rule, price, expected):
    assert score(rule, talk(f'${price}.', 'Deal.')) == pytest.approx(expected)


@pytest.mark.parametrize('rule', [SELLER, BUYER])
def test_no_deal_scores_zero(rule):
    assert score(rule, talk('$140.', 'No deal.')) == 0
    assert score(rule, []) == 0


@pytest.mark.parametrize('rule', [SELLER, BUYER])
def test_an_unclear_dialogue_has_no_score(rule):
    assert score(rule, talk('$140.', 'Sounds good.')) is None


@pytest.mark.parametrize('rule, message', [
    ({}, 'kind'),
    ([1, 2], 'must be a mapping'),
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
