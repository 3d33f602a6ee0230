"""What is checked when the models of a run are built."""

import pathlib
import sys

import jax
import pytest
from test_experiment import small_config

from epo_jax.envs.base import load_domain
from epo_jax.models import weights
from epo_jax.rewards.judge import JudgeError
from epo_jax.roles import build_roles
from epo_jax.runtime.errors import InputError
from epo_jax.runtime.parallel import make_mesh
from epo_jax.testing import dummy_config, dummy_params
from epo_jax.text.tokenizer import Lead, load_tokenizer

sys.path.append(str(pathlib.Path(__file__).parent / 'text'))
from sentencepiece_like import TEMPLATES, write_folder  # noqa: E402


@pytest.fixture(scope='module')
def mistral(tmp_path_factory):
    """The folder of a dummy model with a tokenizer and a template of Mistral's kind."""
    folder = tmp_path_factory.mktemp('models') / 'mistral'
    rows = len(load_tokenizer(write_folder(folder / 'text', 'first', None)).get_vocab())
    weights.save(folder / 'model', dummy_config(rows), dummy_params(dummy_config(rows), stacked=True))
    return write_folder(folder / 'model', 'first', TEMPLATES['Mistral 7B v0.2'])


def roles(folder, **changes):
    config = small_config()
    config.model.path = str(folder)
    for key, value in changes.items():
        group, name = key.split('__')
        config[group][name] = value
    return build_roles(config, make_mesh((1, 1, 1), jax.devices()[:1]), load_domain(config.environment.name))


def test_a_judge_is_checked_when_it_is_built(mistral):
    judge = roles(mistral, reward__outcome='judge').judge
    assert judge.chat.user_lead == Lead(' ')
    with pytest.raises(JudgeError, match='capacity of 48 tokens; raise the capacity of the judge'):
        roles(mistral, reward__outcome='judge', judge__capacity=48)
    roles(mistral, reward__outcome='environment', reward__process='none', judge__capacity=48)  # nobody asks it


def test_compiled_runs_refuse_templates_with_spaces_before_messages(mistral):
    with pytest.raises(InputError, match='rollout.compiled: the chat template of .* puts a space before messages'):
        roles(mistral, rollout__compiled=True)
    roles(mistral, rollout__compiled=True, model__chat_template='mistral')
