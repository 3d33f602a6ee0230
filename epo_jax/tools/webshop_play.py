"""A person can shop, too: the same engine as small HTML pages, for looking at what a model saw.

    python -m epo_jax.tools.webshop_play --data=DIR --variant=webshop-1k-synth-15 --port=8000

Then open http://127.0.0.1:8000/. The server listens on this machine only.
"""

import argparse
import dataclasses
import importlib.resources
import sys
from typing import Any
import uuid

import flask

from epo_jax.envs.webshop.engine import RESULTS, Shop, Visit
from epo_jax.envs.webshop.pages import PER_PAGE, sub_pages
from epo_jax.envs.webshop.variants import Variant, add_shop_arguments, find_variant, load_shop


@dataclasses.dataclass(frozen=True)
class Play:
    """A person's visit: the goal's number, the actions and where they led."""

    goal: int
    visit: Visit
    actions: tuple[str, ...] = ()


def make_app(shop: Shop, variant: Variant) -> flask.Flask:
    """The web application: /goal/N begins a visit, /visit/ID shows it and takes actions by POST."""
    server = flask.Flask('webshop')
    template = (importlib.resources.files('epo_jax.envs.webshop') / 'data' / 'visit.html').read_text('utf-8')
    plays: dict[str, Play] = {}  # by id, as long as the server runs

    def over(play: Play) -> bool:
        return play.visit.done or len(play.actions) >= variant.max_steps

    @server.get('/')
    def home():
        return flask.redirect(flask.url_for('begin', goal=0))

    @server.get('/goal/<int:goal>')
    def begin(goal: int):
        if goal >= len(shop.goals):
            flask.abort(404, f'There are goals 0 to {len(shop.goals) - 1}.')
        key = uuid.uuid4().hex
        plays[key] = Play(goal, Visit(shop.goals[goal]))
        return flask.redirect(flask.url_for('show', key=key))

    @server.route('/visit/<key>', methods=['GET', 'POST'])
    def show(key: str):
        if key not in plays:
            flask.abort(404, 'This visit is not known; the server may have been started anew.')
        play = plays[key]
        if flask.request.method == 'GET':
            return flask.render_template_string(template, **_shown(shop, variant, play, over(play)))
        form = flask.request.form
        action = form.get('action') or f'search[{form.get("keywords", "")}]'
        if not over(play):
            plays[key] = Play(play.goal, shop.step(play.visit, action), play.actions + (action,))
        return flask.redirect(flask.url_for('show', key=key), code=303)

    return server


def explain(parts: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts of a reward in words: name, score, weight and why, one row a part."""
    if not parts:
        return []
    reasons = ['found by the same query'] if parts['query_match'] else []
    reasons += ['two levels of the category in common'] if parts['category_match'] else []
    reasons.append(f'{parts["title_score"]:.0%} of the nouns of the wanted name')
    rows = [{'name': 'Kind of product', 'score': parts['r_type'], 'weight': 'multiplies all',
             'why': ', '.join(reasons)}]
    for name, key, why in (('Attributes', 'att', 'share of those asked for that it has'),
                           ('Options', 'option', 'share of those asked for that were chosen'),
                           ('Price', 'price', 'not above the limit')):
        if f'r_{key}' in parts:
            rows.append({'name': name, 'score': float(parts[f'r_{key}']), 'weight': f'{parts[f"w_{key}"]:.2f}',
                         'why': why if key != 'price' or parts['r_price'] else 'above the limit'})
    return rows


def _shown(shop: Shop, variant: Variant, play: Play, over: bool) -> dict[str, Any]:
    """What the template shows of a visit."""
    visit = play.visit
    start = (visit.number - 1) * PER_PAGE
    return {
        'variant': variant.name, 'max_steps': variant.max_steps, 'goals': len(shop.goals), 'goal': play.goal,
        'visit': visit, 'over': over, 'step': len(play.actions), 'actions': play.actions, 'text': shop.observe(visit),
        'pieces': shop.pieces(visit), 'sub_pages': sub_pages(shop.show_attributes),
        'product': None if visit.item is None else shop.product(visit),
        'price': None if visit.item is None else float(shop.prices[visit.item]),
        'listed': [shop.catalogue.products[hit] for hit in visit.hits[start:start + PER_PAGE]]
                  if visit.page == RESULTS else (),
        'explained': explain(dict(visit.parts))}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog='python -m epo_jax.tools.webshop_play', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shop_arguments(parser)
    parser.add_argument('--port', type=int, default=8000, help='where the pages are served, on 127.0.0.1')
    args = parser.parse_args()
    try:
        variant = find_variant(args.variant)
        shop = load_shop(variant.name, args.data, args.tagger, args.seed)
    except (ValueError, ImportError, OSError) as error:
        sys.exit(f'error: {error}')
    print(f'{variant.name}: {len(shop.catalogue.products)} products, {len(shop.goals)} goals; '
          f'http://127.0.0.1:{args.port}/')
    make_app(shop, variant).run('127.0.0.1', args.port)


if __name__ == '__main__':
    main()
