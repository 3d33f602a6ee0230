"""Scripted customers: one that knows the product it wants, and a weak one to compare with."""

from epo_jax.envs.webshop.engine import INDEX, ITEM, RESULTS, Shop, Visit
from epo_jax.envs.webshop.pages import BACK, BUY, NEXT


def buyer(shop: Shop, visit: Visit) -> str:
    """The next action of a customer who knows the goal's product: searches its name, looks for it page by page,
    chooses the wanted options and buys. Gives up, and buys nothing, where the search does not find it."""
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
    """The next action of a customer who searches the instruction as it is and buys the first result as it comes."""
    clicks = shop.available(visit).clicks
    if visit.page == INDEX:
        return f'search[{visit.goal.instruction}]'
    if visit.page == RESULTS:
        products = [click for click in clicks if click not in (BACK.lower(), NEXT.lower(), '< prev')]
        return f'click[{products[0] if products else BACK.lower()}]'
    return f'click[{BUY.lower() if visit.page == ITEM else BACK.lower()}]'
