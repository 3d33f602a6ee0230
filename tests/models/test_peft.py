"""Adapter files against the PEFT library: reading, writing and merging."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

torch = pytest.importorskip('torch')
peft_library = pytest.importorskip('peft')
import safetensors.torch  # noqa: E402
import transformers  # noqa: E402

from epo_jax.models import peft, weights  # noqa: E402
from epo_jax.models.lora import LoRA  # noqa: E402
from epo_jax.models.transformer import Transformer  # noqa: E402

TOLERANCE = 1e-4  # of the largest logit
IDS = np.random.default_rng(0).integers(0, 211, (2, 24))
CASES = (LoRA(4, 12.0), LoRA(3, 3.0, ('q', 'v')), LoRA(2, 5.0, ('o', 'down')))


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    """A folder with a small Llama whose heads have a total size different from its width."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=211, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=12, intermediate_size=56, max_position_embeddings=128, bos_token_id=0, eos_token_id=1, initializer_range=0.2)
    folder = tmp_path_factory.mktemp('base') / 'model'
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


def adapter_of(lora, config):
    shapes = jax.eval_shape(lambda: lora.init(Transformer(config, stacked=True), jax.random.key(0)))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.asarray(0.2 * rng.normal(size=x.shape), jnp.float32), shapes)


def reference(model):
    with torch.no_grad():
        return model.eval()(torch.tensor(IDS)).logits.numpy()


def ours(config, params):
    model = Transformer(config, stacked=True)

    @jax.jit
    def logits(params):
        hidden, _ = model.apply({'params': params}, IDS, np.broadcast_to(np.arange(IDS.shape[1]), IDS.shape))
        return model.apply({'params': params}, hidden, method='logits')
    return np.asarray(logits(params))


def assert_close(actual, expected):
    assert np.abs(actual - expected).max() <= TOLERANCE * np.abs(expected).max()


def load_base(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize('lora', CASES)
def test_peft_loads_our_files_and_merges_to_the_same_weights(lora, base, tmp_path):
    config, params = weights.load(base, stacked=True)
    adapter = adapter_of(lora, config)
    peft.save(tmp_path / 'adapter', lora, adapter, str(base))
    theirs = peft_library.PeftModel.from_pretrained(load_base(base), tmp_path / 'adapter')
    expected = reference(theirs)
    assert_close(ours(config, lora.join(params, adapter)), expected)
    assert np.abs(expected - ours(config, params)).max() > 0.05 * np.abs(expected).max()

    merged = theirs.merge_and_unload().state_dict()
    weights.save(tmp_path / 'merged', config, lora.merge(params, adapter))
    files = safetensors.numpy.load_file(tmp_path / 'merged' / 'model.safetensors')
    assert set(files) == set(merged)
    for name, x in files.items():
        np.testing.assert_allclose(x, merged[name].numpy(), atol=1e-5, err_msg=name)
    assert_close(reference(load_base(tmp_path / 'merged')), expected)


@pytest.mark.parametrize('lora', CASES)
def test_round_trip(lora, base, tmp_path):
    config, _ = weights.load(base, stacked=True)
    adapter = adapter_of(lora, config)
    peft.save(tmp_path / 'adapter', lora, adapter)
    again, read = peft.load(tmp_path / 'adapter', config)
    assert (again.rank, again.alpha, set(again.targets)) == (lora.rank, lora.alpha, set(lora.targets))
    jax.tree.map(np.testing.assert_array_equal, read, adapter)


def test_files_written_by_peft_can_be_loaded(base, tmp_path):
    torch.manual_seed(1)
    theirs = peft_library.get_peft_model(load_base(base), peft_library.LoraConfig(
        r=4, lora_alpha=10, target_modules=['v_proj', 'q_proj', 'up_proj'], init_lora_weights=False))
    theirs.save_pretrained(tmp_path / 'adapter')
    config, params = weights.load(base, stacked=True)
    lora, adapter = peft.load(tmp_path / 'adapter', config)
    assert lora == LoRA(4, 10.0, ('q', 'v', 'up'))
    assert_close(ours(config, lora.join(params, adapter)), reference(theirs))


@pytest.mark.parametrize('init', [True, False, 'gaussian', 'orthogonal', 'pissa', 'pissa_niter_2', 'olora'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_every_initialization_is_read_as_peft_reads_it_or_refused(init, dtype, base, tmp_path):
    """Some initializations change the base model whenever PEFT loads the adapter."""
    torch.manual_seed(1)
    theirs = peft_library.get_peft_model(load_base(base), peft_library.LoraConfig(
        r=4, lora_alpha=10, target_modules=['v_proj', 'q_proj'], lora_dropout=0.1, init_lora_weights=init))
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if 'lora_' in name:
                p.copy_((p + 0.1 * torch.randn_like(p)).to(dtype))
    theirs.save_pretrained(tmp_path / 'adapter')
    file = tmp_path / 'adapter' / 'adapter_model.safetensors'
    safetensors.torch.save_file(
        {name: x.to(dtype) for name, x in safetensors.torch.load_file(file).items()}, file)
    expected = reference(peft_library.PeftModel.from_pretrained(load_base(base), tmp_path / 'adapter'))
    config, params = weights.load(base, stacked=True)
    try:
        lora, adapter = peft.load(tmp_path / 'adapter', config)
    except weights.WeightsError as error:
        assert f'init_lora_weights {init!r} is not supported' in str(error) and init not in (True, False, 'gaussian')
    else:
        assert_close(ours(config, lora.join(params, adapter)), expected)


def test_pickled_adapters_are_refused(base, tmp_path):
    config, _ = weights.load(base, stacked=True)
    peft.save(tmp_path / 'adapter', CASES[1], adapter_of(CASES[1], config))
    (tmp_path / 'adapter' / 'adapter_model.safetensors').rename(tmp_path / 'adapter' / 'adapter_model.bin')
    with pytest.raises(weights.WeightsError, match='adapter_model.bin: this format is not read'):
        peft.load(tmp_path / 'adapter', config)


def rewrite(folder, change=None, tensors=None):
    file = folder / 'adapter_config.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | (change or {})))
    if tensors:
        file = folder / 'adapter_model.safetensors'
        content = safetensors.numpy.load_file(file)
        tensors(content)
        safetensors.numpy.save_file(content, file)


NAME = 'base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight'


@pytest.mark.parametrize(('change', 'tensors', 'message'), (
    (dict(use_dora=True), None, 'use_dora True is not supported'),
    (dict(use_rslora=True), None, 'use_rslora True is not supported'),
    (dict(key_of_tomorrow={'a': 1}), None, "key_of_tomorrow {'a': 1} is not supported"),
    (dict(layers_pattern='h'), None, "layers_pattern 'h' is not supported"),
    (dict(init_lora_weights='pissa'), None, "init_lora_weights 'pissa' is not supported, because it changes"),
    (dict(init_lora_weights='pissa_niter_4'), None, "init_lora_weights 'pissa_niter_4' is not supported"),
    (dict(init_lora_weights='olora'), None, "init_lora_weights 'olora' is not supported"),
    (dict(init_lora_weights='loftq'), None, "init_lora_weights 'loftq' is not supported"),
    (dict(init_lora_weights='corda'), None, "init_lora_weights 'corda' is not supported"),
    (dict(init_lora_weights=['pissa']), None, "init_lora_weights ['pissa'] is not supported"),
    (dict(target_modules=[3, ['q_proj']]), None, 'target_modules'),
    (dict(target_modules=[]), None, 'target_modules'),
    (dict(r='3'), None, "r must be a whole number from 1 to 2^31 - 1, not '3'"),
    (dict(lora_alpha=float('nan')), None, 'lora_alpha must be a finite number greater than 0, not nan'),
    (dict(lora_alpha=None), None, "the key 'lora_alpha' is missing"),
    (dict(rank_pattern={'q_proj': 8}), None, 'rank_pattern'),
    (dict(bias='all'), None, "bias 'all'"),
    (dict(peft_type='IA3'), None, "peft_type 'IA3'"),
    (dict(target_modules=['q_proj', 'lm_head']), None, 'lm_head'),
    (dict(target_modules='.*proj'), None, "target_modules '.*proj' is not supported; supported are lists"),
    (dict(r=0), None, 'r must be a whole number from 1'),
    (dict(r=4), None, 'expected (4, 32)'),
    (None, lambda x: x[NAME].__setitem__((0, 0), np.inf), f"tensor '{NAME}' contains NaN or infinity"),
    (None, lambda x: x.update({NAME: np.zeros((3, 32), np.int32)}), 'has the unsupported type int32'),
    (None, lambda x: x.pop(NAME), f"missing tensor '{NAME}'"),
    (None, lambda x: x.update(extra=np.zeros(2, np.float32)), "unexpected tensor 'extra'"),
    (None, lambda x: x.update({NAME: np.zeros((3, 31), np.float32)}), 'has shape (3, 31), expected (3, 32)')))
def test_invalid_folders_raise(change, tensors, message, base, tmp_path):
    config, _ = weights.load(base, stacked=True)
    peft.save(tmp_path / 'adapter', CASES[1], adapter_of(CASES[1], config))
    rewrite(tmp_path / 'adapter', change, tensors)
    with pytest.raises(weights.WeightsError) as error:
        peft.load(tmp_path / 'adapter', config)
    assert message in str(error.value) and str(tmp_path) in str(error.value)


def test_missing_files_and_existing_folders_raise(base, tmp_path):
    config, _ = weights.load(base, stacked=True)
    with pytest.raises(weights.WeightsError, match='adapter_config.json'):
        peft.load(tmp_path, config)
    with pytest.raises(weights.WeightsError, match='already exists'):
        peft.save(tmp_path, CASES[0], adapter_of(CASES[0], config))
    with pytest.raises(weights.WeightsError, match='expected q, v'):
        peft.save(tmp_path / 'new', CASES[1], adapter_of(CASES[0], config))
    assert not list(tmp_path.iterdir())
