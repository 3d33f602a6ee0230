"""Replay recorded actions in WebShop, to compare this engine with another one.

    python -m epo_jax.tools.webshop_replay --data=DIR --variant=webshop-1k-synth-15 --actions=A.jsonl --out=O.jsonl

A row of the actions file is {"goal": index, "actions": ["search[...]", "click[...]", ...]}. The output contains one
row per visit, in the same order:
  goal, instruction
  observations   the first page, and the page after each action that was played
  available      {"has_search_bar": ..., "clickables": [...]} for each of these pages
  reward, reward_parts, done
A visit ends with a purchase or after the variant's largest number of steps; later actions are not played.
"""

import argparse
import sys
from typing import Any, Mapping, Sequence

from epo_jax.envs.webshop.engine import Shop, Visit
from epo_jax.envs.webshop.variants import add_shop_arguments, find_variant, load_shop
from epo_jax.runtime.files import read_jsonl, write_jsonl


def replay(shop: Shop, goal: int, actions: Sequence[str], max_steps: int) -> dict[str, Any]:
    """Play one visit and return its output row.

    Args:
      shop: the shop.
      goal: index of the goal in `shop.goals`.
      actions: the actions, in order.
      max_steps: largest number of actions to play.

    Raises:
      ValueError: the shop has no such goal.
    """
    if not 0 <= goal < len(shop.goals):
        raise ValueError(f'there is no goal {goal}; the goals of this variant are 0 to {len(shop.goals) - 1}')
    visit = Visit(shop.goals[goal])
    visits = [visit]
    for action in actions[:max_steps]:
        if visit.done:
            break
        visit = shop.step(visit, action)
        visits.append(visit)
    available = [shop.available(visit) for visit in visits]
    return {
        'goal': goal, 'instruction': visit.goal.instruction,
        'observations': [shop.observe(visit) for visit in visits],
        'available': [{'has_search_bar': page.search, 'clickables': list(page.clicks)} for page in available],
        'reward': visit.reward, 'reward_parts': dict(visit.parts), 'done': visit.done}


def read_actions(path: str) -> list[Mapping[str, Any]]:
    """Read a file of actions.

    Raises:
      ValueError: a row is malformed; the message names the file and the row.
    """
    rows = read_jsonl(path)
    for number, row in enumerate(rows, 1):
        goal, actions = row.get('goal'), row.get('actions')
        if type(goal) is not int:
            raise ValueError(f'{path}, row {number}: goal must be an integer; it is {goal!r}')
        if not isinstance(actions, list) or not all(isinstance(action, str) for action in actions):
            raise ValueError(f'{path}, row {number}: actions must be a list of strings; it is {actions!r:.100}')
    return rows


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog='python -m epo_jax.tools.webshop_replay', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shop_arguments(parser)
    parser.add_argument('--actions', required=True, help='JSON lines file with goals and actions')
    parser.add_argument('--out', required=True, help='JSON lines file to write')
    args = parser.parse_args()
    try:
        variant, rows = find_variant(args.variant), read_actions(args.actions)
        shop = load_shop(variant.name, args.data, args.tagger, args.seed)
        played = []
        for number, row in enumerate(rows, 1):
            try:
                played.append(replay(shop, row['goal'], row['actions'], variant.max_steps))
            except ValueError as error:
                raise ValueError(f'{args.actions}, row {number}: {error}') from None
        write_jsonl(args.out, played)
    except (ValueError, ImportError, OSError) as error:
        sys.exit(f'error: {error}')
    rewards = [row['reward'] for row in played]
    print(f'{variant.name}: {len(rows)} visits, {sum(row["done"] for row in played)} purchases, '
          f'{sum(reward == 1 for reward in rewards)} with reward 1, mean reward '
          f'{sum(rewards) / max(len(rewards), 1):.4f}')


if __name__ == '__main__':
    main()
