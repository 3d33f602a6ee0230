"""The goals: what customers are asked to buy.

There is one synthetic goal for every combination of a product's options; it combines the product's instruction with
these options. Human goals are instructions that people wrote for a product. Both get a price limit that is drawn from
the four multiples of ten above the price. The official engine draws prices and limits before it seeds its random
number generator. Here the seed comes first and the draws follow in the official order, so that the official engine
yields the same goals if it is seeded first.
"""

import dataclasses
import itertools
from pathlib import Path
import random
from typing import Any, Iterator, Mapping, Union

import numpy as np

from epo_jax.envs.webshop.catalog import Catalog, CatalogError, Product, find_file, read_object

SHUFFLE_SEED = 233        # of the official engine
NO_LIMIT = 1_000_000.0
_LIMITS = tuple(10.0 * i for i in range(1, 100))


@dataclasses.dataclass(frozen=True)
class Goal:
    """One instruction and its meaning.

    Attributes:
      asin: the product that the instruction was written for.
      category: category of this product.
      query: query of this product; the reward compares it.
      title: name of this product; the reward compares its nouns.
      product_category: category levels of this product; the reward compares them.
      instruction: what the customer reads.
      attributes: phrases that the product should have.
      options: wanted options; (name, value) pairs in a synthetic goal, values in a human goal.
      price_limit: highest acceptable price in dollars.
    """

    asin: str
    category: str
    query: str
    title: str
    product_category: str
    instruction: str
    attributes: tuple[str, ...]
    options: tuple[Union[str, tuple[str, str]], ...]
    price_limit: float


def load_goals(folder: Path, catalog: Catalog, human: bool, seed: int) -> tuple[list[Goal], np.ndarray]:
    """Load all goals of a catalog and draw the price of every product.

    Args:
      folder: the data folder, see catalog.py.
      catalog: the catalog of this folder.
      human: whether to load human goals instead of synthetic ones.
      seed: seed of prices and price limits; the order of the goals has a fixed seed.

    Returns:
      The goals in the official order, and prices f64[N] in dollars.

    Raises:
      CatalogError: an instruction is malformed; the message names the file and the product.
    """
    rng = random.Random(seed)
    prices = np.array([low if np.isnan(high) else rng.uniform(low, high) for low, high in catalog.pricing.tolist()])
    path = find_file(folder, 'items_human_ins*.json' if human else 'items_ins_v2*.json')
    instructions = read_object(path)
    goals = []
    numbers = {asin: catalog.number(asin) for asin in instructions}
    for number, asin in sorted((number, asin) for asin, number in numbers.items() if number is not None):
        where = f'{path}, {asin}'
        make_goals = _human_goals if human else _synthetic_goals
        goals += make_goals(catalog.products[number], instructions[asin], prices[number], rng, where)
    random.Random(SHUFFLE_SEED).shuffle(goals)
    return goals, prices


def _synthetic_goals(product: Product, row: Mapping[str, Any], price: float, rng: random.Random,
                     where: str) -> Iterator[Goal]:
    if not isinstance(row, dict):
        raise CatalogError(f'{where}: expected an object, found {row!r:.100}')
    if row.get('instruction') is None:
        return
    attributes = _texts(row, 'instruction_attributes', where)
    if not attributes:
        raise CatalogError(f'{where}: an instruction needs at least one entry in instruction_attributes')
    limit, limit_text = _draw_limit(price, rng)
    names = sorted(product.options)
    for values in itertools.product(*(product.options[name] for name in names)):
        options = tuple(zip(names, values))
        wanted = ', and '.join(f'{name}: {value}' for name, value in options)
        instruction = f'{_instruction(row, where)}{f" with {wanted}" if wanted else ""}{limit_text}'
        yield _goal(product, instruction, attributes, options, limit)


def _human_goals(product: Product, rows: Any, price: float, rng: random.Random, where: str) -> Iterator[Goal]:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise CatalogError(f'{where}: expected a list of objects, found {rows!r:.100}')
    for row in rows:
        attributes = _texts(row, 'instruction_attributes', where)
        if attributes:
            limit, limit_text = _draw_limit(price, rng)
            yield _goal(product, _instruction(row, where).strip('.') + limit_text, attributes,
                        _texts(row, 'instruction_options', where), limit)


def _goal(product: Product, instruction: str, attributes, options, limit: float) -> Goal:
    return Goal(product.asin, product.category, product.query, product.title, product.product_category, instruction,
                attributes, options, limit)


def _draw_limit(price: float, rng: random.Random) -> tuple[float, str]:
    """Return a price limit in dollars and the words that state it in the instruction."""
    above = [limit for limit in _LIMITS if limit > price][:4]
    if len(above) < 2:
        return NO_LIMIT, ''
    limit = max(rng.sample(above, 2))
    return limit, f', and price lower than {limit:.2f} dollars'


def _instruction(row: Mapping[str, Any], where: str) -> str:
    if not isinstance(row.get('instruction'), str):
        raise CatalogError(f'{where}: instruction must be a string; it is {row.get("instruction")!r:.100}')
    return row['instruction']


def _texts(row: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    values = row.get(name)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise CatalogError(f'{where}: {name} must be a list of strings; it is {values!r:.100}')
    return tuple(values)
