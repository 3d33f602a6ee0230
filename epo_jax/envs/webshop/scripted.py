"""Scripted customers: one that knows which product it wants, and a weak baseline.

The option `environment.script` names one of them to act in place of the actor model.
"""

from epo_jax.envs.webshop.engine import INDEX, ITEM, RESULTS, Shop, Visit
from epo_jax.envs.webshop.pages import BACK, BUY, NEXT, PREVIOUS


def buyer(shop: Shop, visit: Visit) -> str:
    """Return the next action of a customer who knows the goal's product.

    It searches for the product's name, looks for the product page by page, selects the wanted options and buys. If
    the search does not find the product, it keeps turning pages and buys nothing.
    """
    goal, clicks = visit.goal, shop.available(visit).clicks
    if visit.page == INDEX:
        return f'search[{goal.title}]'
    if visit.page == RESULTS:
        return f'click[{goal.asin.lower() if goal.asin.lower() in clicks else NEXT.lower()}]'
    if visit.page != ITEM or shop.product(visit).asin != goal.asin:
        return f'click[{BACK.lower()}]'
    for option in goal.options:
        values = [option[1]] if isinstance(option, tuple) else [click for click in clicks if click == option.lower()]
        for value in values:
            if value in clicks and value not in visit.options.values():
                return f'click[{value}]'
    return f'click[{BUY.lower()}]'


def weak_buyer(shop: Shop, visit: Visit) -> str:
    """Return the next action of a customer who searches for the instruction and buys the first result as it is."""
    clicks = shop.available(visit).clicks
    if visit.page == INDEX:
        return f'search[{visit.goal.instruction}]'
    if visit.page == RESULTS:
        buttons = [button.lower() for button in (BACK, PREVIOUS, NEXT)]
        products = [click for click in clicks if click not in buttons]
        return f'click[{products[0] if products else BACK.lower()}]'
    return f'click[{BUY.lower() if visit.page == ITEM else BACK.lower()}]'


# The values of environment.script.
SCRIPTS = {'': None, 'buyer': buyer, 'weak_buyer': weak_buyer}
