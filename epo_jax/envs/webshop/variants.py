"""Named variants of WebShop: which products, which goals, how many steps.

Results of different variants are not comparable. Loading a variant fails if the data does not match its name.
"""

import argparse
import dataclasses
import importlib.resources
import json
import os
from pathlib import Path
from typing import Callable, Optional, Sequence

from epo_jax.envs.webshop.catalog import CatalogError, load_catalog
from epo_jax.envs.webshop.engine import Shop
from epo_jax.envs.webshop.goals import load_goals
from epo_jax.envs.webshop.nouns import TAGGERS, load_tagger

SEED = 233  # default seed of prices and price limits


@dataclasses.dataclass(frozen=True)
class Variant:
    """A variant.

    Attributes:
      name: reported with every result.
      human: whether goals were written by people, instead of synthetic ones.
      max_steps: largest number of actions in a visit; without a purchase by then the reward is 0.
      products: required number of products; None allows any.
      goals: required number of goals; None allows any.
      splits: maps the number of goals to (training, held-out) goal indices.
      packaged: whether it uses the small catalog that comes with the package.
    """

    name: str
    human: bool
    max_steps: int
    products: Optional[int]
    goals: Optional[int]
    splits: Callable[[int], tuple[Sequence[int], Sequence[int]]]
    packaged: bool = False


def _hold_out_first(share: float) -> Callable[[int], tuple[Sequence[int], Sequence[int]]]:
    """Return `Variant.splits` that hold out the first goals."""
    return lambda count: (range(int(count * share), count), range(int(count * share)))


def _official_splits(count: int) -> tuple[Sequence[int], Sequence[int]]:
    """Return WebShop's split: 500 goals for testing, then 1,000 for development, and the rest for training."""
    return range(1500, count), range(500)


def _epo_splits(test: str) -> Callable[[int], tuple[Sequence[int], Sequence[int]]]:
    """Return `Variant.splits` that give EPO's indices: 1,824 training goals and one of its lists of test goals.

    Of the list 'test' (200 goals), 21 are training goals, too; of 'test_500', none is.
    """
    path = importlib.resources.files('epo_jax.envs.webshop') / 'data' / 'epo_indices.json'
    indices = json.loads(path.read_text('utf-8'))
    return lambda count: (indices['train'], indices[test])


VARIANTS = {variant.name: variant for variant in (
    Variant('webshop-small-synth-6', False, 6, None, None, _hold_out_first(0.2), packaged=True),
    Variant('webshop-small-synth-15', False, 15, None, None, _hold_out_first(0.2), packaged=True),
    Variant('webshop-1k-synth-15', False, 15, 1000, 6910, _official_splits),
    Variant('webshop-1k-human', True, 15, 1000, None, _hold_out_first(0.5)),
    Variant('webshop-full-human-200', True, 10, None, 12087, _epo_splits('test')),
    Variant('webshop-full-human-epo-500', True, 10, None, 12087, _epo_splits('test_500')),
    Variant('webshop-full-human-500', True, 15, None, 12087, _official_splits),
    # Catalogs of other sizes.
    Variant('webshop-any-synth-15', False, 15, None, None, _hold_out_first(0.2)),
    Variant('webshop-any-human-15', True, 15, None, None, _hold_out_first(0.2)))}


def load_shop(name: str, data: str = '', tagger: str = 'words', seed: int = SEED,
              cache: Optional[Path] = None) -> Shop:
    """Load the shop of a variant.

    Args:
      name: a key of VARIANTS.
      data: the data folder, see catalog.py; '' for the packaged catalog.
      tagger: one of nouns.TAGGERS.
      seed: seed of prices and price limits.
      cache: folder for parsed catalogs and search indices; None for epo_jax/webshop in the user's cache folder.

    Raises:
      ValueError: the variant or the tagger is unknown.
      ImportError: the tagger is not installed.
      CatalogError: the data is malformed or belongs to another variant.
    """
    variant = find_variant(name)
    if variant.packaged != (not data):
        raise CatalogError(
            f'{name} uses the packaged catalog, not {data}; leave out the data folder' if variant.packaged else
            f'{name} needs data files; pass their folder, by config.scenarios or --data')
    packaged = importlib.resources.files('epo_jax.envs.webshop') / 'data'
    folder = Path(str(packaged) if variant.packaged else data)
    if cache is None:
        cache = Path(os.environ.get('XDG_CACHE_HOME', '~/.cache')).expanduser() / 'epo_jax' / 'webshop'
    catalog = load_catalog(folder, cache)
    if variant.products not in (None, len(catalog.products)):
        raise CatalogError(f'{name} needs {variant.products} products, but {folder} has {len(catalog.products)}')
    goals, prices = load_goals(folder, catalog, variant.human, seed)
    if variant.goals not in (None, len(goals)) or not goals:
        raise CatalogError(f'{name} needs {variant.goals or "some"} goals, but {folder} has {len(goals)}')
    return Shop(catalog, prices, goals, load_tagger(tagger))


def find_variant(name: str) -> Variant:
    """Return the variant of a name.

    Raises:
      ValueError: the name is unknown.
    """
    if name not in VARIANTS:
        raise ValueError(f'unknown variant {name!r}; choose one of {", ".join(VARIANTS)}')
    return VARIANTS[name]


def add_shop_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of every command that loads a shop: --data, --variant, --tagger, --seed."""
    parser.add_argument('--data', default='', help='data folder (default: the packaged catalog)')
    parser.add_argument('--variant', default='webshop-small-synth-15',
                        help=f'one of {", ".join(VARIANTS)} (default: %(default)s)')
    parser.add_argument('--tagger', default='words', choices=TAGGERS,
                        help='how the reward finds nouns in product names (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=SEED,
                        help='seed of prices and price limits (default: %(default)s)')
