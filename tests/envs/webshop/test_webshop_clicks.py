"""Whatever a page offers can be clicked: over generated catalogs, in the engine and through replies."""

import json
import random

import pytest

from epo_jax.envs.webshop.catalog import CatalogError, load_catalog
from epo_jax.envs.webshop.engine import INDEX, ITEM, RESULTS, Shop, Visit
from epo_jax.envs.webshop.goals import load_goals
from epo_jax.envs.webshop.nouns import load_tagger
from epo_jax.envs.webshop.shopping import Scenario, Trip, WebShop

PIECES = ('Red', 'XL', ' l ', '4/5 cm', '/x', 'ÄÖÜ', 'İzmir', 'ΑΣ', 'ß', '尺寸', '[us 10]', 'a]b', '[', '  two  blanks ',
          'line\nfeed', 'search', 'Buy Now', '< Prev', 'Reviews', '"quoted"', '', ' ')
ROW = {'category': 'beauty', 'query': 'soap', 'product_category': 'A › B', 'name': 'Soap', 'full_description': 'Clean.',
       'small_description': ['Good'], 'pricing': '$5'}


def shop_of(folder, rows):
    folder.mkdir()
    (folder / 'products.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows), 'utf-8')
    (folder / 'items_ins_v2.json').write_text(json.dumps({row['asin']: {
        'attributes': ['clean'], 'instruction': 'Find me soap', 'instruction_attributes': ['clean']} for row in rows}))
    catalog = load_catalog(folder, folder / 'cache')
    goals, prices = load_goals(folder, catalog, False, 0)
    return Shop(catalog, prices, goals, load_tagger('words'), show_attributes=True)


def product(rng, number):
    values = lambda: [' '.join(rng.choices(PIECES, k=rng.randrange(1, 3))) for _ in range(rng.randrange(4))]
    options = {name: values() for name in rng.sample(('Color', 'size', 'STYLE', 'GRÖSSE'), 3)}
    own_form = {'options': options}
    official = {'customization_options': {
        name: [{'value': value} for value in values] or None for name, values in options.items()}}
    asin = rng.choice(('B', 'REVIEWS', 'SEARCH', 'FEATURES')) if number < 4 else 'B'
    return ROW | {'asin': f'{asin}{number}' if asin == 'B' else asin} | rng.choice((own_form, official))


@pytest.mark.parametrize('seed', range(30))
def test_whatever_is_offered_can_be_clicked(tmp_path, seed):
    rng = random.Random(seed)
    rows = {row['asin']: row for row in (product(rng, number) for number in range(12))}
    shop = shop_of(tmp_path / 'data', rows.values())
    env, scenario = WebShop(99), Scenario('s', 'train', 'beauty', 'v', shop, 0)
    chosen = 0
    seen, upcoming = set(), [shop.step(Visit(shop.goals[0]), 'search[soap]')]
    while upcoming:
        visit = upcoming.pop()
        key = (visit.page, visit.number, visit.item)
        if visit.page == INDEX or visit.done or key in seen or visit.number > 2:  # a next page is always offered
            continue
        seen.add(key)
        for value in shop.available(visit).clicks:
            for written in (value, value.upper() if value.upper().lower() == value else value):
                after = shop.step(visit, f'click[{written}]')
                assert after.invalid == visit.invalid, value
                state = Trip(scenario, visit)
                state, step = env.step(state, 0, f'Action: click[{written}]')
                assert (state.visit, step.events[0]) == (after, 'action/click'), value
            if visit.page == ITEM and after.page == ITEM:
                assert value in after.options.values()
                chosen += 1
            upcoming.append(after)
        if visit.page == ITEM:  # the page shows what can be clicked
            shown = [piece.strip().lower() for piece in shop.pieces(visit)]
            assert {value.strip() for value in shop.available(visit).clicks} <= set(shown)
        if visit.page == RESULTS:
            assert len(shop.catalog.products) == len(rows)
    assert chosen > 10


def test_both_forms_of_options_are_read_alike(tmp_path):
    values = ['Red', ' 4/5 cm ', '/X', 'a\nb', ' ']
    for form in ({'options': {'Size': values}}, {'customization_options': {'Size': [{'value': v} for v in values]}}):
        item, = shop_of(tmp_path / next(iter(form)), [ROW | {'asin': 'B1'} | form]).catalog.products
        assert item.options == {'size': ('red', '4 | 5 cm', '| x', 'a b')}


@pytest.mark.parametrize('change, message', [
    ({'asin': 'b06y3vldfb'}, 'asin must consist of capital letters'), ({'asin': 'BÄ1'}, 'asin must consist of capital'),
    ({'asin': 'B 1'}, 'asin must consist of'), ({'pricing': [float('nan')]}, 'pricing contains no price: .nan.'),
    ({'pricing': [5.0, float('inf')]}, 'pricing contains no price'), ({'pricing': [-1]}, 'pricing contains no price'),
    ({'pricing': 5}, 'pricing contains no price: 5'), ({'options': {'size': 'XL'}}, 'options must map names to lists'),
    ({'options': ['XL']}, 'options must map names to lists'), ({'small_description': 5}, 'small_description must be'),
    ({'Reviews': ['good']}, 'Reviews must be a list of objects'), ({'Reviews': [{'body': 5}]}, 'Reviews must be')])
def test_rows_that_no_page_can_show_are_refused(tmp_path, change, message):
    with pytest.raises(CatalogError, match=f'products.jsonl, row 2 .*{message}'):
        shop_of(tmp_path / 'data', [ROW | {'asin': 'B1'}, ROW | {'asin': 'B2'} | change])


def test_files_may_begin_with_a_byte_order_mark(tmp_path):
    folder = tmp_path / 'data'
    expected = shop_of(folder, [ROW | {'asin': 'B1'}])
    for file in (folder / 'products.jsonl', folder / 'items_ins_v2.json'):
        file.write_bytes(b'\xef\xbb\xbf' + file.read_bytes())
    catalog = load_catalog(folder, folder / 'cache')
    assert catalog.products == expected.catalog.products
    assert load_goals(folder, catalog, False, 0)[0] == expected.goals
    (folder / 'products.jsonl').rename(folder / 'x')
    (folder / 'items_shuffle.json').write_bytes(b'\xef\xbb\xbf[' + (folder / 'x').read_bytes()[3:] + b']')
    assert load_catalog(folder, folder / 'cache').products == expected.catalog.products
