"""A fake OpenAI-compatible server that misbehaves as real ones do; its answers depend only on the request."""

import collections
import contextlib
import http.server
import json
import re
import socket
import struct
import threading
import time
import zlib

# Temporary failures, after which the same request succeeds.
FAILURES = ('429', '429 with a date', '500', '503', 'reset', 'cut off', 'not json', 'a page', 'no choices', 'choices of null',
            'no message', 'an error in 200', 'an error in the choice', 'not gzip', 'odd content')
SLOW = ('hang', 'trickle')
# Ways to send an answer.
FORMS = ('plain', 'parts', 'parts of text', 'reasoning apart', 'reasoning parts', 'think', 'think begun by the template',
         'created', 'nulls', 'no usage', 'usage of text', 'many fields')
# Ways to send none, with a part of the problem that they are.
LOSSES = {
    'refusal': 'the model refused: I will not', 'refusal in a part': 'the model refused: I will not',
    'filtered': 'content filter', 'empty': 'the answer is empty', 'null': 'the answer is empty',
    'blank': 'the answer is empty', 'no parts': 'the answer is empty', 'only reasoning': 'nothing but reasoning',
    'reasoning cut off': 'nothing but reasoning, cut off', 'unclosed think': 'nothing but reasoning',
    'too long': 'HTTP 400: This model has a maximum context length', 'flagged': 'HTTP 400: content_filter',
    'too large': 'HTTP 413'}
BAD_ANSWERS = ('refusal', 'no text', 'prose', 'out of range', 'half')


class FakeEndpoint(http.server.ThreadingHTTPServer):
    """Serves chat completions.

    Attributes:
      answer: (prompt, seed) -> text of the answer, or None for a refusal.
      failures: prompt -> the failures, in order, that come before the answer to its first seed: one of FAILURES or
        SLOW, a status, or (status, body, headers).
      form: prompt -> one of FORMS or LOSSES, how the answer is sent.
      always: (status, body, headers) of the response to every request, or None.
      refuses: names of parameters that are refused, each in the words of `refusal`.
      refusal: parameter -> (status, body) of its refusal.
      requests: (prompt, seed) of every request that got an answer; headers, times, bodies, paths: those of every request.
      spans: (start, end, body) of every request, without the time that it took to send the answer.
      peak: largest number of concurrent requests.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, answer, failures=lambda prompt: (), delay=0.0, usage=(100, 20), form=lambda prompt: 'plain',
                 refuses=(), refusal=None):
        super().__init__(('127.0.0.1', 0), _Handler)
        self.answer, self.failures, self.delay, self.usage, self.form = answer, failures, delay, usage, form
        self.refuses, self.refusal = refuses, refusal or unsupported
        self.requests, self.headers, self.times, self.bodies, self.paths, self.spans = [], [], [], [], [], []
        self.seen, self.lock, self.now, self.peak = collections.Counter(), threading.Lock(), 0, 0
        self.closing, self.always = threading.Event(), None

    @property
    def url(self):
        return f'http://127.0.0.1:{self.server_address[1]}/v1'

    def handle_error(self, request, client_address):
        """Ignore errors: a test may kill the client."""


@contextlib.contextmanager
def serve(answer, failures=lambda prompt: (), delay=0.0, **settings):
    server = FakeEndpoint(answer, failures, delay, **settings)
    thread = threading.Thread(target=lambda: server.serve_forever(0.01), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()


def unsupported(parameter):
    """Refuse a parameter as OpenAI does."""
    instead = "Use 'max_completion_tokens' instead." if parameter == 'max_tokens' else 'Only the default is supported.'
    return 400, {'error': {'message': f"Unsupported parameter: '{parameter}' is not supported with this model. {instead}",
                           'type': 'invalid_request_error', 'param': parameter, 'code': 'unsupported_parameter'}}


def forbidden(parameter):
    """Refuse a parameter as servers on pydantic do, which repeat the whole request."""
    return 422, {'detail': [{'type': 'extra_forbidden', 'loc': ['body', parameter], 'input': {'seed': 'too long'},
                             'msg': 'Extra inputs are not permitted'}]}


def internal(parameter):
    """Refuse a parameter as llama-cpp-python does."""
    return 500, {'error': {'message': "[{'type': 'literal_error', 'loc': ('body', '%s', 'type'), 'msg': \"Input should be "
                                      "'text' or 'json_object'\"}]" % parameter, 'type': 'internal_server_error',
                           'param': None, 'code': None}}


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    wbufsize = -1  # headers and body leave together; else the kernel delays the body by 40 ms

    def log_message(self, *args):
        pass

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        prompt, seed = body['messages'][-1]['content'], body.get('seed', 0)
        with server.lock:
            server.now += 1
            server.peak = max(server.peak, server.now)
            server.headers.append({name.lower(): value for name, value in self.headers.items()})
            server.paths.append(self.path)
            server.bodies.append(body)
            start = time.monotonic()
            server.times.append(start)
            turn = server.seen[prompt, seed]
            server.seen[prompt, seed] += 1
        time.sleep(server.delay)
        with server.lock:  # before the answer, since the client may send its next request at once
            server.now -= 1
            server.spans.append((start, time.monotonic(), body))
        failures = server.failures(prompt) if seed == 0 else ()
        refused = [parameter for parameter in server.refuses if parameter in body]
        if not self.path.partition('?')[0].endswith('/chat/completions'):
            self.send(404, {'error': {'message': 'no such path'}})
        elif server.always:
            self.send(*server.always)
        elif refused:
            server.seen[prompt, seed] -= 1
            self.send(*server.refusal(refused[0]))
        elif turn < len(failures):
            self.fail(failures[turn])
        else:
            with server.lock:
                server.requests.append((prompt, seed))
            self.send(*self.reply(server.form(prompt), server.answer(prompt, seed)))

    def reply(self, form, text):
        """Return the status and body of an answer."""
        message, finish, status = {'role': 'assistant', 'content': text}, 'stop', 200
        prompt_tokens, completion_tokens = self.server.usage
        usage = {'prompt_tokens': prompt_tokens, 'completion_tokens': completion_tokens}
        part = lambda content: {'type': 'text', 'text': content}
        if form in ('too long', 'flagged', 'too large'):
            error = {'too long': {'message': 'This model has a maximum context length of 9 tokens; temperature 0.5',
                                  'code': 'context_length_exceeded'},
                     'flagged': {'message': 'content_filter: the prompt was flagged'}, 'too large': {}}[form]
            return 413 if form == 'too large' else 400, {'error': error}
        if text is None or form == 'refusal':
            message |= {'content': None, 'refusal': 'I will not'}
        elif form == 'refusal in a part':
            message['content'] = [{'type': 'refusal', 'refusal': 'I will not'}]
        elif form == 'filtered':
            finish = 'content_filter'
        elif form in ('empty', 'null', 'blank', 'no parts'):
            message['content'] = {'empty': '', 'null': None, 'blank': ' \n', 'no parts': []}[form]
        elif form in ('only reasoning', 'reasoning cut off'):
            message |= {'content': None, 'reasoning_content': text}
            finish = 'length' if form == 'reasoning cut off' else 'stop'
        elif form == 'unclosed think':
            message['content'], finish = f'<think>Perhaps {text}', 'length'
        elif form == 'parts':
            message['content'] = [part(text[:3]), part(text[3:]), {'type': 'image_url', 'image_url': None}]
        elif form == 'parts of text':
            message['content'] = [text[:5], text[5:]]
        elif form == 'reasoning apart':
            message |= {'reasoning_content': f'not {text}', 'reasoning': f'not {text}'}
        elif form == 'reasoning parts':
            message['content'] = [{'type': 'thinking', 'thinking': [part('no')]}, part(text)]
        elif form.startswith('think'):
            message['content'] = f'{"<think>" * (form == "think")}not {text}</think>\n{text}'
        elif form == 'created':
            status = 201
        elif form == 'nulls':
            message |= {'refusal': None, 'tool_calls': None, 'reasoning_content': None, 'audio': None}
            usage, finish = {'prompt_tokens': None, 'completion_tokens': None}, None
        elif form in ('no usage', 'usage of text'):
            usage = None if form == 'no usage' else {'prompt_tokens': 'many', 'completion_tokens': -1}
        data = {'id': 'x', 'object': 'chat.completion', 'model': 'm', 'usage': usage,
                'choices': [{'index': 0, 'message': message, 'finish_reason': finish}]}
        if form == 'many fields':
            data |= {'error': None, 'system_fingerprint': None, 'service_tier': 7}
        return status, data

    def fail(self, failure):
        message = {'content': '{"indexes": [1]}'}
        whole = json.dumps({'choices': [{'message': message}]}).encode()
        if isinstance(failure, tuple):
            self.send(*failure)
        elif failure == '429':
            self.send(429, {'error': {'message': 'slow down'}}, {'Retry-After': '0.02'})
        elif failure == '429 with a date':
            self.send(429, {'error': {'message': 'slow down'}}, {'Retry-After': 'Wed, 21 Oct 2015 07:28:00 GMT'})
        elif failure == 'reset':
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
            self.connection.close()
            self.close_connection = True
        elif failure == 'hang':
            self.server.closing.wait(30)
            self.close_connection = True
        elif failure == 'trickle':  # each byte arrives in time, but the whole body takes too long
            self.send_response(200)
            self.send_header('Content-Length', str(len(whole)))
            self.end_headers()
            with contextlib.suppress(OSError):
                for byte in whole:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    if self.server.closing.wait(0.2):
                        break
            self.close_connection = True
        elif failure == 'cut off':
            self.send_response(200)
            self.send_header('Content-Length', str(len(whole) + 10))
            self.end_headers()
            self.wfile.write(whole)
            self.close_connection = True
        elif failure == 'not gzip':
            self.send(200, whole, {'Content-Encoding': 'gzip'})
        elif failure == 'not json':
            self.send(200, whole[:-4])
        elif failure == 'a page':
            self.send(200, b'<html><body>Sign in</body></html>')
        elif failure in ('no choices', 'choices of null', 'no message', 'odd content'):
            choices = {'no choices': [], 'choices of null': None, 'no message': [{'index': 0}],
                       'odd content': [{'message': {'content': 7}}]}[failure]
            self.send(200, {'choices': choices})
        elif failure == 'an error in 200':
            self.send(200, {'error': {'message': 'upstream failed', 'code': 502}})
        elif failure == 'an error in the choice':
            self.send(200, {'choices': [{'message': {'content': 'half'}, 'finish_reason': 'error',
                                         'error': {'message': 'provider lost', 'code': 503}}]})
        else:  # a status
            self.send(int(failure), {'error': {'message': 'bad request: too long'}})

    def send(self, status, data, headers=()):
        data = data if isinstance(data, bytes) else json.dumps(data).encode()
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
