"""The products: read from the official files once, kept on disk in one form, parsed one by one when looked at.

A folder of data holds
  items_shuffle*.json or products*.jsonl   the products, in catalogue order
  items_ins_v2*.json                       attributes by asin, and instructions of synthetic goals
  items_human_ins*.json                    instructions written by people (only human goals need it)
What is made of it lies in a cache: `products.jsonl`, where each begins, asins in order, and the search index.
"""

import dataclasses
from decimal import Decimal, InvalidOperation
import hashlib
import json
import math
import mmap
import os
from pathlib import Path
import re
import shutil
from typing import Any, Iterator, Mapping, Optional, Sequence
import uuid

import numpy as np

from epo_jax.envs.webshop import search
from epo_jax.runtime.errors import InputError

FORM = 1  # of the cache; another number makes it anew
_EAGER = 20_000  # catalogues of so many products are kept parsed


class CatalogueError(InputError):
    """A file of the shop's data is missing, malformed or inconsistent."""


@dataclasses.dataclass(frozen=True)
class Product:
    """One product, as its page shows it.

    Attributes:
      asin: its number; category: one of five; query: what the shop was asked for when it was found.
      product_category: levels, joined by ' › '.
      title, description, bullets, rating, reviews: texts; a review has a title, a score and a body.
      price_text: as shown; pricing: one price, or the two ends of a range.
      options: name -> values, lower case.
      attributes: short phrases found in its texts; what goals ask for.
    """

    asin: str
    category: str
    query: str
    product_category: str
    title: str
    description: str
    bullets: tuple[str, ...]
    price_text: str
    pricing: tuple[float, ...]
    options: Mapping[str, tuple[str, ...]]
    attributes: tuple[str, ...]
    rating: str = 'N.A.'
    reviews: tuple[Mapping[str, Any], ...] = ()


class ProductFile(Sequence):
    """Products in a file that is mapped into memory; each is parsed when it is asked for."""

    def __init__(self, path: Path, starts: np.ndarray):
        with open(path, 'rb') as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._starts = starts

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, number: int) -> Product:
        if not 0 <= number < len(self):
            raise IndexError(number)
        row = json.loads(self._data[self._starts[number]:self._starts[number + 1]])
        tuples = {name: tuple(row[name]) for name in ('bullets', 'pricing', 'attributes', 'reviews')}
        return Product(**row | tuples | {'options': {name: tuple(values) for name, values in row['options'].items()}})


@dataclasses.dataclass(frozen=True, eq=False)
class Catalogue:
    """The products and how to find them.

    Attributes:
      products: in catalogue order.
      index: of their texts, for searching.
      pricing: f64[N, 2] the price, or both ends of its range; NaN where there is no second.
      asins: S10[N] sorted; order: i64[N] the product of each.
      skipped: rows of the file that were no product of their own (no proper asin, or one seen before).
    """

    products: Sequence[Product]
    index: search.Index
    pricing: np.ndarray
    asins: np.ndarray
    order: np.ndarray
    skipped: int

    def number(self, asin: str) -> Optional[int]:
        """The position of a product in catalogue order, None where there is none."""
        at = int(np.searchsorted(self.asins, asin.encode()))
        return int(self.order[at]) if at < len(self.asins) and self.asins[at] == asin.encode() else None


def load_catalogue(folder: Path, cache: Path) -> Catalogue:
    """The catalogue of a folder of data; what is not in the cache yet is made there first.

    Args:
      folder: with the files named above.
      cache: a folder for what is made of them; created.

    Raises:
      CatalogueError: what is wrong, in which file and row.
    """
    items, attributes = find(folder, 'items_shuffle*.json', 'products*.jsonl'), find(folder, 'items_ins_v2*.json')
    stamp = '\n'.join([str(FORM)] + [f'{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns}'
                                     for path in (items, attributes)])
    made = cache / hashlib.sha256(stamp.encode()).hexdigest()[:16]
    if not made.is_dir():
        _make(items, attributes, made)
    facts = json.loads((made / 'facts.json').read_text())
    load = lambda name: np.load(made / f'{name}.npy', mmap_mode='r').view(np.ndarray)
    products = ProductFile(made / 'products.jsonl', load('starts'))
    return Catalogue(
        tuple(products) if len(products) <= _EAGER else products, search.load(made / 'index', len(products)),
        load('pricing'), load('asins'), load('order'), facts['skipped'])


def find(folder: Path, *patterns: str) -> Path:
    """The one file of a folder that fits one of the patterns; the first pattern that any file fits decides.

    Raises:
      CatalogueError: there is none, or there are several.
    """
    if not folder.is_dir():
        raise CatalogueError(f'{folder}: no such folder')
    for pattern in patterns:
        paths = sorted(folder.glob(pattern))
        if len(paths) > 1:
            raise CatalogueError(f'{folder} has several files {pattern}: {", ".join(path.name for path in paths)}')
        if paths:
            return paths[0]
    raise CatalogueError(f'{folder}: no file {" or ".join(patterns)}')


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object by asin.

    Raises:
      CatalogueError: it is something else.
    """
    try:
        content = json.loads(path.read_text('utf-8'))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CatalogueError(f'{path}: {error}') from None
    if not isinstance(content, dict):
        raise CatalogueError(f'{path}: must hold an object by asin, holds a {type(content).__name__}')
    return content


def read_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(row number from 1, row) of a JSON list or of JSON lines, one at a time: the official file has gigabytes.

    Raises:
      CatalogueError: naming the file and the row.
    """
    number = 0
    try:
        for number, row in enumerate(_lines(path) if path.suffix == '.jsonl' else _elements(path), 1):
            if not isinstance(row, dict):
                raise CatalogueError(f'{path}, row {number}: must be an object, is a {type(row).__name__}')
            yield number, row
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CatalogueError(f'{path}, after row {number}: {error}') from None


def _lines(path: Path) -> Iterator[Any]:
    with open(path, encoding='utf-8', newline='\n') as file:
        yield from (json.loads(line) for line in file if line.strip())


def _elements(path: Path, size: int = 1 << 20) -> Iterator[Any]:
    """The elements of a JSON list, without ever holding it whole."""
    decoder, text = json.JSONDecoder(), ''
    with open(path, encoding='utf-8') as file:
        text = file.read(size).lstrip()
        if not text.startswith('['):
            raise CatalogueError(f'{path}: must hold a list of products')
        text = text[1:]
        while True:
            text = text.lstrip(' \n\r\t,')
            if text.startswith(']'):
                return
            try:
                element, end = decoder.raw_decode(text)
                if end == len(text):  # a number could go on
                    raise json.JSONDecodeError('the list is not closed', text, end)
            except json.JSONDecodeError:
                more = file.read(max(size, len(text)))
                if not more:
                    raise
                text += more
                continue
            yield element
            text = text[end:]


def _make(items: Path, attributes: Path, made: Path) -> None:
    """Writes everything into a folder beside and moves it to its place when it is whole."""
    folder = made.with_name(f'.{made.name}.{uuid.uuid4().hex}.tmp')
    (folder / 'index').mkdir(parents=True)
    try:
        known, rows = read_object(attributes), 0
        asins: dict[str, None] = {}
        starts, pricing = [0], []

        def texts() -> Iterator[str]:
            nonlocal rows
            with open(folder / 'products.jsonl', 'wb') as file:
                for rows, row in read_rows(items):
                    asin = row.get('asin')
                    if not isinstance(asin, str) or asin == 'nan' or not 0 < len(asin) <= 10 or asin in asins:
                        continue
                    asins[asin] = None
                    product = _product(row, known.get(asin) or {}, f'{items}, row {rows} ({asin})')
                    file.write(json.dumps(dataclasses.asdict(product), ensure_ascii=False).encode() + b'\n')
                    starts.append(file.tell())
                    pricing.append((product.pricing + (math.nan,))[:2])
                    yield row['contents'] if isinstance(row.get('contents'), str) else _contents(product)

        search.build(texts(), folder / 'index')
        if not asins:
            raise CatalogueError(f'{items}: no products')
        names = np.array([asin.encode() for asin in asins], 'S10')
        order = np.argsort(names, kind='stable')
        for name, array in (('starts', np.array(starts)), ('pricing', np.array(pricing)), ('asins', names[order]),
                            ('order', order)):
            np.save(folder / f'{name}.npy', array)
        (folder / 'facts.json').write_text(json.dumps({'skipped': rows - len(asins)}))
        try:
            os.rename(folder, made)
        except OSError:
            if not made.is_dir():  # else another process was faster, with the same result
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _product(row: Mapping[str, Any], known: Mapping[str, Any], where: str) -> Product:
    """A product from a row of the official file, or of one whose prices and options have been read already."""
    text = lambda name: _text(row.get(name), f'{where}: {name}')
    bullets = row.get('small_description') or ()
    pricing, price_text = _pricing(row.get('pricing'), where)
    attributes = known.get('attributes', ['DUMMY_ATTR'])
    if not isinstance(attributes, list) or not all(isinstance(attribute, str) for attribute in attributes):
        raise CatalogueError(f'{where}: attributes must be a list of texts, are {attributes!r:.100}')
    return Product(
        asin=row['asin'], category=text('category'), query=text('query').lower().strip(),
        product_category=text('product_category'), title=text('name'), description=text('full_description'),
        bullets=tuple(_text(bullet, f'{where}: small_description')
                      for bullet in ([bullets] if isinstance(bullets, str) else bullets)),
        price_text=price_text, pricing=pricing, options=_options(row, where), attributes=tuple(attributes),
        rating=str(row.get('Rating') or 'N.A.'), reviews=tuple(row.get('Reviews') or ()))


def _text(value: Any, what: str) -> str:
    if value is None:
        return ''
    if not isinstance(value, str):
        raise CatalogueError(f'{what} must be a text, is {value!r:.100}')
    return value


def _pricing(value: Any, where: str) -> tuple[tuple[float, ...], str]:
    """Prices, two at most, and how they are shown: from '$5.00$7.50' or [5.0, 7.5]; without any it is 100 dollars."""
    try:
        if isinstance(value, str):
            prices = [float(Decimal(re.sub(r'[^\d.]', '', part))) for part in value.split('$')[1:]]
        else:
            prices = [float(price) for price in value or ()]
    except (InvalidOperation, TypeError, ValueError):
        prices = []
    if not prices and value:
        raise CatalogueError(f'{where}: pricing has no price: {value!r:.100}')
    prices = prices[:2] or [100.0]
    return tuple(prices), ' to '.join(f'${price}' for price in prices)


def _options(row: Mapping[str, Any], where: str) -> dict[str, tuple[str, ...]]:
    official = 'customization_options' in row
    given = row.get('customization_options' if official else 'options')
    options = {}
    try:
        for name, values in (given or {}).items():
            if values is not None:
                texts = [value if isinstance(value, str) else value['value'] for value in values]
                options[name.lower()] = tuple(
                    text.strip().replace('/', ' | ').lower() if official else text for text in texts)
    except (AttributeError, KeyError, TypeError):
        raise CatalogueError(f'{where}: options must be lists of values by name, are {given!r:.100}') from None
    return options


def _contents(product: Product) -> str:
    """What the search index sees of a product."""
    options = ', and '.join(f'{name}: {", ".join(values)}' for name, values in product.options.items())
    return ' '.join((product.title, product.description, (product.bullets or ('',))[0], options)).lower()
