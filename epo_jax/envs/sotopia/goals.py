"""Goals that are scored by a rule instead of a judge.

A price rule is {'kind': 'price', 'reserve': r, 'target': t}. Its score is 10 if the agreed price is the target or
better, 0 if it is the reserve or worse or if there is no deal, and linear in between. The target of a seller lies above
the reserve, that of a buyer below.
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
_TOO_MUCH = re.compile(r'\b(?:too|steep|beyond|more than|less than)\b', re.IGNORECASE)  # refuses the price it names
_QUESTION = re.compile(r'(?:[^.!?]|\.(?=\d))*\?')


class RuleError(InputError):
    """A goal rule has an unknown kind or numbers that cannot be scored."""


def check_rule(rule: Mapping[str, Any]) -> None:
    """Check that a goal rule can be scored.

    Raises:
      RuleError: it cannot.
    """
    if rule.get('kind') != 'price':
        raise RuleError(f"a goal rule has the unknown kind {rule.get('kind')!r}; the only known kind is 'price'")
    numbers = [rule.get('reserve'), rule.get('target')]
    if not all(type(n) in (int, float) and math.isfinite(n) for n in numbers) or numbers[0] == numbers[1]:
        raise RuleError(f'a price rule needs two different numbers, reserve and target; this one is {dict(rule)}')


def score(rule: Mapping[str, Any], actions: Sequence[tuple[int, Action]]) -> float:
    """Score a finished dialogue by a price rule.

    Args:
      rule: the rule.
      actions: (seat, action) in order.

    Returns:
      A number from 0 to 10.

    Raises:
      RuleError: the rule cannot be scored.
    """
    check_rule(rule)
    price = agreed_price(actions)
    if price is None:
        return 0.0
    share = (price - rule['reserve']) / (rule['target'] - rule['reserve'])
    return 10.0 * min(1.0, max(0.0, share))


def agreed_price(actions: Sequence[tuple[int, Action]]) -> Optional[float]:
    """Return the price that both sides agreed on, or None.

    They agree when one side accepts the last price of the other side in plain words and names no other price, or when
    the last prices of both sides are the same. A question agrees to nothing. The first agreement counts.

    Args:
      actions: (seat, action) in order.
    """
    last: dict[int, float] = {}
    for seat, action in actions:
        if action.kind != 'speak':
            continue
        utterance = action.argument.replace('\u2019', "'")
        statement = _QUESTION.sub('', utterance)
        amounts = [float((a or b).replace(',', '')) for a, b in _AMOUNT.findall(utterance)]
        other = last.get(1 - seat)
        declines = _DECLINES.search(statement)
        if (other is not None and _ACCEPTS.search(statement) and not declines
                and all(amount == other for amount in amounts)):
            return other
        if amounts:
            last[seat] = amounts[-1]
            if last[seat] == other and statement == utterance and not declines and not _TOO_MUCH.search(utterance):
                return other
    return None
