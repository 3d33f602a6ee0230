"""Our contenders: decoding, prefill and training with the package's public functions. Imported in child processes."""

import math
import pathlib
from typing import Any, Optional

import gguf
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from benchmarks.measure import Contender
from epo_jax.language import find_model
from epo_jax.models import families, sampling, weights
from epo_jax.models.config import ModelConfig
from epo_jax.models.decoder import Decoder
from epo_jax.models.layout import unstack
from epo_jax.rl.learner import Batch, Learner
from epo_jax.text.tokens import Tokens

TURNS = 8  # messages of a training row
ROUND = 128  # session capacities are multiples of this

# Models with random weights, for speed alone; the first two are shaped like Llama 3.2 1B and Llama 3.1 8B.
SHAPES = {
    '1b': ModelConfig(
        vocab_size=128256, width=2048, num_layers=16, num_heads=32, num_kv_heads=8, head_dim=64, mlp_width=8192,
        rope_theta=500000.0, tied=True, max_positions=8192),
    '8b': ModelConfig(
        vocab_size=128256, width=4096, num_layers=32, num_heads=32, num_kv_heads=8, head_dim=128, mlp_width=14336,
        rope_theta=500000.0, tied=False, max_positions=8192),
    'dummy': ModelConfig(  # for trying out the harness
        vocab_size=259, width=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_width=64, tied=True,
        max_positions=8192),
}


def prompt_ids(config: ModelConfig, batch: int, length: int) -> np.ndarray:
    """Return i32[batch, length], the same for every contender."""
    return np.random.default_rng(0).integers(3, config.vocab_size, (batch, length)).astype(np.int32)


def load(model: str, dtype: str, stacked: bool) -> tuple[ModelConfig, Any]:
    """Return (configuration, parameters) of a key of SHAPES (random parameters) or of a path as in `model.path`."""
    if model not in SHAPES:
        return weights.load(find_model(model), jnp.dtype(dtype), stacked)
    config = SHAPES[model]

    @jax.jit
    def init(key):
        params = families.decoder(config, stacked=True).init_params(key)
        return jax.tree.map(lambda x: x.astype(dtype), params if stacked else unstack(params))

    return config, init(jax.random.key(0))


def export(model: str, folder: str) -> dict[str, Any]:
    """Write a model for the peers, in float32, and return its paths.

    Returns:
      {'config': ModelConfig, 'shape': the same as Hugging Face has it, 'folder': for transformers (None for a random
      model: its shape is enough), 'gguf': {'float32': ..., 'as shipped': ...} for llama.cpp, {} where there is no
      GGUF file to start from}.
    """
    if model in SHAPES and model != 'dummy':
        config = SHAPES[model]
        return {'config': config, 'shape': config.to_hf(), 'folder': None, 'gguf': {}}
    config, params = load(model, 'float32', stacked=False)
    target = pathlib.Path(folder) / model.replace('/', '_')
    weights.save(target, config, params)
    files = {}
    if model not in SHAPES and find_model(model).endswith('.gguf'):
        files = {'as shipped': find_model(model), 'float32': str(target / 'float32.gguf')}
        dequantise(files['as shipped'], files['float32'])
    return {'config': config, 'shape': config.to_hf(), 'folder': str(target), 'gguf': files}


def dequantise(source: str, target: str) -> None:
    """Copy a GGUF file with every tensor as float32."""
    reader = gguf.GGUFReader(source)
    fields = {name: field for name, field in reader.fields.items() if not name.startswith('GGUF.')}
    writer = gguf.GGUFWriter(target, fields.pop('general.architecture').contents())
    fields.pop('general.file_type', None)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for name, field in fields.items():
        of_items = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], of_items)
    for tensor in reader.tensors:
        x = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, x.reshape([int(n) for n in reversed(tensor.shape)]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def decode(model: str, dtype: str, batch: int, prompt: int, new: int, chunk: int) -> Contender:
    """Sample `new` tokens at temperature 1 from the whole vocabulary in every row, after a prefilled prompt."""
    config, params = load(model, dtype, stacked=False)
    decoder = families.decoder(config, jnp.dtype(dtype))
    settings = sampling.SamplingConfig(max_tokens=new, min_tokens=new, stop=(2,), temperature=1.0)
    begun = _read(decoder, params, prompt_ids(config, batch, prompt), prompt + new, chunk)()
    keys, live = jax.random.split(jax.random.key(0), batch), jnp.ones(batch, bool)
    copy = jax.jit(lambda session: jax.tree.map(jnp.copy, session))
    generate = jax.jit(
        lambda params, session: sampling.generate(decoder, params, session, keys, live, settings), donate_argnums=1)
    held = {}

    def prepare():
        held['session'] = jax.block_until_ready(copy(begun))

    def run():
        session, message = jax.block_until_ready(generate(params, held.pop('session')))
        if bool(session.overflow.any()) or not (np.asarray(session.length) == prompt + new).all():
            raise ValueError(f'rows of {np.asarray(session.length)} tokens instead of {prompt + new}')

    return Contender(run, prepare, rehearse=True)


def prefill(model: str, dtype: str, batch: int, prompt: int, chunk: int) -> Contender:
    """Prefill `prompt` tokens in every row of an empty session (one more is appended: the pending one)."""
    config, params = load(model, dtype, stacked=False)
    ids = prompt_ids(config, batch, prompt + 1)
    read = _read(families.decoder(config, jnp.dtype(dtype)), params, ids, prompt + 1, chunk)
    return Contender(lambda: {"rows": read().length.shape[0]}, rehearse=True)


def _read(decoder: Decoder, params, ids: np.ndarray, tokens: int, chunk: int):
    """Return a function that prefills ids[B, K] into a new session of capacity `tokens`."""
    batch, length = ids.shape
    capacity = math.ceil((tokens + 1) / ROUND) * ROUND
    prompt = Tokens(jnp.asarray(ids), jnp.full((batch,), length, jnp.int32))

    @jax.jit
    def read(params, prompt):
        return sampling.extend(decoder, params, sampling.open_session(decoder, batch, capacity), prompt, chunk)

    return lambda: jax.block_until_ready(read(params, prompt))


def train(model: str, dtype: str, batch: int, length: int, micro_batch: int, remat: str) -> Contender:
    """Run `Learner.step` on full rows in which all tokens but the first were sampled and take part in the loss.

    Every sample has the memory of the compiled step in bytes ('memory': arguments, temporaries and results that are not
    arguments), that of parameters and optimizer ('state'), and the peak of the process ('peak').
    """
    config, params = load(model, 'float32', stacked=True)
    learner = Learner(
        families.decoder(config, jnp.dtype(dtype), stacked=True, remat=remat), learning_rate=1e-6, total_steps=1000,
        micro_batch=micro_batch)
    rng = np.random.default_rng(0)
    turn = np.tile((np.arange(length) - 1) * TURNS // length, (batch, 1)).astype(np.int32)
    turn[:, 0] = -1
    rows = Batch(
        prompt_ids(config, batch, length), turn, np.zeros((batch, length), np.float32),
        rng.normal(size=(batch, TURNS)).astype(np.float32), np.ones((batch, TURNS), bool))
    held = {'state': jax.block_until_ready(learner.init(params))}
    del params
    state = held['state']
    size = sum(x.nbytes for x in jax.tree.leaves((state.params, state.optimizer)))
    memory = compiled_memory(Learner.step.lower(learner, state, rows).compile())
    del state
    if jax.default_backend() == 'cpu':
        measure.reset_peak_memory()

    def run():
        held['state'], metrics = jax.block_until_ready(learner.step(held.pop('state'), rows))
        if not math.isfinite(float(metrics['loss']) + float(metrics['gradient_norm'])):
            raise FloatingPointError(f'the loss is {metrics["loss"]}, the gradient norm {metrics["gradient_norm"]}')
        return {'memory': memory, 'state': size, 'peak': _peak()}

    return Contender(run, rehearse=True)


def compiled_memory(compiled) -> Optional[int]:
    """Return the bytes that a compiled program needs while it runs, by XLA's analysis."""
    analysis = compiled.memory_analysis()
    return (analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
            + analysis.output_size_in_bytes - analysis.alias_size_in_bytes)


def _peak() -> int:
    if jax.default_backend() == 'cpu':
        return measure.peak_memory()
    return jax.local_devices()[0].memory_stats()['peak_bytes_in_use']
