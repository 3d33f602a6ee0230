"""Limits of requests to remote models: rates, requested pauses, and dollars.

The classes hold numbers only. They neither wait nor read a clock, and one thread uses them.
"""

import dataclasses
import email.utils
import math
from typing import Mapping, Optional

from epo_jax.runtime.errors import InputError


class BudgetSpent(InputError):
    """The next request could exceed the budget."""


@dataclasses.dataclass
class Pace:
    """When the next request to an address may start.

    Attributes:
      requests_per_minute: largest rate of requests; 0 sets no limit.
      tokens_per_minute: largest rate of tokens; 0 sets no limit.
      paused_until: time before which nothing is sent, since the endpoint asked for it.
    """

    requests_per_minute: float
    tokens_per_minute: float
    paused_until: float = -math.inf
    _next_request: float = -math.inf
    _next_tokens: float = -math.inf

    def reserve(self, now: float, tokens: float) -> float:
        """Take the next place for a request of this many tokens and return its time.

        A request starts once those before it have used up their share of the rates, so there are no bursts.
        """
        start = max(now, self.paused_until)
        if self.requests_per_minute:
            start = max(start, self._next_request)
        if self.tokens_per_minute:
            start = max(start, self._next_tokens)
        if self.requests_per_minute:
            self._next_request = start + 60 / self.requests_per_minute
        if self.tokens_per_minute:
            self._next_tokens = start + 60 * tokens / self.tokens_per_minute
        return start

    def correct(self, tokens: float) -> None:
        """Add tokens that a request used beyond those that were reserved for it; the number may be negative."""
        if self.tokens_per_minute:
            self._next_tokens += 60 * tokens / self.tokens_per_minute

    def pause(self, now: float, seconds: float) -> bool:
        """Send nothing for some seconds; return whether this begins a pause, rather than extends one."""
        begins = self.paused_until <= now
        self.paused_until = max(self.paused_until, now + seconds)
        return begins


@dataclasses.dataclass
class Budget:
    """Dollars that may be spent. A request reserves what it may cost at most, and then spends what it did cost.

    Attributes:
      dollars: the limit; 0 sets none.
      spent: dollars spent, earlier runs included.
      reserved: dollars that requests in flight may cost.
    """

    dollars: float
    spent: float = 0.0
    reserved: float = 0.0

    def reserve(self, dollars: float) -> bool:
        """Reserve dollars for a request, or return False if it has to wait until requests in flight are settled.

        Raises:
          BudgetSpent: they would exceed the budget even if the requests in flight cost nothing.
        """
        if self.dollars and self.spent + self.reserved + dollars > self.dollars:
            if self.reserved > 0 and self.spent + dollars <= self.dollars:
                return False
            raise BudgetSpent(f'the next request may cost ${dollars:.4f} and could exceed the budget of '
                              f'${self.dollars:g} (${self.spent:.4f} is spent); increase the budget')
        self.reserved += dollars
        return True

    def settle(self, reserved: float, dollars: float) -> None:
        """Replace a reservation by the dollars that were spent."""
        self.reserved = max(0.0, self.reserved - reserved)
        self.spent += dollars


def retry_after(headers: Mapping[str, str], now: float) -> Optional[float]:
    """Return the seconds that the headers of a response ask to wait, or None.

    Args:
      headers: the headers. Retry-After holds seconds or a date, retry-after-ms milliseconds.
      now: seconds since 1970, for dates.
    """
    for name, unit in (('retry-after-ms', 1e-3), ('retry-after', 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) * unit
        except ValueError:
            try:
                seconds = email.utils.parsedate_to_datetime(value).timestamp() - now
            except (ValueError, OverflowError):
                continue
        if math.isfinite(seconds):
            return max(seconds, 0.0)
    return None
