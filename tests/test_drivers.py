"""Host loop and compiled program give the same iteration of SOTOPIA, with goal rules and replies that need repair."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epo_jax import experiment
from epo_jax.envs.base import load_domain
from epo_jax.envs.sotopia.profiles import Character, Scenario
from epo_jax.experiment import make_learner, run_iteration
from epo_jax.iteration import Experiment
from epo_jax.presets import load_config
from epo_jax.results import iteration_metrics
from epo_jax.rl.selfplay import RunState
from epo_jax.roles import build_roles
from epo_jax.runtime.parallel import make_mesh, param_shardings
from epo_jax.runtime.progress import Progress
from epo_jax.runtime.timing import Stopwatch
from epo_jax.text.tokenizer import encode
from epo_jax.text.tokens import Tokens, pack

# Replies as models write them: plain, in need of repair, empty, of other kinds, with prices that both sides may agree on.
REPLIES = (
    'Hello there.', 'I want $130 for it.', 'How about $150?"', '$120 is my last offer.', 'Deal.', 'It is a deal.',
    'We have a deal.', 'I want $115.', 'Sold!', 'I accept.', 'Agreed.', '"Good day to you."', 'Maya said: "So be it."',
    '{"action_type": "speak", "argument": "Fine."}', '{"action_type": "leave"}', 'gesture: nods', 'act: pays',
    '*smiles*', '', '  two   spaces  ', 'leave:', 'wait:', 'Ça va — 450 dollars')
EPISODES = 8


@dataclasses.dataclass(frozen=True)
class Reciter:
    """An actor on the device that draws its replies from a list; its memory counts the turns."""

    replies: tuple[tuple[int, ...], ...]
    width: int

    on_device = True

    def start(self, batch):
        return jnp.zeros(batch, jnp.int32)

    @functools.partial(jax.jit, static_argnums=(0, 5))
    def begin(self, params, memory, opening, rows, group=1):
        return jnp.where(rows, 0, memory)

    @functools.partial(jax.jit, static_argnums=0)
    def respond(self, params, memory, content, cue, choices, keys, who, live):
        draw = lambda key, turn: jax.random.randint(
            jax.random.fold_in(jax.random.fold_in(key, who), turn), (), 0, len(self.replies))
        drawn = jax.vmap(draw)(keys, memory)
        table = jax.tree.map(jnp.asarray, pack(self.replies, self.width))
        return memory + live, Tokens(table.ids[drawn], table.length[drawn] * live)

    def failed(self, memory):
        return memory < 0


def scenarios():
    """Return short scenarios: a rule for both goals, for one of them, or for none."""
    person = lambda name: Character(name, name, 'Li', 30, '', '', '', '', '', '')
    seller, buyer = ({'kind': 'price', 'reserve': 110, 'target': 170}, {'kind': 'price', 'reserve': 165, 'target': 120})
    rules = ((seller, buyer), (seller, None), (None, None), (seller, buyer))
    return [Scenario(f's{n}', f'e{n}', f'Sale {n}.', ('Sell it.', 'Buy it.'), rules[n % 4], 0, '',
                     (person('Maya'), person(f'Bo{n}')), 'sale', 'train', False) for n in range(EPISODES)]


@functools.cache
def parts():
    """Return the configuration, roles, mesh and learner that all runs share."""
    config = load_config('sotopia:tiny')
    config.seed = 5  # with this seed, every case occurs in both tests
    config.environment.update(max_turns=6, max_stale=1)
    config.model.remat = 'none'
    config.rollout.update(episodes=EPISODES, batch=4, view_tokens=640, chunk=64)
    config.strategist.capacity, config.judge.capacity = 960, 1280
    config.learner.update(batch=8, micro_batch=4, length_bucket=960)
    mesh = make_mesh((1, 1, 1))
    roles = build_roles(config, mesh, load_domain('sotopia'))
    replies = tuple(tuple(encode(roles.actor.tokenizer, reply)) for reply in REPLIES)
    actor = roles.actor.replace(agent=Reciter(replies, 60))
    # Scaled logits, so that the answers of the judge differ: it calls some turns critical and others not.
    params = dict(roles.judge.params, final_norm=jax.tree.map(lambda x: -12 * x, roles.judge.params['final_norm']))
    judge = roles.judge.replace(params=params)
    roles = dataclasses.replace(roles, actor=actor, partner=actor, judge=judge, process_judge=judge)
    return config, roles, mesh, make_learner(config, roles)


def result(compiled, seats, method, begun, allowed):
    """Run one iteration; return its result, its records and its metrics."""
    config, roles, mesh, learner = parts()
    config = config.copy_and_resolve_references()
    config.environment.update(begun=begun, allowed=allowed)
    config.rollout.compiled, config.seats = compiled, seats
    config.reward.update(process=method, combine='official' if method == 'critical' else 'sum')
    exp = Experiment(config, load_domain('sotopia'), roles, learner, Progress(1), Stopwatch(),
                     param_shardings(roles.strategist.sampler(), mesh))
    state = RunState(experiment.initial_state(learner, mesh, 0, roles.strategist.params), ())
    _, played = run_iteration(exp, state, scenarios(), 0)
    records = played.records()
    return played, records, iteration_metrics(played, records)


@pytest.mark.parametrize('seats, method, begun, allowed', [
    (('policy', 'policy'), 'potential', True, ('speak',)),
    (('policy', 'none'), 'critical', False, ('speak', 'non-verbal communication', 'action', 'leave', 'none'))])
def test_both_drivers_play_judge_and_credit_alike(seats, method, begun, allowed):
    (host, host_records, host_metrics), (device, device_records, device_metrics) = (
        result(compiled, seats, method, begun, allowed) for compiled in (False, True))

    for name in ('ids', 'turn', 'length', 'turn_mask', 'truncated', 'episode', 'seat', 'group'):
        np.testing.assert_array_equal(getattr(host.rows, name), getattr(device.rows, name), err_msg=name)
    np.testing.assert_allclose(host.rows.logprob, device.rows.logprob, atol=1e-5)
    for name in ('valid', 'outcome_valid', 'rewarded', 'turn_mask'):
        np.testing.assert_array_equal(getattr(host.verdict, name), getattr(device.verdict, name), err_msg=name)
    for name in ('process', 'outcome'):
        np.testing.assert_allclose(
            getattr(host.verdict, name), getattr(device.verdict, name), atol=1e-5, err_msg=name)
    for a, b in zip(host.matches, device.matches, strict=True):
        np.testing.assert_array_equal(a.episodes.reward, b.episodes.reward)
    for name, a, b in zip(('reward', 'valid', 'advantage'), host.credit, device.credit, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, err_msg=name)
    for a, b in zip(host_records, device_records, strict=True):
        assert (a['scenario'], a['turns'], a['events'], a['truncated']) == (
            b['scenario'], b['turns'], b['events'], b['truncated'])
        assert [seat['judge']['by_rule'] for seat in a['seats']] == [seat['judge']['by_rule'] for seat in b['seats']]
    for name in host_metrics.keys() | device_metrics.keys():
        np.testing.assert_allclose(host_metrics[name], device_metrics[name], rtol=1e-3, atol=2e-5, err_msg=name)

    # The comparison is meaningful: every case occurs.
    lengths = {len(record['turns']) for record in host_records}
    rewards = np.concatenate([match.episodes.reward.ravel() for match in host.matches])
    assert len(lengths) > 1 and np.isnan(rewards).any() and len(set(rewards[~np.isnan(rewards)])) > 2
    assert host_metrics['action/repaired'] and host_metrics['action/unparsable']
    assert np.ptp(host.verdict.process[host.verdict.valid]) > 1e-3
