"""The shop: what an action on a page leads to. It behaves as the official text environment does, in every case.

A visit is a value; the shop never changes.
"""

import dataclasses
import re
from typing import Any, Mapping, Optional, Sequence

import numpy as np

from epo_jax.envs.webshop import pages
from epo_jax.envs.webshop.catalogue import Catalogue, Product
from epo_jax.envs.webshop.goals import Goal
from epo_jax.envs.webshop.nouns import Tagger
from epo_jax.envs.webshop.reward import reward

HITS = 50
INDEX, RESULTS, ITEM, DONE = 'index', 'results', 'item', 'done'
_SUB_PAGES = {name.lower(): name for name in pages.SUB_PAGES}
_ACTION = re.compile(r'(.+)\[(.+)\]')


@dataclasses.dataclass(frozen=True)
class Visit:
    """One customer's visit at one moment.

    Attributes:
      goal: what the customer wants.
      page: 'index', 'results', 'item', a sub-page ('description', ...) or 'done'.
      keywords: of the last search; hits: positions of the products it found, best first.
      number: of the page of results, from 1.
      item: position of the product looked at, None before.
      options: name -> value chosen for it.
      reward, parts: of the purchase, once there was one.
      invalid: actions that did nothing.
    """

    goal: Goal
    page: str = INDEX
    keywords: str = ''
    hits: tuple[int, ...] = ()
    number: int = 1
    item: Optional[int] = None
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    reward: float = 0.0
    parts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    invalid: int = 0

    @property
    def done(self) -> bool:
        return self.page == DONE


@dataclasses.dataclass(frozen=True)
class Available:
    """What can be done on a page.

    Attributes:
      search: there is a search bar. (A search is possible on other pages, too.)
      clicks: what can be clicked, in lower case, in the order of the page; 'search' is shown, and does nothing.
    """

    search: bool
    clicks: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Shop:
    """A catalogue, its prices and its customers' goals.

    Attributes:
      catalogue: the products.
      prices: f64[N] what each costs.
      goals: in the official order.
      tagger: finds the nouns in names, for the reward.
      show_attributes: products have a page of their attributes.
    """

    catalogue: Catalogue
    prices: np.ndarray
    goals: Sequence[Goal]
    tagger: Tagger
    show_attributes: bool = False

    def product(self, visit: Visit) -> Product:
        """The product that the visit looks at."""
        return self.catalogue.products[visit.item]

    def observe(self, visit: Visit) -> str:
        """The page as text."""
        return pages.text(self.pieces(visit))

    def pieces(self, visit: Visit) -> list[str]:
        """What the page shows, piece by piece."""
        wish = visit.goal.instruction
        if visit.page == INDEX:
            return pages.index_page(wish)
        if visit.page == RESULTS:
            return pages.results_page(wish, visit.number, len(visit.hits), self._listed(visit))
        if visit.page == ITEM:
            return pages.item_page(wish, self.product(visit), self.show_attributes)
        if visit.page == DONE:
            return pages.done_page(self.product(visit).asin, visit.options, visit.reward)
        return pages.sub_page(wish, self.product(visit), _SUB_PAGES[visit.page])

    def available(self, visit: Visit) -> Available:
        """What can be done now."""
        return Available(visit.page == INDEX, tuple(self._clicks(visit)))

    def step(self, visit: Visit, action: str) -> Visit:
        """The visit after `search[keywords]` or `click[value]`; upper and lower case are the same.

        What is neither, or cannot be clicked on this page, changes nothing and is counted.

        Raises:
          ValueError: the visit is over.
        """
        if visit.done:
            raise ValueError('the visit is over: something was bought')
        match = _ACTION.match(action)
        kind, value = (match[1], match[2].lower()) if match else ('', '')
        if kind == 'search':
            hits = tuple(self.catalogue.index.search(value, HITS))
            return dataclasses.replace(
                visit, page=RESULTS, keywords=value, hits=hits, number=1, item=None, options={})
        if kind == 'click' and value != 'search':
            clicks = self._clicks(visit)
            if value in clicks:
                return self._click(visit, value, clicks[value])
        return dataclasses.replace(visit, invalid=visit.invalid + 1)

    def _click(self, visit: Visit, value: str, option: Optional[str]) -> Visit:
        """What a click leads to; buttons come before an option of the same name."""
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
        if value in _SUB_PAGES:
            return replace(page=value)
        if visit.page == RESULTS:
            return replace(page=ITEM, item=self.catalogue.number(value.upper()))
        return replace(page=ITEM, options={**visit.options, option: value})

    def _clicks(self, visit: Visit) -> dict[str, Optional[str]]:
        """What can be clicked -> the option that it is a value of (the last of several), None for the others."""
        if visit.page == DONE:
            return {}
        if visit.page == INDEX:
            return {'search': None}
        buttons = [pages.BACK]
        if visit.page != RESULTS or visit.number > 1:
            buttons.append(pages.PREVIOUS)
        if visit.page == RESULTS:
            buttons += [pages.NEXT, *(product.asin for product in self._listed(visit))]
        elif visit.page == ITEM:
            buttons += [*pages.sub_pages(self.show_attributes), pages.BUY]
        clicks: dict[str, Optional[str]] = dict.fromkeys(button.lower() for button in buttons)
        if visit.page == ITEM:
            clicks |= {value: name for name, values in self.product(visit).options.items() for value in values}
        return clicks

    def _listed(self, visit: Visit) -> list[Product]:
        """The products on the page of results."""
        start = (visit.number - 1) * pages.PER_PAGE
        return [self.catalogue.products[hit] for hit in visit.hits[start:start + pages.PER_PAGE]]
