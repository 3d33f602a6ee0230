"""Language models as a whole: tokens against rows of the embedding table, and capacities against the context."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epo_jax import roles
from epo_jax.defaults import default_config
from epo_jax.envs.base import load_domain
from epo_jax.language import capacity_warnings, load_language
from epo_jax.models import weights
from epo_jax.models.weights import WeightsError
from epo_jax.runtime.parallel import make_mesh
from epo_jax.testing import byte_tokenizer, dummy_config, dummy_params


def save_model(folder, **changes):
    config = dataclasses.replace(dummy_config(), **changes)
    shapes = jax.eval_shape(lambda: dummy_params(config, stacked=True))
    weights.save(folder, config, jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes))
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize('rows, enough', [(1, False), (256, False), (258, False), (259, True), (320, True)])
def test_every_token_needs_a_row_of_the_embedding_table(rows, enough, tmp_path):
    """A token that was added to the tokenizer alone would be read as the last row, and could not be drawn."""
    path = save_model(tmp_path / 'model', vocab_size=rows)
    load = lambda: load_language(path, '', jnp.float32, make_mesh((1, 1, 1)))
    if enough:
        assert load().config.vocab_size == rows
        return
    with pytest.raises(WeightsError, match=f'has ids up to 258, but the embedding table has only {rows} rows') as caught:
        load()
    assert path in str(caught.value)


def test_capacities_beyond_the_context_are_reported():
    short = dataclasses.replace(dummy_config(), max_positions=2048)
    assert capacity_warnings({'capacity': (2048, short)}) == []
    assert capacity_warnings({'capacity': (2049, short), 'judge.capacity': (4096, dummy_config())}) == [
        'warning: capacity is 2049 tokens, but the model supports at most 2048']


def test_every_role_is_compared_with_its_own_model(tmp_path):
    config = default_config()
    config.model.path = save_model(tmp_path / 'a', max_positions=2048)
    config.actor.model = save_model(tmp_path / 'b', max_positions=1024)
    config.judge.model = save_model(tmp_path / 'c', max_positions=4096)
    found = roles.build_roles(config, make_mesh((1, 1, 1)), load_domain('sotopia'))
    assert found.warnings == [
        'warning: strategist.capacity is 4096 tokens, but the model supports at most 2048',
        'warning: actor.capacity is 4096 tokens, but the model supports at most 1024']
    config.actor.model = 'echo'
    found = roles.build_roles(config, make_mesh((1, 1, 1)), load_domain('sotopia'))
    assert len(found.warnings) == 1


@pytest.mark.parametrize('stacked', [False, True])
def test_a_model_with_ten_million_layers_is_refused_at_once(stacked, tmp_path):
    path = save_model(tmp_path / 'model')
    file = tmp_path / 'model' / 'config.json'
    file.write_text(file.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 10000000'))
    language = load_language(path, '', jnp.float32, make_mesh((1, 1, 1)), stacked=stacked)
    assert language.config.num_layers == 10 ** 7
    with pytest.raises(WeightsError, match='the model should have 10000000 layers, but the files hold only 20 tensors'):
        language.with_params()
