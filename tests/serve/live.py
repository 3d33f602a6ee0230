"""Servers on loopback, in threads of the test process."""

import contextlib
import dataclasses
import json
import threading
import time

import jax
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route

from epo_jax.defaults import default_config
from epo_jax.serve import app as application, listening, loading, relay
from epo_jax.serve.completions import Completions
from epo_jax.serve.engine import Engine, Options
from epo_jax.serve.recording import Recorder
from epo_jax.serve.sidecar import Sidecar
from epo_jax.serve.strategist import Strategist, start_engine


def tiny_model():
    """Return the dummy model with weights that make answers differ."""
    found = loading.load('dummy')
    params = jax.tree.map(lambda x: 3 * x, found.language.params)
    return dataclasses.replace(found, language=dataclasses.replace(found.language, params=params))


def tiny_strategist(capacity=2048, max_tokens=8):
    """Return the same model as a strategist that writes short strategies."""
    config = default_config('sotopia')
    config.strategist.update(capacity=capacity, max_tokens=max_tokens)
    return dataclasses.replace(tiny_model(), config=config)


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
def serving_model(loaded, options=Options(slots=4, capacity=512, step=512), key='', limits=application.Limits()):
    """Serve a model; yield its base URL and its engine."""
    engine = Engine(loaded.language.sampler(), loaded.language.params, options)
    completions = Completions(loaded, engine)
    server = application.Server(completions, application.Guard(key, limits))
    with serving(application.make_app(server.routes(), completions.close)) as url:
        yield url, engine


class Upstream:
    """A scripted endpoint: `answer(messages)` is the text of the answer, or an integer status.

    Attributes:
      bodies, headers: those of the requests for chat completions.
    """

    def __init__(self, answer):
        self.answer, self.bodies, self.headers, self.paths = answer, [], [], []

    async def chat(self, request):
        body = await request.body()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        try:
            wanted = json.loads(body)
            said = self.answer(wanted['messages'])
        except (ValueError, TypeError, KeyError):
            wanted, said = {}, 400
        if isinstance(said, int):
            return JSONResponse({'error': {'message': f'status {said}'}}, said, {'X-Reason': 'scripted'})
        if not (isinstance(wanted, dict) and wanted.get('stream')):
            return JSONResponse({'id': 'x', 'object': 'chat.completion', 'created': 1, 'model': 'm', 'choices': [
                {'index': 0, 'message': {'role': 'assistant', 'content': said}, 'finish_reason': 'stop'}]})

        async def events():
            for i, part in enumerate([*said, None]):
                choice = {'index': 0, 'delta': {} if part is None else {'content': part},
                          'finish_reason': None if part else 'stop'}
                yield 'data: ' + json.dumps({'id': 'x', 'object': 'chat.completion.chunk', 'created': 1, 'model': 'm',
                                             'choices': [choice]}) + '\n\n'
            yield 'data: [DONE]\n\n'

        return StreamingResponse(events(), media_type='text/event-stream')

    async def other(self, request):
        self.paths.append(f'{request.method} {request.url.path}?{request.url.query}')
        return PlainTextResponse(f'{request.method} {(await request.body()).decode()}', 203, {'X-Kind': 'other'})

    def app(self):
        return Starlette(routes=[
            Route('/v1/chat/completions', self.chat, methods=['POST']),
            Route('/{path:path}', self.other, methods=['GET', 'POST', 'DELETE'])])


@contextlib.contextmanager
def sidecar(loaded, upstream_url, plan, record=None, key='', upstream_key='', **recording):
    """Serve a side-car; yield its base URL and the side-car."""
    strategist = Strategist(loaded, start_engine(loaded, Options(slots=8, step=2048)), 'general')
    recorder = record and Recorder(record, loaded, 'general', **recording)
    found = Sidecar(strategist, relay.Upstream(upstream_url, upstream_key), plan, application.Guard(key),
                    recorder or None, not key)
    with serving(application.make_app(found.routes(), found.close)) as url:
        yield url, found
