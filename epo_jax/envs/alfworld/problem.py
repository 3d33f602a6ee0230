"""Read a game: PDDL problem -> record -> Game.

A record is JSON data with everything that the engine needs and has about a fiftieth of the size of the problem; the
index stores records. Reading a problem takes milliseconds; building a Game from its record takes a fraction of one.
"""

import hashlib
import re
from typing import Any, Mapping, Sequence

from epo_jax.envs.alfworld.engine import KINDS, NOTHING, Action, Game, GameError, Goal, State, members
from epo_jax.envs.alfworld.text import VERSIONS, Version

# Objects have these properties, in a record as bits in this order; the first eight never change.
PROPERTIES = ('pickupable', 'cleanable', 'heatable', 'coolable', 'sliceable', 'toggleable', 'isreceptacleobject',
              'moveable', 'isclean', 'ishot', 'iscool', 'issliced', 'istoggled')
_RELATIONS = {  # predicates of two arguments, by what their arguments are
    'receptacleatlocation', 'objectatlocation', 'inreceptacle', 'inreceptacleobject', 'receptacletype', 'objecttype',
    'cancontain', 'atlocation', 'holds'}
_UNSEEN = {  # predicates that affect neither the possible actions nor the texts
    'ison', 'wasinreceptacle', 'checked', 'examined', 'full', 'isreceptacleobjectfull', 'holdsanyreceptacleobject',
    'holdsany', 'distance', 'total-cost'}

# The six goals, by kind of task. O: type of the object, T: of the receptacle or the lamp.
_THERE = '''(and(exists(?r - receptacle)(exists(?o - object)(and{}
            (objecttype ?o O)(receptacletype ?r T){}))))'''
_GOALS = {
    'place': _THERE.format('(inreceptacle ?o ?r)', ''),
    'clean': _THERE.format('(cleanable ?o)', '(isclean ?o)(inreceptacle ?o ?r)'),
    'heat': _THERE.format('(heatable ?o)', '(ishot ?o)(inreceptacle ?o ?r)'),
    'cool': _THERE.format('(coolable ?o)', '(iscool ?o)(inreceptacle ?o ?r)'),
    'two': '''(and(exists(?r - receptacle)(exists(?o1 - object)(and
           (objecttype ?o1 O)(receptacletype ?r T)(inreceptacle ?o1 ?r)(exists(?o2 - object)(and
           (not(= ?o1 ?o2))(objecttype ?o2 O)(receptacletype ?r T)(inreceptacle ?o2 ?r)))))))''',
    'look': '''(and(exists(?ot - object ?r - receptacle ?a - agent ?l - location)(and
            (objecttype ?ot T)(toggleable ?ot)(istoggled ?ot)(receptacleatlocation ?r ?l)(atlocation ?a ?l)
            (inreceptacle ?ot ?r)))(exists(?o - object ?a - agent)(and(objecttype ?o O)(holds ?a ?o))))'''}


# Digests of the texts that the engine implements, without comments, spacing and task: the files of releases
# 0.2.2 to 0.3.3 and 0.4, and the 0.4 files of the games themselves.
_KNOWN = {'5c2cadb4af4fefe2': '0.4', 'df14fe48b5cd6eb4': '0.4', '6d8e196f1da371d4': '0.3'}


def version_of(domain: str, grammar: str, where: str) -> Version:
    """Return the release whose PDDL domain and text grammar these are.

    Raises:
      GameError: the engine knows no release with this domain and grammar.
    """
    name = _KNOWN.get(digest(domain, grammar))
    if name is None:
        raise GameError(f'{where}: this PDDL domain and text grammar are not those of an ALFWorld release that '
                        f'epo_jax knows ({", ".join(VERSIONS)}); name the release to play with a variant')
    return VERSIONS[name]


def digest(domain: str, grammar: str) -> str:
    """Return a digest of a domain and a grammar that does not depend on comments, spacing and task."""
    grammar = re.sub(r'("task":\s*\[\s*\{\s*"rhs":\s*")[^"]*', r'\1', grammar)
    texts = (re.sub(r';[^\n]*', '', domain), grammar)
    return hashlib.sha256('\0'.join(''.join(text.split()) for text in texts).encode()).hexdigest()[:16]


def task_of(grammar: str, where: str) -> str:
    """Return the task that the grammar of a game states.

    Raises:
      GameError: the grammar states no task.
    """
    match = re.search(r'"task":\s*\[\s*\{\s*"rhs":\s*"([^"]*)"', grammar)
    if match is None:
        raise GameError(f'{where}: the grammar has no task')
    return match[1]


def read_problem(game_id: str, split: str, task: str, problem: str, walkthrough: Sequence[str]) -> dict[str, Any]:
    """Return the record of a game.

    Args:
      problem: its PDDL; case does not matter.

    Raises:
      GameError: it is malformed, has facts or a goal outside the ALFRED domain, or cannot be solved.
    """
    init, goal = _sections(problem, game_id)
    facts = {name: [] for name in (*PROPERTIES, *_RELATIONS, *_UNSEEN, 'openable', 'opened')}
    for name, *arguments in (fact.split() for fact in re.findall(r'\(([^()]*)\)', init)):
        if name not in facts:
            raise GameError(f'{game_id}: unknown predicate {name!r} among the initial facts')
        expected = 2 if name in _RELATIONS else 1
        if name not in _UNSEEN and len(arguments) != expected:
            raise GameError(f'{game_id}: {name} takes {expected} arguments, has {arguments}')
        facts[name].append(arguments)
    names = _names({argument for name, rows in facts.items() if name not in ('distance', 'total-cost')
                    for row in rows for argument in row})

    one = lambda name: _function(facts[name], name, game_id)
    home, rtype, otype = one('receptacleatlocation'), one('receptacletype'), one('objecttype')
    receptacles = sorted(home)
    objects = sorted({row[0] for name in ('objectatlocation', 'inreceptacle', 'objecttype') for row in facts[name]})
    locations = sorted({location for name in ('receptacleatlocation', 'objectatlocation', 'atlocation')
                        for _, location in facts[name]})
    for name, known in (('receptacletype', home), ('openable', home), ('opened', home)):
        _require({row[0] for row in facts[name]} <= set(known), f'{game_id}: {name} of a receptacle without location')
    _require(set(home) <= set(rtype), f'{game_id}: a receptacle has no receptacleType')
    _require({r for _, r in facts['inreceptacle']} <= set(home), f'{game_id}: an object is in an unknown receptacle')
    _require(len(facts['atlocation']) == 1, f'{game_id}: there must be one agent, at one location')
    _require(len(facts['holds']) <= 1, f'{game_id}: the agent holds more than one object')

    number = {name: i for things in (objects, receptacles, locations) for i, name in enumerate(things)}
    opens, opened = ({row[0] for row in facts[name]} for name in ('openable', 'opened'))
    has = {name: {row[0] for row in facts[name]} for name in PROPERTIES}
    second = lambda name, first: sorted(number[b] for a, b in facts[name] if a == first)
    first = lambda name, second: sorted(number[a] for a, b in facts[name] if b == second)
    types = {otype.get(o, '') for o in objects}
    record = {
        'id': game_id, 'split': split, 'task': task, 'walkthrough': list(walkthrough),
        'agent': number[facts['atlocation'][0][1]],
        'held': number[facts['holds'][0][1]] if facts['holds'] else NOTHING,
        'locations': [names[location] for location in locations],
        'receptacles': [[names[r], rtype[r], number[home[r]], (r in opens) + 2 * (r in opened),
                         first('inreceptacle', r)] for r in receptacles],
        'objects': [[names[o], otype.get(o, ''), sum((o in has[name]) << i for i, name in enumerate(PROPERTIES)),
                     second('objectatlocation', o), first('inreceptacleobject', o)] for o in objects],
        'fits': {t: sorted({o for r, o in facts['cancontain'] if r == t and o in types})
                 for t in sorted({rtype[r] for r in receptacles})},
        'goal': _goal(goal, game_id)}
    _solvable(build_game(record), record['goal'])
    return record


def build_game(record: Mapping[str, Any]) -> Game:
    """Return the Game of a record."""
    receptacles, objects, locations = record['receptacles'], record['objects'], record['locations']
    properties = [sum((row[2] >> i & 1) << o for o, row in enumerate(objects)) for i in range(len(PROPERTIES))]
    (pickupable, cleanable, heatable, coolable, sliceable, usable, vessels, _, clean, hot, cool, sliced,
     used) = properties
    of_otype, of_rtype = _by_type(objects), _by_type(receptacles)
    near = [[] for _ in locations]
    for r, row in enumerate(receptacles):
        near[row[2]].append(r)
    fits = {t: sum(of_otype.get(o, 0) for o in can) for t, can in record['fits'].items()}
    kind, wanted, target = record['goal']
    able = {'clean': cleanable, 'heat': heatable, 'cool': coolable}.get(kind, -1)
    width = len(locations)
    return Game(
        id=record['id'], split=record['split'], task=record['task'],
        objects=tuple(row[0] for row in objects), receptacles=tuple(row[0] for row in receptacles),
        locations=tuple(locations),
        things={row[0]: (what, i) for what, rows in (('object', objects), ('receptacle', receptacles))
                for i, row in enumerate(rows)},
        home=tuple(row[2] for row in receptacles), trips=tuple(Action('go', r) for r in range(len(receptacles))),
        near=tuple(map(tuple, near)),
        openable=sum((row[3] & 1) << r for r, row in enumerate(receptacles)),
        # Releases disagree on whether a SinkType cleans; no game has a receptacle of it, only of SinkBasinType.
        sinks=of_rtype.get('sinktype', 0) | of_rtype.get('sinkbasintype', 0),
        microwaves=of_rtype.get('microwavetype', 0), fridges=of_rtype.get('fridgetype', 0),
        pickupable=pickupable, cleanable=cleanable, heatable=heatable, coolable=coolable, sliceable=sliceable,
        usable=usable, knives=of_otype.get('knifetype', 0) | of_otype.get('butterknifetype', 0), vessels=vessels,
        inner=tuple(_mask(row[4]) for row in objects), fits=tuple(fits[row[1]] for row in receptacles),
        initial=State(
            location=record['agent'], held=record['held'],
            opened=sum((row[3] >> 1 & 1) << r for r, row in enumerate(receptacles)),
            clean=clean, hot=hot, cool=cool, sliced=sliced, used=used,
            contents=tuple(_mask(row[4]) for row in receptacles),
            at=_mask(o * width + place for o, row in enumerate(objects) for place in row[3]), left=0),
        goal=Goal(kind, of_otype.get(wanted, 0) & able,
                  of_otype.get(target, 0) & usable if kind == 'look' else of_rtype.get(target, 0)),
        walkthrough=tuple(record['walkthrough']))


def _sections(problem: str, game_id: str) -> tuple[str, str]:
    """Return the text of the initial facts and of the goal, in lower case, without comments."""
    text = re.sub(r';[^\n]*', '', problem).lower()
    if text.count('(') != text.count(')'):
        raise GameError(f'{game_id}: malformed PDDL, {text.count("(")} opening, {text.count(")")} closing brackets')
    match = re.fullmatch(r'.*\(:domain\s+alfred\s*\).*\(:init\b(.*)\)\s*\(:goal\b(.*)\)\s*\)\s*', text, re.DOTALL)
    if match is None:
        raise GameError(f'{game_id}: malformed PDDL, there must be (:domain alfred), (:init ...), (:goal ...)')
    init = re.sub(r'\(=\s*\((?:distance|total-cost)[^()]*\)\s*[\d.]+\s*\)', '', match[1])
    rest = re.sub(r'\([^()]+\)', '', init).strip()
    if rest:
        raise GameError(f'{game_id}: malformed PDDL among the initial facts: {rest[:60]!r}')
    return init, match[2]


def _names(ids: set[str]) -> dict[str, str]:
    """Return the names of things: the first part of their ids and a number, which is highest for the first id."""
    names, count = {}, {}
    for i in sorted(ids, reverse=True):
        base, bar, _ = i.partition('_bar_')
        if bar and 'basin' in i:
            base += 'basin'
        count[base] = count.get(base, 0) + 1
        names[i] = f'{base} {count[base]}' if bar else f'{base} '
    return names


def _function(rows: Sequence[Sequence[str]], name: str, game_id: str) -> dict[str, str]:
    """Return a relation as a dict; raise GameError if it holds more than once for a thing."""
    pairs = {tuple(row) for row in rows}
    function = dict(pairs)
    if len(function) < len(pairs):
        raise GameError(f'{game_id}: a thing has more than one {name}')
    return function


def _goal(goal: str, game_id: str) -> tuple[str, str, str]:
    """Return (kind of task, type of its object, type of its receptacle or lamp)."""
    squeeze = lambda text: re.sub(r'\s*([()])\s*', r'\1', ' '.join(text.split()))
    for kind, pattern in _GOALS.items():
        pattern = re.escape(squeeze(pattern))
        for letter in 'OT':
            mark = f'\\ {letter}\\)'
            pattern = pattern.replace(mark, f'\\ (?P<{letter}>\\w+)\\)', 1).replace(mark, f'\\ (?P={letter})\\)')
        match = re.fullmatch(pattern, squeeze(goal))
        if match:
            return kind, match['O'], match['T']
    raise GameError(f'{game_id}: its goal is none of the {len(KINDS)} kinds that are known: {squeeze(goal)[:200]}')


def _solvable(game: Game, goal: tuple[str, str, str]):
    """Raise GameError if the game lacks things that the goal needs."""
    kind, wanted, target = goal
    needed = 2 if kind == 'two' else 1
    movable = game.pickupable
    for r in members(game.goal.targets if kind != 'look' else 0):
        movable |= game.initial.contents[r]  # what is there already need not be moved
    there = (game.goal.objects & movable).bit_count()
    _require(there >= needed, f'{game.id}: unsolvable, {needed} of {wanted} that fit the task are needed, '
                              f'{there} can be reached')
    _require(game.goal.targets, f'{game.id}: unsolvable, there is no {target}')


def _require(holds: Any, message: str):
    if not holds:
        raise GameError(message)


def _by_type(rows: Sequence[Sequence[Any]]) -> dict[str, int]:
    """Return, for every type, the mask of the things of that type."""
    masks = {}
    for i, row in enumerate(rows):
        masks[row[1]] = masks.get(row[1], 0) | 1 << i
    return masks


def _mask(numbers) -> int:
    mask = 0
    for i in numbers:
        mask |= 1 << i
    return mask
