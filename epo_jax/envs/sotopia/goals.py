"""Goals that can be checked by rule instead of judged.

A price rule is {'kind': 'price', 'reserve': r, 'target': t}: the outcome is 10 at the target or better, 0 at the
reserve, beyond it, or without a deal, and linear between. A seller's target lies above the reserve, a buyer's
below.
"""

import re
from typing import Any, Mapping, Optional, Sequence

from epo_jax.envs.sotopia.actions import Action

_AMOUNT = re.compile(r'\$\s?(\d[\d,]*(?:\.\d+)?)|(\d[\d,]*(?:\.\d+)?)\s?(?:dollars|bucks|usd)\b', re.IGNORECASE)
_ACCEPTS = re.compile(
    r"\b(it'?s a deal|deal|agreed?|i accept|accepted|sold|i'?ll take it|we have a deal|works for me|"
    r"you'?ve got (yourself )?a deal|shake on it)\b", re.IGNORECASE)
_DECLINES = re.compile(r"\b(no deal|not|n't|cannot|can't|unless|if)\b|\?", re.IGNORECASE)


class RuleError(ValueError):
    """A goal rule is of an unknown kind or contradicts itself."""


def check_rule(rule: Mapping[str, Any]) -> None:
    """Raises RuleError where a rule cannot be scored."""
    if rule.get('kind') != 'price':
        raise RuleError(f"goal rule of unknown kind {rule.get('kind')!r}; known is 'price'")
    numbers = [rule.get('reserve'), rule.get('target')]
    if not all(isinstance(n, (int, float)) for n in numbers) or numbers[0] == numbers[1]:
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
    other side has named; or that both sides have named the same price last. The first settlement counts.
    """
    last: dict[int, float] = {}
    for seat, action in actions:
        if action.kind != 'speak':
            continue
        amounts = [float((a or b).replace(',', '')) for a, b in _AMOUNT.findall(action.argument)]
        other = last.get(1 - seat)
        accepts = _ACCEPTS.search(action.argument) and not _DECLINES.search(action.argument)
        if other is not None and accepts and all(amount == other for amount in amounts):
            return other
        if amounts:
            last[seat] = amounts[-1]
            if last[seat] == other and not _DECLINES.search(action.argument):
                return other
    return None
