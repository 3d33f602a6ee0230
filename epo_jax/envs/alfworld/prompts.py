"""Every text that a model reads in an ALFWorld episode. The same texts serve training, evaluation and serving.

They give the same information as the prompts of ALFWorld's agents and EPO, in the same places, in our own words. The
worked examples are games of the package, played by the engine, so that their texts match the release that is played.
"""

import re
from typing import Mapping

from epo_jax.envs.alfworld import source, text
from epo_jax.envs.alfworld.engine import Game
from epo_jax.envs.alfworld.problem import build_game
from epo_jax.envs.alfworld.replay import replay
from epo_jax.envs.alfworld.text import Version

# The beginnings of a strategy, an action and an observation.
THOUGHT, ACTION, OBSERVATION = 'Thought:', 'Action:', 'Observation:'

NO_ACTION = f'{text.NOTHING_HAPPENS} Write one command, as "{ACTION} ...".'

_ASKED = {
    'pick_and_place_simple': 'an object has to be in or on a certain kind of place.',
    'look_at_obj_in_light': 'you have to hold an object where a lamp is, and switch the lamp on.',
    'pick_clean_then_place_in_recep': 'an object has to be cleaned with a sinkbasin and then put in its place.',
    'pick_heat_then_place_in_recep': 'an object has to be heated with a microwave and then put in its place.',
    'pick_cool_then_place_in_recep': 'an object has to be cooled with a fridge and then put in its place.',
    'pick_two_obj_and_place': 'two objects of a kind have to be in the same place; you can carry one at a time.'}


def situation(game: Game, version: Version) -> str:
    """Return the room and the task, as the game states them."""
    return text.opening(game, version).removeprefix(f'{text.WELCOME}\n\n').replace('\n\n', '\n')


def category_of(task: str) -> str:
    """Return the type of a task that is stated as in the games, such as 'put two mugs in shelf.'."""
    words = set(re.findall('[a-z]+', task.lower()))
    kinds = (({'two'}, 'pick_two_obj_and_place'), ({'clean'}, 'pick_clean_then_place_in_recep'),
             ({'hot', 'heat'}, 'pick_heat_then_place_in_recep'), ({'cool'}, 'pick_cool_then_place_in_recep'),
             ({'look', 'examine'}, 'look_at_obj_in_light'))
    return next((kind for named, kind in kinds if named & words), 'pick_and_place_simple')


def said(observation: str, version: Version) -> str:
    """Return what the models read of an observation, without the numbers of locations, as in EPO."""
    if not version.arrives_at_receptacle and observation.startswith('You arrive at '):
        return observation.partition('. ')[2]
    return observation


def exchange(command: str, observation: str) -> str:
    """Return an action and its observation."""
    return f'{ACTION} {command}\n{OBSERVATION} {observation}'


def examples(version: Version) -> Mapping[str, str]:
    """Return, by task type, a game that is won step by step, with a thought before every action."""
    worked = {}
    for where, split, row in source.rows_of(source.find(str(source.PACKAGED / 'examples.jsonl'))):
        game = build_game(source.record_of(where, split, row))
        commands = [text.translate(command, version) for command in game.walkthrough]
        observations = [said(observation, version) for observation in replay(game, version, commands)['observations']]
        worked[game.category] = '\n'.join((situation(game, version), *(
            f'{THOUGHT} {thought}\n{exchange(command, observation)}'
            for thought, command, observation in zip(row['thoughts'], commands, observations[1:], strict=True))))
    return worked


def commands(version: Version) -> str:
    """Return the forms of the commands, for the actor."""
    verb, word = version.put
    return ('go to PLACE; open PLACE; close PLACE; take THING from PLACE; '
            f'{verb} THING {word} PLACE; use LAMP; clean, heat or cool THING with PLACE; slice THING with KNIFE; '
            'examine THING; inventory; look')


def strategist_opening(category: str, room: str, worked: Mapping[str, str], short: bool) -> str:
    """Return the strategist's first message.

    Args:
      category: the type of the task.
      room: see `situation`.
      worked: see `examples`.
      short: leave out the example.
    """
    if short:
        return '\n'.join((
            'You advise someone who does a task at home.', room,
            'What should be done next? Answer in one short sentence. For example: "Look for the mug on the desk."'))
    return '\n'.join((
        'You are an expert in household tasks. You advise an agent in a text game, one step at a time. In this task '
        + _ASKED[category],
        'Before each action, write what the agent should do next and why, in one or two sentences, as '
        f'"{THOUGHT} ...". Say what is still missing, where it may be, and what to try when nothing happened. Then '
        'you read what the agent did and what happened.',
        'An example of such a task:', worked[category], 'Now your task begins.', room))


def actor_opening(game: Game, version: Version, worked: Mapping[str, str], short: bool, advised: bool) -> str:
    """Return the actor's first message."""
    advice = 'A strategist gives you a thought before every action; you may ignore it. ' if advised else ''
    if short:
        verb, word = version.put
        return '\n'.join((
            f'You do a task at home with commands like these: go to desk 1; open drawer 1; take mug 1 from desk 1; '
            f'{verb} mug 1 {word} desk 1; use desklamp 1; clean, heat or cool mug 1 with sinkbasin 1.',
            f'{advice}Answer with one command, as "{ACTION} go to desk 1".', situation(game, version)))
    return '\n'.join((
        'You are in a house, in a text game. You do a task there, one command at a time. In this task '
        + _ASKED[game.category],
        f'Commands: {commands(version)}. Things and places have numbers, as in "mug 2"; write names as you read '
        f'them. You must be at a place to use it, and can carry one thing. "{text.NOTHING_HAPPENS}" means that the '
        'command was not possible.',
        f'{advice}Answer with one command only, as "{ACTION} ...".',
        'An example of such a task:', worked[game.category], 'Now your task begins.', situation(game, version)))


def judge_opening(game: Game, version: Version) -> str:
    """Return the judge's message up to the actions."""
    return '\n'.join((
        'Read what an agent does in a house, step by step, and judge how well it reaches its goal.',
        situation(game, version), f'For the goal, {_ASKED[game.category]}', 'What the agent does:'))
