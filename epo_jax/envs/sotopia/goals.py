"""Goals that are scored by a rule instead of a judge.

A price rule is {'kind': 'price', 'reserve': r, 'target': t}. Its score is 10 if the agreed price is the target or
better, 0 if it is the reserve or worse or if there is no deal, and linear in between. The target of a seller lies above
the reserve, that of a buyer below. Where the words leave open whether there is a deal, or at which price, the rule
gives no score, and the judge is asked.
"""

import math
import re
from typing import Any, Mapping, NamedTuple, Optional, Sequence

from epo_jax.envs.sotopia.actions import Action
from epo_jax.runtime.errors import InputError

_NUMBER = r'\d[\d,]*(?:\.\d+)?'
_CURRENCY = '[$€£¥₹]'
_AMOUNT = re.compile(
    rf'{_CURRENCY}\s?(?P<a>{_NUMBER})(?:\s?(?P<b>k|thousand|grand|m|mil|million)\b)?|'
    rf'(?P<c>{_NUMBER})\s?(?:{_CURRENCY}(?!\s?\d)|(?P<d>k|thousand|million)?\s?(?:dollars|bucks|usd|euros?|pounds)\b)',
    re.IGNORECASE)
_UNITS = {'k': 1e3, 'thousand': 1e3, 'grand': 1e3, 'm': 1e6, 'mil': 1e6, 'million': 1e6}
_SOUND_NUMBER = re.compile(r'(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d\d?)?')  # not 1.500, which is 1500 in some countries
# A price without a currency: it cannot be told from other numbers, so it makes an offer unclear.
_BARE_PRICE = re.compile(
    rf'(?<![\w$€£¥₹.,]){_NUMBER}(?=\s*(?:[.,;:!?"]|$|(?:is|it|and|or|then|for|at|would|if|but|works|sounds|max|tops|even|'
    r'firm|cash|flat|total|all|as|seems|feels|instead)\b))|'
    r'\b(?:twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|thousand|grand|half price|half the price)\b',
    re.IGNORECASE)
# An amount that these words introduce is not an offer.
_REFERENCE = re.compile(
    r"\b(?:paid|cost me|listed(?: \w+)? (?:at|for)|worth|original(?:ly)?|retail\w*|new for|sells? for|sold|"
    r"down from|instead of|rather than|more than|less than|(?:over|under|above|below)|can'?t|cannot|not|won'?t|"
    r"couldn'?t|wouldn'?t|save|discount of|off)\b[^$€£¥₹\d]*$", re.IGNORECASE)

# Words that change a price or what it is for: the offer is not the amount that is named.
_RELATIVE = re.compile(
    r"\b(?:split|difference|middle|halfway|half|percent|discount|knock|add|extra|plus|more|less|off|each|apiece|every|"
    r"per|(?:a|an|the) (?:piece|hour|day|night|week|month|year)|between|range|up to|at (?:least|most))\b|%|"
    rf"/\s?[a-z]|\d\s?(?:-|\u2013|to|or)\s?{_CURRENCY}?\s?\d", re.IGNORECASE)

_ACCEPTS = re.compile(
    r"(?:^|[,;:\u2014-]\s*)(?:(?:ok|okay|alright|all right|yes|great|perfect|fine|well|then|and|so)\W+)*"
    r"deal\b(?!\W?breaker| with| is off)|"
    r"\b(?:its|it'?s|it is|that'?s|that is|we have|you have|we'?ve got|you'?ve got(?: yourself)?|you got(?: yourself)?|"
    r"call it|let'?s call it|sounds like|let'?s make it|consider it) a (?:done )?deal\b(?!\W?breaker)|"
    r"\b(?:agreed|i(?: can| do)? agree(?! that| this| the| with| it| you)|"
    r"i(?:'ll| will)? (?:gladly |happily )?accept|accepted|"
    r"(?:it'?s |you'?re |consider it )?sold(?= to you|\W*$)|ill take it|"
    r"(?:i'll|i will|we'll) take (?:it|the (?:bike|offer|deal))(?! under| into| up| from| back| to )|"
    r"(?:that|it|this|which|price|offer|[\d$€£¥₹]+) works for (?:me|us)|"
    r"(?:let'?s|we can|we could|i'?d) shake(?: hands)?(?: on (?:it|that))?|shake on it|you'?re on|done deal|"
    r"it'?s settled)\b",
    re.IGNORECASE)
_POSITIVE = re.compile(
    r"\b(?:deal|agree\w*|accept\w*|take it|works?|shakes?|shaking|fine|good|great|sure|yes|yeah|yep|ok|okay|alright|"
    r"all right|perfect|done|settled?|thanks|thank you|happy|glad|wonderful|absolutely|of course|definitely|fair|"
    r"reasonable|hands? over|pay(?:s|ing)?|here you (?:go|are)|money|cash|(?:give|gave) in|yours|mine|you win|"
    r"convinced|sold|buy|i'm in|count me in|let'?s do (?:it|this)|wrap it|sign|venmo|paypal)\b", re.IGNORECASE)
_AFFIRMS = re.compile(  # a whole answer to an offer
    r"\W*(?:yes|yeah|yep|sure(?: thing)?|ok|okay|alright|all right|absolutely|of course|certainly|definitely|gladly|"
    r"perfect|fine|sounds (?:good|great|fair|perfect)|that(?:'s| is| sounds) (?:fine|good|great|fair|perfect)|"
    r"fair enough|you'?re on)(?:\W+(?:please|thanks|thank you|then|with me|to me|for me|let'?s do (?:it|that)))*\W*",
    re.IGNORECASE)
_DECLINES = re.compile(
    r"\b(?:no|nope|not|cannot|never|neither|refuse|reject|decline|(?:i'?ll|have to|must|to) pass|walk away|"
    r"deal\W?breaker|out of (?:my|our|the|reach)|off the table|too (?:much|high|low|steep|expensive|little|cheap|rich)|"
    r"steep|insult\w*|beyond|more than|less than|(?:over|above|below|under) (?:my|our|what)|already sold)\b|n't\b",
    re.IGNORECASE)
_RENEGES = re.compile(  # after a deal
    r"\b(?:wait|hold on|actually|forget|sorry|mind|second thoughts?|no longer|keep(?:ing)?|cancel\w*|back out|"
    r"decided|kidding|joking|instead|if|unless|but|however|except|provided|condition|higher|lower|withdraw|out)\b",
    re.IGNORECASE)
# What may be said beside a consent without putting it in doubt: phrases, words, and how questions begin.
_PLEASANTRIES = re.compile(
    r"\b(?:thank you|see you|looking forward to it|enjoy(?: it| (?:the|your) \w+)?|"
    r"(?:a )?(?:pleasure|nice|good) doing business(?: with you)?|have a (?:great|nice|good|lovely) \w+)\b",
    re.IGNORECASE)
_FILLERS = frozenset(
    "absolutely accept all alright and at awesome be can certainly cool course definitely do done excellent fair "
    "fantastic fine for glad gladly good great happily happy i i'd i'll i'm is it it's its just looks lovely me "
    "much my nice now of offer ok okay pay perfect please price reasonable right settled shall sir so soon sounds "
    "sure take thanks that that's the then thing this to today tomorrow us very we we'll we're well will with "
    "wonderful works yeah yep yes your".split())
_LOGISTICS = re.compile(r'(?:and |so |then |now )?(?:when|where|can|could|would|will|shall|should|do)\b', re.IGNORECASE)
_ASKS = re.compile(  # a question whose answer decides about an offer
    r"[$€£¥₹]|\b(?:deal|works?|ok|okay|accept\w*|agree\w*|sounds?|fair|what do you say|take it)\b", re.IGNORECASE)
_CONSENT_BY_NEGATION = re.compile(
    r"\b(?:no (?:problem|worries|doubt|objections?|complaints?)|why not|not (?:bad|a problem)|don't mind|"
    r"(?:can't|cannot|can not|couldn't|could not|won't|don't) (?:complain|wait|argue|say no|agree more|refuse|resist|"
    r"object|see why not|beat (?:that|it)|pass (?:that|this|it) up|regret (?:it|this|that)|have a problem)|"
    r"(?:why would|how could|who could|(?:no|any) reason to|fool) (?:i |not to |not |to )*(?:refuse|say no|take it)|"
    r"never say no|say no more)\b(?:[^.!?]*\?)?", re.IGNORECASE)
_SENTENCE = re.compile(r'(?:[^.!?]|\.(?=\d))*[.!?]*')


class RuleError(InputError):
    """A goal rule has an unknown kind or numbers that cannot be scored."""


class Agreement(NamedTuple):
    """What a dialogue says about a deal.

    Attributes:
      price: the agreed price; None without an agreement.
      clear: whether the words leave no doubt.
    """

    price: Optional[float]
    clear: bool


NO_DEAL, UNCLEAR = Agreement(None, True), Agreement(None, False)


def check_rule(rule: Mapping[str, Any]) -> None:
    """Check that a goal rule can be scored.

    Raises:
      RuleError: it cannot.
    """
    if not isinstance(rule, Mapping):
        raise RuleError(f'a goal rule must be a mapping with a kind, not {rule!r}')
    if rule.get('kind') != 'price':
        raise RuleError(f"a goal rule has the unknown kind {rule.get('kind')!r}; the only known kind is 'price'")
    numbers = [rule.get('reserve'), rule.get('target')]
    if not all(type(n) in (int, float) and math.isfinite(n) for n in numbers) or numbers[0] == numbers[1]:
        raise RuleError(f'a price rule needs two different numbers, reserve and target; this one is {dict(rule)}')


def score(rule: Mapping[str, Any], actions: Sequence[tuple[int, Action]]) -> Optional[float]:
    """Score a finished dialogue by a price rule.

    Args:
      rule: the rule.
      actions: (seat, action) in order.

    Returns:
      A number from 0 to 10; None where the dialogue leaves open whether there is a deal, or at which price.

    Raises:
      RuleError: the rule cannot be scored.
    """
    check_rule(rule)
    agreement = read_agreement(actions)
    if not agreement.clear:
        return None
    if agreement.price is None:
        return 0.0
    share = (agreement.price - rule['reserve']) / (rule['target'] - rule['reserve'])
    return 10.0 * min(1.0, max(0.0, share))


def read_agreement(actions: Sequence[tuple[int, Action]]) -> Agreement:
    """Return what a dialogue says about a deal.

    There is a deal when one side accepts the last price of the other side and says nothing else that could put this in
    doubt: every word must be a known one. There is none while prices differ and nobody accepts. Everything in between
    is unclear: a consent with other words, a price that is merely repeated, a friendly word, a condition, a handshake,
    several prices in one line, a share or a rate, a price without a currency, and second thoughts after a deal.

    Args:
      actions: (seat, action) in order.
    """
    offers: dict[int, float] = {}  # the last price of every seat; NaN if it is unclear
    agreement, asked = NO_DEAL, False
    for seat, action in actions:
        other, own = offers.get(1 - seat), offers.get(seat)
        if action.kind != 'speak':
            if agreement.price is None and offers and _POSITIVE.search(action.argument):
                agreement = UNCLEAR  # shakes hands, hands over the money
            continue
        text = _plain(action.argument)
        named = _offers(text)
        if agreement.price is not None:
            if named - {agreement.price} or any(p.search(text) for p in (_DECLINES, _RENEGES, _RELATIVE)):
                return UNCLEAR
            continue
        reply = _reply(text, other, asked) if other is not None else 'open'
        if other is None and own is not None and _ACCEPTS.search(text):
            reply = 'unclear'
        if reply == 'accepts':
            agreement = Agreement(other, True) if math.isfinite(other) else UNCLEAR
        elif reply == 'unclear':
            agreement = UNCLEAR
        elif reply in ('refuses', 'counters'):
            agreement = NO_DEAL
        # The offer that now stands
        if named or _new_numbers(text, other) or _RELATIVE.search(text):
            bare = any(not _is(price, amount) for price in _bare_prices(text) for amount in named)
            offers[seat] = math.nan if len(named) != 1 or bare or _RELATIVE.search(text) else min(named)
        elif other is not None and any(s.endswith('?') and _ACCEPTS.search(s) for s in _sentences(text)):
            offers[seat] = other  # "Deal?" proposes the price of the other side
        asked = any(s.endswith('?') and _ASKS.search(s) for s in _sentences(text))
    return agreement


def _plain(text: str) -> str:
    """Return an utterance with plain apostrophes, and without phrases in which a negation means consent."""
    return _CONSENT_BY_NEGATION.sub('fine', text.replace('\u2019', "'"))


def _sentences(text: str) -> list[str]:
    return [s.strip() for s in _SENTENCE.findall(text) if s.strip()]


def _value(match: re.Match) -> float:
    number, unit = match['a'] or match['c'], match['b'] or match['d']
    if not _SOUND_NUMBER.fullmatch(number.rstrip(',')):
        return math.nan
    return float(number.replace(',', '')) * (_UNITS[unit.lower()] if unit else 1)


def _amounts(text: str) -> set[float]:
    """Return all amounts of money in a text."""
    return {_value(match) for match in _AMOUNT.finditer(text)}


def _offers(text: str) -> set[float]:
    """Return the amounts in a text that are offers, and not, for example, what something cost."""
    clause = lambda end: re.split(r'[,;.!?](?!\d)|\b(?:but|so|and)\b', text[:end])[-1]
    return {_value(match) for match in _AMOUNT.finditer(text) if not _REFERENCE.search(clause(match.start()))}


def _bare_prices(text: str) -> list[str]:
    return [match.group() for match in _BARE_PRICE.finditer(_AMOUNT.sub('$', text))]


def _new_numbers(text: str, other: Optional[float]) -> bool:
    """Return whether a text names a price that is neither a clear offer nor the price of the other side."""
    return bool(_amounts(text) - {other}) or any(not _is(price, other) for price in _bare_prices(text))


def _is(price: str, amount: Optional[float]) -> bool:
    return price[0].isdigit() and float(price.replace(',', '')) == amount


def _reply(text: str, other: float, asked: bool) -> str:
    """Return what an utterance makes of the other side's price: accepts, counters, refuses, unclear or open.

    Args:
      text: the utterance.
      other: last price of the other side; NaN if it is unclear.
      asked: whether the utterance before this one asked for consent.
    """
    if _offers(text) - {other}:  # a price that was unclear may be this one
        return 'unclear' if math.isnan(other) and _POSITIVE.search(text) else 'counters'
    statements = [s for s in _sentences(text) if not s.endswith('?')]
    matches = lambda pattern: [bool(pattern.search(s)) for s in statements]
    accepts, positive, declines = map(matches, (_ACCEPTS, _POSITIVE, _DECLINES))
    same = [other in _amounts(s) or any(_is(price, other) for price in _bare_prices(s)) for s in statements]
    consents = [a or same_price and (good or re.search(r"\bit (?:is|shall be)\b|'ll (?:do|pay)\b", s, re.IGNORECASE))
                for s, a, same_price, good in zip(statements, accepts, same, positive)]
    if any(consents) and not any(declines) and _beyond_doubt(text, other) or asked and _AFFIRMS.fullmatch(text):
        return 'accepts'
    if any(good and not bad for good, bad in zip(map(max, positive, accepts, same), declines)):
        return 'unclear'
    clauses = [clause.strip() for s in statements for clause in re.split('[,;:\u2014]', s)[1:]]
    if any(_ACCEPTS.search(clause) and not _DECLINES.search(clause) for clause in clauses):
        return 'unclear'  # "I am not going to argue, deal."
    if any(s and re.search(r'\bthan\b', statement) for s, statement in zip(same, statements)):
        return 'unclear'  # "I cannot pay more than $60" may be consent to $60
    return 'refuses' if any(declines) else 'open'


def _beyond_doubt(text: str, price: float) -> bool:
    """Return whether an utterance that consents to a price says nothing else, except where and when."""
    for sentence in _sentences(text):
        if sentence.endswith('?'):
            if not _LOGISTICS.match(sentence) or _amounts(sentence) or _bare_prices(sentence):
                return False
            continue
        rest = _AMOUNT.sub(lambda match: '' if _value(match) == price else match.group(), sentence)
        rest = _PLEASANTRIES.sub('', _ACCEPTS.sub('', rest))
        if any(word not in _FILLERS and not _is(word, price) for word in re.findall(r"[\w']+", rest.lower())):
            return False
    return True
