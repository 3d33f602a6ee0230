"""The observations and commands of the game: the text grammars of ALFWorld's releases.

A `Version` holds what differs between releases; everything else is the same in all of them. Names are listed in the
order of their numbers, in the form 'a bed 1, a desk 2, and a desk 1'.
"""

import dataclasses
from typing import Optional, Sequence

from epo_jax.envs.alfworld import engine
from epo_jax.envs.alfworld.engine import Action, Game, GameError, State

NOTHING_HAPPENS = 'Nothing happens.'
WELCOME = '-= Welcome to TextWorld, ALFRED! =-'


@dataclasses.dataclass(frozen=True)
class Version:
    """What differs between releases of ALFWorld.

    Attributes:
      name: '0.4' or '0.3'.
      put: verb and preposition of the command that puts an object somewhere.
      done: verb and preposition of the observation after it.
      arrives_at_receptacle: whether the observation on arrival names the receptacle instead of the location.
      help: text of the command `help`; '' if there is no such command.
    """

    name: str
    put: tuple[str, str]
    done: tuple[str, str]
    arrives_at_receptacle: bool
    help: str


# The columns are the original's, uneven ones included.
_HELP = """Available commands:
  look:                             look around your current location
  inventory:                        check your current inventory
  go to (receptacle):               move to a receptacle
  open (receptacle):                open a receptacle
  close (receptacle):               close a receptacle
  take (object) from (receptacle):  take an object from a receptacle
  move (object) to (receptacle):  place an object in or on a receptacle
  examine (something):              examine a receptacle or an object
  use (object):                     use an object
  heat (object) with (receptacle):  heat an object using a receptacle
  clean (object) with (receptacle): clean an object using a receptacle
  cool (object) with (receptacle):  cool an object using a receptacle
  slice (object) with (object):     slice an object using a sharp object
"""

VERSIONS = {
    '0.4': Version('0.4', ('move', 'to'), ('move', 'to'), True, _HELP),
    '0.3': Version('0.3', ('put', 'in/on'), ('put', 'in/on'), False, '')}

SPLITS = ('unseen', 'seen')
VARIANTS = tuple(f'alfworld-{version}-{split}' for version in VERSIONS for split in SPLITS)


def read_variant(name: str) -> tuple[Version, str]:
    """Return the release and the split of games that a variant names.

    Raises:
      GameError: there is no such variant.
    """
    if name not in VARIANTS:
        raise GameError(f'unknown variant {name!r}; choose one of {", ".join(VARIANTS)}')
    _, version, split = name.split('-')
    return VERSIONS[version], split


# Commands

_JOINED = {'take': 'from', 'clean': 'with', 'heat': 'with', 'cool': 'with', 'slice': 'with'}


def command(game: Game, version: Version, action: Action) -> str:
    """Return the command for an action."""
    verb, first, second = action
    if first == engine.NOTHING:
        return verb
    if verb == 'go':
        return f'go to {game.receptacles[first]}'
    if verb in ('open', 'close', 'examine'):
        return f'{verb} {game.receptacles[first]}'
    if verb == 'inspect':
        return f'examine {game.objects[first]}'
    if verb == 'use':
        return f'use {game.objects[first]}'
    if verb == 'put':
        return f'{version.put[0]} {game.objects[first]} {version.put[1]} {game.receptacles[second]}'
    place = game.objects[second] if verb == 'slice' else game.receptacles[second]
    return f'{verb} {game.objects[first]} {_JOINED[verb]} {place}'


def read_command(game: Game, version: Version, text: str) -> Optional[Action]:
    """Return the action that a command names, whether possible now or not; None if the game has no such command.

    Commands must match exactly, including case and spaces.
    """
    action = _read(game, version, text)
    return action if action is not None and command(game, version, action) == text else None


def _read(game: Game, version: Version, text: str) -> Optional[Action]:
    """Return the action that `text` seems to name, without checking its exact spelling."""
    verb, _, rest = text.partition(' ')
    if not rest:
        return Action(verb) if verb in ('look', 'inventory') or verb == 'help' and version.help else None
    if verb == 'go':
        kind, number = game.things.get(rest.removeprefix('to '), (None, None))
        return Action('go', number) if kind == 'receptacle' else None
    if verb in ('open', 'close', 'examine', 'use'):
        kind, number = game.things.get(rest, (None, None))
        if verb == 'examine' and kind == 'object':
            return Action('inspect', number)
        return Action(verb, number) if kind == ('object' if verb == 'use' else 'receptacle') else None
    if verb == version.put[0]:
        verb, word = 'put', version.put[1]
    elif verb in _JOINED:
        word = _JOINED[verb]
    else:
        return None
    first, _, second = rest.partition(f' {word} ')
    (kind, number), (place, where) = (game.things.get(name, (None, None)) for name in (first, second))
    expected = ('object', 'object' if verb == 'slice' else 'receptacle')
    return Action(verb, number, where) if (kind, place) == expected else None


def admissible(game: Game, version: Version, state: State) -> list[str]:
    """Return the commands that are possible now, sorted."""
    commands = [command(game, version, action) for action in engine.actions(game, state)]
    if not version.help:
        commands.remove('help')
    commands.sort()
    return commands


def translate(text: str, version: Version) -> str:
    """Translate a command of any release into the words of `version`."""
    for other in VERSIONS.values():
        verb, word = other.put
        if text.startswith(f'{verb} ') and f' {word} ' in text:
            thing, _, place = text.removeprefix(f'{verb} ').partition(f' {word} ')
            return f'{version.put[0]} {thing} {version.put[1]} {place}'
    return text


# Observations

_ROOM = 'You are in the middle of a room. Looking quickly around you, you see {}.'


def opening(game: Game, version: Version) -> str:
    """Return the first observation."""
    if game.near[game.initial.location]:
        around = _surroundings(game, game.initial)
    else:
        around = _ROOM.format(_join([f'a {name}' for name in game.receptacles]))
    return f'{WELCOME}\n\n{around}\n\n{game.task}'


def describe(game: Game, version: Version, state: State, action: Action) -> str:
    """Return the observation after an action; `state` is the state after it."""
    verb, first, second = action
    objects, receptacles = game.objects, game.receptacles
    if verb == 'go':
        place = receptacles[first] if version.arrives_at_receptacle else game.locations[game.home[first]]
        return f'You arrive at {place}. {_receptacle(game, state, first)}'
    if verb == 'open':
        return f'You open the {receptacles[first]}. {_receptacle(game, state, first)}'
    if verb == 'close':
        return f'You close the {receptacles[first]}.'
    if verb == 'examine':
        return _receptacle(game, state, first)
    if verb == 'inspect':
        return _object(game, state, first)
    if verb == 'take':
        return f'You pick up the {objects[first]} from the {receptacles[second]}.'
    if verb == 'put':
        return f'You {version.done[0]} the {objects[first]} {version.done[1]} the {receptacles[second]}.'
    if verb == 'use':  # the domain never forgets that a lamp was switched on
        return f'You turn on the {objects[first]}.'
    if verb == 'slice':
        return f'You sliced the {objects[first]} with the {objects[second]}.'
    if verb == 'inventory':
        held = [] if state.held == engine.NOTHING else [state.held]
        return f'You are carrying: {listing(game, held)}.' if held else 'You are not carrying anything.'
    if verb == 'look':
        return _surroundings(game, state)
    if verb == 'help':
        return version.help
    return f'You {verb} the {objects[first]} using the {receptacles[second]}.'


def listing(game: Game, objects: Sequence[int]) -> str:
    """Return objects with their articles, in one phrase."""
    return _join([f'a {game.objects[o]}' for o in objects])


def _join(names: Sequence[str]) -> str:
    if not names:
        return 'nothing'
    return names[0] if len(names) == 1 else f'{", ".join(names[:-1])}, and {names[-1]}'


def _receptacle(game: Game, state: State, r: int) -> str:
    name = game.receptacles[r]
    if not engine.accessible(game, state, r):
        return f'The {name} is closed.'
    seen = listing(game, [*engine.members(state.contents[r])])
    if game.openable >> r & 1:
        return f'The {name} is open. In it, you see {seen}.'
    return f'On the {name}, you see {seen}.'


def _object(game: Game, state: State, o: int) -> str:
    name = game.objects[o]
    hot, cool, clean, sliced = (mask >> o & 1 for mask in (state.hot, state.cool, state.clean, state.sliced))
    if game.vessels >> o & 1:
        return f'This is a normal {name}. In it, you see {listing(game, [*engine.members(game.inner[o])])}.'
    warmth = 'hot' if hot else 'cool' if cool else ''
    if warmth or clean:
        if warmth == 'cool' and not clean and not sliced:
            warmth = 'cold'
        return f'This is a {" and ".join(filter(None, (warmth, "clean" * clean)))} {"sliced " * sliced}{name}.'
    if game.usable >> o & 1 and state.used >> o & 1:
        return f'This {name} is on.'
    if game.sliceable >> o & 1 and sliced:
        return f'This is a sliced {name}.'
    return f"There's nothing special about {name}."


def _surroundings(game: Game, state: State) -> str:
    near = game.near[state.location]
    if not near:  # the grammar asks for the receptacles of this location, and there are none
        return _ROOM.format('nothing')
    places = _join([game.receptacles[r] for r in near])
    return f'You are facing the {places}. Next to it, you see {listing(game, engine.on_floor(game, state))}.'
