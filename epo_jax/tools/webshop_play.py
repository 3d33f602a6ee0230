"""Play WebShop in a browser, and see what a model reads on each page.

    python -m epo_jax.tools.webshop_play --data=DIR --variant=webshop-1k-synth-15 --port=8000

Then open http://127.0.0.1:8000/. The server only accepts connections from this machine. The command needs Flask
(pip install flask, or the extra `play`).
"""

import argparse
import dataclasses
import importlib.resources
import sys
from typing import Any
import uuid

try:
    import flask
except ImportError:
    flask = None  # reported by main

from epo_jax.envs.webshop.engine import RESULTS, Shop, Visit
from epo_jax.envs.webshop.pages import PER_PAGE, sub_pages
from epo_jax.envs.webshop.variants import Variant, add_shop_arguments, find_variant, load_shop


@dataclasses.dataclass(frozen=True)
class Play:
    """A person's visit.

    Attributes:
      goal: index of the goal.
      visit: the state of the shop.
      actions: the actions so far.
    """

    goal: int
    visit: Visit
    actions: tuple[str, ...] = ()


def make_app(shop: Shop, variant: Variant) -> 'flask.Flask':
    """Build the web application: /goal/N starts a visit, and /visit/ID shows it and accepts actions by POST."""
    server = flask.Flask('webshop')
    template = (importlib.resources.files('epo_jax.envs.webshop') / 'data' / 'visit.html').read_text('utf-8')
    plays: dict[str, Play] = {}  # by the id in the URL

    def is_over(play: Play) -> bool:
        return play.visit.done or len(play.actions) >= variant.max_steps

    @server.get('/')
    def home():
        return flask.redirect(flask.url_for('begin', goal=0))

    @server.get('/goal/<int:goal>')
    def begin(goal: int):
        if goal >= len(shop.goals):
            flask.abort(404, f'There is no goal {goal}; the goals are 0 to {len(shop.goals) - 1}.')
        key = uuid.uuid4().hex
        plays[key] = Play(goal, Visit(shop.goals[goal]))
        return flask.redirect(flask.url_for('show', key=key))

    @server.route('/visit/<key>', methods=['GET', 'POST'])
    def show(key: str):
        if key not in plays:
            flask.abort(404, 'This visit does not exist, perhaps because the server has restarted; start a new one.')
        play = plays[key]
        if flask.request.method == 'GET':
            return flask.render_template_string(template, **_template_values(shop, variant, play, is_over(play)))
        form = flask.request.form
        action = form.get('action') or f'search[{form.get("keywords", "")}]'
        if not is_over(play):
            plays[key] = Play(play.goal, shop.step(play.visit, action), play.actions + (action,))
        return flask.redirect(flask.url_for('show', key=key), code=303)

    return server


def explain(parts: dict[str, Any]) -> list[dict[str, Any]]:
    """Explain a reward.

    Args:
      parts: the components of the reward, see reward.py; empty before the purchase.

    Returns:
      For each component its name, score, weight and the reason for its score.
    """
    if not parts:
        return []
    reasons = ['same search query'] if parts['query_match'] else []
    reasons += ['at least two category levels in common'] if parts['category_match'] else []
    reasons.append(f'{parts["title_score"]:.0%} of the nouns in the name of the wanted product')
    rows = [{'name': 'Product type', 'score': parts['r_type'], 'weight': 'multiplies the rest',
             'why': ', '.join(reasons)}]
    for name, key, why in (('Attributes', 'att', 'fraction of the requested attributes that the product has'),
                           ('Options', 'option', 'fraction of the requested options that were selected'),
                           ('Price', 'price', 'within the limit')):
        if f'r_{key}' in parts:
            rows.append({'name': name, 'score': float(parts[f'r_{key}']), 'weight': f'{parts[f"w_{key}"]:.2f}',
                         'why': why if key != 'price' or parts['r_price'] else 'above the limit'})
    return rows


def _template_values(shop: Shop, variant: Variant, play: Play, over: bool) -> dict[str, Any]:
    """Return the values of the variables in visit.html."""
    visit = play.visit
    start = (visit.number - 1) * PER_PAGE
    return {
        'variant': variant.name, 'max_steps': variant.max_steps, 'goals': len(shop.goals), 'goal': play.goal,
        'visit': visit, 'over': over, 'step': len(play.actions), 'actions': play.actions, 'text': shop.observe(visit),
        'pieces': shop.pieces(visit), 'sub_pages': sub_pages(shop.show_attributes),
        'product': None if visit.item is None else shop.product(visit),
        'price': None if visit.item is None else float(shop.prices[visit.item]),
        'listed': [shop.catalog.products[hit] for hit in visit.hits[start:start + PER_PAGE]]
                  if visit.page == RESULTS else (),
        'explained': explain(dict(visit.parts))}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog='python -m epo_jax.tools.webshop_play', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shop_arguments(parser)
    parser.add_argument('--port', type=int, default=8000, help='port on 127.0.0.1 (default: %(default)s)')
    args = parser.parse_args()
    if flask is None:
        sys.exit("error: this command needs Flask; run pip install flask, or pip install 'epo_jax[play]'")
    try:
        variant = find_variant(args.variant)
        shop = load_shop(variant.name, args.data, args.tagger, args.seed)
    except (ValueError, ImportError, OSError) as error:
        sys.exit(f'error: {error}')
    print(f'{variant.name}: {len(shop.catalog.products)} products, {len(shop.goals)} goals; '
          f'open http://127.0.0.1:{args.port}/')
    make_app(shop, variant).run('127.0.0.1', args.port)


if __name__ == '__main__':
    main()
