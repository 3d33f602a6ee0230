"""From the verdict on finished episodes to the credit of every turn; both drivers call `assign`.

A new method is a function in the table METHODS, or any function 'package.module:function'; its name is then a value of
`credit.name`. Its parameters are among INPUTS and the keys of the configuration group `credit` (see rl/methods.py); it
returns the credit f[N, T], and the new memory after it if it takes the memory.

Axis letters: N conversations, T turns, L token positions, S seats.
"""

import dataclasses
import functools
from typing import Any, Mapping, NamedTuple, Optional

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from epo_jax.config import COUNT, POSITIVE, Key, Range
from epo_jax.rewards.process import Verdict
from epo_jax.rl.aggregation import turn_means
from epo_jax.rl.credit import grouping
from epo_jax.rl.credit.groups import dr_grpo, grpo, lite_ppo, reinforce_pp, reinforce_pp_baseline, rloo
from epo_jax.rl.credit.rewards import combine
from epo_jax.rl.credit.seats import dr_mas, rae
from epo_jax.rl.credit.steps import fingerprints, gigpo, hgpo
from epo_jax.rl.credit.turns import BASELINES, NORMALIZERS, discounted, epo
from epo_jax.rl.credit.uncertainty import empg
from epo_jax.rl.credit.values import branched
from epo_jax.rl.methods import Method, bind
from epo_jax.rl.trajectory import Trajectory
from epo_jax.runtime.errors import InputError
from epo_jax.text.tokens import Array

METHODS = {
    'discounted': discounted, 'epo': epo, 'rloo': rloo, 'grpo': grpo, 'dr_grpo': dr_grpo, 'lite_ppo': lite_ppo,
    'reinforce_pp': reinforce_pp, 'reinforce_pp_baseline': reinforce_pp_baseline, 'rae': rae, 'dr_mas': dr_mas,
    'gigpo': gigpo, 'hgpo': hgpo, 'empg': empg, 'branched': branched}

INPUTS = {
    'reward': 'f[N, T], the reward of every turn; 0 where it is not valid',
    'valid': 'bool[N, T], turns with credit',
    'group': 'i32[N], the same number for conversations of the same scenario and seat',
    'episode': 'i32[N], the same number for conversations of the same episode',
    'seat': 'i32[N]',
    'tokens': 'f[N, T], number of sampled tokens of every turn',
    'observation': 'u32[N, T], a hash of what was read before the turn; needs observations that repeat',
    'entropy': 'f[N, T], mean entropy in nats of the tokens of every turn; costs a forward pass',
    'value': 'f[N, T], mean outcome of siblings of every turn; costs `siblings` times the rest of the episode per turn',
    'memory': 'f[S], a number for every seat that lasts from iteration to iteration, 0 at first',
}

KEYS = {
    'name': Key('discounted', f"credit of a turn: {', '.join(METHODS)}, or 'package.module:function'; see "
                              'docs/credit.md'),
    'gamma': Key(0.99, 'discounted, epo, reinforce_pp, gigpo, hgpo, branched: discount of later rewards',
                 Range(0, 1, above=True)),
    'baseline': Key('batch', 'discounted: what is subtracted from returns: the mean over the batch or group, or none',
                    BASELINES),
    'normalise': Key('batch', 'discounted: advantages are divided by the largest absolute value of the batch or of '
                              'their trajectory, or by nothing (none)', NORMALIZERS),
    'decay': Key(0.95, 'rae: decay of the running mean', Range(0, 1, below=True)),
    'step_weight': Key(1.0, 'gigpo: weight of the comparison of turns in the same situation', Range(0)),
    'history': Key(2, 'hgpo: number of earlier observations that are compared', COUNT),
    'history_power': Key(1.0, 'hgpo: how much more a comparison with a longer history counts', Range(0)),
    'sharpness': Key(1.0, 'empg: how much less an uncertain turn counts', Range(0)),
    'future_weight': Key(0.05, 'empg: weight of the bonus for turns that lead to certain ones', Range(0)),
    'siblings': Key(4, 'branched: number of strategies that are sampled before every turn and played to the end',
                    POSITIVE),
    'trace': Key(1.0, 'branched: 1 compares the outcome with the siblings, 0 those of the next turn', Range(0, 1)),
    'drop_equal_groups': Key(False, 'whether groups in which all returns are equal are left out (DAPO)'),
    'mask_cut': Key(False, 'whether strategies that were cut at strategist.max_tokens are not trained (DAPO)'),
}
_SWITCHES = ('name', 'siblings', 'drop_equal_groups', 'mask_cut')


@dataclasses.dataclass(frozen=True)
class CreditRules:
    """How credit is assigned; static.

    Attributes:
      combine: a key of `rewards.COMBINE`.
      weight: of the process reward.
      method: from rewards to credit.
      kl_weight: weight of the divergence from the reference, log pi - log reference summed over the tokens of a turn,
        that is subtracted from its reward.
      drop_equal_groups: whether groups in which all returns are equal are left out.
      siblings: number of siblings of every turn, for a method that needs values.
      ends: ids that end a strategy; turns that end with another id are not trained. () trains all.
    """

    combine: str
    weight: float
    method: Method
    kl_weight: float = 0.0
    drop_equal_groups: bool = False
    siblings: int = 0
    ends: tuple[int, ...] = ()

    def needs(self, name: str) -> bool:
        """Return whether the rules read an input of this name, one of INPUTS or 'reference'."""
        return name in self.method.inputs or name == 'reference' and self.kl_weight > 0


class Credit(NamedTuple):
    """Credit of every turn.

    Attributes:
      reward: process reward and outcome combined; 0 where no turn took place.
      valid: turns that can be trained on: nothing in their conversation is missing.
      advantage: the weight of a turn in the loss; 0 where it is not valid.
    """

    reward: Float[Array, 'N T']
    valid: Bool[Array, 'N T']
    advantage: Float[Array, 'N T']


@functools.partial(jax.jit, static_argnames='rules')
def assign(verdict: Verdict, rows: Trajectory, rules: CreditRules,
           extra: Optional[Mapping[str, Any]] = None) -> tuple[Credit, Any]:
    """Turn rewards into credit.

    Args:
      verdict: on the trained conversations.
      rows: the trained conversations.
      rules: the rules to apply.
      extra: what the rules need besides, by name: 'entropy' f[N, T], 'memory' f[S],
        'value' f[N, T], and 'reference' f[N, L], the log-probabilities under the reference.

    Returns:
      The credit, and the memory for the next iteration, () if the method has none.
    """
    extra = extra or {}
    reward, valid = combine(
        verdict.process, verdict.valid, verdict.outcome, verdict.outcome_valid, rows.turn_mask, rules.combine,
        rules.weight)
    turns = rows.turn_mask.shape[1]
    if rules.needs('reference'):
        gap, tokens = turn_means(rows.logprob - extra['reference'], rows.turn, turns)
        reward = jnp.where(rows.turn_mask, reward - rules.kl_weight * gap * tokens, 0)
    if rules.needs('value'):
        valid &= (jnp.isfinite(extra['value']) | ~rows.turn_mask).all(axis=1, keepdims=True)
    if rules.drop_equal_groups:
        valid &= ~equal_groups(reward, valid, rows.group)[:, None]
    inputs = {
        'reward': jnp.where(valid, reward, 0), 'valid': valid, 'group': rows.group, 'episode': rows.episode,
        'seat': rows.seat, **extra}
    if rules.needs('tokens'):
        inputs['tokens'] = turn_means(jnp.ones(rows.turn.shape, reward.dtype), rows.turn, turns)[1]
    if rules.needs('observation'):
        inputs['observation'] = fingerprints(rows.ids, rows.turn, turns)
    result, memory = rules.method(inputs), ()
    if rules.needs('memory'):
        result, memory = result
    if rules.ends:
        valid &= ~was_cut(rows.ids, rows.turn, turns, rules.ends)
    return Credit(reward, valid, jnp.where(valid, result, 0)), memory


def equal_groups(reward: Float[Array, 'N T'], valid: Bool[Array, 'N T'], group: Int[Array, ' N']) -> Bool[Array, ' N']:
    """Return which conversations are in a group whose returns are all equal, so that there is nothing to compare."""
    own, used = jnp.where(valid, reward, 0).sum(axis=1), valid.any(axis=1)
    return grouping.deviation(own, used, grouping.same(group)) == 0


def was_cut(ids: Int[Array, 'N L'], turn: Int[Array, 'N L'], turns: int,
            ends: tuple[int, ...]) -> Bool[Array, 'N T']:
    """Return which turns do not end with one of the ids `ends`, because they reached their longest length."""
    is_last = (turn >= 0) & (turn != jnp.pad(turn[:, 1:], ((0, 0), (0, 1)), constant_values=-1))
    cut = is_last & ~jnp.isin(ids, jnp.array(ends))
    rows = jnp.arange(len(ids))[:, None]
    return jnp.zeros((len(ids), turns), bool).at[rows, jnp.where(cut, turn, turns)].set(True, mode='drop')


def from_config(reward: Mapping[str, Any], credit: Mapping[str, Any], ends: tuple[int, ...] = ()) -> CreditRules:
    """Return the rules of the configuration groups `reward` and `credit`.

    Args:
      reward, credit: the groups.
      ends: ids that end a strategy.

    Raises:
      InputError: there is no such method, or its parameters are not known.
    """
    options = {name: credit[name] for name in KEYS if name not in _SWITCHES}
    method = bind(credit['name'], METHODS, INPUTS, options, 'credit.name')
    return CreditRules(reward['combine'], reward['weight'], method, reward['kl_weight'], credit['drop_equal_groups'],
                       credit['siblings'], ends if credit['mask_cut'] else ())


def problems(reward: Mapping[str, Any], credit: Mapping[str, Any], group: int, repeats: bool,
             compiled: bool) -> list[str]:
    """Return what the rules need and a configuration cannot give, one sentence each.

    Args:
      reward, credit: the configuration groups.
      group: number of episodes of the same scenario.
      repeats: whether the observations of the environment repeat.
      compiled: whether an iteration is one program.
    """
    try:
        rules = from_config(reward, credit)
    except InputError as error:
        return [str(error)]
    name, wrong = credit['name'], []
    compares = rules.needs('group') and name not in ('discounted', 'epo')
    if group == 1 and (compares or name == 'discounted' and credit['baseline'] == 'group'):
        key = f'credit.name={name!r}' if compares else "credit.baseline='group'"
        wrong.append(f'{key} needs rollout.group > 1, since a group of one has nothing to compare with')
    if group == 1 and credit['drop_equal_groups']:
        wrong.append('credit.drop_equal_groups needs rollout.group > 1, since it would leave out every group of one')
    if rules.needs('observation') and not repeats:
        wrong.append(f'credit.name={name!r} compares turns with the same observation, but the observations of this '
                     'environment do not repeat; choose another method')
    if rules.needs('value') and not (
            compiled and reward['outcome'] == 'environment' and reward['process'] == 'none'):
        wrong.append(f"credit.name={name!r} plays siblings on the device, so it needs rollout.compiled=True, "
                     "reward.outcome='environment' and reward.process='none'")
    return wrong
