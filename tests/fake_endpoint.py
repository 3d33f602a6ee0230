"""A fake OpenAI-compatible server that fails as real ones do; its answers depend only on the request."""

import collections
import contextlib
import http.server
import json
import re
import threading
import time
import zlib

FAILURES = ('429', '500', 'hang', 'trickle', 'cut off', 'not json', 'no choices')
BAD_ANSWERS = ('refusal', 'no text', 'prose', 'out of range', 'half')


class FakeEndpoint(http.server.ThreadingHTTPServer):
    """Serves chat completions.

    Attributes:
      answer: (prompt, seed) -> text of the answer, or None for a refusal.
      failures: prompt -> the failures, in order, that come before the answer.
      requests: (prompt, seed) of every request that got an answer; headers, times, bodies: those of every request.
      peak: largest number of concurrent requests.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, answer, failures=lambda prompt: (), delay=0.0, usage=(100, 20)):
        super().__init__(('127.0.0.1', 0), _Handler)
        self.answer, self.failures, self.delay, self.usage = answer, failures, delay, usage
        self.requests, self.headers, self.times, self.bodies = [], [], [], []
        self.seen, self.lock, self.now, self.peak = collections.Counter(), threading.Lock(), 0, 0

    @property
    def url(self):
        return f'http://127.0.0.1:{self.server_address[1]}/v1'

    def handle_error(self, request, client_address):
        """Ignore errors: a test may kill the client."""


@contextlib.contextmanager
def serve(answer, failures=lambda prompt: (), delay=0.0, usage=(100, 20)):
    server = FakeEndpoint(answer, failures, delay, usage)
    thread = threading.Thread(target=lambda: server.serve_forever(0.01), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *args):
        pass

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        prompt, seed = body['messages'][-1]['content'], body['seed']
        with server.lock:
            server.now += 1
            server.peak = max(server.peak, server.now)
            server.headers.append(dict(self.headers))
            server.bodies.append(body)
            server.times.append(time.monotonic())
            turn = server.seen[prompt, seed]
            server.seen[prompt, seed] += 1
        time.sleep(server.delay)
        with server.lock:  # before the answer, since the client may send its next request at once
            server.now -= 1
        failures = server.failures(prompt) if seed == 0 else ()
        if self.path != '/v1/chat/completions':
            self.send(404, b'{"error": {"message": "no such path"}}')
        elif turn < len(failures):
            self.fail(failures[turn])
        else:
            text = server.answer(prompt, seed)
            message = {'role': 'assistant', 'content': text} | ({'refusal': 'I will not'} if text is None else {})
            prompt_tokens, completion_tokens = server.usage
            with server.lock:
                server.requests.append((prompt, seed))
            self.send(200, json.dumps({
                'choices': [{'index': 0, 'message': message, 'finish_reason': 'stop'}],
                'usage': {'prompt_tokens': prompt_tokens, 'completion_tokens': completion_tokens}}).encode())

    def fail(self, failure):
        whole = json.dumps({'choices': [{'message': {'content': '{"indexes": [1]}'}}]}).encode()
        if failure == '429':
            self.send(429, b'{"error": {"message": "slow down"}}', {'Retry-After': '0.02'})
        elif failure == '500':
            self.send(500, b'<html>oops</html>')
        elif failure == 'hang':
            time.sleep(1.0)
        elif failure == 'trickle':  # each byte arrives in time, but the whole body takes too long
            self.send_response(200)
            self.send_header('Content-Length', str(len(whole)))
            self.end_headers()
            with contextlib.suppress(OSError):
                for byte in whole:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    time.sleep(0.05)
        elif failure == 'cut off':
            self.send_response(200)
            self.send_header('Content-Length', str(len(whole) + 10))
            self.end_headers()
            self.wfile.write(whole)
            self.close_connection = True
        elif failure == 'not json':
            self.send(200, whole[:-4])
        elif failure == 'no choices':
            self.send(200, b'{"choices": []}')
        else:  # a status
            self.send(int(failure), b'{"error": {"message": "bad request: too long"}}')
        if failure in ('hang', 'trickle'):
            self.close_connection = True

    def send(self, status, data, headers=()):
        with contextlib.suppress(OSError):
            self.send_response(status)
            self.send_header('Content-Length', str(len(data)))
            for name, value in dict(headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)


def pick(text, options):
    """Choose one of the options as a function of the text."""
    return options[zlib.crc32(text.encode()) % len(options)]


def strategies_in(prompt):
    """Return the bracketed numbers of the strategies in a judge prompt."""
    return [int(number) for number in re.findall(r'^\[(\d+)\] (?:strategy|thought):', prompt, re.MULTILINE)]
