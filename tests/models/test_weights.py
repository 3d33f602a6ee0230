"""Reading and writing checkpoints: round trips, shardings, and invalid folders."""

import dataclasses
import json
import os
import subprocess
import sys
import textwrap

from families import CONFIGS, LLAMA, assert_equal, random_params
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_gguf import write_gguf

from epo_jax.models import weights
from epo_jax.models.layout import unstack
from epo_jax.models.transformer import Transformer
from epo_jax.models.weights import WeightsError
from epo_jax.runtime.errors import InputError
from epo_jax.runtime.parallel import make_mesh, param_shardings


@pytest.fixture
def folder(tmp_path):
    """A saved checkpoint of LLAMA."""
    weights.save(tmp_path / 'model', LLAMA, random_params(LLAMA))
    return tmp_path / 'model'


# Round trips


@pytest.mark.parametrize('name', CONFIGS)
def test_round_trip(name, tmp_path):
    config = CONFIGS[name]
    params = random_params(config)
    weights.save(tmp_path / 'stacked', config, params)
    weights.save(tmp_path / 'unstacked', config, unstack(params), max_file_bytes=30_000)
    assert len(list((tmp_path / 'unstacked').glob('*.safetensors'))) > 3
    assert max(file.stat().st_size for file in (tmp_path / 'unstacked').glob('*.safetensors')) < 35_000
    for path in (tmp_path / 'stacked', tmp_path / 'unstacked'):
        for stacked in (True, False):
            loaded_config, loaded = weights.load(path, stacked=stacked)
            assert loaded_config == config
            assert_equal(loaded, params if stacked else unstack(params))


@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16'])
def test_dtypes(dtype, tmp_path):
    params = random_params(LLAMA, dtype)
    weights.save(tmp_path / 'model', LLAMA, params)
    assert json.loads((tmp_path / 'model' / 'config.json').read_text())['torch_dtype'] == dtype
    assert {str(x.dtype) for x in load_file(tmp_path / 'model' / 'model.safetensors').values()} == {dtype}
    for target in (jnp.float32, jnp.bfloat16):
        _, loaded = weights.load(tmp_path / 'model', dtype=target, stacked=True)
        assert all(x.dtype == target for x in jax.tree.leaves(loaded))
        assert_equal(loaded, jax.tree.map(lambda x: x.astype(target), params))


def test_token_ids_in_config(tmp_path):
    weights.save(tmp_path / 'model', LLAMA, random_params(LLAMA), bos_token_id=5, eos_token_id=7)
    content = json.loads((tmp_path / 'model' / 'config.json').read_text())
    assert content['bos_token_id'] == 5 and content['eos_token_id'] == 7


def test_redundant_tensors_are_ignored(folder):
    """Old checkpoints contain rotary frequencies, and tied ones may contain the embedding table twice."""
    tensors = load_file(folder / 'model.safetensors')
    _, expected = weights.load(folder)
    save_file(tensors | {'model.layers.0.self_attn.rotary_emb.inv_freq': np.ones(8, np.float32)},
              folder / 'model.safetensors')
    assert_equal(weights.load(folder)[1], expected)
    content = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps(content | {'tie_word_embeddings': True}))
    with pytest.raises(WeightsError, match="'lm_head.weight' differs from 'model.embed_tokens.weight'"):
        weights.load(folder)
    save_file(tensors | {'lm_head.weight': tensors['model.embed_tokens.weight']}, folder / 'model.safetensors')
    config, params = weights.load(folder)
    assert config.tied and 'head' not in params


# Shardings


def test_every_parameter_has_its_sharding(folder):
    mesh = make_mesh((1, 1, 1))
    for stacked in (True, False):
        shardings = lambda config: param_shardings(Transformer(config, stacked=stacked), mesh)
        config, params = weights.load(folder, stacked=stacked, shardings=shardings)
        jax.tree.map(lambda x, sharding: np.testing.assert_equal(x.sharding, sharding), params, shardings(config))


def test_sharding_over_four_devices(folder):
    program = textwrap.dedent('''
        import sys, jax, numpy as np
        from jax.sharding import NamedSharding, PartitionSpec
        jax.config.update('jax_platforms', 'cpu')
        jax.config.update('jax_num_cpu_devices', 4)
        from epo_jax.models import weights
        from epo_jax.models.transformer import Transformer
        mesh = jax.make_mesh((2, 2), ('fsdp', 'tensor'), (jax.sharding.AxisType.Auto,) * 2)
        def split_width(path, shape):
            lead = [None] * (path[0] == 'layers')
            axes = ('fsdp', 'tensor') if len(shape) - len(lead) > 1 else ()
            return NamedSharding(mesh, PartitionSpec(*lead, *axes))
        def split_layers(path, shape):
            return NamedSharding(mesh, PartitionSpec('fsdp' if path[0] == 'layers' else None))
        for stacked, sharding_of in ((True, split_width), (True, split_layers), (False, split_width)):
            def shardings(config):
                shapes = jax.eval_shape(Transformer(config, stacked=stacked).init_params, jax.random.key(0))
                return jax.tree_util.tree_map_with_path(
                    lambda path, x: sharding_of(tuple(k.key for k in path), x.shape), shapes)
            _, unsharded = weights.load(sys.argv[1], stacked=stacked)
            _, sharded = weights.load(sys.argv[1], stacked=stacked, shardings=shardings)
            jax.tree.map(np.testing.assert_array_equal, sharded, unsharded)
            for path, x in jax.tree_util.tree_leaves_with_path(sharded):
                assert x.sharding == sharding_of(tuple(k.key for k in path), x.shape), (path, x.sharding)
        print('all parameters are equal')
    ''')
    done = subprocess.run([sys.executable, '-c', program, str(folder)], capture_output=True, text=True,
                          env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)})
    assert 'all parameters are equal' in done.stdout, done.stderr


# Invalid folders


def rewrite(folder, change):
    tensors = load_file(folder / 'model.safetensors')
    change(tensors)
    save_file(tensors, folder / 'model.safetensors')


@pytest.mark.parametrize('change, message', [
    (lambda t: t.pop('model.layers.1.mlp.up_proj.weight'), "missing tensor 'model.layers.1.mlp.up_proj.weight'"),
    (lambda t: t.pop('lm_head.weight'), "missing tensor 'lm_head.weight'"),
    (lambda t: t.update({'model.layers.2.mlp.up_proj.weight': np.ones(3)}), 'unexpected tensor .*layers.2.mlp.up'),
    (lambda t: t.update({'model.norm.weight': np.ones(63, np.float32)}), r'norm.* shape \(63,\), expected \(64,\)'),
    (lambda t: t.update({'model.norm.weight': np.ones(64, np.int8)}), "'model.norm.weight' has the unsupported type I8"),
])
def test_invalid_tensors_raise(change, message, folder):
    rewrite(folder, change)
    with pytest.raises(WeightsError, match=message) as caught:
        weights.load(folder)
    assert str(folder) in str(caught.value)


def test_the_message_lists_at_most_five_missing_tensors(folder):
    rewrite(folder, lambda t: [t.pop(k) for k in list(t) if 'layers.1' in k])
    with pytest.raises(WeightsError, match='and 4 more'):
        weights.load(folder)


@pytest.mark.parametrize('change, message', [
    ({'model_type': 'gemma3'}, "model_type 'gemma3' is not supported"),
    ({'hidden_act': 'gelu'}, "hidden_act 'gelu'"),
    ({'hidden_size': None}, "the key 'hidden_size' is missing"),
    ({'hidden_size': 32}, 'has shape .*, expected'),
    ({'num_hidden_layers': 1}, 'unexpected tensor'),
])
def test_invalid_configs_raise(change, message, folder):
    content = json.loads((folder / 'config.json').read_text()) | change
    content = {k: v for k, v in content.items() if v is not None}
    (folder / 'config.json').write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=message) as caught:
        weights.load(folder)
    assert str(folder) in str(caught.value)


def test_missing_and_damaged_files_raise(folder, tmp_path):
    with pytest.raises(WeightsError, match='neither a folder'):
        weights.load(tmp_path / 'nothing')
    with pytest.raises(WeightsError, match='neither a folder'):
        weights.load(folder / 'model.safetensors')
    complete = (folder / 'model.safetensors').read_bytes()
    for size in (0, 5, 100, len(complete) - 1):
        (folder / 'model.safetensors').write_bytes(complete[:size])
        with pytest.raises(WeightsError, match='model.safetensors: not a safetensors file, or truncated'):
            weights.load(folder)
    (folder / 'model.safetensors').unlink()
    with pytest.raises(WeightsError, match='model.safetensors: no such file'):
        weights.load(folder)
    for content, message in (('{"hidden', 'not JSON'), ('[]', 'not a JSON object')):
        (folder / 'config.json').write_text(content)
        with pytest.raises(WeightsError, match=message):
            weights.load(folder)
    (folder / 'config.json').unlink()
    with pytest.raises(WeightsError, match='config.json: no such file'):
        weights.load(folder)


def test_missing_shards_and_wrong_indices_raise(tmp_path):
    path = tmp_path / 'model'
    weights.save(path, LLAMA, random_params(LLAMA), max_file_bytes=40_000)
    index = path / 'model.safetensors.index.json'
    content = json.loads(index.read_text())
    first, second = sorted(path.glob('*.safetensors'))[:2]
    moved = {name: second.name if file == first.name else file for name, file in content['weight_map'].items()}
    index.write_text(json.dumps({'weight_map': moved}))
    with pytest.raises(WeightsError, match=f'{second.name}: tensor .* is missing'):
        weights.load(path)
    index.write_text('{}')
    with pytest.raises(WeightsError, match='weight_map is missing'):
        weights.load(path)
    index.write_text(json.dumps(content))
    second.unlink()
    with pytest.raises(WeightsError, match=f'{second.name}: no such file'):
        weights.load(path)


# Errors of save


def test_invalid_parameters_are_not_saved(folder, tmp_path):
    params = random_params(LLAMA)
    with pytest.raises(WeightsError, match='already exists'):
        weights.save(folder, LLAMA, params)
    cases = [
        ({k: v for k, v in params.items() if k != 'embed'}, 'missing parameter embed'),
        (params | {'adapter': jnp.zeros(3)}, 'unexpected parameter adapter'),
        (params | {'embed': params['embed'][:-1]}, r'parameter embed is float32\[39, 64\], expected \[40, 64\]'),
        (params | {'embed': params['embed'].astype(jnp.int32)}, 'parameter embed is int32'),
        (unstack(params) | {'layer_2': unstack(params)['layer_1']}, 'unexpected parameter layer_2/'),
    ]
    for wrong, message in cases:
        with pytest.raises(WeightsError, match=message):
            weights.save(tmp_path / 'new', LLAMA, wrong)
    both = dataclasses.replace(LLAMA, qkv_bias=True, qk_norm=True)
    with pytest.raises(WeightsError, match='both qkv_bias and qk_norm'):
        weights.save(tmp_path / 'new', both, random_params(both))
    assert not (tmp_path / 'new').exists()


def test_an_interrupted_save_leaves_no_files(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError('disk full')
    monkeypatch.setattr(weights.safetensors.numpy, 'save_file', fail)
    with pytest.raises(OSError, match='disk full'):
        weights.save(tmp_path / 'model', LLAMA, random_params(LLAMA))
    assert not list(tmp_path.iterdir())


def test_save_into_an_empty_folder(tmp_path):
    weights.save(tmp_path, LLAMA, random_params(LLAMA))
    assert weights.load(tmp_path)[0] == LLAMA


# Folders whose weights are not what they seem


def keep_shards_beside(folder, tmp_path):
    """Write shards of another checkpoint, with their index, into a folder."""
    weights.save(tmp_path / 'sharded', LLAMA, random_params(LLAMA), max_file_bytes=40_000)
    for file in (tmp_path / 'sharded').glob('model*'):
        (folder / file.name).write_bytes(file.read_bytes())


def test_two_checkpoints_in_one_folder_are_refused(folder, tmp_path):
    keep_shards_beside(folder, tmp_path)
    with pytest.raises(WeightsError, match='both model.safetensors and model.safetensors.index.json are here'):
        weights.load(folder)
    (folder / 'model.safetensors.index.json').unlink()
    with pytest.raises(WeightsError, match='model-00001-of-.* belongs to another checkpoint than model.safetensors'):
        weights.load(folder)
    (folder / 'model.safetensors').unlink()
    with pytest.raises(WeightsError, match='index.json: no such file, but it must list the tensors of model-00001-of'):
        weights.load(folder)


def test_an_index_may_list_the_single_file(folder):
    names = load_file(folder / 'model.safetensors')
    (folder / 'model.safetensors.index.json').write_text(
        json.dumps({'weight_map': dict.fromkeys(names, 'model.safetensors')}))
    assert_equal(weights.load(folder, stacked=True)[1], random_params(LLAMA))


@pytest.mark.parametrize('name', ['../model.safetensors', '/etc/passwd', 7, None, ['model.safetensors']])
def test_an_index_names_files_of_its_folder_only(name, folder):
    (folder / 'model.safetensors').rename(folder.parent / 'model.safetensors')
    (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': {'lm_head.weight': name}}))
    with pytest.raises(InputError, match='the values of weight_map must be a list of texts|is not the name of a file in this folder'):
        weights.load(folder)


@pytest.mark.parametrize('name', ['pytorch_model.bin', 'pytorch_model-00001-of-00002.bin', 'consolidated.00.pth'])
def test_pytorch_files_are_refused_with_the_way_to_convert_them(name, folder):
    (folder / 'model.safetensors').rename(folder / name)
    with pytest.raises(WeightsError, match=f'{name}: this format is not read.*save_pretrained'):
        weights.load(folder)


def test_an_adapter_is_not_a_model(folder):
    (folder / 'config.json').rename(folder / 'adapter_config.json')
    with pytest.raises(WeightsError, match='this folder holds an adapter and no model.*lora.init'):
        weights.load(folder)


@pytest.mark.parametrize('tensor', ['qweight', 'weight.absmax', 'weight_scale_inv', 'weight_packed', 'scales'])
def test_quantized_tensors_are_named(tensor, folder):
    rewrite(folder, lambda t: t.update({f'model.layers.0.mlp.up_proj.{tensor}': np.ones(3, np.float32)}))
    with pytest.raises(WeightsError, match=f'up_proj.{tensor}. belongs to quantized weights'):
        weights.load(folder)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('name', ['model.layers.1.mlp.up_proj.weight', 'model.embed_tokens.weight', 'model.norm.weight'])
@pytest.mark.parametrize('stacked', [False, True])
def test_weights_that_are_not_finite_are_refused_by_name(stacked, name, value, folder):
    rewrite(folder, lambda t: t[name].reshape(-1).__setitem__(3, value))
    for dtype in (jnp.float32, jnp.bfloat16):
        with pytest.raises(WeightsError, match=f"tensor '{name}' contains NaN or infinity"):
            weights.load(folder, dtype, stacked)


def test_the_ending_of_a_gguf_file_may_be_in_capitals(tmp_path):
    params = random_params(LLAMA)
    path = write_gguf(tmp_path / 'model.gguf', LLAMA, params)
    assert_equal(weights.load(path.rename(tmp_path / 'MODEL.GGUF'), stacked=True)[1], params)
