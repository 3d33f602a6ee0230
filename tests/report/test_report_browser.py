"""The report in a browser: Chromium without a window, driven by Playwright."""

import json
import re
import shutil
import time

from made_runs import CONDITIONS, make_run, record
import numpy as np
import pytest
from test_report import HOSTILE

from epo_jax.report import page as pages

playwright = pytest.importorskip('playwright.sync_api')
pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def browser():
    path = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    if path is None:
        pytest.skip('no Chromium is installed (Debian: apt-get install chromium)')
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=['--no-sandbox'])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, tmp_path):
    """Return a function that opens the report of paths; afterwards, nothing went wrong and nothing was asked for."""
    seen, contexts = [], []

    def visit(paths, address='', **options):
        (tmp_path / 'report.html').write_text(pages.build(list(map(str, paths))), encoding='utf-8')
        contexts.append(browser.new_context(**options))
        tab = contexts[-1].new_page()
        tab.on('console', lambda message: seen.append(message.text))
        tab.on('pageerror', lambda error: seen.append(str(error)))
        tab.on('dialog', lambda dialog: (seen.append('a dialog'), dialog.dismiss()))
        tab.on('request', lambda request: request.url.startswith(('file:', 'data:')) or seen.append(request.url))
        tab.goto((tmp_path / 'report.html').as_uri() + address)
        tab.set_default_timeout(20_000)
        return tab

    yield visit
    for context in contexts:
        context.close()
    assert not seen


def options(tab):
    return tab.locator('#list [role=option]')


def expect_count(tab, number):
    playwright.expect(tab.locator('#count')).to_have_text(re.compile(rf'^{number} of '), timeout=60_000)


def test_filters_search_and_steps(visit, tmp_path):
    make_run(tmp_path / 'run', iterations=3, episodes=4)
    tab = visit([tmp_path / 'run'])
    expect_count(tab, 20)
    form = tab.locator('#filters')
    form.locator('[name=file]').select_option(label='iteration 2')
    expect_count(tab, 4)
    form.locator('button[type=reset]').click()
    form.locator('[name=condition]').select_option(label='none')
    expect_count(tab, 4)
    form.locator('[name=category]').select_option(label='kind 0')
    expect_count(tab, 2)
    form.locator('button[type=reset]').click()
    form.locator('[name=truncated]').select_option('yes')
    expect_count(tab, 0)
    playwright.expect(tab.locator('#reader')).to_contain_text('No episode matches')
    form.locator('button[type=reset]').click()
    scores = [float(text) for text in tab.locator('#list .score').all_inner_texts()]
    form.locator('[name=low]').fill('0.5')
    expect_count(tab, sum(score >= 0.5 for score in scores))
    form.locator('[name=order]').select_option('low')
    playwright.expect(tab.locator('#list .score')).to_have_text(
        sorted((f'{score:g}' for score in scores if score >= 0.5), key=float))
    form.locator('button[type=reset]').click()
    form.locator('[name=search]').fill('strategy policy')  # each of the words is somewhere, but not both
    expect_count(tab, 0)
    form.locator('[name=search]').fill('LINE situation Policy')  # in any order, in any text of the episode
    expect_count(tab, 4)
    form.locator('button[type=reset]').click()
    expect_count(tab, 20)
    options(tab).nth(1).click()
    playwright.expect(tab.locator('.bar')).to_contain_text('1 of 5 of this scenario')
    tab.get_by_role('button', name='Later').click()
    playwright.expect(tab.locator('.bar')).to_contain_text('2 of 5 of this scenario')
    playwright.expect(tab.locator('#reader')).to_contain_text('strategy 2 1 0')
    assert re.search(r'#e5$', tab.url)
    tab.locator('.turn summary').first.click()
    assert len(tab.locator('.tokens').first.locator('span').all()) == 2


def test_two_conditions_side_by_side(visit, tmp_path):
    make_run(tmp_path / 'run')
    tab = visit([tmp_path / 'run'])
    tab.locator('#filters [name=condition]').select_option(label=CONDITIONS[0])
    expect_count(tab, 4)
    options(tab).first.click()
    choice = tab.locator('#beside')
    choice.select_option(label='evaluation · policy · episode 0 (same random keys)')
    playwright.expect(tab.locator('#reader')).to_contain_text('The same scenario and random keys. 0 of 4 turns are the same')
    marked = tab.locator('#reader mark').all_inner_texts()
    assert marked == ['none', 'policy'] * 4  # the conditions are in the strategies, and the lines are the same
    options(tab).nth(2).click()  # the comparison goes on with the next scenario
    playwright.expect(tab.locator('#reader')).to_contain_text('The same scenario and random keys')
    playwright.expect(tab.locator('#reader .situation')).to_have_text('Situation of scenario 2')
    url = tab.url
    assert re.search(r'#e\d+,e\d+$', url)
    again = visit([tmp_path / 'run'], '#' + url.partition('#')[2])
    playwright.expect(again.locator('#reader .situation')).to_have_text('Situation of scenario 2')
    assert again.locator('#reader mark').all_inner_texts() == marked


def test_the_keyboard_is_enough(visit, tmp_path):
    make_run(tmp_path / 'run')
    tab = visit([tmp_path / 'run'])
    expect_count(tab, 20)
    tab.keyboard.press('/')
    assert tab.evaluate('document.activeElement.name') == 'search'
    tab.keyboard.type('situation')
    tab.keyboard.press('Escape')
    assert tab.evaluate('document.activeElement.id') == 'list'
    for _ in range(3):
        tab.keyboard.press('ArrowDown')
    tab.keyboard.press('ArrowUp')
    assert tab.locator('#list [aria-selected=true]').get_attribute('id') == 'option-2'
    assert tab.locator('#list').get_attribute('aria-activedescendant') == 'option-2'
    tab.keyboard.press('End')
    assert tab.locator('#list [aria-selected=true]').get_attribute('id') == 'option-19'
    tab.keyboard.press('[')
    assert tab.locator('#list [aria-selected=true]').get_attribute('id') == 'option-15'
    tab.keyboard.press(']')
    tab.keyboard.press('c')
    assert tab.evaluate('document.activeElement.id') == 'beside'
    tab.keyboard.press('ArrowDown')
    playwright.expect(tab.locator('#reader')).to_contain_text('differing words are underlined')
    plot = tab.locator('.plot').first
    plot.focus()
    playwright.expect(plot.locator('canvas')).to_have_count(1)
    tab.keyboard.press('ArrowRight')
    tab.keyboard.press('ArrowRight')
    playwright.expect(plot.locator('.u-legend .u-value').first).to_have_text('2')
    tab.locator('body').focus()
    reached = set()
    for _ in range(40):
        tab.keyboard.press('Tab')
        reached.add(tab.evaluate('document.activeElement.tagName'))
    assert {'A', 'DIV', 'SUMMARY'} <= reached


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('width', [1280, 390])
def test_the_page_fits_its_window(visit, tmp_path, scheme, width):
    for seed in (0, 1):
        make_run(tmp_path / f'run{seed}', seed=seed)
    tab = visit([tmp_path / 'run0', tmp_path / 'run1'], viewport={'width': width, 'height': 900}, color_scheme=scheme)
    expect_count(tab, 40)
    assert tab.locator('#list').evaluate('list => list.scrollTop') == 0
    assert tab.evaluate('document.documentElement.scrollWidth') <= width
    ground = tab.evaluate("getComputedStyle(document.documentElement).backgroundColor.match(/\\d+/)[0]")
    assert (int(ground) > 128) == (scheme == 'light')
    tab.locator('.plot').first.scroll_into_view_if_needed()
    playwright.expect(tab.locator('.plot canvas').first).to_be_visible()
    tab.locator('.plot .u-over').first.hover()
    playwright.expect(tab.locator('.u-legend').first).to_contain_text(re.compile(r'mean of 2 seeds\s*0\.\d+ \['))


def test_hostile_text_is_shown_as_it_is(visit, tmp_path):
    def hostile(number, scenario, strategies, lines, outcomes, **more):
        made = record(number, scenario, HOSTILE, HOSTILE[::-1], outcomes, **more)
        made['situation'] = made['category'] = HOSTILE[number]
        made['seats'][0]['name'] = HOSTILE[number]
        return made

    make_run(tmp_path / 'run', episodes=len(HOSTILE), make=hostile)
    tab = visit([tmp_path / 'run'])
    shown = json.loads(json.dumps(HOSTILE))
    for n in range(len(HOSTILE)):
        options(tab).nth(n).click()
        found = tab.evaluate("""() => ['.strategy .said', '.line .said', '.situation'].map((selector) =>
            [...document.querySelectorAll('#reader ' + selector)].map((e) => escape(e.textContent)))""")
        expected = [tab.evaluate('texts => texts.map(escape)', [as_sent(text) for text in texts])
                    for texts in (shown, shown[::-1], [shown[n]])]
        same = [[a == b for a, b in zip(x, y, strict=True)] for x, y in zip(found, expected)]
        lone = [['\ud83d' in text for text in texts] for texts in (shown, shown[::-1], [shown[n]])]
        assert [[s or one for s, one in zip(a, b)] for a, b in zip(same, lone)] == [[True] * len(a) for a in same]
    assert tab.evaluate("document.querySelectorAll('img, iframe, #reader script, #reader b b').length") == 0
    assert tab.evaluate("getComputedStyle(document.querySelector('#reader .said')).unicodeBidi") in ('isolate', 'plaintext')


def as_sent(text):
    """Return a text that the driver of the browser can send."""
    return re.sub('[\ud800-\udfff]', '\ufffd', text)


def test_ten_thousand_episodes(visit, tmp_path, capsys):
    rng = np.random.default_rng(0)
    words = np.array([f'word{n}' for n in range(3000)])
    text = lambda count: ' '.join(words[rng.integers(0, 3000, count)])

    def long(number, scenario, strategies, lines, outcomes, **more):
        more.pop('rng', None)
        made = record(number, scenario, [text(15) for _ in range(12)], [text(40) for _ in range(12)], outcomes, **more)
        for seat in made['seats']:
            seat['goal'] = text(50)
        return made

    make_run(tmp_path / 'run', iterations=100, episodes=99, make=long)
    assert sum(path.read_text().count('\n') for path in (tmp_path / 'run' / 'episodes').iterdir()) == 10_098
    began = time.monotonic()
    tab = visit([tmp_path / 'run'])
    expect_count(tab, r'[\d,]+')
    took = time.monotonic() - began
    opened = tab.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    size = (tmp_path / 'report.html').stat().st_size
    with capsys.disabled():
        print(f'\n10,098 episodes: {size / 1e6:.1f} MB, written and opened in {took:.1f} s, opened in {opened / 1e3:.2f} s')
    assert size <= 30e6 and opened < 3000
    every = tab.locator('#count').inner_text()
    tab.locator('#filters [name=search]').fill('word2999 word2998 word2997')  # in about one of a hundred
    playwright.expect(tab.locator('#count')).not_to_have_text(every, timeout=60_000)
    tab.locator('#filters [name=file]').select_option(label='iteration 50')
    tab.locator('#filters [name=search]').fill('')
    playwright.expect(tab.locator('#reader .situation')).to_be_visible()
