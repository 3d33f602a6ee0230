"""Generate the small catalog that comes with the package: 325 invented products in the official file format.

    python -m epo_jax.tools.webshop_catalog epo_jax/envs/webshop/data

The command writes products.jsonl and items_ins_v2.json to the given folder. Its output is deterministic and identical
to the packaged files, so it only needs to run again after a change to the tables in this file.
"""

import argparse
import json
from pathlib import Path
import random
import sys
from typing import Any, Iterator

from epo_jax.runtime.files import write_atomically, write_jsonl

PER_KIND = 13     # products of each kind
INSTRUCTED = 6    # products of each kind that have an instruction

BRANDS = (
    'Alderby Bramwick Corvane Dunlow Everfield Fenmoor Galewood Harrowby Isling Juneford Kestlan Larkmere Marlbeck '
    'Northpine Ostrel Pellworth Quillan Rosenby Stanmere Tidewick Umberly Vantree Wexcombe Yarrowen').split()
COLORS = ('black', 'white', 'navy blue', 'forest green', 'wine red', 'light grey', 'mustard', 'rose')
SIZES = ('x-small', 'small', 'medium', 'large', 'x-large', 'xx-large')

# Category -> (top level of product_category, attribute -> phrase in the texts, kinds of products). A kind is (query,
# further levels, name, lowest price in dollars, highest price, option name -> values).
CATEGORIES = {
    'beauty': ('Beauty & Personal Care', {
        'cruelty free': 'never tested on animals and cruelty free', 'paraben free': 'made paraben free',
        'sulfate free': 'gentle and sulfate free', 'long lasting': 'a long lasting formula',
        'tea tree': 'with tea tree', 'fragrance free': 'fragrance free for sensitive noses',
        'dry skin': 'made for dry skin'}, (
        ('shampoo', 'Hair Care › Shampoo', 'Daily Care Shampoo', 6, 24,
         {'size': ('8 fl oz', '16 fl oz', '33 fl oz'), 'scent': ('mint', 'lavender', 'unscented')}),
        ('lipstick', 'Makeup › Lips › Lipstick', 'Satin Lipstick', 5, 19,
         {'color': ('brick red', 'soft pink', 'deep plum', 'nude beige')}),
        ('face moisturizer', 'Skin Care › Face › Moisturizers', 'Face Cream Moisturizer', 9, 38,
         {'size': ('1.7 oz', '3.4 oz')}),
        ('hair brush', 'Hair Care › Styling Tools › Brushes', 'Paddle Hair Brush', 7, 22, {'color': COLORS[:4]}),
        ('bath sponge', 'Bath & Bathing Accessories › Sponges', 'Bath Sponge Set', 4, 15,
         {'color': COLORS[:3], 'number of items': ('2', '4')}))),
    'electronics': ('Electronics', {
        'easy use': 'easy use from the first minute', 'light weight': 'light weight for travel',
        'carrying case': 'delivered in a carrying case', 'high performance': 'built for high performance',
        'aluminum alloy': 'with parts of aluminum alloy', 'water resistant': 'water resistant outside',
        'long life': 'made for a long life'}, (
        ('usb cables', 'Accessories & Supplies › Cables › USB Cables', 'Braided USB Cable', 5, 19,
         {'size': ('3 ft', '6 ft', '10 ft'), 'color': COLORS[:3]}),
        ('headphones', 'Headphones › Over-Ear Headphones', 'Over Ear Headphones', 25, 140, {'color': COLORS[:4]}),
        ('bluetooth speakers', 'Portable Audio › Speakers', 'Bluetooth Speaker', 18, 90,
         {'color': COLORS[1:5], 'style': ('single', 'stereo pair')}),
        ('tripods', 'Camera & Photo › Tripods', 'Travel Tripod', 20, 75, {'size': ('50 inch', '62 inch')}),
        ('wifi extenders', 'Computers › Networking › Extenders', 'Dual Band WiFi Extender', 22, 80,
         {'style': ('300 mbps', '1200 mbps', '3000 mbps')}))),
    'fashion': ('Clothing, Shoes & Jewelry', {
        'day comfort': 'made for all day comfort', 'quality materials': 'sewn from quality materials',
        'stretch fabric': 'with stretch fabric', 'moisture wicking': 'lined with moisture wicking fabric',
        'hand wash': 'hand wash only', 'everyday wear': 'good for everyday wear', 'slim fit': 'cut for a slim fit'}, (
        ("women's dresses", 'Women › Clothing › Dresses', "Women's Summer Dress", 18, 65,
         {'color': COLORS[:4], 'size': SIZES[1:5]}),
        ("men's shirts", 'Men › Clothing › Shirts', "Men's Button Down Shirt", 15, 48,
         {'color': COLORS[2:6], 'size': SIZES[1:]}),
        ("men's boots", 'Men › Shoes › Boots', "Men's Ankle Boots", 40, 130,
         {'color': COLORS[:2], 'size': ('8', '9', '10', '11')}),
        ("women's leggings", 'Women › Clothing › Leggings', "Women's Yoga Leggings", 12, 40,
         {'color': COLORS[:5], 'size': SIZES[:4]}),
        ('socks', 'Unisex › Clothing › Socks', 'Crew Socks Pack', 7, 21,
         {'color': COLORS[:3], 'size': ('small-medium', 'large-x-large')}))),
    'garden': ('Home & Kitchen', {
        'easy clean': 'made for easy clean days', 'fade resistant': 'fade resistant in the sun',
        'living room': 'a fit for every living room', 'eco friendly': 'produced in an eco friendly way',
        'modern style': 'of modern style', 'space saving': 'a space saving shape', 'hand made': 'hand made in small '
        'numbers'}, (
        ('throw pillows', 'Bedding › Decorative Pillows', 'Throw Pillow Cover', 8, 29,
         {'color': COLORS[:5], 'size': ('16 x 16 inch', '18 x 18 inch', '20 x 20 inch')}),
        ('coffee tables', 'Furniture › Living Room › Coffee Tables', 'Round Coffee Table', 60, 240,
         {'color': ('oak', 'walnut', 'white')}),
        ('bath rugs', 'Bath › Rugs', 'Bath Rug', 12, 45,
         {'color': COLORS[:4], 'size': ('17 x 24 in', '20 x 32 in')}),
        ('desk lamps', 'Lighting › Desk Lamps', 'Reading Desk Lamp', 15, 60, {'color': COLORS[:3]}),
        ('storage baskets', 'Storage & Organization › Baskets', 'Woven Storage Basket', 10, 42,
         {'size': ('small', 'medium', 'large'), 'color': COLORS[4:7]}))),
    'grocery': ('Grocery & Gourmet Food', {
        'gluten free': 'certified gluten free', 'low sugar': 'low sugar', 'non gmo': 'from non gmo crops',
        'plant based': 'fully plant based', 'dairy free': 'dairy free',
        'individually wrapped': 'individually wrapped', 'natural ingredients': 'made from natural ingredients'}, (
        ('granola', 'Breakfast Foods › Granola', 'Crunchy Oat Granola', 4, 18,
         {'flavor': ('honey almond', 'dark chocolate', 'maple pecan'), 'size': ('12 ounce', '24 ounce')}),
        ('black tea', 'Beverages › Tea › Black', 'Black Tea Bags', 5, 22,
         {'size': ('20 count', '50 count', '100 count')}),
        ('trail mix', 'Snack Foods › Trail Mix', 'Nut and Fruit Trail Mix', 6, 27,
         {'flavor': ('tropical', 'berry', 'salted')}),
        ('crackers', 'Snack Foods › Crackers', 'Seeded Crackers', 3, 16,
         {'flavor': ('sea salt', 'rosemary', 'everything'), 'size': ('pack of 1', 'pack of 4')}),
        ('pasta sauce', 'Sauces › Pasta Sauce', 'Tomato Pasta Sauce', 4, 19,
         {'flavor': ('basil', 'roasted garlic', 'spicy arrabbiata')})))}

OPENINGS = ('Our {name} has become a favourite in many homes.', 'A {name} for every day.',
            'We designed this {name} after listening to customers.', 'Meet the {name} by {brand}.')
REVIEWS = (('Just right', 5, 'It does what it says and arrived in time.'),
           ('Good', 4, 'Good value, I would buy it again.'),
           ('Not for me', 2, 'It looks different from the picture.'))


def generate_products(rng: random.Random) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield the rows of every product in products.jsonl and in items_ins_v2.json."""
    for category, (top, phrases, kinds) in CATEGORIES.items():
        for query, levels, name, low, high, options in kinds:
            for number, brand in enumerate(rng.sample(BRANDS, PER_KIND)):
                attributes = rng.sample(sorted(phrases), 4)
                price = round(rng.uniform(low, high), 2)
                pricing = [price] if rng.random() < 0.8 else [price, round(price * 1.5, 2)]
                asin = 'E' + ''.join(rng.choices('ABCDEFGHJKLMNPQRSTUVWXYZ23456789', k=7))
                offered = {option: rng.sample(values, rng.randint(2, len(values)))
                           for option, values in options.items()}
                yield {
                    'asin': asin, 'category': category, 'query': query, 'product_category': f'{top} › {levels}',
                    'name': f'{brand} {name}, {attributes[0].title()}, {attributes[1].title()}',
                    'full_description': ' '.join((rng.choice(OPENINGS).format(name=name, brand=brand),
                                                  f'It is {phrases[attributes[2]]}.')),
                    'small_description': [f'{phrases[attribute].capitalize()}.' for attribute in attributes],
                    'pricing': pricing, 'options': offered,
                    'Rating': str(rng.choice((3.5, 4.0, 4.5, 5.0))) if rng.random() < 0.5 else 'N.A.',
                    'Reviews': [dict(zip(('title', 'score', 'body'), review))
                                for review in rng.sample(REVIEWS, rng.randint(0, 2))]}, {
                    'attributes': attributes} | ({} if number >= INSTRUCTED else {
                        'instruction': f'Find me {attributes[0]}, {attributes[3]} {query}',
                        'instruction_attributes': [attributes[0], attributes[3]]})


def write_catalog(folder: Path) -> int:
    """Write products.jsonl and items_ins_v2.json to an existing folder; return the number of products."""
    rng = random.Random(0)
    rows = list(generate_products(rng))
    rng.shuffle(rows)
    write_jsonl(folder / 'products.jsonl', [product for product, _ in rows])
    attributes = ',\n'.join(f'{json.dumps(product["asin"])}: {json.dumps(row)}' for product, row in rows)
    write_atomically(folder / 'items_ins_v2.json', f'{{\n{attributes}\n}}\n')
    return len(rows)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog='python -m epo_jax.tools.webshop_catalog', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path, help='existing folder to which the two files are written')
    folder = parser.parse_args().folder
    if not folder.is_dir():
        sys.exit(f'error: {folder}: no such folder; create it first')
    try:
        count = write_catalog(folder)
    except OSError as error:
        sys.exit(f'error: {error}')
    print(f'wrote {count} products to {folder}')


if __name__ == '__main__':
    main()
