"""Peers on the same work with the same weights: transformers on torch, and llama.cpp. Imported in child processes.

They decode greedily, which is less work than sampling.
"""

import math
from typing import Any, Mapping, Optional

import numpy as np

from benchmarks import measure
from benchmarks.measure import Contender, Unavailable


def prompt_ids(vocab_size: int, batch: int, length: int) -> np.ndarray:
    """Return i64[batch, length], the same ids as `models.prompt_ids`."""
    return np.random.default_rng(0).integers(3, vocab_size, (batch, length))


def load(folder: Optional[str], shape: Mapping[str, Any], dtype: str, device: str):
    """Return (torch, model) of a Hugging Face folder, or with random weights."""
    try:
        import torch
    except ImportError as error:
        raise Unavailable('torch is not installed') from error
    import transformers

    transformers.utils.logging.disable_progress_bar()
    if device != 'cpu' and not torch.cuda.is_available():
        raise Unavailable('torch finds no GPU')
    if folder:
        model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    else:
        with torch.device(device):
            model = transformers.AutoModelForCausalLM.from_config(
                transformers.LlamaConfig(**shape), dtype=getattr(torch, dtype))
    model.generation_config.pad_token_id = 0
    return torch, model.to(device).eval()


def _synchronise(torch, device: str) -> None:
    if device != 'cpu':
        torch.cuda.synchronize()


def transformers_decode(folder: Optional[str], shape: Mapping[str, Any], dtype: str, device: str, batch: int,
                        prompt: int, new: int) -> Contender:
    """Decode `new` tokens greedily in every row with `generate`, after a prompt that is in the cache already."""
    torch, model = load(folder, shape, dtype, device)
    ids = torch.tensor(prompt_ids(shape['vocab_size'], batch, prompt), device=device)
    with torch.inference_mode():
        cache = model.model(ids[:, :-1], use_cache=True).past_key_values

    def prepare():
        cache.crop(prompt - 1 - cache.get_seq_length())  # a negative number removes tokens

    def run():
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), past_key_values=cache, max_new_tokens=new, do_sample=False,
            eos_token_id=None)
        _synchronise(torch, device)
        if tuple(out.shape) != (batch, prompt + new) or cache.get_seq_length() != prompt + new - 1:
            raise ValueError(f'shape {tuple(out.shape)}, {cache.get_seq_length()} tokens in the cache')

    return Contender(run, prepare, rehearse=True)


def transformers_prefill(folder: Optional[str], shape: Mapping[str, Any], dtype: str, device: str, batch: int,
                         prompt: int) -> Contender:
    """Return a function that prefills `prompt` tokens in every row, without logits."""
    torch, model = load(folder, shape, dtype, device)
    ids = torch.tensor(prompt_ids(shape['vocab_size'], batch, prompt), device=device)

    def run():
        with torch.inference_mode():
            model.model(ids, use_cache=True)
        _synchronise(torch, device)

    return Contender(run, rehearse=True)


def transformers_train(folder: Optional[str], shape: Mapping[str, Any], dtype: str, device: str, batch: int,
                       length: int, micro_batch: int) -> Contender:
    """Train with the cross-entropy of every token but the first, gradient clipping and AdamW, on float32 parameters.

    With a dtype other than float32, matrix products run in that dtype (autocast).
    """
    torch, model = load(folder, shape, 'float32', device)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.0)
    ids = torch.tensor(prompt_ids(shape['vocab_size'], batch, length), device=device)
    if device == 'cpu':
        measure.reset_peak_memory()

    def run():
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for part in ids.split(micro_batch):
            with torch.autocast(device, getattr(torch, dtype), enabled=dtype != 'float32'):
                loss = model(input_ids=part, labels=part, use_cache=False).loss * (len(part) / batch)
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        _synchronise(torch, device)
        if not math.isfinite(total):
            raise FloatingPointError(f'the loss is {total}')
        return {'peak': measure.peak_memory() if device == 'cpu' else torch.cuda.max_memory_allocated()}

    return Contender(run, rehearse=True)


class LlamaCpp:
    """A context of llama.cpp with one sequence a row, driven through its C interface.

    Attributes:
      vocab_size: of the model.
    """

    def __init__(self, gguf: str, batch: int, capacity: int):
        """Load a GGUF file, with the cache in float32; raise Unavailable if llama.cpp is not installed."""
        try:
            import llama_cpp
        except (ImportError, OSError) as error:
            raise Unavailable('llama-cpp-python is not installed') from error
        self.api, self.batch = llama_cpp, batch
        self._quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._quiet, None)
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(gguf.encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.n_batch = batch * capacity, batch, batch * capacity
        params.n_threads = params.n_threads_batch = measure.cores()
        params.type_k = params.type_v = 0  # GGML_TYPE_F32
        params.no_perf = True
        self._context = self._model and llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f'llama.cpp cannot open {gguf} for {batch} sequences')
        self._memory = llama_cpp.llama_get_memory(self._context)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))

    def feed(self, ids: np.ndarray, position: int, logits: bool) -> Optional[np.ndarray]:
        """Feed ids[batch, K] from `position` on; with `logits`, return those of each row's last token f32[batch, V]."""
        rows, length = ids.shape
        part = self.api.llama_batch_init(rows * length, 0, 1)
        part.n_tokens = rows * length
        for i, (b, k) in enumerate(np.ndindex(rows, length)):
            part.token[i], part.pos[i] = int(ids[b, k]), position + k
            part.n_seq_id[i], part.seq_id[i][0] = 1, b
            part.logits[i] = logits and k == length - 1
        status = self.api.llama_decode(self._context, part)
        self.api.llama_batch_free(part)
        if status:
            raise RuntimeError(f'llama_decode returned {status}')
        if not logits:
            self.api.llama_synchronize(self._context)
            return None
        at = self.api.llama_get_logits(self._context)  # rows in the order in which they were asked for
        return np.ctypeslib.as_array(at, (rows, self.vocab_size))

    def rewind(self, position: int) -> None:
        """Forget the tokens from `position` on."""
        for b in range(self.batch):
            if not self.api.llama_memory_seq_rm(self._memory, b, position, -1):
                raise RuntimeError('llama.cpp cannot forget part of a sequence')


def llama_cpp_decode(gguf: str, batch: int, prompt: int, new: int) -> Contender:
    """Decode all rows greedily in one batch, after a prompt that is in the cache already."""
    model = LlamaCpp(gguf, batch, _capacity(prompt + new))
    ids = prompt_ids(model.vocab_size, batch, prompt)
    model.feed(ids[:, :-1], 0, logits=False)

    def run():
        last = ids[:, -1:]
        for position in range(prompt - 1, prompt - 1 + new):
            last = model.feed(last, position, logits=True).argmax(axis=1)[:, None]

    return Contender(run, lambda: model.rewind(prompt - 1), rehearse=True)


def llama_cpp_prefill(gguf: str, batch: int, prompt: int) -> Contender:
    """Prefill `prompt` tokens in every row, without logits."""
    model = LlamaCpp(gguf, batch, _capacity(prompt))
    ids = prompt_ids(model.vocab_size, batch, prompt)
    return Contender(lambda: model.feed(ids, 0, logits=False), lambda: model.rewind(0), rehearse=True)


def _capacity(tokens: int) -> int:
    return math.ceil((tokens + 1) / 128) * 128
