"""The contract between a domain and its text environment."""

import dataclasses

from ml_collections import ConfigDict
import pytest

from epo_jax.defaults import default_config
from epo_jax.envs.base import DOMAINS, GOAL, Dimension, Domain, TextEnvironment, check_environment, load_domain
from epo_jax.runtime.errors import InputError

OPTIONS = ConfigDict({'name': 'game'})


class Game(TextEnvironment):
    """Two seats; a judge can rate its episodes."""

    num_seats = 2

    def judge_prompt(self, state, seat):
        return 'Rate this.'


class Unjudged(TextEnvironment):
    """One seat and no judge_prompt."""


class Duck:
    """Has the methods of a Game but is not a TextEnvironment."""

    num_seats, max_turns, judge_prompt = 2, 10, Game.judge_prompt


def domain(env, **changes):
    return dataclasses.replace(Domain(
        seats=2, scenarios=lambda path, options: [], text_environment=lambda options: env), **changes)


@pytest.mark.parametrize('case', [
    domain(Game()), domain(Game(), judged=False), domain(Unjudged(), seats=1, judged=False),
    domain(None, text_environment=None)])
def test_environments_that_keep_the_contract_pass(case):
    check_environment(case, OPTIONS)


@pytest.mark.parametrize('case, message', [
    (domain(Duck()), 'game: Duck must be a subclass of .*TextEnvironment'),
    (domain(Game), 'game: type must be a subclass of .*TextEnvironment'),
    (domain(None), 'game: NoneType must be a subclass of .*TextEnvironment'),
    (domain(Game(), seats=1), 'game: Game has 2 seats, but its Domain has 1'),
    (domain(Game(), seats=3), 'game: Game has 2 seats, but its Domain has 3'),
    (domain(Unjudged(), seats=1), 'game: Unjudged has no judge_prompt; .* judged=False'),
    (domain(Game(), rubric=()), "game: the rubric of a Domain must have a dimension 'goal'"),
    (domain(Game(), rubric=(GOAL, GOAL)), 'game: the rubric .* no name twice'),
    (domain(None, text_environment=None, rubric=(GOAL, Dimension('wit', 5, 5, ''))), 'game: the rubric rates wit from 5')])
def test_environments_that_break_the_contract_are_refused(case, message):
    with pytest.raises(InputError, match=message):
        check_environment(case, OPTIONS)


@pytest.mark.parametrize('name', DOMAINS)
def test_the_environments_of_the_package_keep_the_contract(name):
    check_environment(load_domain(name), default_config(name).environment)


def test_the_environment_gets_the_options_of_the_configuration():
    received = []

    def build(options):
        received.append(options.to_dict())
        return Game()

    check_environment(domain(None, text_environment=build), OPTIONS)
    assert received == [{'name': 'game'}]
