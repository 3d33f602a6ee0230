"""The engine against transcripts of the official one.

The transcripts are random visits with clicks, searches and invalid actions, and contain every kind of page. Pages come
from the official templates, transitions from the official page flow, and hits from Lucene.
"""

import dataclasses
import hashlib
import json
import pathlib
import random

import pytest

from epo_jax.envs.webshop.engine import Shop, Visit
from epo_jax.envs.webshop.pages import text
from epo_jax.envs.webshop.scripted import buyer, weak_buyer
from epo_jax.runtime.files import read_jsonl
from epo_jax.tools.webshop_replay import replay

FOLDER = pathlib.Path(__file__).parent
SMALL, OFFICIAL = (read_jsonl(FOLDER / f'transcripts_{name}.jsonl') for name in ('small', '1k'))


def replay_row(shop: Shop, row):
    """Replay a transcript; as in the recording, the tagger labels every word of a name as a noun."""
    shop = dataclasses.replace(shop, show_attributes=row['show_attributes'], tagger=lambda name: name.lower().split())
    return replay(shop, row['goal'], row['actions'], 15)


@pytest.mark.parametrize('row', SMALL, ids=lambda row: str(row['goal']))
def test_pages_actions_and_rewards_equal_the_official_ones(small, row):
    ours = replay_row(small, row)
    for ours_page, page in zip(ours['observations'], row['observations']):
        assert ours_page == page
    assert ours == {key: row[key] for key in ours}


def test_transcripts_contain_every_kind_of_page():
    pages = [page for row in SMALL for page in row['observations']]
    assert len(SMALL) == 20 and sum(row['done'] for row in SMALL) >= 10
    for mark in ('WebShop', 'Page 2', 'Total results: 0', 'Rating', 'Thank you for shopping'):
        assert any(mark in page for page in pages), mark
    actions = {action for row in SMALL + OFFICIAL for action in row['actions']}
    assert {f'click[{name}]' for name in ('description', 'features', 'reviews', 'attributes', '< prev',
                                          'back to search')} <= actions


def test_sixty_visits_to_the_official_products(official):
    for row in OFFICIAL:
        ours = replay_row(official, row)
        content = json.dumps([ours['instruction'], ours['observations'], ours['available'], ours['reward_parts']])
        assert hashlib.sha256(content.encode()).hexdigest() == row['sha256']
        assert (ours['reward'], ours['done']) == (row['reward'], row['done'])


@pytest.mark.parametrize('action', ['', 'search', 'search[]', 'search ', 'click[search]', 'click[nothing]', 'buy now',
                                    'click[buy now]', 'click[', 'think[x]', 'click[< prev]', ' search[x]'])
def test_invalid_actions_change_nothing_and_are_counted(small, action):
    visit = Visit(small.goals[0])
    after = small.step(visit, action)
    assert after == dataclasses.replace(visit, invalid=1)
    assert small.observe(after) == small.observe(visit)


def test_every_available_click_is_valid(small):
    rng = random.Random(0)
    for goal in small.goals[:40]:
        visit = small.step(Visit(goal), f'search[{goal.query}]')
        for _ in range(30):
            clicks = small.available(visit).clicks
            before, value = visit, rng.choice(clicks)
            visit = small.step(visit, f'click[{value.upper()}]' if value != 'search' else f'search[{goal.title}]')
            assert visit.invalid == before.invalid
            if visit.done:
                assert value == 'buy now' and small.available(visit).clicks == ()
                with pytest.raises(ValueError, match='visit is over'):
                    small.step(visit, 'search[x]')
                break


def test_options_are_kept_until_the_results_page_is_shown_again(small):
    goal = next(goal for goal in small.goals if len(goal.options) == 2)
    visit = small.step(Visit(goal), f'search[{goal.title}]')
    visit = small.step(visit, f'click[{goal.asin}]')
    for _, value in goal.options:
        visit = small.step(visit, f'click[{value}]')
    for action in ('click[features]', 'click[< prev]'):
        visit = small.step(visit, action)
    assert visit.options == dict(goal.options)
    visit = small.step(small.step(visit, 'click[< prev]'), f'click[{goal.asin}]')
    assert visit.options == {}


def test_whitespace_of_pieces_is_treated_as_in_the_official_text():
    assert text([' a ', '', '\n  ', ' ', 'b\nc']) == 'a [SEP]  [SEP] b\nc'


def rewards_of(customer, shop, goals):
    """Return the reward of a customer for each of the first goals."""
    rewards = []
    for goal in shop.goals[:goals]:
        visit = Visit(goal)
        for _ in range(15):
            visit = shop.step(visit, customer(shop, visit))
            if visit.done:
                break
        rewards.append(visit.reward)
    return rewards


def test_scripted_buyer_gets_the_same_rewards_as_in_the_official_engine(official):
    rewards = rewards_of(buyer, official, 40)
    assert sum(reward == 1 for reward in rewards) == 38
    assert sum(rewards) / 40 == pytest.approx(0.992, abs=5e-4)


def test_scripted_customers_on_the_packaged_catalog(small):
    good, weak = rewards_of(buyer, small, 150), rewards_of(weak_buyer, small, 150)
    assert sum(reward == 1 for reward in good) >= 0.95 * len(good)
    assert 0.2 < sum(weak) / len(weak) < 0.8
