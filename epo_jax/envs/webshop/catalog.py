"""The product catalog: read from the official files once, cached on disk, and parsed product by product on access.

A data folder contains
  items_shuffle*.json or products*.jsonl   the products, in catalog order
  items_ins_v2*.json                       attributes by asin, and the instructions of synthetic goals
  items_human_ins*.json                    instructions written by people (needed for human goals only)
The cache of a data folder contains `products.jsonl`, the offset of each line in it, the sorted asins, the prices and
the search index.
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

_CACHE_VERSION = 2      # increment when the format of the cache changes
_ASIN = re.compile(r'[A-Z0-9]+')
_MAX_PARSED = 20_000    # catalogs of up to this many products are parsed at once and kept in memory


class CatalogError(InputError):
    """A file of the shop's data is missing, malformed or inconsistent."""


@dataclasses.dataclass(frozen=True)
class Product:
    """One product, as its page shows it.

    Attributes:
      asin: unique product number.
      category: one of five.
      query: the query with which the product was found when the data was collected.
      product_category: category levels joined by ' › '.
      title: name of the product.
      description: full description.
      bullets: short descriptions.
      price_text: price as shown.
      pricing: one price, or both ends of a range, in dollars.
      options: option name -> values, as `_normalize_option` returns them; a click on one must name it in this form.
      attributes: short phrases found in the product's texts; goals ask for them.
      rating: average rating as shown.
      reviews: each has a title, a score and a body.
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
    """Products in a memory-mapped file; each is parsed on access."""

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
class Catalog:
    """The products and how to find them.

    Attributes:
      products: N products in catalog order.
      index: search index of their texts.
      pricing: f64[N, 2], the price, or both ends of its range, in dollars; the second is NaN for a single price.
      asins: S10[N], sorted.
      order: i64[N], the position in `products` of each entry of `asins`.
      skipped: number of rows in the file that were skipped, because their asin is malformed or a duplicate.
    """

    products: Sequence[Product]
    index: search.Index
    pricing: np.ndarray
    asins: np.ndarray
    order: np.ndarray
    skipped: int

    def number(self, asin: str) -> Optional[int]:
        """Return a product's position in catalog order, or None if the catalog does not contain it."""
        at = int(np.searchsorted(self.asins, asin.encode()))
        return int(self.order[at]) if at < len(self.asins) and self.asins[at] == asin.encode() else None


def load_catalog(folder: Path, cache: Path) -> Catalog:
    """Load the catalog of a data folder; build its cache first if there is none.

    Args:
      folder: contains the files listed in the module's docstring.
      cache: folder for the caches of all catalogs; created if it does not exist.

    Raises:
      CatalogError: the data is malformed; the message names the file and the row.
    """
    items = find_file(folder, 'items_shuffle*.json', 'products*.jsonl')
    attributes = find_file(folder, 'items_ins_v2*.json')
    stamp = '\n'.join([str(_CACHE_VERSION)] + [f'{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns}'
                                               for path in (items, attributes)])
    entry = cache / hashlib.sha256(stamp.encode()).hexdigest()[:16]
    if not entry.is_dir():
        _build_cache(items, attributes, entry)
    facts = json.loads((entry / 'facts.json').read_text())
    load = lambda name: np.load(entry / f'{name}.npy', mmap_mode='r').view(np.ndarray)
    products = ProductFile(entry / 'products.jsonl', load('starts'))
    return Catalog(
        tuple(products) if len(products) <= _MAX_PARSED else products, search.load(entry / 'index', len(products)),
        load('pricing'), load('asins'), load('order'), facts['skipped'])


def find_file(folder: Path, *patterns: str) -> Path:
    """Return the only file in a folder that matches the first pattern with any match.

    Raises:
      CatalogError: no file matches, or several do.
    """
    if not folder.is_dir():
        raise CatalogError(f'{folder}: no such folder')
    for pattern in patterns:
        paths = sorted(folder.glob(pattern))
        if len(paths) > 1:
            raise CatalogError(f'{folder} contains several files named {pattern}: '
                               f'{", ".join(path.name for path in paths)}; keep one of them')
        if paths:
            return paths[0]
    raise CatalogError(f'{folder} contains no file named {" or ".join(patterns)}')


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object whose keys are asins.

    Raises:
      CatalogError: the file contains something else.
    """
    try:
        content = json.loads(path.read_text('utf-8-sig'))
    except (ValueError, RecursionError) as error:
        raise CatalogError(f'{path}: not valid JSON: {error}') from None
    if not isinstance(content, dict):
        raise CatalogError(f'{path}: expected an object with asins as keys, found a {type(content).__name__}')
    return content


def read_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield (row number from 1, row) of a JSON list or of JSON lines.

    The full catalog's file has several gigabytes, so it is never held in memory as a whole.

    Raises:
      CatalogError: a row is malformed; the message names the file and the row.
    """
    number = 0
    try:
        for number, row in enumerate(_read_lines(path) if path.suffix == '.jsonl' else _read_elements(path), 1):
            if not isinstance(row, dict):
                raise CatalogError(f'{path}, row {number}: expected an object, found a {type(row).__name__}')
            yield number, row
    except CatalogError:
        raise
    except (ValueError, RecursionError) as error:
        raise CatalogError(f'{path}, after row {number}: not valid JSON: {error}') from None


def _read_lines(path: Path) -> Iterator[Any]:
    with open(path, encoding='utf-8-sig', newline='\n') as file:
        yield from (json.loads(line) for line in file if line.strip())


def _read_elements(path: Path, size: int = 1 << 20) -> Iterator[Any]:
    """Yield the elements of a JSON list while reading the file in chunks of `size` characters."""
    decoder, text = json.JSONDecoder(), ''
    with open(path, encoding='utf-8-sig') as file:
        text = file.read(size).lstrip()
        if not text.startswith('['):
            raise CatalogError(f'{path}: expected a JSON list of products')
        text = text[1:]
        while True:
            text = text.lstrip(' \n\r\t,')
            if text.startswith(']'):
                return
            try:
                element, end = decoder.raw_decode(text)
                if end == len(text):  # a number may continue in the next chunk
                    raise json.JSONDecodeError('the list is not closed', text, end)
            except json.JSONDecodeError:
                chunk = file.read(max(size, len(text)))
                if not chunk:
                    raise
                text += chunk
                continue
            yield element
            text = text[end:]


def _build_cache(items: Path, attributes: Path, entry: Path) -> None:
    """Build the cache in a temporary folder beside `entry`, and rename it once it is complete."""
    folder = entry.with_name(f'.{entry.name}.{uuid.uuid4().hex}.tmp')
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
                    product = _parse_product(row, known.get(asin) or {}, f'{items}, row {rows} ({asin})', attributes)
                    file.write(json.dumps(dataclasses.asdict(product), ensure_ascii=False).encode() + b'\n')
                    starts.append(file.tell())
                    pricing.append((product.pricing + (math.nan,))[:2])
                    yield row['contents'] if isinstance(row.get('contents'), str) else _indexed_text(product)

        search.build(texts(), folder / 'index')
        if not asins:
            raise CatalogError(f'{items}: the file contains no products')
        names = np.array([asin.encode() for asin in asins], 'S10')
        order = np.argsort(names, kind='stable')
        for name, array in (('starts', np.array(starts)), ('pricing', np.array(pricing)), ('asins', names[order]),
                            ('order', order)):
            np.save(folder / f'{name}.npy', array)
        (folder / 'facts.json').write_text(json.dumps({'skipped': rows - len(asins)}))
        try:
            os.rename(folder, entry)
        except OSError:
            if not entry.is_dir():  # otherwise another process finished first, with the same result
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _parse_product(row: Mapping[str, Any], known: Any, where: str, attributes_file: Path) -> Product:
    """Parse a row of the official file, or of one in which prices and options have been parsed already.

    Args:
      row: the row.
      known: the value of the product in the file of attributes.
      where: the file and the row, for errors.
      attributes_file: the file of attributes, for errors.
    """
    if not _ASIN.fullmatch(row['asin']):
        raise CatalogError(f'{where}: asin must consist of capital letters A to Z and digits')
    if not isinstance(known, dict):
        raise CatalogError(f'{attributes_file}, {row["asin"]}: expected an object, found {known!r:.100}')
    text = lambda name: _parse_text(row.get(name), f'{where}: {name}')
    bullets = row.get('small_description') or []
    if not isinstance(bullets, (str, list)):
        raise CatalogError(f'{where}: small_description must be a list of strings; it is {bullets!r:.100}')
    pricing, price_text = _parse_pricing(row.get('pricing'), where)
    attributes = known.get('attributes', ['DUMMY_ATTR'])
    if not isinstance(attributes, list) or not all(isinstance(attribute, str) for attribute in attributes):
        raise CatalogError(f'{attributes_file}, {row["asin"]}: attributes must be a list of strings; they are '
                           f'{attributes!r:.100}')
    return Product(
        asin=row['asin'], category=text('category'), query=text('query').lower().strip(),
        product_category=text('product_category'), title=text('name'), description=text('full_description'),
        bullets=tuple(_parse_text(bullet, f'{where}: small_description')
                      for bullet in ([bullets] if isinstance(bullets, str) else bullets)),
        price_text=price_text, pricing=pricing, options=_parse_options(row, where), attributes=tuple(attributes),
        rating=str(row.get('Rating') or 'N.A.'), reviews=_parse_reviews(row.get('Reviews') or [], where))


def _parse_text(value: Any, what: str) -> str:
    if value is None:
        return ''
    if not isinstance(value, str):
        raise CatalogError(f'{what} must be a string; it is {value!r:.100}')
    return value


def _parse_pricing(value: Any, where: str) -> tuple[tuple[float, ...], str]:
    """Return at most two prices and the text that shows them, from '$5.00$7.50' or [5.0, 7.5].

    As in the original, a product without a price costs 100 dollars.
    """
    try:
        if isinstance(value, str):
            prices = [float(Decimal(re.sub(r'[^\d.]', '', part))) for part in value.split('$')[1:]]
        else:
            prices = [float(price) for price in value or ()]
    except (InvalidOperation, OverflowError, TypeError, ValueError):
        prices = []
    if not prices and value or not all(math.isfinite(price) and price >= 0 for price in prices):
        raise CatalogError(f'{where}: pricing contains no price: {value!r:.100}')
    prices = prices[:2] or [100.0]
    return tuple(prices), ' to '.join(f'${price}' for price in prices)


def _parse_reviews(value: Any, where: str) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(value, list) or not all(
            isinstance(review, dict) and all(isinstance(review.get(name, ''), str) for name in ('title', 'body'))
            for review in value):
        raise CatalogError(f'{where}: Reviews must be a list of objects whose title and body are strings; they are '
                           f'{value!r:.100}')
    return tuple(value)


def _parse_options(row: Mapping[str, Any], where: str) -> dict[str, tuple[str, ...]]:
    raw = row.get('customization_options' if 'customization_options' in row else 'options')
    options = {}
    try:
        for name, values in (raw or {}).items():
            if not isinstance(values, (list, type(None))):
                raise TypeError
            texts = [value if isinstance(value, str) else value['value'] for value in values or ()]
            if chosen := tuple(filter(None, map(_normalize_option, texts))):
                options[name.lower()] = chosen
    except (AttributeError, KeyError, TypeError):
        raise CatalogError(f'{where}: options must map names to lists of values; they are {raw!r:.100}') from None
    return options


def _normalize_option(value: str) -> str:
    """Return an option's value as the official engine shows it. A normalized value stays as it is.

    Clicks are converted to lower case and end with their line, so a value with capitals or line feeds could not be
    chosen.
    """
    return value.replace('\n', ' ').strip().replace('/', ' | ').strip().lower()


def _indexed_text(product: Product) -> str:
    """Return the text of a product that the search index contains."""
    options = ', and '.join(f'{name}: {", ".join(values)}' for name, values in product.options.items())
    return ' '.join((product.title, product.description, (product.bullets or ('',))[0], options)).lower()
