"""The reward of a purchase: WebShop's official formula (web_agent_site/engine/goal.py) and its components.

    r = r_type * (attributes met + options met + [price <= limit]) / (attributes + options + 1)

r_type, in {0, 0.1, 0.5, 1}, scores whether the product is of the requested type.
"""

from typing import Any, Mapping, Sequence

from rapidfuzz import fuzz, utils

from epo_jax.envs.webshop.catalog import Product
from epo_jax.envs.webshop.goals import Goal
from epo_jax.envs.webshop.nouns import Tagger

_MIN_SIMILARITY = 85  # texts match if their similarity, in [0, 100], exceeds this
_LATIN_1 = {code: None for code in range(128, 256)}

# Base colors. An option is compared by the first of them that it contains.
COLORS = (
    'alabaster apricot aqua ash asphalt azure banana beige black blue blush bordeaux bronze brown burgundy camel '
    'camo caramel champagne charcoal cheetah chestnut chocolate christmas coffee cognac copper coral cranberry cream '
    'crystal dark denim eggplant elephant espresso fuchsia gold granite grape graphite grass gray green grey heather '
    'indigo ivory ivy khaki lavender lemon leopard light lilac lime magenta maroon mauve merlot midnight mint mocha '
    'multicolor mushroom mustard natural navy nude olive orange peach pewter pink plum purple rainbow red rose royal '
    'rust sand sapphire seashell silver skull slate steel stone stonewash sunflower tan taupe teal tiger turquoise '
    'violet walnut wheat white wine yellow').split()


def reward(product: Product, goal: Goal, price: float, options: Mapping[str, str],
           tagger: Tagger) -> tuple[float, dict[str, Any]]:
    """Compute the reward of a purchase.

    Args:
      product: the product that was bought.
      goal: what was asked for.
      price: price of the product in dollars.
      options: option name -> selected value.
      tagger: finds the nouns in product names.

    Returns:
      The reward, in [0, 1], and its components under the official engine's names: scores r_* and their weights w_*.
      The option components are absent if the goal has no options.
    """
    kind = type_reward(product, goal, tagger)
    attributes = attributes_met(product, goal.attributes)
    chosen = options_met(tuple(options.values()), goal.options)
    within_limit = price <= goal.price_limit
    total = len(goal.attributes) + len(goal.options) + 1
    parts = {'r_type': kind['r_type'], 'r_att': attributes / len(goal.attributes),
             'w_att': len(goal.attributes) / total, 'query_match': kind['query_match'],
             'category_match': kind['category_match'], 'title_score': kind['title_score']}
    if goal.options:
        parts |= {'r_option': chosen / len(goal.options), 'w_option': len(goal.options) / total}
    parts |= {'r_price': within_limit, 'w_price': 1 / total}
    return (attributes + chosen + within_limit) / total * kind['r_type'], parts


def type_reward(product: Product, goal: Goal, tagger: Tagger) -> dict[str, Any]:
    """Return r_type and what determines it: query_match, category_match and title_score."""
    query_match = product.query == goal.query
    category_match = len(_levels(product.product_category) & _levels(goal.product_category)) >= 2
    wanted = tagger(goal.title)
    # As in the official formula, shared nouns count once, but repeated nouns of the goal's title count repeatedly.
    title_score = len(set(tagger(product.title)) & set(wanted)) / len(wanted) if wanted else 0.2
    if title_score == 0:
        r_type = 0.0
    elif title_score < 0.1:
        r_type = 0.1
    else:
        r_type = 1.0 if query_match or category_match or title_score > 0.2 else 0.5
    return {'r_type': r_type, 'query_match': query_match, 'category_match': category_match,
            'title_score': title_score}


def attributes_met(product: Product, wanted: Sequence[str]) -> int:
    """Count the wanted attributes that match one of the product's own or occur verbatim in one of its texts."""
    own = [_normalize(attribute) for attribute in product.attributes]
    texts = (product.title.lower(), ' '.join(product.bullets).lower(), product.description.lower())
    return sum(_any_similar(own, _normalize(attribute)) or any(attribute in text for text in texts)
               for attribute in wanted)


def options_met(chosen: Sequence[str], wanted: Sequence[str | tuple[str, str]]) -> int:
    """Count the wanted options that were chosen; colors are compared by their base color.

    As in the official engine, a wanted (name, value) pair is compared as the string of the pair, unless its value is
    exactly a base color.
    """
    own = [_normalize(_base_color(value)) for value in chosen]
    return sum(_any_similar(own, _normalize(str(_base_color(option)))) for option in wanted)


def _any_similar(candidates: Sequence[str], text: str) -> bool:
    return any(round(fuzz.token_set_ratio(candidate, text)) > _MIN_SIMILARITY for candidate in candidates)


def _normalize(text: str) -> str:
    """Prepare a text for comparison as thefuzz does.

    It drops characters 128 to 255, converts to lower case, and replaces all but letters and digits by spaces.
    """
    return utils.default_process(text.translate(_LATIN_1))


def _base_color(option: str | tuple[str, str]) -> str | tuple[str, str]:
    """Return the first base color that a string contains or that is an element of a pair; else the option itself."""
    return next((color for color in COLORS if color in option), option)


def _levels(category: str) -> set[str]:
    return {level.strip() for level in category.split('›')}
