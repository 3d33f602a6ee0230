"""How well every method of credit finds the turns that mattered: agreement with the advantage by branching.

    python -m benchmarks.attribution --seeds=5 --iterations=0,60 --output=benchmarks/results/attribution

The game is bargaining against the family of opponents. For every turn of every episode, `SIBLINGS` strategies are
sampled from the state before it and played to the end; the mean outcome is the value of the state. The truth about a
turn is the change of this value, which is the advantage of what was done in it, up to sampling noise. Two halves of the
siblings give two such truths; their agreement shows how much of the truth is noise.

A policy is trained with the preset's credit for some iterations (with smaller batches), and all methods are given the
same episodes: groups of eight of one scenario. The numbers, by method, are means over seeds with 95 % intervals:

- all: Spearman's rank correlation with the truth over all turns
- within: the same over the turns of an episode, averaged over episodes; 0 where a method gives all turns the same
- sign: share of turns whose sign agrees, among those whose truth exceeds twice its standard error

Axis letters: N conversations, T turns, K siblings.
"""

import argparse
import functools
import json
import pathlib
from typing import Any, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from epo_jax import experiment
from epo_jax.branching import rollout_branched, values
from epo_jax.envs.base import load_domain
from epo_jax.iteration import Experiment
from epo_jax.presets import load_config
from epo_jax.rewards.process import assess
from epo_jax.rewards.prompts import gather_prompts
from epo_jax.rl.credit import assign
from epo_jax.rl.credit.assign import METHODS
from epo_jax.rl.credit.values import branched
from epo_jax.rl.observe import observe
from epo_jax.rl.selfplay import RunState
from epo_jax.rl.trajectory import trajectories
from epo_jax.roles import build_roles
from epo_jax.rollout import encode, episode_keys
from epo_jax.runtime.files import write_atomically
from epo_jax.runtime.parallel import make_mesh, param_shardings
from epo_jax.runtime.progress import Progress
from epo_jax.runtime.timing import Stopwatch

SIBLINGS, OWN, GROUP, EPISODES = 128, 4, 8, 256  # OWN of further siblings are those of the method 'branched'
BASELINES = {'discounted, none': 'none', 'discounted, batch': 'batch', 'discounted, group': 'group'}


def build(seed: int, iterations: int) -> tuple[Experiment, list[Any]]:
    """Return an experiment on bargaining with small batches, and the scenarios that are trained on."""
    config = load_config('bargain')
    config.seed, config.iterations = seed, max(iterations, 1)
    config.rollout.update(episodes=512, batch=512)
    config.learner.update(batch=512)
    domain, mesh = load_domain('bargain'), make_mesh((1, 1, 1))
    roles = build_roles(config, mesh, domain)
    exp = Experiment(config, domain, roles, experiment.make_learner(config, roles), Progress(1), Stopwatch(),
                     param_shardings(roles.strategist.sampler(), mesh))
    train, _ = experiment.splits(domain.scenarios('', config.environment), evaluate=False)
    return exp, train


def train(exp: Experiment, scenarios: Sequence[Any], iterations: int) -> RunState:
    """Return the state after some iterations."""
    config, roles = exp.config, exp.roles
    state = RunState(
        experiment.initial_state(exp.learner, roles.strategist.mesh, config.seed, roles.strategist.params), ())
    for iteration in range(iterations):
        chosen = experiment.draw_scenarios(
            scenarios, config.rollout.episodes, config.rollout.group, iteration, config.seed)
        state, _ = experiment.run_iteration(exp, state, chosen, iteration)
    return state


def credits_of(exp: Experiment, state: RunState, scenarios: Sequence[Any]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Play episodes with siblings.

    Returns:
      The credit f[N, T] of every method, of the truth and of its two halves; and which turns took place.
    """
    seed, policy = exp.config.seed, exp.sampling_params(state.train.params)
    table = exp.table((exp.seat('policy', True, policy, (), 0),), GROUP)
    chosen = experiment.draw_scenarios(scenarios, EPISODES, GROUP, 10_000, seed)
    keys, queue = episode_keys(seed, 10_000, np.arange(EPISODES)), encode(table, chosen)
    play = jax.jit(functools.partial(rollout_branched, batch=EPISODES, siblings=SIBLINGS + OWN))
    episodes, outcomes, _ = play(table, queue, keys)
    rows = trajectories(table, episodes, jnp.arange(EPISODES), GROUP)
    verdict = assess(None, gather_prompts(None, table, queue, episodes, 'none', False), 'none', False)
    outcomes = outcomes[:, 0]
    truth = lambda part: np.asarray(branched(credit.reward, credit.valid, values(part), 1.0, 0.0))

    found = {}
    for name in [*BASELINES, *(name for name in METHODS if name not in ('discounted', 'epo'))]:
        options = {key: value.default for key, value in assign.KEYS.items()} | dict(gamma=1.0, normalise='none')
        options |= dict(name='discounted', baseline=BASELINES[name]) if name in BASELINES else dict(name=name)
        rules = assign.from_config(exp.config.reward, options)
        extra = observe(exp.roles.strategist_agent.model, rows, rules, exp.learner.objective, policy, None, 4096, GROUP)
        extra |= {'memory': jnp.zeros(1), 'value': values(outcomes[..., SIBLINGS:])}
        credit, _ = assign.assign(verdict, rows, rules, extra)
        found[name] = np.asarray(credit.advantage)
        if name == 'branched':
            changed = assign.from_config(exp.config.reward, options | dict(trace=0.0))
            found['branched, trace 0'] = np.asarray(assign.assign(verdict, rows, changed, extra)[0].advantage)
    half = SIBLINGS // 2
    parts = {'truth': outcomes[..., :SIBLINGS], 'half': outcomes[..., :half],
             'other half': outcomes[..., half:SIBLINGS]}
    found |= {name: truth(part) for name, part in parts.items()}
    spread = jnp.nanstd(outcomes[..., :SIBLINGS], axis=-1) / SIBLINGS ** 0.5
    following = jnp.pad(spread[:, 1:], ((0, 0), (0, 1)))
    found['error'] = np.asarray(jnp.hypot(spread, jnp.where(jnp.isnan(following), 0, following)))
    return found, np.asarray(credit.valid)


def agreement(credit: np.ndarray, truth: np.ndarray, valid: np.ndarray, error: np.ndarray) -> dict[str, float]:
    """Return how far credit f[N, T] agrees with the truth, see the module."""
    def rank(a, b):
        return 0.0 if np.ptp(a) < 1e-9 or np.ptp(b) < 1e-9 else float(stats.spearmanr(a, b).statistic)

    clear = valid & (np.abs(truth) > 2 * error)
    return {
        'all': rank(credit[valid], truth[valid]),
        'within': float(np.mean([rank(c[v], t[v]) for c, t, v in zip(credit, truth, valid) if v.sum() > 1])),
        'sign': float(np.mean(np.sign(credit[clear]) == np.sign(truth[clear])))}


def measure(seed: int, iterations: int) -> dict[str, Any]:
    """Return the agreement of every method with the truth for the policy of a seed after some iterations."""
    exp, scenarios = build(seed, iterations)
    state = train(exp, scenarios, iterations)
    found, valid = credits_of(exp, state, scenarios)
    truth, error = found.pop('truth'), found.pop('error')
    half, other = found.pop('half'), found.pop('other half')
    rows = {name: agreement(credit, truth, valid, error) for name, credit in found.items()}
    rows['(one half of the siblings against the other)'] = agreement(half, other, valid, 2 ** 0.5 * error)
    return {'seed': seed, 'iterations': iterations, 'turns': int(valid.sum()), 'methods': rows}


def interval(numbers: Sequence[float]) -> str:
    """Return 'mean ± half of the 95 % interval' of one number per seed."""
    mean, count = np.mean(numbers), len(numbers)
    if count < 2:
        return f'{mean:.2f}'
    return f'{mean:.2f} ± {stats.t.ppf(0.975, count - 1) * np.std(numbers, ddof=1) / count ** 0.5:.2f}'


def page(results: Sequence[Mapping[str, Any]], command: str) -> str:
    """Return the results as a page of tables, one for each number of iterations."""
    parts = ['# Attribution', '',
             f'Agreement of every method of credit with the advantage by {SIBLINGS} siblings of every turn,',
             f'on bargaining; `{command}`.',
             'See benchmarks/attribution.py for the columns.', '']
    for iterations in dict.fromkeys(result['iterations'] for result in results):
        own = [result for result in results if result['iterations'] == iterations]
        rows = {name: [[result['methods'][name][column] for result in own] for column in ('all', 'within', 'sign')]
                for name in own[0]['methods']}
        parts += [f'## After {iterations} iterations of training, {len(own)} seeds', '',
                  '| method | all | within | sign |', '| --- | ---: | ---: | ---: |']
        for name, columns in sorted(rows.items(), key=lambda row: -np.mean(row[1][0])):
            parts.append(f'| {name} | ' + ' | '.join(map(interval, columns)) + ' |')
        parts.append('')
    return '\n'.join(parts)


def main() -> None:
    """Measure all seeds and numbers of iterations; results that the output already has are kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, default=5)
    parser.add_argument('--iterations', default='0,60', help='numbers of training iterations, separated by commas')
    parser.add_argument('--output', type=pathlib.Path, required=True, help='path of the results, without .json and .md')
    args = parser.parse_args()
    file = args.output.with_suffix('.json')
    results = json.loads(file.read_text()) if file.exists() else []
    known = {(result['seed'], result['iterations']) for result in results}
    for iterations in map(int, args.iterations.split(',')):
        for seed in range(args.seeds):
            if (seed, iterations) in known:
                continue
            results.append(measure(seed, iterations))
            write_atomically(file, json.dumps(results, indent=1) + '\n')
            print(f'seed {seed}, {iterations} iterations: {results[-1]["turns"]} turns', flush=True)
    command = f'python -m benchmarks.attribution --seeds={args.seeds} --iterations={args.iterations}'
    write_atomically(args.output.with_suffix('.md'), page(results, command))


if __name__ == '__main__':
    main()
