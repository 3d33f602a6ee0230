"""The pages of the shop in the official text form: visible pieces of text in order, joined by ' [SEP] '.

Whitespace around a piece and empty pieces are dropped. A piece of whitespace without a line break stays as an empty
piece, as it does when the official engine extracts the text nodes of its HTML pages.
"""

import json
from typing import Mapping, Sequence

from epo_jax.envs.webshop.catalog import Product

SEPARATOR = ' [SEP] '
PER_PAGE = 10

BACK, PREVIOUS, NEXT, BUY = 'Back to Search', '< Prev', 'Next >', 'Buy Now'
SUB_PAGES = ('Description', 'Features', 'Reviews', 'Attributes')


def text(pieces: Sequence[str]) -> str:
    """Join the pieces of a page into one text."""
    return SEPARATOR.join(piece.strip() for piece in pieces if piece.strip(' \t\n\r\f\v') or _is_blank(piece))


def index_page(instruction: str) -> list[str]:
    """Return the pieces of the page where a visit begins."""
    return ['WebShop', 'Instruction:', instruction, 'Search']


def results_page(instruction: str, page: int, total: int, products: Sequence[Product]) -> list[str]:
    """Return the pieces of a page of search results.

    Args:
      instruction: the goal's instruction.
      page: number of the page, from 1. The page always offers the next one.
      total: number of results on all pages.
      products: the products on this page.
    """
    listed = [piece for product in products for piece in (product.asin, product.title, product.price_text)]
    return [*_head(instruction), f'Page {page} (Total results: {total})', *([PREVIOUS] if page > 1 else []), NEXT,
            *listed]


def item_page(instruction: str, product: Product, show_attributes: bool) -> list[str]:
    """Return the pieces of a product's page, which offers the values of its options."""
    options = [piece for name, values in product.options.items() for piece in (name, *values)]
    return [*_head(instruction), PREVIOUS, *options, product.title, f'Price: {product.price_text}',
            f'Rating: {product.rating}', *sub_pages(show_attributes), BUY]


def sub_page(instruction: str, product: Product, name: str) -> list[str]:
    """Return the pieces of a product's sub-page; `name` is one of SUB_PAGES."""
    if name == 'Description':
        body = [product.description]
    elif name == 'Features':
        body = [f' {bullet}' for bullet in product.bullets]
    elif name == 'Reviews':
        body = [piece for review in product.reviews
                for piece in (f'"{review.get("title", "")}"', str(review.get('score', '')), review.get('body', ''))]
    else:
        body = [*(f' {attribute}' for attribute in product.attributes), product.category, product.query,
                product.product_category]
    return [*_head(instruction), PREVIOUS, *body]


def done_page(asin: str, options: Mapping[str, str], reward: float) -> list[str]:
    """Return the pieces of the page after a purchase.

    It includes the fields that the official page has but its text environment leaves empty.
    """
    chosen = json.dumps(dict(sorted(options.items())))
    for mark in '<>&\'':
        chosen = chosen.replace(mark, f'\\u{ord(mark):04x}')
    return ['Thank you for shopping with us!', 'Your code:', 'None', '(Paste it in your MTurk interface.)',
            'Purchased', 'asin', asin, 'options', chosen, 'attrs', 'None', 'category', 'None', 'query', 'None',
            'product category', 'None',
            'Target', 'asin', 'options', 'attrs', 'price upper', 'instuction text', 'category', 'product category',
            'query', 'Goal', 'None',
            'Reward', 'Your score (min 0.0, max 1.0)', str(reward), 'Reward Details', 'None']


def sub_pages(show_attributes: bool) -> tuple[str, ...]:
    """Return the names of a product's sub-pages; the official engine hides the attributes by default."""
    return SUB_PAGES if show_attributes else SUB_PAGES[:-1]


def _head(instruction: str) -> list[str]:
    return ['Instruction:', instruction, BACK]


def _is_blank(piece: str) -> bool:
    return piece != '' and '\n' not in piece
