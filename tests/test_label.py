"""Labeling against an endpoint that fails in every way, and with kills at random moments."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

from fake_endpoint import BAD_ANSWERS, FAILURES, SLOW, pick, serve, strategies_in
import pytest

from epo_jax import label
from epo_jax.data.rows import BadRows, read_rows
from epo_jax.rewards import critical

ROOT = pathlib.Path(__file__).parent.parent


def conversation(n, turns, domain='sotopia'):
    messages = []
    for t in range(turns):
        messages += [{'from': 'human', 'value': f'Row {n}, part {t}: it says "{{" and \u00e9.'},
                     {'from': 'gpt', 'value': f'Strategy: number {t} of row {n}.'}]
    if domain != 'sotopia':
        messages[1]['value'] = 'OK'
    return {'id': n, 'conversations': messages, 'score': n % (11 if domain == 'sotopia' else 2)}


def write(path, rows):
    path.write_text(json.dumps(rows) if path.suffix == '.json' else ''.join(json.dumps(row) + '\n' for row in rows))
    return path


def critical_ones(prompt):
    """Return the strategies that the fake judge selects, a function of the prompt alone."""
    return [i for i in strategies_in(prompt) if pick(f'{prompt} {i}', (True, False, False))]


def honest(prompt, seed):
    """Return the right answer in one of the forms that models use."""
    chosen = critical_ones(prompt)
    plain = json.dumps({'reasoning': 'the turn {3} did it: {"indexes": [99]}', 'indexes': chosen})
    return pick(prompt, (
        plain, f'```json\n{plain}\n```', f'Let me think {{hard}}.\n{plain}\nI hope this helps {{you}}!',
        json.dumps({'reasoning': 'a\nb', 'indexes': list(map(str, chosen))}).replace('\\n', '\n'),
        f'<think>maybe {{"indexes": [1, 2, 3, 4]}}</think>{plain}', json.dumps({'answer': json.loads(plain)})))


def unreliable(prompt, seed):
    """Return the right answer after up to two bad ones, or never for some prompts."""
    bad = pick('times' + prompt, (0, 0, 1, 2, 3))
    if seed >= bad:
        return honest(prompt, seed)
    kind = pick('kind' + prompt, BAD_ANSWERS)
    return {'refusal': None, 'no text': None, 'prose': 'The first strategy was best.',
            'out of range': '{"indexes": [1, 77]}', 'half': '{"reasoning": "and so'}[kind]


def failures(prompt):
    slow = [failure for failure, row in zip(SLOW, ('Row 7,', 'Row 11,')) if row in prompt]
    return slow + [pick(f'failure {i} {prompt}', FAILURES) for i in range(pick('count' + prompt, (0, 1, 1, 2)))]


def arguments(data, out, url, *more):
    return [f'--data={data}', f'--out={out}', '--domain=sotopia', f'--judge={url}', '--backoff=0.01', '--timeout=3', *more]


def check(path, rows):
    """Check that all rows are in order and unchanged except for the judge's label; return how many have no label."""
    labeled = json.loads(path.read_text())
    assert [row['id'] for row in labeled] == [row['id'] for row in rows]
    missing = 0
    for row, raw in zip(labeled, rows):
        assert row['score'] == raw['score']
        assert [m['value'] for m in row['conversations']] == [m['value'] for m in raw['conversations']]
        assert [m['index'] for m in row['conversations']] == list(range(len(raw['conversations'])))
        texts = [message['value'] for message in raw['conversations']]
        prompt = critical.question(texts, raw['score'], critical.wording('sotopia'), range(1, len(texts), 2))
        if pick('times' + prompt, (0, 0, 1, 2, 3)) == 3:
            assert 'location' not in row and row['location_missing']
            missing += 1
        else:
            assert row['location'] == critical_ones(prompt)
    return missing


def test_endpoint_failures_do_not_lose_duplicate_or_mislabel_rows(tmp_path, capsys):
    rows = [conversation(n, 1 + n % 7) for n in range(60)]
    data, out = write(tmp_path / 'raw.json', rows), tmp_path / 'labeled.json'
    before = data.read_bytes()
    with serve(unreliable, failures) as server:
        label.main(arguments(data, out, server.url, '--concurrency=16', '--retries=6'))
        missing = check(out, rows)
        assert 0 < missing < 40 and data.read_bytes() == before
        assert len(server.requests) == len(set(server.requests))  # no answer was paid for twice
        kinds = {failure for prompt, _ in server.requests for failure in failures(prompt)}
        assert kinds == set(FAILURES) | set(SLOW)
        assert f'labeled {60 - missing} of 60 conversations' in capsys.readouterr().out
        asked = len(server.times)
        label.main(arguments(data, out, server.url))  # all answers are saved, so there are no requests
        assert len(server.times) == asked and check(out, rows) == missing


def test_killed_again_and_again_gives_the_same_file(tmp_path):
    rows = [conversation(n, 1 + n % 5) for n in range(120)]
    data = write(tmp_path / 'raw.json', rows)
    with serve(unreliable) as server:
        label.main(arguments(data, tmp_path / 'whole.json', server.url))
    rng, out, kills = random.Random(0), tmp_path / 'killed.json', 0
    with serve(unreliable, delay=0.05) as server:
        command = [sys.executable, '-m', 'epo_jax.label', *arguments(data, out, server.url, '--concurrency=4')]
        start = lambda: subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while kills < 6:
            process = start()
            if kills % 2:  # while it starts
                time.sleep(rng.uniform(0.05, 0.5))
            target = len(server.times) + rng.randrange(1, 20)
            while not kills % 2 and process.poll() is None and len(server.times) < target:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += process.returncode == -signal.SIGKILL
        process = start()
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        # Only requests that were in flight at a kill are repeated.
        assert len(server.requests) - len(set(server.requests)) <= 6 * 4
    assert out.read_bytes() == (tmp_path / 'whole.json').read_bytes()
    check(out, rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        'killed.json', 'killed.json.answers.sqlite', 'raw.json', 'whole.json', 'whole.json.answers.sqlite']


def test_starts_without_jax(tmp_path):
    data = write(tmp_path / 'raw.json', [conversation(0, 2)])
    program = ('import sys; from epo_jax import label; label.main(sys.argv[1:]); '
               'assert not {"jax", "numpy", "transformers"} & set(sys.modules)')
    with serve(honest) as server:
        subprocess.run([sys.executable, '-c', program, *arguments(data, tmp_path / 'out.json', server.url)],
                       cwd=ROOT, check=True, capture_output=True)


def test_the_budget_stops_a_run_and_a_larger_budget_continues_it(tmp_path, capsys):
    rows = [conversation(n, 2) for n in range(30)]
    data, out = write(tmp_path / 'raw.jsonl', rows), tmp_path / 'out.json'
    prices = ['--prices=10,50', '--max_tokens=20', '--concurrency=3']  # an answer costs 100 * 10 + 20 * 50 = $0.002
    with serve(honest) as server:
        with pytest.raises(SystemExit, match='budget of .0.02 '):
            label.main(arguments(data, out, server.url, '--budget=0.02', *prices))
        assert not out.exists() and 0 < 0.002 * len(server.requests) <= 0.02
        label.main(arguments(data, out, server.url, '--budget=1', *prices))
        assert len(server.requests) == 30 == len(set(server.requests))
    assert 'total cost: $0.0600' in capsys.readouterr().out
    assert all('location' in row for row in json.loads(out.read_text()))


def test_equal_conversations_are_paid_for_once(tmp_path):
    rows = [conversation(n % 3, 2) for n in range(12)]
    data, out = write(tmp_path / 'raw.json', rows), tmp_path / 'out.json'
    with serve(honest, delay=0.01) as server:
        label.main(arguments(data, out, server.url))
    assert len(server.requests) == 3 and len(json.loads(out.read_text())) == 12


def test_unanswered_rows_have_no_label_and_are_asked_again(tmp_path, capsys):
    rows = [conversation(n, 2) for n in range(8)]
    data, out = write(tmp_path / 'raw.json', rows), tmp_path / 'out.json'
    fails = lambda prompt: ['500'] * 4 if 'Row 3,' in prompt else ()
    with serve(honest, fails) as server:
        label.main(arguments(data, out, server.url, '--retries=2'))
        row = json.loads(out.read_text())[3]
        assert 'location' not in row and 'HTTP 500' in row['location_missing']
        assert 'the judge did not answer 1 questions; run the command again' in capsys.readouterr().out
        label.main(arguments(data, out, server.url, '--retries=2'))
    assert len(server.requests) == 8 and all('location' in row for row in json.loads(out.read_text()))


@pytest.mark.parametrize('status, message', [('401', 'HTTP 401'), ('404', 'HTTP 404')])
def test_missing_access_stops_at_once(tmp_path, status, message):
    data = write(tmp_path / 'raw.json', [conversation(n, 2) for n in range(50)])
    with serve(honest, lambda prompt: [status] * 9) as server:
        with pytest.raises(SystemExit, match=message):
            label.main(arguments(data, tmp_path / 'out.json', server.url, '--concurrency=2'))
    assert len(server.times) < 10 and not (tmp_path / 'out.json').exists()


def test_a_refused_request_is_not_repeated(tmp_path):
    data, out = write(tmp_path / 'raw.json', [conversation(n, 2) for n in range(4)]), tmp_path / 'out.json'
    refuses = lambda prompt: ['400'] * 99 if 'Row 2,' in prompt else ()
    with serve(honest, refuses) as server:
        label.main(arguments(data, out, server.url, '--attempts=1'))
        label.main(arguments(data, out, server.url, '--attempts=1'))
        assert len(server.times) == 4
    assert 'too long' in json.loads(out.read_text())[2]['location_missing']


def test_endpoint_that_is_down_stops_the_run(tmp_path):
    data = write(tmp_path / 'raw.json', [conversation(n, 2) for n in range(200)])
    with pytest.raises(SystemExit, match='cannot connect to .*127.0.0.1:9/v1: ConnectionRefusedError'):
        label.main(arguments(data, tmp_path / 'out.json', 'http://127.0.0.1:9/v1'))
    with serve(honest, lambda prompt: ['503'] * 9) as server:
        with pytest.raises(SystemExit, match='did not answer 10 requests in succession'):
            label.main(arguments(data, tmp_path / 'out.json', server.url, '--retries=1', '--concurrency=2'))
    assert not (tmp_path / 'out.json').exists()


def test_bad_rows_are_named_or_skipped(tmp_path, capsys):
    rows = [conversation(n, 2) for n in range(4)]
    del rows[2]['score']
    data, out = write(tmp_path / 'raw.json', rows), tmp_path / 'out.json'
    with serve(honest) as server:
        with pytest.raises(SystemExit, match='raw.json, row 3: no score'):
            label.main(arguments(data, out, server.url))
        assert not out.exists()
        label.main(arguments(data, out, server.url, '--skip_bad'))
    assert [row['id'] for row in json.loads(out.read_text())] == [0, 1, 3]
    assert '1 bad rows skipped' in capsys.readouterr().out


def test_the_input_is_never_overwritten(tmp_path):
    data = write(tmp_path / 'raw.json', [conversation(0, 1)])
    with pytest.raises(SystemExit, match='input file'):
        label.main(arguments(data, data, 'http://127.0.0.1:9'))
    os.link(data, tmp_path / 'same.json')
    with pytest.raises(SystemExit, match='input file'):
        label.main(arguments(data, tmp_path / 'same.json', 'http://127.0.0.1:9'))
    with pytest.raises(SystemExit, match='is a directory'):
        label.main(arguments(data, tmp_path, 'http://127.0.0.1:9'))


@pytest.mark.parametrize('cache', ['raw.json', 'raw.sqlite'])
def test_a_file_that_is_not_a_database_is_named(tmp_path, cache):
    (tmp_path / 'raw.sqlite').write_text('no database ' * 100)
    data = write(tmp_path / 'raw.json', [conversation(0, 1)])
    before = data.read_bytes()
    with pytest.raises(SystemExit, match=f'cannot keep the answers in .*/{cache} .*'):
        label.main(arguments(data, tmp_path / 'out.json', 'http://127.0.0.1:9', f'--cache={tmp_path}/{cache}'))
    assert data.read_bytes() == before


@pytest.mark.parametrize('domain', ['webshop', 'alfworld'])
def test_other_domains(tmp_path, domain):
    rows = [conversation(n, 4, domain) for n in range(6)]
    data, out = write(tmp_path / 'raw.json', rows), tmp_path / 'out.jsonl'
    with serve(lambda prompt, seed: json.dumps({'indexes': strategies_in(prompt)[:2]})) as server:
        label.main(['--data', str(data), '--out', str(out), '--domain', domain, '--judge', server.url])
    labeled = [row for _, row in read_rows(out, BadRows(False))]
    assert [row['location'] for row in labeled] == [[3, 5]] * 6  # the canned OK is not a strategy


@pytest.mark.parametrize('flag, message', [
    ('--prices=1', "--prices must be two numbers, .* not '1'"), ('--prices=1,2,3', '--prices must be two numbers'),
    ('--prices=a,b', '--prices must be two numbers'), ('--prices=-1,2', '--prices must be two numbers'),
    ('--prices=nan,2', '--prices must be two numbers'), ('--budget=nan', '--budget must be at least 0; it is nan'),
    ('--budget=-1', '--budget must be at least 0'), ('--budget=1', '--budget needs --prices'),
    ('--timeout=0', '--timeout must be above 0'), ('--concurrency=0', '--concurrency must be at least 1'),
    ('--retries=-1', '--retries must be at least 0'), ('--backoff=inf', '--backoff must be at least 0'),
    ('--header=Authorization: Bearer SECRET', '--header'), ('--body=[]', '--body must be a JSON object'),
    ('--judge=ftp://me:SECRET@host', 'is not an http or https URL'), ('--judge=smollm2', "must be 'local', NAME@URL or a"),
    ('--judge=https://', 'is not an http or https URL'), ('--judge=x@http://host --model=y', 'names the model already')])
def test_flags_that_cannot_be_used_are_refused(tmp_path, flag, message):
    data = write(tmp_path / 'raw.json', [conversation(0, 1)])
    flags = flag.split(' --')
    with pytest.raises(SystemExit, match=message) as error:
        label.main(arguments(data, tmp_path / 'out.json', 'http://127.0.0.1:9', flags[0], *('--' + f for f in flags[1:])))
    assert 'SECRET' not in str(error.value) and 'remote.' not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ['raw.json']


def test_the_judge_is_a_model_at_an_endpoint_with_options(tmp_path, monkeypatch):
    monkeypatch.setenv('AZURE_KEY', 'secret')
    data, out = write(tmp_path / 'raw.json', [conversation(0, 1)]), tmp_path / 'out.json'
    with serve(honest) as server:
        label.main(arguments(data, out, f'a@b@{server.url}?api-version=1', '--header=api-key: $AZURE_KEY',
                             '--body={"seed": null, "temperature": null}'))
        label.main(arguments(data, out, f'{server.url}/?api-version=1', '--model=a@b', '--body={"seed": null, '
                             '"temperature": null}'))
        assert len(server.times) == 1  # the same address
        label.main(arguments(data, out, f'a@b@{server.url}/other'))
        assert len(server.times) == 2  # answers of another address are not taken
    assert server.paths[0] == '/v1/chat/completions?api-version=1' and server.headers[0]['api-key'] == 'secret'
    assert set(server.bodies[0]) == {'model', 'messages', 'max_tokens'} and server.bodies[0]['model'] == 'a@b'


def said(status, message):
    return status, {'error': {'message': message}}, {}


def cut_off(content):
    return 200, {'choices': [{'finish_reason': 'length', 'message': {'content': content}}]}, {}


@pytest.mark.parametrize('failure, reason', [
    (said(402, 'Insufficient Balance'), 'HTTP 402'), (said(400, 'API key not valid.'), 'API key not valid'),
    (said(400, 'Invalid model'), 'Invalid model'), (said(405, 'Method Not Allowed'), 'HTTP 405'),
    ((308, {}, {}), 'redirects'), (said(200, 'insufficient credits'), 'insufficient credits'),
    (said(400, 'odd'), 'odd .5 requests in succession'), (cut_off(None), 'no row is labeled'),
    (cut_off('<think>Perhaps {"indexes": [1]}? No'), 'no row is labeled'),
    (cut_off('{"indexes": [1]} or rather'), 'no row is labeled')])
def test_an_endpoint_that_recovers_is_asked_for_every_row(tmp_path, failure, reason):
    rows = [conversation(n, 2) for n in range(12)]
    data, out = write(tmp_path / 'raw.json', rows), tmp_path / 'out.json'
    with serve(honest) as server:
        server.always = failure
        with pytest.raises(SystemExit, match=reason):
            label.main(arguments(data, out, server.url, '--attempts=2'))
        server.always = None
        label.main(arguments(data, out, server.url))
    assert all('location' in row for row in json.loads(out.read_text()))


@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGINT])
def test_a_stop_keeps_the_answers_and_has_its_own_status(tmp_path, signum):
    rows = [conversation(n, 2) for n in range(40)]
    data, out = write(tmp_path / 'raw.json', rows), tmp_path / 'out.json'
    with serve(honest, delay=0.1) as server:
        command = [sys.executable, '-m', 'epo_jax.label', *arguments(data, out, server.url, '--concurrency=2')]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while len(server.requests) < 3:
            time.sleep(0.01)
        with pytest.raises(SystemExit, match=f'out.json is in use by process {process.pid} on '):
            label.main(arguments(data, out, server.url))
        with pytest.raises(SystemExit, match=f'out.json.answers.sqlite is in use by process {process.pid} on '):
            label.main(arguments(data, tmp_path / 'other.json', server.url, f'--cache={out}.answers.sqlite'))
        process.send_signal(signum)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 75
        assert [line for line in errors.splitlines() if 'label [' not in line] == [
            f'{signum.name}: stopping after the answers in flight; a second signal stops at once',
            'stopped: all answers so far are saved; run the command again to continue']
        asked = len(server.requests)
        assert asked < 40 and not out.exists()
        label.main(arguments(data, out, server.url))
        assert len(server.requests) == 40  # no answer was paid for twice
    assert len(json.loads(out.read_text())) == 40
    assert sorted(path.name for path in tmp_path.iterdir()) == ['out.json', 'out.json.answers.sqlite', 'raw.json']
