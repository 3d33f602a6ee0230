"""Listen for clients, with uvicorn."""

import socket

from starlette.applications import Starlette
import uvicorn

from epo_jax.runtime.errors import InputError

HEADERS = 64 * 1024  # bytes of headers after which a connection is closed; see app.Limits for the answer
GRACE = 30           # seconds that answers in progress get when the server stops


def bind(host: str, port: int) -> list[socket.socket]:
    """Return a socket that listens at an address.

    Raises:
      InputError: the address cannot be used.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return [socket.create_server(address, family=family, backlog=2048)]
    except OSError as error:
        raise InputError(f'cannot listen at {host}, port {port}: {error.strerror}; choose another --host or '
                         '--port') from error


def make_server(app: Starlette) -> uvicorn.Server:
    """Return a server of an application."""
    return uvicorn.Server(uvicorn.Config(
        app, http='h11', ws='none', log_level='warning', access_log=False, server_header=False,
        h11_max_incomplete_event_size=HEADERS, timeout_graceful_shutdown=GRACE))


def serve(app: Starlette, sockets: list[socket.socket], what: str) -> None:
    """Serve until SIGTERM or SIGINT arrives, and then finish the answers in progress."""
    host, port = sockets[0].getsockname()[:2]
    print(f'{what} at http://{f"[{host}]" if ":" in host else host}:{port}/v1', flush=True)
    try:
        make_server(app).run(sockets)
    except KeyboardInterrupt:  # uvicorn repeats the signal when everything is finished
        print('stopped', flush=True)
