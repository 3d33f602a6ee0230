"""The largest number of requests to endpoints that an evaluation makes, and their cost, before anything is asked."""

import collections
import dataclasses
from typing import Any, Iterator, Optional, Sequence

from ml_collections import ConfigDict

from epo_jax.agents.address import Address, parse_address
from epo_jax.agents.remote_options import remote_options
from epo_jax.cases import cases
from epo_jax.envs.base import Domain
from epo_jax.rl.selfplay import KINDS
from epo_jax.runtime.progress import Progress

CHARACTERS_PER_TOKEN = 4
JUDGE_TOKENS = 100  # of an answer, for each seat and dimension


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Requests of a role to an endpoint and their tokens, at most."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: 'Estimate') -> 'Estimate':
        return Estimate(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


def estimate(config: ConfigDict, domain: Domain, scenarios: Sequence[Any]) -> dict[tuple[str, Address], Estimate]:
    """Return the largest number of requests and tokens of an evaluation, by role and endpoint.

    Every episode is taken to last for all its turns, and every message to be as long as it may be. An endpoint reads
    the whole conversation again for every message. Answers that are asked for a second time are not included.

    Args:
      config: the configuration.
      domain: the environment.
      scenarios: those that are played.
    """
    total: dict[tuple[str, Address], Estimate] = collections.defaultdict(Estimate)
    if domain.text_environment is None:
        return {}
    env = domain.text_environment(config.environment)
    openings = [env.reset(scenario, (True,) * domain.seats)[1] for scenario in scenarios]
    length = lambda seat, role: sum(
        len(opening[seat][role]) for opening in openings) // CHARACTERS_PER_TOKEN
    growth = domain.seats * config.actor.max_tokens + config.strategist.max_tokens
    count = len(scenarios)

    def conversations(seat: int, role: int, max_tokens: int) -> Estimate:
        turns = -(-(env.max_turns - seat) // domain.seats)
        prompts = turns * length(seat, role) + count * growth * turns * (turns - 1) // 2
        return Estimate(count * turns, prompts, count * turns * max_tokens)

    for case in cases(config, domain.seats, config.evaluation.conditions, 0):
        for seat, kind in enumerate(case.kinds):
            ours = seat in case.tested
            for role, name, part in _players(config, kind, ours):
                if address := parse_address(name):
                    settings = config.actor if role != 'strategist' else config.strategist
                    total[role, address] += conversations(seat, part, settings.max_tokens)
        if config.reward.outcome == 'judge' and (address := parse_address(config.judge.model)):
            read = count * env.max_turns * config.actor.max_tokens + sum(
                length(seat, 1) for seat in range(domain.seats))
            answer = JUDGE_TOKENS * domain.seats * len(domain.rubric)
            total['judge', address] += Estimate(count, read, count * answer)
    return dict(total)


def _players(config: ConfigDict, kind: str, ours: bool) -> Iterator[tuple[str, str, int]]:
    """Yield the models that play a seat: role, name, and whether it reads what the actor reads (1) or not (0)."""
    role = 'actor' if ours or not config.partner.model else 'partner'
    yield role, config[role].model, 1
    if kind == 'react':
        yield role, config[role].model, 1
    elif kind not in KINDS:
        yield 'strategist', kind, 0


def print_estimate(config: ConfigDict, domain: Domain, scenarios: Sequence[Any], progress: Progress) -> None:
    """Print the estimate of an evaluation as a table, with its cost where prices are known."""
    prices, rows, dollars = remote_options(config.remote).prices_by_model(), [], 0.0
    for (role, address), found in sorted(estimate(config, domain, scenarios).items(), key=lambda item: str(item[0])):
        price: Optional[tuple[float, float]] = prices.get(address.name)
        cost = None if price is None else found.prompt_tokens * price[0] + found.completion_tokens * price[1]
        dollars += cost or 0
        rows.append([role, str(address), found.requests, found.prompt_tokens, found.completion_tokens,
                     'unknown' if cost is None else f'{cost:.2f}'])
    progress.line(f'{len(scenarios)} scenarios, conditions {", ".join(config.evaluation.conditions)}, '
                  f'{config.evaluation.repetitions} repetition(s)')
    if not rows:
        progress.line('all models are local: no requests')
        return
    progress.table('Requests to endpoints, at most', [
        'role', 'model', 'requests', 'prompt tokens', 'completion tokens', 'dollars'], rows)
    unknown = any(row[-1] == 'unknown' for row in rows)
    progress.line(f'in all ${dollars:.2f}' + (
        ', without the models that have no price in remote.prices' if unknown else ''))
