"""Products, goals and variants: how the data is read, and which errors are reported."""

import importlib.resources
import json
import random

import numpy as np
import pytest

from epo_jax.envs.webshop.catalog import CatalogError, Product, load_catalog
from epo_jax.envs.webshop.goals import load_goals
from epo_jax.envs.webshop.variants import VARIANTS, load_shop
from epo_jax.tools import webshop_catalog

ROW = {'asin': 'B01', 'category': 'beauty', 'query': ' Soap ', 'product_category': 'A › B', 'name': 'Red Soap',
       'full_description': 'Clean.', 'small_description': ['Good', 'Better'], 'pricing': '$1,005.50$7',
       'customization_options': {'Color': [{'value': ' Red/Blue '}, {'value': 'GREEN', 'image': 'x'}], 'Size': None},
       'images': ['x']}
KNOWN = {'B01': {'attributes': ['long lasting'], 'instruction': 'Find me soap', 'instruction_attributes': ['clean']}}


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / 'data'
    folder.mkdir()

    def write(rows=(ROW,), known=KNOWN, human=None, name='items_shuffle.json'):
        (folder / name).write_text(json.dumps(list(rows)))
        (folder / 'items_ins_v2.json').write_text(json.dumps(known))
        if human is not None:
            (folder / 'items_human_ins.json').write_text(json.dumps(human))
        return folder
    return write


def test_official_row(data, tmp_path):
    catalog = load_catalog(data(), tmp_path / 'cache')
    assert catalog.products == (Product(
        'B01', 'beauty', 'soap', 'A › B', 'Red Soap', 'Clean.', ('Good', 'Better'), '$1005.5 to $7.0',
        (1005.5, 7.0), {'color': ('red | blue', 'green')}, ('long lasting',)),)
    assert catalog.number('B01') == 0 and catalog.number('B02') is None
    assert catalog.index.search('blue soap') == [0] and catalog.index.search('better') == []


@pytest.mark.parametrize('pricing, shown', [
    ('', '$100.0'), (None, '$100.0'), ('$5', '$5.0'), ('$1$2$3', '$1.0 to $2.0')])
def test_price_text(data, tmp_path, pricing, shown):
    assert load_catalog(data([ROW | {'pricing': pricing}]), tmp_path / 'c').products[0].price_text == shown


def test_rows_without_a_valid_new_asin_are_skipped_and_counted(data, tmp_path):
    rows = [ROW, ROW | {'name': 'again'}, ROW | {'asin': 'nan'}, ROW | {'asin': 'B0123456789'}, ROW | {'asin': 'B02'}]
    catalog = load_catalog(data(rows), tmp_path / 'c')
    assert [product.asin for product in catalog.products] == ['B01', 'B02'] and catalog.skipped == 3
    assert catalog.products[1].attributes == ('DUMMY_ATTR',)


def test_second_load_reads_the_cache_unless_the_data_changed(data, tmp_path):
    load_catalog(data(), tmp_path / 'c')
    built = {path: path.stat().st_mtime_ns for path in (tmp_path / 'c').rglob('*.npy')}
    load_catalog(tmp_path / 'data', tmp_path / 'c')
    assert built == {path: path.stat().st_mtime_ns for path in (tmp_path / 'c').rglob('*.npy')}
    assert load_catalog(data([ROW | {'name': 'Blue Soap'}]), tmp_path / 'c').products[0].title == 'Blue Soap'


def test_long_list_is_read_in_chunks(data, tmp_path):
    rows = [ROW | {'asin': f'B{i}', 'full_description': '] , [' * 200} for i in range(1500)]
    catalog = load_catalog(data(rows), tmp_path / 'c')
    assert len(catalog.products) == 1500 and catalog.products[1499].description == '] , [' * 200


@pytest.mark.parametrize('content, message', [
    ('{}', 'expected a JSON list of products'), ('[{"asin": "B01"', 'after row 0: not valid JSON'),
    ('[1]', 'row 1: expected an object'), ('[]', 'contains no products')])
def test_malformed_product_files(data, tmp_path, content, message):
    folder = data()
    (folder / 'items_shuffle.json').write_text(content)
    with pytest.raises(CatalogError, match=f'items_shuffle.json.*{message}'):
        load_catalog(folder, tmp_path / 'c')
    assert not list((tmp_path / 'c').glob('*'))


@pytest.mark.parametrize('change, message', [
    ({'name': 7}, 'row 1 .B01.: name must be a string'), ({'pricing': 'free'}, 'pricing contains no price'),
    ({'customization_options': {'size': [3]}}, 'options must map names to lists'),
    ({'small_description': [None, 4]}, 'small_description must be a string')])
def test_malformed_rows(data, tmp_path, change, message):
    with pytest.raises(CatalogError, match=message):
        load_catalog(data([ROW | change]), tmp_path / 'c')


def test_missing_files_and_folders(data, tmp_path):
    with pytest.raises(CatalogError, match='no such folder'):
        load_catalog(tmp_path / 'nowhere', tmp_path / 'c')
    folder = data()
    (folder / 'items_ins_v2.json').unlink()
    with pytest.raises(CatalogError, match='no file named items_ins_v2'):
        load_catalog(folder, tmp_path / 'c')
    for name in ('items_ins_v2.json', 'items_ins_v2_1000.json'):
        (folder / name).write_text('{}')
    with pytest.raises(CatalogError, match='several files named items_ins_v2'):
        load_catalog(folder, tmp_path / 'c')


# Goals


def test_synthetic_goals_are_all_combinations_of_options(data, tmp_path):
    row = ROW | {'pricing': '$8', 'customization_options': {'size': [{'value': 's'}, {'value': 'm'}],
                                                            'color': [{'value': 'Red'}]}}
    folder = data([row, ROW | {'asin': 'B02'}])
    goals, prices = load_goals(folder, load_catalog(folder, tmp_path / 'c'), False, 0)
    assert sorted(goal.options for goal in goals) == [(('color', 'red'), ('size', size)) for size in 'ms']
    limit = goals[0].price_limit
    assert limit in (20.0, 30.0, 40.0) and prices[0] == 8 and 7 <= prices[1] <= 1005.5
    assert {goal.instruction for goal in goals} == {
        f'Find me soap with color: red, and size: {size}, and price lower than {limit:.2f} dollars' for size in 'sm'}


def test_human_goals(data, tmp_path):
    row = {'instruction': 'i want soap.', 'instruction_attributes': ['clean'], 'instruction_options': ['red']}
    unspecific = row | {'instruction_attributes': []}
    folder = data([ROW | {'pricing': '$985'}], human={'B01': [row, unspecific], 'B09': [row]})
    goal, = load_goals(folder, load_catalog(folder, tmp_path / 'c'), True, 0)[0]
    assert goal.instruction == 'i want soap' and goal.options == ('red',)
    assert goal.price_limit == 1e6  # 990 is the only limit above the price, and a draw needs two


def test_goals_equal_those_of_the_official_engine_seeded_first(data, tmp_path):
    rows = [ROW | {'asin': f'B{i}', 'pricing': f'${i}${i + 5}' if i % 3 else f'${i}.5'} for i in range(1, 30)]
    folder = data(rows, {f'B{i}': KNOWN['B01'] for i in range(1, 30, 2)})
    goals, prices = load_goals(folder, load_catalog(folder, tmp_path / 'c'), False, 5)
    random.seed(5)  # draw in the official engine's order from the global generator
    drawn = [random.uniform(i, i + 5) if i % 3 else i + 0.5 for i in range(1, 30)]
    expected = []
    for i in range(1, 30, 2):
        limit = max(random.sample([10.0 * n for n in range(1, 100) if 10 * n > drawn[i - 1]][:4], 2))
        expected += [(f'B{i}', limit)] * 2
    random.seed(233)
    random.shuffle(expected)
    assert np.array_equal(prices, drawn)
    assert [(goal.asin, goal.price_limit) for goal in goals] == expected


@pytest.mark.parametrize('known, message', [
    ({'B01': 3}, 'expected an object'),
    ({'B01': {'instruction': 3, 'instruction_attributes': ['a']}}, 'instruction must be a string'),
    ({'B01': {'instruction': 'x', 'instruction_attributes': []}}, 'needs at least one entry in instruction_attributes'),
    ({'B01': {'instruction': 'x'}}, 'instruction_attributes must be a list')])
def test_malformed_goals(data, tmp_path, known, message):
    folder = data()
    catalog = load_catalog(folder, tmp_path / 'c')
    data(known=known)
    with pytest.raises(CatalogError, match=f'items_ins_v2.json, B01.*{message}'):
        load_goals(folder, catalog, False, 0)


def test_official_goals(official, official_data, cache):
    assert len(official.goals) == 6910 and len(official.catalog.products) == 1000
    human = load_shop('webshop-1k-human', str(official_data), cache=cache)
    assert len(human.goals) == 13 and all(isinstance(option, str) for goal in human.goals for option in goal.options)


# Variants


def test_unknown_variants_and_data_of_another_variant(data, cache):
    with pytest.raises(ValueError, match="unknown variant 'webshop-2k'; choose one of webshop-small"):
        load_shop('webshop-2k')
    with pytest.raises(CatalogError, match='needs 1000 products, but .* has 1'):
        load_shop('webshop-1k-synth-15', str(data()), cache=cache)
    with pytest.raises(CatalogError, match='needs 12087 goals, but .* has 0'):
        load_shop('webshop-full-human-200', str(data(human={})), cache=cache)
    with pytest.raises(CatalogError, match='uses the packaged catalog, not /.*data'):
        load_shop('webshop-small-synth-15', str(data()), cache=cache)
    with pytest.raises(CatalogError, match='needs data files; pass their folder'):
        load_shop('webshop-1k-human', cache=cache)


def test_catalogs_of_any_size_have_a_variant(data, cache):
    folder = data([ROW | {'asin': f'B{i}'} for i in range(7)], {f'B{i}': KNOWN['B01'] for i in range(7)})
    shop = load_shop('webshop-any-synth-15', str(folder), cache=cache)
    assert len(shop.catalog.products) == 7 and len(shop.goals) == 14


def test_splits():
    train, held_out = VARIANTS['webshop-full-human-200'].splits(12087)
    assert len(train) == 1824 and len(held_out) == 200 and len(set(train) & set(held_out)) == 21
    assert max(*train, *held_out) < 12087
    train, held_out = VARIANTS['webshop-full-human-500'].splits(12087)
    assert (len(train), held_out) == (10587, range(500)) and max(train) == 12086
    train, held_out = VARIANTS['webshop-full-human-epo-500'].splits(12087)
    assert len(train) == 1824 and len(set(held_out)) == 500 and max(held_out) < 12087
    for name in ('webshop-small-synth-15', 'webshop-1k-synth-15', 'webshop-1k-human', 'webshop-full-human-500',
                 'webshop-full-human-epo-500', 'webshop-any-synth-15', 'webshop-any-human-15'):
        train, held_out = (set(goals) for goals in VARIANTS[name].splits(6910))
        assert train and held_out and not train & held_out


def test_packaged_catalog(small, tmp_path):
    products = small.catalog.products
    assert len(products) >= 300 and len({product.category for product in products}) == 5
    assert all(product.attributes and product.options for product in products) and len(small.goals) > 500
    assert webshop_catalog.write_catalog(tmp_path) == len(products)
    packaged = importlib.resources.files('epo_jax.envs.webshop') / 'data'
    for name in ('products.jsonl', 'items_ins_v2.json'):
        assert (tmp_path / name).read_text() == (packaged / name).read_text()
