"""Workdirs of runs for the tests of the report, written without training."""

import json

import numpy as np

from epo_jax import scores
from epo_jax.config import to_json
from epo_jax.defaults import default_config

CONDITIONS = ('none', 'policy')


def seat(name, outcome, strategist='policy', turns=0, judge=None, rng=None):
    about = {'name': name, 'goal': f'goal of {name}', 'strategist': strategist, 'outcome': outcome,
             'judge': {'by_rule': False, 'rating': None if outcome is None else 10 * outcome} | (judge or {})}
    if turns:
        rng = rng or np.random.default_rng(0)
        sampled = [t for t in range(turns) for _ in range(2)]
        about |= {'reward': [round(float(x), 6) for x in rng.normal(size=turns)],
                  'advantage': [round(float(x), 6) for x in rng.normal(size=turns)],
                  'ids': [7] * 3 + [65 + i for i in range(len(sampled))], 'turn': [-1] * 3 + sampled,
                  'logprob': [0.0] * 3 + [round(-float(x), 6) for x in rng.random(len(sampled))]}
        about['judge']['potential'] = [round(float(x), 6) for x in rng.random(turns + 1)]
    return about


def record(number, scenario, strategies, lines, outcomes=(0.5, 0.25), trained=True, rng=None, **more):
    """An episode in which two seats take turns."""
    turns = [len(strategies[s::2]) if trained else 0 for s in (0, 1)]
    return more | {
        'episode': number, 'scenario': scenario, 'environment': 'sotopia', 'category': f'kind {number % 3}',
        'situation': f'Situation of {scenario}', 'truncated': False, 'failure': None, 'events': ['action/speak'],
        'seats': [seat(name, outcome, turns=count, rng=rng) for name, outcome, count in zip('AB', outcomes, turns)],
        'turns': [{'seat': t % 2, 'strategy': strategy, 'line': line}
                  for t, (strategy, line) in enumerate(zip(strategies, lines))]}


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def make_run(folder, iterations=3, episodes=4, seed=0, evaluation=True, make=record, **config_values):
    """Write the workdir of a training run; return what was written: (metrics, records by file, evaluation)."""
    rng = np.random.default_rng(seed)
    config = default_config('sotopia')
    config.seed, config.iterations, config.model.path = seed, iterations, 'dummy'
    config.update_from_flattened_dict(config_values)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'config.json').write_text(to_json(config))
    metrics = [{'iteration': i, 'outcome/mean': float(rng.random()), 'learner/gradient_norm': float(rng.random()),
                'time/rollout': 1.5, 'own/metric': i * 2, 'reward/process': 'nan' if i == 2 else float(rng.normal())}
               for i in range(1, iterations + 1)]
    write_lines(folder / 'metrics.jsonl', metrics)
    records = {}
    for i in range(1, iterations + 1):
        records[f'iteration_{i:05d}'] = [
            make(n, f'scenario {n}', [f'strategy {i} {n} {t}' for t in range(4)], [f'line {t}' for t in range(4)],
                 tuple(rng.random(2).round(6)), rng=rng) for n in range(episodes)]
    found = None
    if evaluation:
        values = {name: rng.random((episodes, 2)).round(6) * 10 for name in CONDITIONS}
        records['evaluation'] = [
            make(n, f'scenario {n}', [f'{name} {n} {t}' for t in range(4)], [f'same line {t}' for t in range(4)],
                 tuple(values[name][n] / 10), trained=False, condition=name, tested=[0, 1], repetition=0)
            for name in CONDITIONS for n in range(episodes)]
        rows = scores.compare(values, list(range(episodes)), 100, 0)
        found = json.loads(scores.to_json(
            {'key': 'k', 'environment': 'sotopia', 'protocol': {'environment': 'sotopia', 'panel': 'abc'}}, rows, values,
            [f'kind {n % 3}' for n in range(episodes)], {}))
        (folder / 'evaluation.json').write_text(json.dumps(found))
    for name, rows in records.items():
        write_lines(folder / 'episodes' / f'{name}.jsonl', rows)
    return metrics, records, found


def embedded(html):
    """Return what a page embeds: its data and all of its episodes."""
    import lxml.html

    tree = lxml.html.document_fromstring(html.encode('utf-8', 'surrogatepass'), parser=lxml.html.HTMLParser(
        encoding='utf-8', huge_tree=True))
    found = tree.xpath('//script[@type="application/json"]')
    data, *blocks = [json.loads(script.text) for script in found]
    return data, [episode for block in blocks for episode in block]


def column(data, name):
    values = data['index'][name]
    return values if isinstance(values, list) else [values['values'][code] for code in values['codes']]
