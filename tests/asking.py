"""Requests to a fake endpoint, and a client whose time passes only when it waits."""

import asyncio

from epo_jax.agents.address import Address
from epo_jax.agents.remote import Remote, RemoteOptions, Request


class Time:
    """A clock that moves only when someone sleeps, and what was printed."""

    def __init__(self):
        self.now, self.sleeps, self.lines = 0.0, [], []

    def clock(self):
        return self.now

    async def sleep(self, seconds):
        self.sleeps.append(seconds)
        await asyncio.sleep(0)
        self.now += seconds

    def remote(self, process=0, processes=1, **options):
        return Remote(RemoteOptions(**options), process, processes, self.lines.append, self.clock, self.sleep)


def echo(prompt, seed):
    return f'{prompt} {seed}'


def ask(server, prompt='hello', seed=0, role='actor', model='m', **more):
    url = server if isinstance(server, str) else server.url
    settings = {'temperature': 0.7, 'max_tokens': 100} | more
    return Request(Address(model, url), role, (('user', prompt),), seed=seed, **settings)


def error_body(message, **more):
    """Return the body of an error."""
    return {'error': {'message': message} | more}
