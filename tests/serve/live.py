"""Servers on loopback, in threads of the test process."""

import contextlib
import threading
import time

import jax

from epo_jax.serve import app as application, listening, loading
from epo_jax.serve.completions import Completions
from epo_jax.serve.engine import Engine, Options


def tiny_model():
    """Return the dummy model with weights that make answers differ."""
    import dataclasses
    found = loading.load('dummy')
    params = jax.tree.map(lambda x: 3 * x, found.language.params)
    return dataclasses.replace(found, language=dataclasses.replace(found.language, params=params))


@contextlib.contextmanager
def serving(app):
    """Serve an application; yield its base URL."""
    sockets = listening.bind('127.0.0.1', 0)
    server = listening.make_server(app)
    thread = threading.Thread(target=server.run, args=(sockets,), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield 'http://127.0.0.1:{}'.format(sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(60)


@contextlib.contextmanager
def serving_model(loaded, options=Options(slots=4, capacity=512), key='', limits=application.Limits()):
    """Serve a model; yield its base URL and its engine."""
    engine = Engine(loaded.language.sampler(), loaded.language.params, options)
    server = application.Server(Completions(loaded, engine), key, limits)
    with serving(application.make_app(server.routes(), engine.close)) as url:
        yield url, engine
