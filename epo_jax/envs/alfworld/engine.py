"""The rules of the game: which actions the ALFRED domain allows, what they change, and when the game is won.

The domain is implemented in Python with bit masks. Objects, receptacles and locations of a game are numbered in the
order of their PDDL ids, which is the order in which texts list them; a set of them is an integer whose bit i
represents number i. A state is therefore a tuple of integers, which is hashable, compares by value and takes little
memory.

Letters in names and loops: o object, r receptacle, l location.
"""

import dataclasses
from typing import Iterator, Mapping, NamedTuple

from epo_jax.runtime.errors import InputError

NOTHING = -1  # held, when the hands are empty


class GameError(InputError):
    """A game is malformed, unknown or cannot be solved."""


class Action(NamedTuple):
    """One ground action: a verb, what it acts on, and the tool or the place (NOTHING where the verb takes none).

    Verbs and their arguments: look, inventory, help; go r; open r; close r; examine r (a receptacle); inspect o (an
    object); take o r; put o r; clean, heat, cool o r; use o; slice o knife.
    """

    verb: str
    first: int = NOTHING
    second: int = NOTHING


ALWAYS = (Action('look'), Action('inventory'), Action('help'))


class State(NamedTuple):
    """A game at one moment.

    Attributes:
      location: where the agent is.
      held: the object in its hands, or NOTHING.
      opened: mask of receptacles.
      clean, hot, cool, sliced, used: masks of objects.
      contents: for every receptacle the mask of objects in or on it.
      at: mask of pairs, bit o * locations + l: the domain's objectAtLocation, which slicing requires.
      left: mask of pairs, bit o * receptacles + r: o was taken from r and not put back since.
    """

    location: int
    held: int
    opened: int
    clean: int
    hot: int
    cool: int
    sliced: int
    used: int
    contents: tuple[int, ...]
    at: int
    left: int


@dataclasses.dataclass(frozen=True)
class Goal:
    """The goal of a game.

    Attributes:
      kind: task type, one of KINDS.
      objects: mask of the objects that can fulfill the goal.
      targets: mask of the receptacles that can; for 'look', the mask of the lamps, which are objects.
    """

    kind: str
    objects: int
    targets: int


# Kind of goal -> task type in ALFWorld.
KINDS = {
    'place': 'pick_and_place_simple', 'look': 'look_at_obj_in_light', 'clean': 'pick_clean_then_place_in_recep',
    'heat': 'pick_heat_then_place_in_recep', 'cool': 'pick_cool_then_place_in_recep', 'two': 'pick_two_obj_and_place'}


@dataclasses.dataclass(frozen=True, eq=False)
class Game:
    """The parts of a game that never change.

    Attributes:
      id, split, task: the split is 'train', 'seen' or 'unseen'; the task is in the words of the game.
      objects, receptacles, locations: their names, by number.
      things: maps every name to its kind ('object' or 'receptacle') and number.
      home, trips: location of every receptacle, and the action of going there.
      near: for every location the receptacles there.
      openable, sinks, microwaves, fridges: masks of receptacles.
      pickupable, cleanable, heatable, coolable, sliceable, usable, knives, vessels: masks of objects; a vessel is an
        object that can hold others.
      inner: for every object the mask of objects inside it.
      fits: for every receptacle the mask of objects that may be put there.
      initial: the state at the beginning.
      goal: what has to be reached.
      walkthrough: commands that win, in the words of release 0.4.
    """

    id: str
    split: str
    task: str
    objects: tuple[str, ...]
    receptacles: tuple[str, ...]
    locations: tuple[str, ...]
    things: Mapping[str, tuple[str, int]]
    home: tuple[int, ...]
    trips: tuple[Action, ...]
    near: tuple[tuple[int, ...], ...]
    openable: int
    sinks: int
    microwaves: int
    fridges: int
    pickupable: int
    cleanable: int
    heatable: int
    coolable: int
    sliceable: int
    usable: int
    knives: int
    vessels: int
    inner: tuple[int, ...]
    fits: tuple[int, ...]
    initial: State
    goal: Goal
    walkthrough: tuple[str, ...]

    @property
    def category(self) -> str:
        """Return the task type, by which evaluations are broken down."""
        return KINDS[self.goal.kind]


def members(mask: int) -> Iterator[int]:
    """Return the members of a bit mask in ascending order."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def actions(game: Game, state: State) -> Iterator[Action]:
    """Return every action whose precondition holds, each once, in no particular order."""
    yield from ALWAYS
    here, held = state.location, state.held
    for trip, home in zip(game.trips, game.home):
        if home != here:
            yield trip
    for r in game.near[here]:
        yield Action('examine', r)
        if game.openable >> r & 1:
            yield Action('close' if state.opened >> r & 1 else 'open', r)
    nearby = 0
    for r in game.near[here]:
        nearby |= state.contents[r]
    for o in members(nearby & game.usable):  # the domain lets a lamp in a closed receptacle be used
        yield Action('use', o)
    for r in game.near[here]:
        if accessible(game, state, r):
            if held == NOTHING:
                for o in members(state.contents[r] & game.pickupable):
                    yield Action('take', o, r)
            elif game.fits[r] >> held & 1:
                yield Action('put', held, r)
    if held == NOTHING:
        return
    # The domain also intends objects in sight to be examined, but names a type that does not exist ('location,').
    yield Action('inspect', held)
    for verb, able, places in (('clean', game.cleanable, game.sinks), ('heat', game.heatable, game.microwaves),
                               ('cool', game.coolable, game.fridges)):
        if able >> held & 1:
            for r in game.near[here]:
                if places >> r & 1:
                    yield Action(verb, held, r)
    if game.knives >> held & 1:
        for o in members(game.sliceable):
            if is_at(game, state, o, here):
                yield Action('slice', o, held)


def allowed(game: Game, state: State, action: Action) -> bool:
    """Return whether the precondition of an action holds."""
    return action in actions(game, state)


def apply(game: Game, state: State, action: Action) -> State:
    """Return the state after an action whose precondition holds."""
    verb, first, second = action
    if verb == 'go':
        return state._replace(location=game.home[first])
    if verb == 'open':
        return state._replace(opened=state.opened | 1 << first)
    if verb == 'close':
        return state._replace(opened=state.opened & ~(1 << first))
    if verb in ('take', 'put'):
        here = 1 << first * len(game.locations) + state.location
        left = 1 << first * len(game.receptacles) + second
        contents = list(state.contents)
        if verb == 'take':
            contents[second] &= ~(1 << first)
            return state._replace(held=first, contents=tuple(contents), at=state.at & ~here, left=state.left | left)
        contents[second] |= 1 << first
        return state._replace(held=NOTHING, contents=tuple(contents), at=state.at | here, left=state.left & ~left)
    if verb == 'clean':
        return state._replace(clean=state.clean | 1 << first)
    if verb == 'heat':
        return state._replace(hot=state.hot | 1 << first, cool=state.cool & ~(1 << first))
    if verb == 'cool':
        return state._replace(cool=state.cool | 1 << first, hot=state.hot & ~(1 << first))
    if verb == 'use':
        return state._replace(used=state.used | 1 << first)
    if verb == 'slice':
        return state._replace(sliced=state.sliced | 1 << first)
    return state  # look, inventory, help, examine and inspect change nothing


def accessible(game: Game, state: State, r: int) -> bool:
    """Return whether what is in or on a receptacle can be seen and taken."""
    return not game.openable >> r & 1 or bool(state.opened >> r & 1)


def is_at(game: Game, state: State, o: int, place: int) -> bool:
    """Return whether an object is at a place (objectAtLocation of the domain)."""
    return bool(state.at >> o * len(game.locations) + place & 1)


def on_floor(game: Game, state: State) -> list[int]:
    """Return the objects that `look` sees beside the receptacles here, because they were taken from one of them."""
    receptacles = len(game.receptacles)
    return [o for o in range(len(game.objects)) if is_at(game, state, o, state.location)
            for r in game.near[state.location] if state.left >> o * receptacles + r & 1]


def ready(game: Game, state: State) -> int:
    """Return the mask of the goal's objects that are clean, hot or cool, as the goal requires."""
    done = {'clean': state.clean, 'heat': state.hot, 'cool': state.cool}
    return game.goal.objects & done.get(game.goal.kind, -1)


def conditions(game: Game, state: State) -> tuple[bool, ...]:
    """Return which of the goal's conditions hold, as ALFRED counts them; the game is won when all do.

    The objects and targets are those of the goal. place: an object is in a target. two: an object is in a target; two
    objects are in the same target. look: an object is held; a lamp that was switched on is at this location. clean,
    heat, cool: an object has the property; an object is in a target; one object satisfies both.
    """
    goal = game.goal
    if goal.kind == 'look':
        lamps = goal.targets & state.used
        return (state.held != NOTHING and bool(goal.objects >> state.held & 1),
                any(state.contents[r] & lamps for r in game.near[state.location]))
    placed = [state.contents[r] for r in members(goal.targets)]
    if goal.kind == 'two':
        most = max((mask & goal.objects).bit_count() for mask in placed) if placed else 0
        return most >= 1, most >= 2
    objects = ready(game, state)
    both = any(mask & objects for mask in placed)
    if goal.kind == 'place':
        return both,
    return bool(objects), any(mask & goal.objects for mask in placed), both


def won(game: Game, state: State) -> bool:
    """Return whether the goal is reached now."""
    return all(conditions(game, state))


def progress(game: Game, state: State) -> float:
    """Return the share of the goal's conditions that hold."""
    met = conditions(game, state)
    return sum(met) / len(met)
