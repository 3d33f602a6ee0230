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
_AMOUNT = re.compile(
    rf'[$€£]\s?(?P<a>{_NUMBER})(?P<k>\s?k\b)?|(?P<b>{_NUMBER})(?P<l>k)?\s?(?:dollars|bucks|usd|euros?|pounds)\b',
    re.IGNORECASE)
# A price without a currency: it cannot be told from other numbers, so it makes an offer unclear.
_BARE_PRICE = re.compile(
    rf'(?<![\w$€£.,]){_NUMBER}(?=\s*(?:[.,;:!?"]|$|(?:is|it|and|or|then|for|at|would|if|but|works|sounds|max|tops|even|'
    r'firm|cash|flat|total|all|as|seems|feels|instead)\b))|'
    r'\b(?:twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|thousand|grand|half price|half the price)\b',
    re.IGNORECASE)
# An amount that these words introduce is not an offer.
_REFERENCE = re.compile(
    r"\b(?:paid|cost me|listed(?: \w+)? (?:at|for)|worth|original(?:ly)?|retail\w*|new for|sells? for|sold|"
    r"down from|instead of|rather than|more than|less than|(?:over|under|above|below)|can'?t|cannot|not|won'?t|"
    r"couldn'?t|wouldn'?t|save|discount of|off)\b[^$€£\d]*$", re.IGNORECASE)

_ACCEPTS = re.compile(
    r"(?:^|[,;:\u2014-]\s*)(?:(?:ok|okay|alright|all right|yes|great|perfect|fine|well|then|and|so)\W+)*"
    r"deal\b(?!\W?breaker| with| is off)|"
    r"\b(?:its|it'?s|it is|that'?s|that is|we have|you have|we'?ve got|you'?ve got(?: yourself)?|you got(?: yourself)?|"
    r"call it|let'?s call it|sounds like|let'?s make it|consider it) a (?:done )?deal\b(?!\W?breaker)|"
    r"\b(?:agreed|i(?: can| do)? agree(?! that| with| it)|i(?:'ll| will)? (?:gladly |happily )?accept|accepted|"
    r"(?:it'?s |you'?re |consider it )?sold(?= to you|\W*$)|ill take it|"
    r"(?:i'll|i will|we'll) take (?:it|the (?:bike|offer|deal))(?! under| into| up| from| back| to )|"
    r"(?:that|it|this|which|price|offer|[\d$€£]+) works for (?:me|us)|(?:let'?s|we can|we could|i'?d) shake(?: hands)?"
    r"(?: on (?:it|that))?|shake on it|you'?re on|done deal|it'?s settled)\b",
    re.IGNORECASE)
_POSITIVE = re.compile(
    r"\b(?:deal|agree\w*|accept\w*|take it|works?|shakes?|shaking|fine|good|great|sure|yes|yeah|yep|ok|okay|alright|"
    r"all right|perfect|done|settled?|thanks|thank you|happy|glad|wonderful|absolutely|of course|definitely|fair|"
    r"reasonable|hands? over|pay(?:s|ing)?)\b", re.IGNORECASE)
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
_HEDGES = re.compile(
    r"\b(?:if|unless|but|however|though|although|provided|as long as|only|except|would|could|might|may(?:be)?|perhaps|"
    r"almost|nearly|close to|consider|think|thinking|let me(?! know)|needs?|first|until|depend(?:s|ing)|assuming|"
    r"then again|actually|wait|someone|somebody|he|she|they|yesterday)\b", re.IGNORECASE)
_ASKS = re.compile(  # a question whose answer decides about an offer
    r"[$€£]|\b(?:deal|works?|ok|okay|accept\w*|agree\w*|sounds?|fair|what do you say|take it)\b", re.IGNORECASE)
_SUBJECT = re.compile(r'\b(?:deal|price|offer)\b', re.IGNORECASE)
_CONSENT_BY_NEGATION = re.compile(
    r"\b(?:no (?:problem|worries|doubt)|why not|not (?:bad|a problem)|don't mind|"
    r"(?:can't|couldn't) (?:complain|wait|argue|say no|agree more))\b", re.IGNORECASE)
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

    There is a deal when one side accepts the last price of the other side in plain words, without a condition, and
    names no other price. There is none while prices differ and nobody accepts. Everything in between is unclear: a
    price that is merely repeated, a friendly word, a condition, a handshake, several prices in one line, a price
    without a currency, and talk of another price after a deal.

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
            if named - {agreement.price} or _DECLINES.search(text) and _SUBJECT.search(text):
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
        if len(named) == 1:
            offers[seat], = named
        elif named or _new_numbers(text, other):
            offers[seat] = math.nan
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
    number = float((match['a'] or match['b']).replace(',', ''))
    return 1000 * number if match['k'] or match['l'] else number


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
    accepts, positive, declines, hedges = map(matches, (_ACCEPTS, _POSITIVE, _DECLINES, _HEDGES))
    same = [other in _amounts(s) or any(_is(price, other) for price in _bare_prices(s)) for s in statements]
    consents = [a or same_price and (good or re.search(r"\bit (?:is|shall be)\b|'ll (?:do|pay)\b", s, re.IGNORECASE))
                for s, a, same_price, good in zip(statements, accepts, same, positive)]
    doubtful = any(declines) or any(hedges) or _new_numbers(' '.join(statements), other)
    if any(consents) and not doubtful or asked and _AFFIRMS.fullmatch(text):
        return 'accepts'
    if any(good and not bad for good, bad in zip(map(max, positive, accepts, same), declines)):
        return 'unclear'
    if any(s and re.search(r'\bthan\b', statement) for s, statement in zip(same, statements)):
        return 'unclear'  # "I cannot pay more than $60" may be consent to $60
    return 'refuses' if any(declines) else 'open'
