"""Questions to remote models, their answers, and what they cost."""

import collections
import dataclasses
import re
from typing import Any, Mapping, Optional, Union

from epo_jax.agents.address import Address
from epo_jax.runtime.hostcalls import Failure


class Refused(Failure):
    """A request that the endpoint rejects for its own content, such as its length; it would do so again."""


@dataclasses.dataclass(frozen=True)
class Request:
    """A question to a remote model.

    Attributes:
      address: the model.
      role: who asks, such as 'actor' or 'judge'; costs are kept by role.
      messages: the conversation, as (role, text).
      temperature: sampling temperature.
      max_tokens: longest answer in tokens; 0 sets no limit.
      seed: seed of the sampling, which the endpoint may ignore.
      attempt: requests that differ in it alone are different samples.
      schema: JSON schema of the answer, for endpoints that can follow one.
    """

    address: Address
    role: str
    messages: tuple[tuple[str, str], ...]
    temperature: float
    max_tokens: int
    seed: int
    attempt: int = 0
    schema: Optional[Mapping[str, Any]] = None


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a model said.

    Attributes:
      text: the answer without reasoning; None where there is none (a refusal, a content filter, only reasoning).
      problem: why there is no text.
      cut: whether the answer ended at `max_tokens`.
      prompt_tokens: tokens of the request.
      completion_tokens: tokens of the answer, reasoning included.
      cached: whether the answer was there already, and cost nothing now.
      refused: whether the model or its content filter declined to answer.
    """

    text: Optional[str]
    problem: Optional[str]
    cut: bool
    prompt_tokens: int
    completion_tokens: int
    cached: bool
    refused: bool = False


@dataclasses.dataclass
class Usage:
    """What one role asked and spent through this client.

    Attributes:
      requests: number of requests.
      cached: requests that were answered from the record, or by an equal request.
      failed: requests that ended as a Failure.
      without_text: answers without text.
      retried: retries.
      prompt_tokens: tokens of requests that were paid for.
      completion_tokens: tokens of their answers.
      dollars: what they cost.
      unpriced: those of them whose model has no price.
      losses: how often each reason was why there is no text.
    """

    requests: int = 0
    cached: int = 0
    failed: int = 0
    without_text: int = 0
    retried: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    dollars: float = 0.0
    unpriced: int = 0
    losses: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    def count(self, result: Union[Answer, Failure]) -> None:
        """Count the result of a request."""
        self.requests += 1
        reason = result.problem if isinstance(result, Answer) else result.reason
        self.failed += isinstance(result, Failure)
        if isinstance(result, Answer):
            self.cached += result.cached
            self.without_text += result.text is None
        if reason:
            self.losses[re.sub(r'\d+', '#', reason)] += 1
