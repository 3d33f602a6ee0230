"""Goals that can be checked by rule instead of judged.

A price rule is {'kind': 'price', 'reserve': r, 'target': t}: the outcome is 10 at the target or better, 0 at the
reserve, beyond it, or without a deal, and linear between. A seller's target lies above the reserve, a buyer's
below.
"""

import math
import re
from typing import Any, Mapping, Optional, Sequence

from epo_jax.envs.sotopia.actions import Action
from epo_jax.runtime.errors import InputError

_AMOUNT = re.compile(r'\$\s?(\d[\d,]*(?:\.\d+)?)|(\d[\d,]*(?:\.\d+)?)\s?(?:dollars|bucks|usd)\b', re.IGNORECASE)
_ACCEPTS = re.compile(
    r"(?:^|[.!?,;:-]\s*|\b(?:ok|okay|alright|yes|then)\s+)deal\b|"
    r"\b(?:it'?s|it is|that'?s|we have|you have|we've got|you've got(?: yourself)?|call it|sounds like) a deal\b|"
    r"\b(?:agreed|i agree(?! that| with| it)|i accept|accepted|sold|i'?ll take it|works for me|shake on it)\b",
    re.IGNORECASE)
_DECLINES = re.compile(r"(?:\b(?:no deal|not|cannot|unless|if)|n't)\b", re.IGNORECASE)
_TOO_MUCH = re.compile(r'\b(?:too|steep|beyond|more than|less than)\b', re.IGNORECASE)  # names a price to refuse it
_QUESTION = re.compile(r'(?:[^.!?]|\.(?=\d))*\?')


class RuleError(InputError):
    """A goal rule is of an unknown kind or contradicts itself."""


def check_rule(rule: Mapping[str, Any]) -> None:
    """Raises RuleError where a rule cannot be scored."""
    if rule.get('kind') != 'price':
        raise RuleError(f"goal rule of unknown kind {rule.get('kind')!r}; known is 'price'")
    numbers = [rule.get('reserve'), rule.get('target')]
    if not all(type(n) in (int, float) and math.isfinite(n) for n in numbers) or numbers[0] == numbers[1]:
        raise RuleError(f'a price rule needs two different numbers, reserve and target: {dict(rule)}')


def score(rule: Mapping[str, Any], actions: Sequence[tuple[int, Action]]) -> float:
    """Score from 0 to 10 of a finished dialogue under a price rule."""
    check_rule(rule)
    price = agreed_price(actions)
    if price is None:
        return 0.0
    share = (price - rule['reserve']) / (rule['target'] - rule['reserve'])
    return 10.0 * min(1.0, max(0.0, share))


def agreed_price(actions: Sequence[tuple[int, Action]]) -> Optional[float]:
    """The price on which both sides settled, or None.

    Settled means that one side accepts in plain words, without naming another price, the last price that the
    other side has named; or that both sides have named the same price last. What is asked settles nothing. The
    first settlement counts.
    """
    last: dict[int, float] = {}
    for seat, action in actions:
        if action.kind != 'speak':
            continue
        said = action.argument.replace('\u2019', "'")
        stated = _QUESTION.sub('', said)
        amounts = [float((a or b).replace(',', '')) for a, b in _AMOUNT.findall(said)]
        other = last.get(1 - seat)
        declines = _DECLINES.search(stated)
        if (other is not None and _ACCEPTS.search(stated) and not declines
                and all(amount == other for amount in amounts)):
            return other
        if amounts:
            last[seat] = amounts[-1]
            if last[seat] == other and stated == said and not declines and not _TOO_MUCH.search(said):
                return other
    return None
