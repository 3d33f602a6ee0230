"""What a customer is asked to buy.

Synthetic goals: every combination of a product's options, with the product's instruction. Human goals: what people
wrote for a product. In both a price limit is drawn from the next four multiples of ten. The official engine draws
prices and limits before it seeds its random numbers; here the seed comes first, and the draws follow in its order,
so that it finds the same goals when it is seeded first.
"""

import dataclasses
import itertools
from pathlib import Path
import random
from typing import Any, Iterator, Mapping, Union

import numpy as np

from epo_jax.envs.webshop.catalogue import Catalogue, CatalogueError, Product, find, read_object

SHUFFLE_SEED = 233        # the official engine's
NO_LIMIT = 1_000_000.0
_LIMITS = tuple(10.0 * i for i in range(1, 100))


@dataclasses.dataclass(frozen=True)
class Goal:
    """One instruction and what it means.

    Attributes:
      asin: the product that it was written for, with what the reward compares: category, query, title,
        product_category.
      instruction: what the customer reads.
      attributes: phrases that the product should have.
      options: of a synthetic goal (name, value) pairs, of a human goal values.
      price_limit: what it may cost.
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


def load_goals(folder: Path, catalogue: Catalogue, human: bool, seed: int) -> tuple[list[Goal], np.ndarray]:
    """All goals of a catalogue in the official order, and the price of every product, f64[N].

    Args:
      folder: see catalogue.py.
      catalogue: what the folder holds.
      human: human goals instead of synthetic ones.
      seed: of prices and price limits; the order has a seed of its own.

    Raises:
      CatalogueError: an instruction is malformed, naming file and product.
    """
    rng = random.Random(seed)
    cost = np.array([low if np.isnan(high) else rng.uniform(low, high) for low, high in catalogue.pricing.tolist()])
    path = find(folder, 'items_human_ins*.json' if human else 'items_ins_v2*.json')
    instructions = read_object(path)
    goals = []
    numbers = {asin: catalogue.number(asin) for asin in instructions}
    for number, asin in sorted((number, asin) for asin, number in numbers.items() if number is not None):
        where = f'{path}, {asin}'
        make = _human if human else _synthetic
        goals += make(catalogue.products[number], instructions[asin], cost[number], rng, where)
    random.Random(SHUFFLE_SEED).shuffle(goals)
    return goals, cost


def _synthetic(product: Product, row: Mapping[str, Any], cost: float, rng: random.Random,
               where: str) -> Iterator[Goal]:
    if not isinstance(row, dict):
        raise CatalogueError(f'{where}: must be an object, is {row!r:.100}')
    if row.get('instruction') is None:
        return
    attributes = _texts(row, 'instruction_attributes', where)
    if not attributes:
        raise CatalogueError(f'{where}: an instruction without instruction_attributes')
    limit, limit_text = _limit(cost, rng)
    names = sorted(product.options)
    for values in itertools.product(*(product.options[name] for name in names)):
        options = tuple(zip(names, values))
        wanted = ', and '.join(f'{name}: {value}' for name, value in options)
        instruction = f'{_text(row, where)}{f" with {wanted}" if wanted else ""}{limit_text}'
        yield _goal(product, instruction, attributes, options, limit)


def _human(product: Product, rows: Any, cost: float, rng: random.Random, where: str) -> Iterator[Goal]:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise CatalogueError(f'{where}: must be a list of objects, is {rows!r:.100}')
    for row in rows:
        attributes = _texts(row, 'instruction_attributes', where)
        if attributes:
            limit, limit_text = _limit(cost, rng)
            yield _goal(product, _text(row, where).strip('.') + limit_text, attributes,
                        _texts(row, 'instruction_options', where), limit)


def _goal(product: Product, instruction: str, attributes, options, limit: float) -> Goal:
    return Goal(product.asin, product.category, product.query, product.title, product.product_category, instruction,
                attributes, options, limit)


def _limit(cost: float, rng: random.Random) -> tuple[float, str]:
    """A price limit, and how the instruction puts it."""
    above = [limit for limit in _LIMITS if limit > cost][:4]
    if len(above) < 2:
        return NO_LIMIT, ''
    limit = max(rng.sample(above, 2))
    return limit, f', and price lower than {limit:.2f} dollars'


def _text(row: Mapping[str, Any], where: str) -> str:
    if not isinstance(row.get('instruction'), str):
        raise CatalogueError(f'{where}: instruction must be a text, is {row.get("instruction")!r:.100}')
    return row['instruction']


def _texts(row: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    values = row.get(name)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise CatalogueError(f'{where}: {name} must be a list of texts, is {values!r:.100}')
    return tuple(values)
