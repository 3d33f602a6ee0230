"""A Hugging Face Hub on loopback that serves folders: the parts of its API that `huggingface_hub` needs to download."""

import hashlib
import http.server
import json
import pathlib
import re
import threading
from urllib.parse import unquote, urlsplit

COMMIT = 'c0ffee' * 6 + 'c0de'
TOKEN = 'hf_the_right_token'


class FakeHub:
    """Serves the repositories in `repositories`, a dict from OWNER/NAME to a folder; `gated` ones need TOKEN.

    `requests` lists the method and path of every request. `cut` maps the path of a file to a number of bytes after which
    the connection breaks once.
    """

    def __init__(self):
        self.repositories, self.gated, self.requests, self.cut = {}, set(), [], {}
        self.server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), self._handler())
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f'http://127.0.0.1:{self.server.server_address[1]}'

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def downloaded(self):
        """Return the names of the files whose content was asked for."""
        return {path.partition(f'/resolve/{COMMIT}/')[2] for method, path in self.requests
                if method == 'GET' and '/resolve/' in path}

    def _handler(hub):
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'

            def log_message(self, *args):
                pass

            def do_HEAD(self):
                self.answer(content=False)

            def do_GET(self):
                self.answer(content=True)

            def send(self, status, body=b'', content=True, **headers):
                self.send_response(status)
                for name, value in ({'Content-Length': len(body)} | headers).items():
                    self.send_header(name.replace('_', '-'), str(value))
                self.end_headers()
                if content:
                    self.wfile.write(body)

            def answer(self, content):
                path = unquote(urlsplit(self.path).path)
                hub.requests.append((self.command, path))
                match = (re.fullmatch(r'/api/models/(?P<repo>[^/]+/[^/]+)/(?P<kind>revision|tree)/(?P<rev>.+)', path)
                         or re.fullmatch(r'/(?P<repo>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<kind>.+)', path))
                if not match or match['repo'] not in hub.repositories:
                    return self.send(401, content=content, X_Error_Code='RepoNotFound', X_Error_Message='not found')
                folder = pathlib.Path(hub.repositories[match['repo']])
                if match['rev'] not in ('main', 'v1', 'refs/pr/1', COMMIT):
                    return self.send(404, content=content, X_Error_Code='RevisionNotFound')
                files = sorted(file for file in folder.rglob('*') if file.is_file())
                oid = lambda file: hashlib.sha1(file.read_bytes()).hexdigest()
                if match['kind'] == 'revision':
                    siblings = [{'rfilename': str(file.relative_to(folder))} for file in files]
                    return self.send(200, json.dumps({
                        'id': match['repo'], 'sha': COMMIT, 'siblings': siblings}).encode(), content)
                if match['kind'] == 'tree':
                    return self.send(200, json.dumps([{
                        'type': 'file', 'path': str(file.relative_to(folder)), 'size': file.stat().st_size,
                        'oid': oid(file)} for file in files]).encode(), content)
                if match['repo'] in hub.gated and self.headers.get('Authorization') != f'Bearer {TOKEN}':
                    return self.send(403, content=content, X_Error_Code='GatedRepo', X_Error_Message='restricted')
                file = folder / match['kind']
                if not file.is_file():
                    return self.send(404, content=content, X_Error_Code='EntryNotFound')
                body, status, headers = file.read_bytes(), 200, {'ETag': f'"{oid(file)}"', 'X_Repo_Commit': COMMIT}
                if wanted := re.fullmatch(r'bytes=(\d+)-', self.headers.get('Range', '')):
                    first = int(wanted[1])
                    headers['Content_Range'] = f'bytes {first}-{len(body) - 1}/{len(body)}'
                    body, status = body[first:], 206
                if content and match['kind'] in hub.cut:
                    self.send_response(status)
                    self.send_header('Content-Length', str(len(body)))
                    for name, value in headers.items():
                        self.send_header(name.replace('_', '-'), value)
                    self.end_headers()
                    self.wfile.write(body[:hub.cut.pop(match['kind'])])
                    self.close_connection = True
                    return None
                return self.send(status, body, content, **headers)
        return Handler
