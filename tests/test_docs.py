"""The documentation is up to date: its examples run, and its generated page matches the code."""

import pathlib
import re

import jax.numpy as jnp
import numpy as np
import pytest

import epo_jax
from epo_jax.rewards.process import METHODS as PROCESS_REWARDS
from epo_jax.rl.aggregation import AGGREGATIONS
from epo_jax.rl.credit import turns
from epo_jax.rl.credit.assign import METHODS
from epo_jax.rl.losses import LOSSES
from epo_jax.runtime.files import read_jsonl
from epo_jax.tools import configuration

ROOT = pathlib.Path(__file__).parents[1]


def examples(page):
    """The Python examples of a page."""
    return re.findall(r'```python\n(.*?)```', (ROOT / page).read_text(encoding='utf-8'), re.DOTALL)


def test_the_page_of_all_keys_is_current():
    assert (ROOT / 'docs' / 'configuration.md').read_text(encoding='utf-8') == configuration.page()


def test_the_environment_of_the_documentation_is_trained_on(tmp_path, monkeypatch):
    source, training = examples('docs/environments.md')[:2]
    assert "default_config('guess')" in training and len(source.splitlines()) <= 40
    (tmp_path / 'guess.py').write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    config = epo_jax.default_config('guess')
    config.iterations = 1
    config.model.path = 'dummy'
    config.strategist.update(capacity=768, max_tokens=8)
    config.actor.update(capacity=768, max_tokens=8)
    config.rollout.update(episodes=4, batch=4, view_tokens=256, chunk=128)
    config.learner.update(batch=4, micro_batch=4)
    config.evaluation.update(episodes=2, conditions=('policy',), bootstrap=20)
    row, = epo_jax.run(config, tmp_path / 'run')
    assert row.scored == 2 and row.missing == 0
    for record in read_jsonl(tmp_path / 'run' / 'episodes' / 'iteration_00001.jsonl'):
        assert not record['failure'] and len(record['turns']) == 6 and record['environment'] == 'GuessNumber'
        assert record['seats'][0]['outcome'] == 0.0 and record['seats'][0]['judge']['by_rule']


def test_the_page_of_methods_lists_all_of_them():
    page = (ROOT / 'docs' / 'credit.md').read_text(encoding='utf-8')
    for name in (*METHODS, *LOSSES, *AGGREGATIONS, *PROCESS_REWARDS):
        assert f'| `{name}` |' in page, name


def test_the_credit_rule_of_the_documentation_is_a_median_of_the_others(monkeypatch):
    source = next(block for block in examples('CONTRIBUTING.md') if 'median_baseline' in block)
    assert len(source.splitlines()) <= 15
    monkeypatch.setattr(turns, 'BASELINES', dict(turns.BASELINES))
    exec(source, vars(turns) | {'jnp': jnp, 'BASELINES': turns.BASELINES})
    random = np.random.default_rng(0)
    value, mask = random.normal(size=(7, 3)), random.random((7, 3)) < 0.7
    group, episode = np.array([0, 0, 0, 1, 1, 1, 2]), np.array([0, 0, 1, 2, 3, 4, 5])
    got = np.asarray(turns.subtracted(value, mask, group, episode, 'median'))
    for n in range(7):
        for t in range(3):
            others = [value[m, t] for m in range(7) if episode[m] != episode[n] and group[m] == group[n] and mask[m, t]]
            assert got[n, t] == pytest.approx(np.median(others) if others else value[n, t], abs=1e-6)


@pytest.mark.parametrize('page', ['README.md', 'CONTRIBUTING.md', *(
    str(page.relative_to(ROOT)) for page in (ROOT / 'docs').glob('*.md'))])
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding='utf-8')
    for link in re.findall(r'\]\(([^)\s]+)\)', text):
        target, _, anchor = link.partition('#')
        if '://' in link:
            continue
        file = (ROOT / page).parent / target if target else ROOT / page
        assert file.exists(), f'{page}: {link}'
        if anchor and file.suffix == '.md':
            headings = re.findall(r'^#+ (.*)$', file.read_text(encoding='utf-8'), re.MULTILINE)
            assert anchor in {re.sub(r'[^\w -]', '', h).strip().lower().replace(' ', '-') for h in headings}, link


def test_the_readme_is_short_and_names_the_two_commands():
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    assert len(text.splitlines()) <= 150
    assert 'bash launch/quickstart.sh' in text and 'bash launch/test.sh' in text
