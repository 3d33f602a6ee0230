"""How well a purchase fits a goal: the official formula of WebShop (web_agent_site/engine/goal.py), part by part.

    r = r_type * (attributes met + options met + [price <= limit]) / (attributes + options + 1)
"""

from typing import Any, Mapping, Sequence

from rapidfuzz import fuzz, utils

from epo_jax.envs.webshop.catalogue import Product
from epo_jax.envs.webshop.goals import Goal
from epo_jax.envs.webshop.nouns import Tagger

_ALIKE = 85   # two texts mean the same when they are more alike than this, of 100
_LATIN_1 = {code: None for code in range(128, 256)}

# The names under which colours are compared, in the order in which they are looked for.
COLOURS = (
    'alabaster apricot aqua ash asphalt azure banana beige black blue blush bordeaux bronze brown burgundy camel '
    'camo caramel champagne charcoal cheetah chestnut chocolate christmas coffee cognac copper coral cranberry cream '
    'crystal dark denim eggplant elephant espresso fuchsia gold granite grape graphite grass gray green grey heather '
    'indigo ivory ivy khaki lavender lemon leopard light lilac lime magenta maroon mauve merlot midnight mint mocha '
    'multicolor mushroom mustard natural navy nude olive orange peach pewter pink plum purple rainbow red rose royal '
    'rust sand sapphire seashell silver skull slate steel stone stonewash sunflower tan taupe teal tiger turquoise '
    'violet walnut wheat white wine yellow').split()


def reward(product: Product, goal: Goal, price: float, options: Mapping[str, str],
           tagger: Tagger) -> tuple[float, dict[str, Any]]:
    """The reward of a purchase, in [0, 1], and the parts of it under the official engine's names.

    Args:
      product: what was bought.
      goal: what was asked for.
      price: of the product.
      options: name -> value, as chosen.
      tagger: finds the nouns in names.

    Returns:
      (reward, parts): r_* are the parts, w_* their weights; those of options are absent where the goal has none.
    """
    kind = type_reward(product, goal, tagger)
    attributes = attributes_met(product, goal.attributes)
    chosen = options_met(tuple(options.values()), goal.options)
    cheap = price <= goal.price_limit
    total = len(goal.attributes) + len(goal.options) + 1
    parts = {'r_type': kind['r_type'], 'r_att': attributes / len(goal.attributes),
             'w_att': len(goal.attributes) / total, 'query_match': kind['query_match'],
             'category_match': kind['category_match'], 'title_score': kind['title_score']}
    if goal.options:
        parts |= {'r_option': chosen / len(goal.options), 'w_option': len(goal.options) / total}
    parts |= {'r_price': cheap, 'w_price': 1 / total}
    return (attributes + chosen + cheap) / total * kind['r_type'], parts


def type_reward(product: Product, goal: Goal, tagger: Tagger) -> dict[str, Any]:
    """Whether the product is of the kind asked for: r_type in {0, 0.1, 0.5, 1} and what it follows from."""
    query_match = product.query == goal.query
    category_match = len(_levels(product.product_category) & _levels(goal.product_category)) >= 2
    wanted = tagger(goal.title)
    # Common nouns are counted once, but all of the goal's: a noun that it has twice can be met only half.
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
    """How many of the attributes the product has, among its own or word for word in one of its texts."""
    own = [_processed(attribute) for attribute in product.attributes]
    texts = (product.title.lower(), ' '.join(product.bullets).lower(), product.description.lower())
    return sum(_any_alike(own, _processed(attribute)) or any(attribute in text for text in texts)
               for attribute in wanted)


def options_met(chosen: Sequence[str], wanted: Sequence[str | tuple[str, str]]) -> int:
    """How many of the options were chosen, colours compared by their base names.

    A wanted (name, value) pair is compared as the official engine does it: as the text of the pair, except where
    the value is nothing but a base colour.
    """
    own = [_processed(_base_colour(value)) for value in chosen]
    return sum(_any_alike(own, _processed(str(_base_colour(option)))) for option in wanted)


def _any_alike(candidates: Sequence[str], text: str) -> bool:
    return any(round(fuzz.token_set_ratio(candidate, text)) > _ALIKE for candidate in candidates)


def _processed(text: str) -> str:
    """Letters and digits in lower case, other characters as spaces, as thefuzz prepares texts."""
    return utils.default_process(text.translate(_LATIN_1))


def _base_colour(option: str | tuple[str, str]) -> str | tuple[str, str]:
    """The first base colour found in a text, or that is an element of a pair; else the option itself."""
    return next((colour for colour in COLOURS if colour in option), option)


def _levels(category: str) -> set[str]:
    return {level.strip() for level in category.split('›')}
