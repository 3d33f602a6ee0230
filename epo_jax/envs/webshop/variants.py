"""Named settings of WebShop: which products, whose goals, how many steps. Results of different ones never compare.

A variant is loaded only from data that are what its name says.
"""

import argparse
import dataclasses
import importlib.resources
import json
import os
from pathlib import Path
from typing import Callable, Optional, Sequence

from epo_jax.envs.webshop.catalogue import CatalogueError, load_catalogue
from epo_jax.envs.webshop.engine import Shop
from epo_jax.envs.webshop.goals import load_goals
from epo_jax.envs.webshop.nouns import TAGGERS, load_tagger

SEED = 233  # of prices and price limits


@dataclasses.dataclass(frozen=True)
class Variant:
    """A setting.

    Attributes:
      name: printed with every result.
      human: goals that people wrote, instead of synthetic ones.
      max_steps: actions of a visit; without a purchase by then the reward is 0.
      products, goals: how many there must be; None: any number.
      splits: number of goals -> (training, held-out) goal indices.
      packaged: of the small catalogue that comes with the package.
    """

    name: str
    human: bool
    max_steps: int
    products: Optional[int]
    goals: Optional[int]
    splits: Callable[[int], tuple[Sequence[int], Sequence[int]]]
    packaged: bool = False


def _first(share: float) -> Callable[[int], tuple[Sequence[int], Sequence[int]]]:
    """The first goals are held out."""
    return lambda count: (range(int(count * share), count), range(int(count * share)))


def _epo(count: int) -> tuple[Sequence[int], Sequence[int]]:
    """EPO's indices: 1,824 to train on, 200 to test, 21 of which are among the former."""
    path = importlib.resources.files('epo_jax.envs.webshop') / 'data' / 'epo_indices.json'
    indices = json.loads(path.read_text())
    return indices['train'], indices['test']


VARIANTS = {variant.name: variant for variant in (
    Variant('webshop-small-synth-6', False, 6, None, None, _first(0.2), packaged=True),
    Variant('webshop-small-synth-15', False, 15, None, None, _first(0.2), packaged=True),
    # The official split of synthetic goals: 500 to test, 1,000 to develop, the others to train.
    Variant('webshop-1k-synth-15', False, 15, 1000, 6910, lambda count: (range(1500, count), range(500))),
    Variant('webshop-1k-human', True, 15, 1000, None, _first(0.5)),
    Variant('webshop-full-human-200', True, 10, None, 12087, _epo))}


def load_shop(name: str, data: str = '', tagger: str = 'words', seed: int = SEED,
              cache: Optional[Path] = None) -> Shop:
    """The shop of a variant.

    Args:
      name: of VARIANTS.
      data: a folder, see catalogue.py; '' for the packaged catalogue.
      tagger: see nouns.py.
      seed: of prices and price limits.
      cache: where what is made of the data is kept; None: the user's cache folder.

    Raises:
      ValueError: there is no such variant or tagger.
      CatalogueError: the data are malformed or of another variant.
    """
    variant = find_variant(name)
    if variant.packaged != (not data):
        raise CatalogueError(f'{name} is played on ' + (
            f'the packaged catalogue, not on {data}' if variant.packaged else 'data of your own: name their folder'))
    packaged = importlib.resources.files('epo_jax.envs.webshop') / 'data'
    folder = Path(str(packaged) if variant.packaged else data)
    if cache is None:
        cache = Path(os.environ.get('XDG_CACHE_HOME', '~/.cache')).expanduser() / 'epo_jax' / 'webshop'
    catalogue = load_catalogue(folder, cache)
    if variant.products not in (None, len(catalogue.products)):
        raise CatalogueError(f'{name} has {variant.products} products, {folder} has {len(catalogue.products)}')
    goals, prices = load_goals(folder, catalogue, variant.human, seed)
    if variant.goals not in (None, len(goals)) or not goals:
        raise CatalogueError(f'{name} has {variant.goals or "some"} goals, {folder} has {len(goals)}')
    return Shop(catalogue, prices, goals, load_tagger(tagger))


def find_variant(name: str) -> Variant:
    """The variant of a name.

    Raises:
      ValueError: there is none.
    """
    if name not in VARIANTS:
        raise ValueError(f'unknown variant {name!r}; there are {", ".join(VARIANTS)}')
    return VARIANTS[name]


def add_shop_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of every command that opens a shop: --data, --variant, --tagger, --seed."""
    parser.add_argument('--data', default='', help='folder of the data; default: the packaged catalogue')
    parser.add_argument('--variant', default='webshop-small-synth-15', help=f'one of {", ".join(VARIANTS)}')
    parser.add_argument('--tagger', default='words', choices=TAGGERS, help='who finds the nouns in names')
    parser.add_argument('--seed', type=int, default=SEED, help='of prices and price limits')
