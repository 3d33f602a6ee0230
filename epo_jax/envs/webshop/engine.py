"""The shop engine: the effect of every action on every page, as in WebShop's official text environment.

A visit is an immutable value, and a shop never changes.
"""

import dataclasses
import re
from typing import Any, Mapping, Optional, Sequence

import numpy as np

from epo_jax.envs.webshop import pages
from epo_jax.envs.webshop.catalog import Catalog, Product
from epo_jax.envs.webshop.goals import Goal
from epo_jax.envs.webshop.nouns import Tagger
from epo_jax.envs.webshop.reward import reward

HITS = 50  # largest number of results of a search
INDEX, RESULTS, ITEM, DONE = 'index', 'results', 'item', 'done'
_SUB_PAGES = {name.lower(): name for name in pages.SUB_PAGES}
_ACTION = re.compile(r'(.+)\[(.+)\]')


@dataclasses.dataclass(frozen=True)
class Visit:
    """The state of one customer's visit.

    Attributes:
      goal: what the customer wants.
      page: 'index', 'results', 'item', a sub-page ('description', ...) or 'done'.
      hits: positions in the catalog of the products that the last search found, best first.
      number: number of the results page, from 1.
      item: position in the catalog of the product that was opened last; None if there is none.
      options: option name -> selected value.
      reward: reward of the purchase, in [0, 1]; 0 before it.
      parts: components of the reward (see reward.py); empty before the purchase.
      invalid: number of actions that had no effect.
    """

    goal: Goal
    page: str = INDEX
    hits: tuple[int, ...] = ()
    number: int = 1
    item: Optional[int] = None
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    reward: float = 0.0
    parts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    invalid: int = 0

    @property
    def done(self) -> bool:
        """Return whether a product was bought."""
        return self.page == DONE


@dataclasses.dataclass(frozen=True)
class Available:
    """The actions that a page offers.

    Attributes:
      search: whether the page has a search bar. (Searching is possible on other pages, too.)
      clicks: the clickable values, in lower case and page order. 'search' is listed but has no effect.
    """

    search: bool
    clicks: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Shop:
    """A catalog, its prices and its customers' goals.

    Attributes:
      catalog: the products.
      prices: f64[N], price of each product in dollars.
      goals: the goals in the official order.
      tagger: finds the nouns in product names, for the reward.
      show_attributes: whether products have a page that lists their attributes.
    """

    catalog: Catalog
    prices: np.ndarray
    goals: Sequence[Goal]
    tagger: Tagger
    show_attributes: bool = False

    def product(self, visit: Visit) -> Product:
        """Return the product that the visit has opened."""
        return self.catalog.products[visit.item]

    def observe(self, visit: Visit) -> str:
        """Return the current page as text."""
        return pages.text(self.pieces(visit))

    def pieces(self, visit: Visit) -> list[str]:
        """Return the visible pieces of the current page, in order."""
        instruction = visit.goal.instruction
        if visit.page == INDEX:
            return pages.index_page(instruction)
        if visit.page == RESULTS:
            return pages.results_page(instruction, visit.number, len(visit.hits), self._listed_products(visit))
        if visit.page == ITEM:
            return pages.item_page(instruction, self.product(visit), self.show_attributes)
        if visit.page == DONE:
            return pages.done_page(self.product(visit).asin, visit.options, visit.reward)
        return pages.sub_page(instruction, self.product(visit), _SUB_PAGES[visit.page])

    def available(self, visit: Visit) -> Available:
        """Return the actions that the current page offers."""
        return Available(visit.page == INDEX, tuple(self._clicks(visit)))

    def step(self, visit: Visit, action: str) -> Visit:
        """Return the visit after an action.

        Args:
          visit: the visit before the action.
          action: `search[keywords]` or `click[value]`; case does not matter. Any other action, and a click on
            something that the page does not offer, only increments `Visit.invalid`.

        Raises:
          ValueError: the visit has ended with a purchase.
        """
        if visit.done:
            raise ValueError('the visit is over, because a product was bought; start a new Visit')
        match = _ACTION.match(action)
        kind, value = (match[1], match[2].lower()) if match else ('', '')
        if kind == 'search':
            hits = tuple(self.catalog.index.search(value, HITS))
            return dataclasses.replace(visit, page=RESULTS, hits=hits, number=1, item=None, options={})
        clicks = {} if visit.page == INDEX else self._clicks(visit)  # a click on 'search' there has no effect
        if action.startswith('click[') and action.endswith(']') and action[6:-1].lower() in clicks:
            kind, value = 'click', action[6:-1].lower()  # may contain brackets
        if kind == 'click' and value in clicks:
            return self._click(visit, value, clicks[value])
        return dataclasses.replace(visit, invalid=visit.invalid + 1)

    def _click(self, visit: Visit, value: str, option: Optional[str]) -> Visit:
        """Return the visit after a valid click; a button takes precedence over an option value of the same name."""
        replace = lambda **changes: dataclasses.replace(visit, **changes)
        if value == pages.BUY.lower():
            product = self.product(visit)
            total, parts = reward(product, visit.goal, float(self.prices[visit.item]), visit.options, self.tagger)
            return replace(page=DONE, reward=total, parts=parts)
        if value == pages.BACK.lower():
            return Visit(visit.goal, invalid=visit.invalid)
        if value in (pages.NEXT.lower(), pages.PREVIOUS.lower()) and visit.page == RESULTS:
            return replace(number=visit.number + (1 if value == pages.NEXT.lower() else -1))
        if value == pages.PREVIOUS.lower():
            return replace(page=RESULTS, item=None, options={}) if visit.page == ITEM else replace(page=ITEM)
        if visit.page == RESULTS:
            return replace(page=ITEM, item=self.catalog.number(value.upper()))
        if value in _SUB_PAGES:
            return replace(page=value)
        return replace(page=ITEM, options={**visit.options, option: value})

    def _clicks(self, visit: Visit) -> dict[str, Optional[str]]:
        """Return clickable value -> name of its option (the last one if several have this value); None for buttons."""
        if visit.page == DONE:
            return {}
        if visit.page == INDEX:
            return {'search': None}
        buttons = [pages.BACK]
        if visit.page != RESULTS or visit.number > 1:
            buttons.append(pages.PREVIOUS)
        if visit.page == RESULTS:
            buttons += [pages.NEXT, *(product.asin for product in self._listed_products(visit))]
        elif visit.page == ITEM:
            buttons += [*pages.sub_pages(self.show_attributes), pages.BUY]
        clicks: dict[str, Optional[str]] = dict.fromkeys(button.lower() for button in buttons)
        if visit.page == ITEM:
            clicks |= {value: name for name, values in self.product(visit).options.items() for value in values}
        return clicks

    def _listed_products(self, visit: Visit) -> list[Product]:
        """Return the products on the current results page."""
        start = (visit.number - 1) * pages.PER_PAGE
        return [self.catalog.products[hit] for hit in visit.hits[start:start + pages.PER_PAGE]]
