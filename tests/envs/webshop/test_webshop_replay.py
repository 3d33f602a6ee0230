"""Recorded actions from the command line, and a person's pages in a browser."""

import html
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading

import pytest
from werkzeug.serving import make_server

from epo_jax.envs.webshop.engine import Visit
from epo_jax.envs.webshop.experts import buyer
from epo_jax.envs.webshop.variants import find_variant
from epo_jax.runtime.files import read_jsonl
from epo_jax.tools.webshop_play import explain, make_app
from epo_jax.tools.webshop_replay import replay

ROOT = pathlib.Path(__file__).parents[3]
VARIANT = find_variant('webshop-small-synth-15')


def bought(shop, goal):
    """The scripted buyer's actions."""
    visit, actions = Visit(shop.goals[goal]), []
    while not visit.done:
        actions.append(buyer(shop, visit))
        visit = shop.step(visit, actions[-1])
    return actions


def command(cache, *flags):
    return subprocess.run(
        [sys.executable, '-m', 'epo_jax.tools.webshop_replay', *flags], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {'XDG_CACHE_HOME': str(cache)})


def test_rows(small):
    row = replay(small, 0, bought(small, 0) + ['click[never played]'], 15)
    assert list(row) == ['goal', 'instruction', 'observations', 'available', 'reward', 'reward_parts', 'done']
    assert row['done'] and row['reward'] == 1 and len(row['observations']) == len(row['available'])
    assert row['available'][0] == {'has_search_bar': True, 'clickables': ['search']}
    short = replay(small, 0, ['search[x]'] * 20, 15)
    assert len(short['observations']) == 16 and not short['done']
    assert short['reward'] == 0 and short['reward_parts'] == {}


def test_command_line(small, cache, tmp_path):
    rows = [{'goal': goal, 'actions': bought(small, goal)} for goal in range(3)]
    (tmp_path / 'actions.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    done = command(cache, '--variant=webshop-small-synth-15', f'--actions={tmp_path}/actions.jsonl',
                   f'--out={tmp_path}/out.jsonl')
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('webshop-small-synth-15: 3 visits, 3 purchases')
    assert read_jsonl(tmp_path / 'out.jsonl') == [replay(small, row['goal'], row['actions'], 15) for row in rows]


@pytest.mark.parametrize('row, message', [
    ('{"goal": 99999, "actions": []}', 'row 1: there is no goal 99999: the variant has 0 to'),
    ('{"goal": "1", "actions": []}', 'row 1: goal must be a number'),
    ('{"goal": 1, "actions": [2]}', 'row 1: actions must be a list of texts'), ('{', 'line 1: not JSON')])
def test_wrong_rows_are_named_and_nothing_is_written(cache, tmp_path, row, message):
    (tmp_path / 'actions.jsonl').write_text(row + '\n')
    done = command(cache, f'--actions={tmp_path}/actions.jsonl', f'--out={tmp_path}/out.jsonl')
    assert done.returncode == 1 and f'actions.jsonl, {message}' in done.stderr
    assert not (tmp_path / 'out.jsonl').exists()


# A person's pages


def test_a_person_buys(small):
    client = make_app(small, VARIANT).test_client()
    page = client.get('/goal/0', follow_redirects=True)
    path, goal = page.request.path, small.goals[0]
    assert goal.instruction in page.text and 'name="keywords"' in page.text
    client.post(path, data={'keywords': goal.title})
    page = client.get(path)
    assert goal.asin in page.text and 'Next &gt;' in page.text
    for action in bought(small, 0)[1:]:
        assert client.post(path, data={'action': action}).status_code == 303
    page = client.get(path)
    assert 'Thank you' in page.text and 'Reward: <strong>1.000</strong>' in page.text and '0.40' in page.text
    client.post(path, data={'action': 'click[back to search]'})  # over is over
    assert client.get(path).text == page.text
    assert client.get('/goal/99999').status_code == 404 and client.get('/visit/unknown').status_code == 404


def test_pages_offer_what_the_engine_offers(small):
    client = make_app(small, VARIANT).test_client()
    path, goal = client.get('/goal/3', follow_redirects=True).request.path, small.goals[3]
    visit = Visit(goal)
    for action in (f'search[{goal.query}]', 'click[next >]', 'click[< prev]', 'a product', 'click[reviews]'):
        if action == 'a product':
            action = f'click[{small.available(visit).clicks[2]}]'
        client.post(path, data={'action': action})
        visit = small.step(visit, action)
        shown = html.unescape(client.get(path).text)
        assert all(f'value="click[{click}]"' in shown for click in small.available(visit).clicks)
        assert shown.count('value="click[') == len(small.available(visit).clicks)


def test_the_reward_is_explained(small):
    parts = replay(small, 0, bought(small, 0), 15)['reward_parts']
    assert [row['name'] for row in explain(parts)] == ['Kind of product', 'Attributes', 'Options', 'Price']
    assert explain(parts)[3]['why'] == 'not above the limit' and explain({}) == []


@pytest.mark.slow
def test_in_a_browser(small, tmp_path):
    chromium = shutil.which('chromium') or shutil.which('chromium-browser')
    if chromium is None:
        pytest.skip('there is no Chromium')
    server = make_server('127.0.0.1', 0, make_app(small, VARIANT), threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        client = server.app.test_client()
        path = client.get('/goal/0', follow_redirects=True).request.path
        client.post(path, data={'keywords': small.goals[0].title})
        shown = subprocess.run(
            [chromium, '--headless', '--no-sandbox', '--disable-gpu', f'--user-data-dir={tmp_path}', '--dump-dom',
             f'http://127.0.0.1:{server.port}{path}'], capture_output=True, text=True, timeout=120).stdout
    finally:
        server.shutdown()
    assert small.goals[0].asin in shown and 'What the model sees' in shown
