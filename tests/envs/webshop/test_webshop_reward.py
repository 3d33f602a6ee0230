"""The reward against the official formula, restated from web_agent_site/engine/goal.py and computed with thefuzz."""

import dataclasses
import random

import pytest

from epo_jax.envs.webshop import nouns
from epo_jax.envs.webshop.catalog import Product
from epo_jax.envs.webshop.goals import Goal
from epo_jax.envs.webshop.reward import COLORS, options_met, reward, type_reward

fuzz = pytest.importorskip('thefuzz.fuzz')


def official_reward(product, goal, price, options, tagger):
    """Compute the reward step by step as the official functions do, on their names and types."""
    def normalize_color(color_string):
        for color in COLORS:
            if color in color_string:
                return color
        return color_string

    query_match = product['query'] == goal['query']
    bought = [level.strip() for level in product['product_category'].split('›')]
    wanted = [level.strip() for level in goal['product_category'].split('›')]
    category_match = len(set(bought) & set(wanted)) >= 2
    bought_nouns, wanted_nouns = tagger(product['name']), tagger(goal['name'])
    if len(wanted_nouns) == 0:
        title_score = 0.2
    else:
        title_score = len(set(bought_nouns) & set(wanted_nouns)) / len(wanted_nouns)
    r_type = 1.0
    if not (query_match or category_match or title_score > 0.2):
        r_type = 0.5
    if title_score < 0.1:
        r_type = 0.1
    if title_score == 0.0:
        r_type = 0.0

    attribute_matches = 0
    for wanted_attribute in goal['attributes']:
        matched = False
        for own in product['Attributes']:
            if fuzz.token_set_ratio(own, wanted_attribute) > 85:
                attribute_matches += 1
                matched = True
                break
        if not matched and (wanted_attribute in product['Title'].lower()
                            or wanted_attribute in ' '.join(product['BulletPoints']).lower()
                            or wanted_attribute in product['Description'].lower()):
            attribute_matches += 1

    goal_options = goal['goal_options']
    goal_options = goal_options.items() if isinstance(goal_options, dict) else goal_options
    chosen = [normalize_color(option) for option in options.values()]
    option_matches = 0
    for wanted_option in [normalize_color(option) for option in goal_options]:
        for option in chosen:
            if fuzz.token_set_ratio(option, wanted_option) > 85:
                option_matches += 1
                break

    r_price = price <= goal['price_upper']
    total = (attribute_matches + option_matches + r_price) / (len(goal['attributes']) + len(goal['goal_options']) + 1)
    return total * r_type


def as_official(product, goal):
    synthetic = any(isinstance(option, tuple) for option in goal.options)
    return ({'query': product.query, 'product_category': product.product_category, 'name': product.title,
             'Title': product.title, 'Attributes': list(product.attributes), 'BulletPoints': list(product.bullets),
             'Description': product.description},
            {'query': goal.query, 'product_category': goal.product_category, 'name': goal.title,
             'attributes': list(goal.attributes), 'price_upper': goal.price_limit,
             'goal_options': dict(goal.options) if synthetic else list(goal.options)})


def random_cases(shop, count, seed):
    """Yield (product, goal, price, options) with right, wrong and unusual products, options and attributes."""
    rng = random.Random(seed)
    products = shop.catalog.products
    unusual = ("women's blue", 'off-white | navy', 'x-large', 'café noir', '10"', "6' x 9'", '', 'a(b)c', 'dark red 2')
    for _ in range(count):
        goal = rng.choice(shop.goals)
        kind = rng.random()
        if kind < 0.4:
            product = products[shop.catalog.number(goal.asin)]
        elif kind < 0.7:
            product = products[rng.choice(shop.catalog.index.search(goal.query) or [0])]
        else:
            product = rng.choice(products)
        options = {name: rng.choice(values) for name, values in product.options.items() if rng.random() < 0.7}
        if rng.random() < 0.3:
            options |= {name: value for name, value in goal.options if rng.random() < 0.8}
        if rng.random() < 0.2:
            options[rng.choice(('color', 'size', 'other'))] = rng.choice(unusual)
        if rng.random() < 0.3:  # options as in a human goal, and an additional attribute
            goal = dataclasses.replace(
                goal,
                options=tuple(value for _, value in goal.options) + ((rng.choice(unusual),) if kind < 0.5 else ()),
                attributes=goal.attributes + (rng.choice(products).attributes or ('x',))[:1])
        price = rng.choice((goal.price_limit, goal.price_limit + 0.01, rng.uniform(0, 2 * goal.price_limit)))
        yield product, goal, price, options


@pytest.mark.parametrize('shop', ['small', 'official'])
def test_reward_equals_the_official_formula_in_5000_random_cases(shop, request):
    shop, values = request.getfixturevalue(shop), set()
    for product, goal, price, options in random_cases(shop, 5000, 0):
        ours, parts = reward(product, goal, price, options, nouns.words)
        assert ours == official_reward(*as_official(product, goal), price, options, nouns.words)
        weights = sum(parts.get(f'r_{part}', 0) * parts.get(f'w_{part}', 0) for part in ('att', 'option', 'price'))
        assert ours == pytest.approx(parts['r_type'] * weights)
        values.add(ours)
    assert 0.0 in values and 1.0 in values and len(values) > 20


SHOE = Product('A1', 'fashion', "men's shoes", 'Clothing › Men › Shoes', 'Leather Shoe', 'Soft Sole inside',
               ('Rubber outsole',), '$5.0', (5.0,), {}, ('non slip',))
BOOT_GOAL = Goal('A2', 'fashion', "men's boots", 'Leather Boot Pair Sturdy', 'Clothing › Men › Boots', 'i want boots',
                 ('non-slip', 'soft sole', 'waterproof'), (), 10.0)


def test_components_computed_by_hand():
    total, parts = reward(SHOE, BOOT_GOAL, 10.0, {}, nouns.words)
    assert parts == {'r_type': 1.0, 'r_att': 2 / 3, 'w_att': 3 / 4, 'query_match': False, 'category_match': True,
                     'title_score': 0.25, 'r_price': True, 'w_price': 1 / 4}
    assert total == 3 / 4
    assert reward(SHOE, BOOT_GOAL, 10.01, {}, nouns.words)[0] == 2 / 4


@pytest.mark.parametrize('title, category, expected', [
    ('Leather Boot', 'A › B', 1.0),                      # half of the goal's nouns
    ('Leather Hat', 'A › B', 1.0),                       # a quarter, which exceeds 0.2
    ('Silk Hat', 'Clothing › Men › Hats', 0.0),          # none; then the category does not matter
])
def test_type_reward_computed_by_hand(title, category, expected):
    product = dataclasses.replace(SHOE, title=title, product_category=category)
    assert type_reward(product, BOOT_GOAL, nouns.words)['r_type'] == expected


def test_type_reward_is_a_half_or_a_tenth_if_few_nouns_match():
    title = ' '.join(f'noun{chr(97 + i)}' for i in range(20))
    goal = dataclasses.replace(BOOT_GOAL, title=title, product_category='X › Y')
    matching = lambda count: dataclasses.replace(SHOE, title=' '.join(goal.title.split()[:count]))
    rewards = [type_reward(matching(count), goal, nouns.words)['r_type'] for count in (0, 1, 2, 4, 5)]
    assert rewards == [0.0, 0.1, 0.5, 0.5, 1.0]


def test_colors_are_compared_by_their_base_colors():
    assert options_met(['dark navy blue'], ['light blue']) == 1
    assert options_met(['navy'], ['green']) == 0
    assert options_met(['z1 pink'], [('color', 'pink')]) == 1
    assert options_met(['9'], [('size', '9'), ('color', 'red')]) == 1


def test_words_tagger():
    assert nouns.words("Men's T-Shirt with 2 Pockets, 5G Phone Case for the Office") == (
        'men', 't', 'shirt', 'pockets', '5g', 'phone', 'case', 'office')


def test_spacy_tagger_agrees_on_the_target_product_of_every_goal(official):
    pytest.importorskip('spacy')
    try:
        tagger = nouns.load_tagger('spacy')
    except ImportError:
        pytest.skip("spaCy's model is not installed")
    for asin in {goal.asin: None for goal in official.goals}:
        goal = next(goal for goal in official.goals if goal.asin == asin)
        product = official.catalog.products[official.catalog.number(asin)]
        assert type_reward(product, goal, tagger)['r_type'] == type_reward(product, goal, nouns.words)['r_type']


def test_unknown_tagger():
    with pytest.raises(ValueError, match="unknown tagger 'x'; choose one of words, spacy"):
        nouns.load_tagger('x')
