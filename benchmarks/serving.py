"""Servers of one model on loopback, asked by clients that stream: ours, and that of llama-cpp-python.

Server and clients share a child process. Every client waits for its answer and asks once per run.
"""

import concurrent.futures
import contextlib
import itertools
import json
import socket
import threading
import time
from typing import Any, Callable, Mapping
import urllib.request

from benchmarks import measure
from benchmarks.measure import Contender, Unavailable

WORDS = ('time', 'water', 'house', 'light', 'music', 'river', 'stone', 'paper')


def prompt_text(words: int, number: int) -> str:
    """Return a prompt of about this many tokens that asks for a long answer; prompts of different numbers differ."""
    text = ' '.join(WORDS[(number + i * i) % len(WORDS)] for i in range(max(words - 40, 1)))
    return f'{number}. {text}. Count from 1 to 500, one number on each line, and write nothing else.'


def ask(url: str, model: str, text: str, new: int) -> dict[str, float]:
    """Ask for one answer as a stream; return the seconds to its first text and to its end, and its tokens."""
    body = {'model': model, 'messages': [{'role': 'user', 'content': text}], 'max_tokens': new, 'temperature': 0,
            'stream': True}
    request = urllib.request.Request(
        f'{url}/v1/chat/completions', json.dumps(body).encode(), {'Content-Type': 'application/json'})
    start, first, tokens = time.perf_counter(), 0.0, 0
    with urllib.request.urlopen(request, timeout=600) as response:
        for line in response:
            if not line.startswith(b'data: {'):
                continue
            choices = json.loads(line[6:]).get('choices')
            if choices and choices[0]['delta'].get('content'):
                first = first or time.perf_counter() - start
                tokens += 1  # every number, digit and line break is a piece of text of its own
    return {'first': first, 'seconds': time.perf_counter() - start, 'tokens': tokens}


def contender(url: str, model: str, clients: int, prompt: int, new: int, fresh: bool,
              tokens: Callable[[], int]) -> Contender:
    """Return what asks a server: all clients at once.

    Args:
      url: of the server.
      model: what it is called there.
      clients: their number.
      prompt: about the tokens of a prompt.
      new: largest number of tokens of an answer.
      fresh: whether all prompts are new; otherwise, each client repeats its own.
      tokens: returns the number of tokens that the server has sampled so far, or -1 if it does not tell.
    """
    pool = concurrent.futures.ThreadPoolExecutor(clients)
    numbers = itertools.count()

    def run() -> Mapping[str, float]:
        before, start = tokens(), time.perf_counter()
        chosen = [next(numbers) if fresh else i for i in range(clients)]
        answers = list(pool.map(lambda number: ask(url, model, prompt_text(prompt, number), new), chosen))
        seconds = time.perf_counter() - start
        sampled = sum(answer['tokens'] for answer in answers) if before < 0 else tokens() - before
        return {'first': sum(answer['first'] for answer in answers) / clients, 'tokens': sampled,
                'full': seconds * clients * new / max(sampled, 1)}  # seconds, if no answer were shorter

    return Contender(run, rehearse=True)


def ours(model: str, dtype: str, clients: int, prompt: int, new: int, fresh: bool) -> Contender:
    """Start our server. After each run, the same tokens are decoded without it ('alone', seconds a token)."""
    from benchmarks import models
    from epo_jax.serve import app, loading
    from epo_jax.serve.completions import Completions
    from epo_jax.serve.engine import Engine, Options

    loaded = loading.load(model, '', dtype)
    engine = Engine(loaded.language.sampler(), loaded.language.params, Options(slots=clients))
    completions = Completions(loaded, engine)
    url = start(app.make_app(app.Server(completions, app.Guard()).routes(), completions.close))
    served = contender(url, loaded.name, clients, prompt, new, fresh, lambda: engine.counts['tokens_sampled'])
    alone = models.decode(model, dtype, clients, prompt, new, prompt)

    def run() -> Mapping[str, float]:
        result = served.run()
        alone.prepare()
        begun = time.perf_counter()
        alone.run()
        return dict(result, alone=(time.perf_counter() - begun) / (clients * new))

    return Contender(run, rehearse=True)


def llama_cpp(gguf: str, clients: int, prompt: int, new: int, fresh: bool) -> Contender:
    """Start the server of llama-cpp-python, which answers one request after the other."""
    try:
        from llama_cpp.server.app import create_app
        from llama_cpp.server.settings import ModelSettings, ServerSettings
    except (ImportError, OSError) as error:
        raise Unavailable("llama-cpp-python's server is not installed") from error
    settings = ModelSettings(model=gguf, model_alias='model', n_ctx=2 * prompt + new + 256, n_threads=measure.cores(),
                             n_threads_batch=measure.cores(), verbose=False, type_k=0, type_v=0)
    app: Any = create_app(server_settings=ServerSettings(interrupt_requests=False), model_settings=[settings])
    return contender(start(app), 'model', clients, prompt, new, fresh, lambda: -1)


def start(app: Any) -> str:
    """Serve an application from a thread that ends with the process; return its URL."""
    import uvicorn

    listener = socket.create_server(('127.0.0.1', 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level='error', access_log=False, ws='none'))
    threading.Thread(target=server.run, args=([listener],), daemon=True).start()
    url = f'http://127.0.0.1:{listener.getsockname()[1]}'
    while not server.started:
        time.sleep(0.01)
    with contextlib.suppress(OSError):
        urllib.request.urlopen(f'{url}/v1/models', timeout=10).read()
    return url
