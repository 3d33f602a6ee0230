"""The commands that replay recorded actions and that let a person play in a browser."""

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
from epo_jax.envs.webshop.scripted import buyer
from epo_jax.envs.webshop.variants import find_variant
from epo_jax.runtime.files import read_jsonl
from epo_jax.tools.webshop_play import explain, make_app
from epo_jax.tools.webshop_replay import replay

ROOT = pathlib.Path(__file__).parents[3]
VARIANT = find_variant('webshop-small-synth-15')


def buyer_actions(shop, goal):
    """Return the scripted buyer's actions for a goal."""
    visit, actions = Visit(shop.goals[goal]), []
    while not visit.done:
        actions.append(buyer(shop, visit))
        visit = shop.step(visit, actions[-1])
    return actions


def run_replay(cache, *flags):
    return subprocess.run(
        [sys.executable, '-m', 'epo_jax.tools.webshop_replay', *flags], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {'XDG_CACHE_HOME': str(cache)})


def test_output_rows(small):
    row = replay(small, 0, buyer_actions(small, 0) + ['click[never played]'], 15)
    assert list(row) == ['goal', 'instruction', 'observations', 'available', 'reward', 'reward_parts', 'done']
    assert row['done'] and row['reward'] == 1 and len(row['observations']) == len(row['available'])
    assert row['available'][0] == {'has_search_bar': True, 'clickables': ['search']}
    short = replay(small, 0, ['search[x]'] * 20, 15)
    assert len(short['observations']) == 16 and not short['done']
    assert short['reward'] == 0 and short['reward_parts'] == {}


def test_command_line(small, cache, tmp_path):
    rows = [{'goal': goal, 'actions': buyer_actions(small, goal)} for goal in range(3)]
    (tmp_path / 'actions.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    result = run_replay(cache, '--variant=webshop-small-synth-15', f'--actions={tmp_path}/actions.jsonl',
                        f'--out={tmp_path}/out.jsonl')
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith('webshop-small-synth-15: 3 visits, 3 purchases')
    assert read_jsonl(tmp_path / 'out.jsonl') == [replay(small, row['goal'], row['actions'], 15) for row in rows]


@pytest.mark.parametrize('row, message', [
    ('{"goal": 99999, "actions": []}', 'row 1: there is no goal 99999; the goals of this variant are 0 to'),
    ('{"goal": "1", "actions": []}', 'row 1: goal must be an integer'),
    ('{"goal": 1, "actions": [2]}', 'row 1: actions must be a list of strings'), ('{', 'line 1: not JSON')])
def test_malformed_rows_are_named_and_nothing_is_written(cache, tmp_path, row, message):
    (tmp_path / 'actions.jsonl').write_text(row + '\n')
    result = run_replay(cache, f'--actions={tmp_path}/actions.jsonl', f'--out={tmp_path}/out.jsonl')
    assert result.returncode == 1 and f'actions.jsonl, {message}' in result.stderr
    assert result.stderr.startswith('error: ') and result.stderr.count('\n') == 1
    assert not (tmp_path / 'out.jsonl').exists()


# Playing in a browser


def test_buying_in_the_browser(small):
    client = make_app(small, VARIANT).test_client()
    page = client.get('/goal/0', follow_redirects=True)
    path, goal = page.request.path, small.goals[0]
    assert goal.instruction in page.text and 'name="keywords"' in page.text
    client.post(path, data={'keywords': goal.title})
    page = client.get(path)
    assert goal.asin in page.text and 'Next &gt;' in page.text
    for action in buyer_actions(small, 0)[1:]:
        assert client.post(path, data={'action': action}).status_code == 303
    page = client.get(path)
    assert 'Thank you' in page.text and 'Reward: <strong>1.000</strong>' in page.text and '0.40' in page.text
    client.post(path, data={'action': 'click[back to search]'})  # ignored after the purchase
    assert client.get(path).text == page.text
    assert client.get('/goal/99999').status_code == 404 and client.get('/visit/unknown').status_code == 404


def test_pages_offer_the_same_clicks_as_the_engine(small):
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


def test_explanation_of_the_reward(small):
    parts = replay(small, 0, buyer_actions(small, 0), 15)['reward_parts']
    assert [row['name'] for row in explain(parts)] == ['Product type', 'Attributes', 'Options', 'Price']
    assert explain(parts)[3]['why'] == 'within the limit' and explain({}) == []


def test_play_without_flask_says_what_to_install():
    code = ("import runpy, sys; sys.modules['flask'] = None; sys.argv = ['webshop_play']; "
            "runpy.run_module('epo_jax.tools.webshop_play', run_name='__main__')")
    result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr == "error: this command needs Flask; run pip install flask, or pip install 'epo_jax[play]'\n"


@pytest.mark.slow
def test_in_chromium(small, tmp_path):
    chromium = shutil.which('chromium') or shutil.which('chromium-browser')
    if chromium is None:
        pytest.skip('Chromium is not installed')
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
