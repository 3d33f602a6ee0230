"""Host loop and compiled program: one iteration of SOTOPIA, with goal rules, repaired actions and unequal lengths."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.sotopia import get_config
from epo_jax import experiment
from epo_jax.envs.base import load_domain
from epo_jax.experiment import make_learner, run_iteration
from epo_jax.iteration import Experiment, iteration_metrics
from epo_jax.rl.selfplay import RunState
from epo_jax.roles import build_roles
from epo_jax.runtime.parallel import make_mesh, param_shardings
from epo_jax.runtime.progress import Progress
from epo_jax.runtime.timing import Stopwatch
from epo_jax.text.tokenizer import encode
from epo_jax.text.tokens import Tokens, pack

# Replies as models write them: plain, in need of repair, empty, of other kinds, with prices that settle a goal.
REPLIES = (
    'Hello there.', 'I want $130 for it.', 'How about $150?"', '$120 is my last offer.', 'Deal.', 'It is a deal.',
    'We have a deal.', 'I want $115.', 'Sold!', 'I accept.', 'Agreed.', '"Good day to you."', 'Maya said: "So be it."', '{"action_type": "speak", "argument": "Fine."}',
    '{"action_type": "leave"}', 'gesture: nods', 'act: pays', '*smiles*', '', '  two   spaces  ', 'leave:', 'wait:',
    'Ça va — 450 dollars')


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
        chosen = jax.vmap(draw)(keys, memory)
        table = jax.tree.map(jnp.asarray, pack(self.replies, self.width))
        return memory + live, Tokens(table.ids[chosen], table.length[chosen] * live)

    def failed(self, memory):
        return memory < 0


def result(tmp_path, compiled, method, begun, allowed):
    """One iteration: its result, its records and its metrics."""
    config = get_config('tiny')
    config.environment.update(max_turns=6, begun=begun, allowed=allowed, max_stale=1)
    config.rollout.update(episodes=12, batch=4, compiled=compiled, view_tokens=1536)
    config.strategist.capacity = config.judge.capacity = 2560
    config.learner.update(batch=24, micro_batch=8, length_bucket=2560)
    config.reward.update(process=method, combine='official' if method == 'critical' else 'sum')
    domain, mesh = load_domain('sotopia'), make_mesh((1, 1, 1))
    roles = build_roles(config, mesh, domain)
    replies = tuple(tuple(encode(roles.actor.tokenizer, reply)) for reply in REPLIES)
    roles = dataclasses.replace(roles, actor_agent=Reciter(replies, 60))
    learner = make_learner(config, roles)
    exp = Experiment(config, domain, roles, learner, Progress(1), Stopwatch(),
                     param_shardings(roles.strategist.sampler(), mesh))
    state = RunState(experiment.initial_state(learner, mesh, 0, roles.strategist.params), ())
    known = domain.scenarios('', config.environment)
    cheap = [s for s in known if any(s.goal_rules) and s.goal_rules[0]['reserve'] <= 110]
    scenarios = cheap + [s for s in known if not any(s.goal_rules)][:12 - len(cheap)]
    _, played = run_iteration(exp, state, scenarios, 0)
    return played, played.records(), iteration_metrics(played, played.records())


@pytest.mark.parametrize('method, begun, allowed', [
    ('potential', True, ('speak',)),
    ('critical', False, ('speak', 'non-verbal communication', 'action', 'leave', 'none'))])
def test_both_drivers_play_judge_and_credit_alike(tmp_path, method, begun, allowed):
    (host, host_records, host_metrics), (device, device_records, device_metrics) = (
        result(tmp_path, compiled, method, begun, allowed) for compiled in (False, True))

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

    # The comparison is worth something: every case that it is about occurs.
    lengths = {len(record['turns']) for record in host_records}
    rewards = np.concatenate([match.episodes.reward.ravel() for match in host.matches])
    assert len(lengths) > 1 and np.isnan(rewards).any() and len(set(rewards[~np.isnan(rewards)])) > 2
    assert host_metrics['action/repaired'] and host_metrics['action/unparsable']
