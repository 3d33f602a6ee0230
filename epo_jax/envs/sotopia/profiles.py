"""Load SOTOPIA profiles: situations, characters, relationships, and the combinations of them that are played.

The files have the form in which the `sotopia` package exports them: JSON lists or JSONL, with ids under their own name
or `pk`. The folder `data/` contains the set that comes with epo_jax. Four optional fields of an environment profile are
extensions: `category`, `split` ('train' or 'held_out'), `hard`, and `goal_rules` (see goals.py). All texts may have
mark-up (see markup.py).
"""

import dataclasses
import importlib.resources
import json
import pathlib
from typing import Any, Mapping, NamedTuple, Optional

from epo_jax.envs.sotopia.goals import RuleError, check_rule
from epo_jax.envs.sotopia.markup import ENVIRONMENT, MarkupError, visible
from epo_jax.runtime.errors import InputError
from epo_jax.runtime.rows import RowError, scan_rows, whole_number

STRANGER, BY_NAME, ACQUAINTANCE, FRIEND, ROMANTIC, FAMILY = range(6)


class ProfileError(InputError):
    """A profile file is missing, malformed or inconsistent with another one."""


@dataclasses.dataclass(frozen=True)
class Character:
    """A person that can be played, as in a SOTOPIA agent profile."""

    id: str
    first_name: str
    last_name: str
    age: int
    occupation: str
    gender: str
    pronouns: str
    public_info: str
    personality: str
    secret: str

    @property
    def name(self) -> str:
        """Return the full name."""
        return f'{self.first_name} {self.last_name}'.strip()


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A situation with two goals, and two characters to play it.

    Attributes:
      id: id of this combination of situation and characters.
      environment: id of the situation.
      text: the situation, without what only one viewer may read.
      goals: the goal of each seat, known to that seat only.
      goal_rules: for each seat the rule that scores its goal (see goals.py), or None to ask the judge.
      relationship: from 0 (strangers) to 5 (family).
      story: how the two characters know each other, or ''.
      characters: the character of each seat.
      category: kind of task, or the source of the situation; evaluations report each category.
      split: 'train' or 'held_out'.
      hard: whether the situation belongs to the hard subset.
      seat_texts: the situation as each seat reads it; () if both read `text`.
      judge_text: the situation with the parts that only the judge may read, or '' if there are none.
      judge_goals: the goals with the parts that only the judge may read; () if there are none.
    """

    id: str
    environment: str
    text: str
    goals: tuple[str, str]
    goal_rules: tuple[Optional[Mapping[str, Any]], Optional[Mapping[str, Any]]]
    relationship: int
    story: str
    characters: tuple[Character, Character]
    category: str
    split: str
    hard: bool
    seat_texts: tuple[str, ...] = ()
    judge_text: str = ''
    judge_goals: tuple[str, ...] = ()


# Stems of file names by content: that of the exports, then that of the set in data/.
_FILES = {
    'environment': ('environment_profiles', 'environments'),
    'character': ('agent_profiles', 'agents'),
    'relationship': ('relationship_profiles', 'relationships'),
    'combo': ('env_agent_combo_storages', 'env_agent_combos', 'combos'),
}


class _Row(NamedTuple):
    """A row of a file.

    Attributes:
      fields: its fields.
      where: the file, the number of the row and, once it is known, its id, for errors.
    """

    fields: Mapping[str, Any]
    where: str


def load_scenarios(folder: str = '') -> list[Scenario]:
    """Load every scenario of a folder.

    If a situation does not say so itself, every fifth one by id is held out, and those listed under `sotopia_hard_env`
    in `env_splits.json` are hard.

    Args:
      folder: path of the folder; '' takes the set that comes with epo_jax.

    Raises:
      ProfileError: a file is missing or wrong; the message names the file, row or id.
    """
    root = pathlib.Path(folder) if folder else importlib.resources.files('epo_jax.envs.sotopia') / 'data'
    environments = _read_by_id(root, 'environment', 'env_id')
    characters = {key: _character(row, key) for key, row in _read_by_id(root, 'character', 'agent_id').items()}
    stories = _stories(root, characters)
    hard = _hard(root)
    if hard and not hard & set(environments):
        raise ProfileError(f'{root / "env_splits.json"}: none of the ids in sotopia_hard_env is that of an environment')
    held_out = set(sorted(environments)[4::5])
    scenarios = {}
    for i, row in enumerate(_read(root, 'combo')):
        name = row.fields.get('combo_id') or row.fields.get('pk')
        where = f'{row.where}: combo {name or i}'
        if not isinstance(name, (str, type(None))):
            raise ProfileError(f'{where}: combo_id must be text')
        env_id, people = row.fields.get('env_id'), row.fields.get('agent_ids')
        if not isinstance(env_id, str) or env_id not in environments:
            raise ProfileError(f'{where}: there is no environment {env_id!r} in {root}')
        if (not isinstance(people, list) or len(people) != 2 or people[0] == people[1]
                or any(not isinstance(p, str) or p not in characters for p in people)):
            raise ProfileError(f'{where}: agent_ids must name two known characters, not {people!r}')
        if characters[people[0]].name == characters[people[1]].name:
            raise ProfileError(f'{where}: both characters are named {characters[people[0]].name}, so that nobody could '
                               'tell who speaks')
        name = name or f'{env_id}/{i}'
        if name in scenarios:
            raise ProfileError(f'{where}: the id {name!r} is that of another combo too')
        environment = environments[env_id]
        situation = _situation(environment, ('train', 'held_out')[env_id in held_out], env_id in hard)
        scenarios[name] = Scenario(
            id=name, environment=env_id, characters=tuple(characters[p] for p in people),
            story=stories.get((frozenset(people), situation['relationship']), ''), **situation)
    if not scenarios:
        raise ProfileError(f'there are no scenarios in {root}: its combo file is empty')
    return list(scenarios.values())


def _situation(row: _Row, split: str, hard: bool) -> dict[str, Any]:
    """Return the fields of a Scenario that an environment profile determines.

    Args:
      row: the profile.
      split: the split if the profile does not name one.
      hard: whether the situation is hard if the profile does not say so.
    """
    goals, rules = row.fields.get('agent_goals'), row.fields.get('goal_rules')
    if not isinstance(goals, list) or len(goals) != 2:
        count = len(goals) if isinstance(goals, list) else 0 if goals is None else repr(goals)
        raise ProfileError(f'{row.where}: agent_goals must be two goals, not {count}')
    read = lambda name, value, viewer: _read_text(value, f'{row.where}: {name}', viewer)
    seats = ('agent_0', 'agent_1')
    scenario = row.fields.get('scenario')
    text, judge_text = (read('the field scenario', scenario, viewer) for viewer in ('', ENVIRONMENT))
    seat_texts = tuple(read('the field scenario', scenario, seat) for seat in seats)
    own_goals = tuple(read('a goal', goal, seat) for seat, goal in zip(seats, goals))
    judge_goals = tuple(read('a goal', goal, ENVIRONMENT) for goal in goals)
    if not all(seat_texts):
        raise ProfileError(f'{row.where}: the field scenario is missing or empty')
    if not all(own_goals):
        raise ProfileError(f'{row.where}: a goal of agent_goals is missing or empty')
    own_hard = row.fields.get('hard')
    if not isinstance(own_hard, (bool, type(None))):
        raise ProfileError(f'{row.where}: hard must be true or false, not {own_hard!r}')
    own_split = row.fields.get('split') or split
    if own_split not in ('train', 'held_out'):
        raise ProfileError(f"{row.where}: split must be 'train' or 'held_out', not {own_split!r}")
    return {
        'text': text, 'seat_texts': seat_texts if seat_texts != (text, text) else (),
        'judge_text': judge_text if judge_text != text else '',
        'goals': own_goals, 'judge_goals': judge_goals if judge_goals != own_goals else (),
        'goal_rules': _goal_rules(rules, row.where),
        'relationship': _level(row, 'relationship', STRANGER, FAMILY),
        'category': _text(row, 'category') or _text(row, 'source'), 'split': own_split,
        'hard': hard if own_hard is None else own_hard}


def _read_text(value: Any, where: str, viewer: str = '') -> str:
    """Return what a viewer may read of a text (see `markup.visible`) in one line; '' for null."""
    if not isinstance(value, (str, type(None))):
        raise ProfileError(f'{where} must be text, not {value!r:.100}')
    try:
        return ' '.join(visible(value or '', viewer).split())
    except MarkupError as error:
        raise ProfileError(f'{where} has unclear mark-up: {error}') from None


def _text(row: _Row, name: str) -> str:
    """Return what both seats may read of a field."""
    return _read_text(row.fields.get(name), f'{row.where}: {name}')


def _level(row: _Row, name: str, low: int, high: int) -> int:
    """Return a field that is a whole number; `low` if there is no such field."""
    value = row.fields.get(name, low)
    number = whole_number(value)
    if number is None or not low <= number <= high:
        raise ProfileError(f'{row.where}: {name} must be a whole number from {low} to {high}, not {value!r:.100}')
    return number


def _stories(root, characters: Mapping[str, Character]) -> dict[tuple[frozenset, int], str]:
    """Return how two characters know each other, by (pair of ids, relationship).

    A pair may have several relationships, each with its story. The exports contain stories of strangers too; these are
    dropped.
    """
    stories = {}
    for row in _read(root, 'relationship', optional=True):
        pair = [row.fields.get(name) for name in ('agent1_id', 'agent2_id')]
        if any(not isinstance(p, str) or p not in characters for p in pair) or pair[0] == pair[1]:
            raise ProfileError(f'{row.where}: agent1_id and agent2_id must name two known characters, not {pair}')
        if row.fields.get('relationship') is None:
            raise ProfileError(f'{row.where}: the field relationship is missing')
        key = frozenset(pair), _level(row, 'relationship', STRANGER, FAMILY)
        if key in stories:
            raise ProfileError(f'{row.where}: an earlier row has the same characters and the same relationship')
        stories[key] = _text(row, 'background_story')
    return {key: story for key, story in stories.items() if key[1] != STRANGER}


def _hard(root) -> set[str]:
    """Return the ids of the hard situations, which `env_splits.json` lists if it exists."""
    path = root / 'env_splits.json'
    if not path.is_file():
        return set()
    try:
        ids = json.loads(path.read_text('utf-8-sig')).get('sotopia_hard_env', [])
    except (ValueError, AttributeError, RecursionError) as error:
        raise ProfileError(f'{path}: must be a JSON object with a list of ids as sotopia_hard_env ({error})') from None
    if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids):
        raise ProfileError(f'{path}: sotopia_hard_env must be a list of ids, not {ids!r:.100}')
    return set(ids)


def _goal_rules(rules: Any, where: str) -> tuple[Optional[Mapping[str, Any]], Optional[Mapping[str, Any]]]:
    if rules is None:
        return (None, None)
    if not isinstance(rules, list) or len(rules) != 2:
        raise ProfileError(f'{where}: goal_rules must be a list of two rules, with null for a goal without one, not '
                           f'{rules!r:.100}')
    try:
        for rule in rules:
            if rule is not None:
                check_rule(rule)
    except RuleError as error:
        raise ProfileError(f'{where}: {error}') from None
    return tuple(rules)


def _character(row: _Row, key: str) -> Character:
    text = lambda name: _text(row, name)
    if not text('first_name'):
        raise ProfileError(f'{row.where}: the field first_name is missing or empty')
    return Character(
        id=key, first_name=text('first_name'), last_name=text('last_name'),
        age=_level(row, 'age', 0, 999) if row.fields.get('age') is not None else 0,
        occupation=text('occupation'), gender=text('gender'), pronouns=text('gender_pronoun'),
        public_info=text('public_info'), personality=text('personality_and_values'), secret=text('secret'))


def _read(root, kind: str, optional: bool = False) -> list[_Row]:
    """Return the rows of a file.

    Args:
      root: the folder.
      kind: a key of _FILES.
      optional: return no rows if there is no such file.
    """
    path = next((root / name for name in _names(kind) if (root / name).is_file()), None)
    if path is None:
        if optional:
            return []
        raise ProfileError(f'{root} has no {kind} file; expected one of {", ".join(_names(kind))}')
    if path.name.endswith('.json') and not path.read_bytes().removeprefix(b'\xef\xbb\xbf').lstrip().startswith(b'['):
        raise ProfileError(f'{path}: must be a list of JSON objects')
    rows = []
    for span, row in scan_rows(path):
        if isinstance(row, RowError):
            raise ProfileError(str(row))
        rows.append(_Row(row, f'{path}, row {span.number}'))
    return rows


def _names(kind: str) -> list[str]:
    """Return the possible names of a kind of file."""
    return [f'{stem}.{suffix}' for stem in _FILES[kind] for suffix in ('jsonl', 'json')]


def _read_by_id(root, kind: str, name: str) -> dict[str, _Row]:
    """Return the rows of a kind of file by their id, which is the field `name` or `pk`."""
    by_id = {}
    for row in _read(root, kind):
        key = row.fields.get(name) or row.fields.get('pk')
        if not isinstance(key, str) or not key or key in by_id:
            raise ProfileError(f'{row.where}: {name} must be present, text and unique, not {key!r}')
        by_id[key] = row._replace(where=f'{row.where}: {kind} {key}')
    return by_id
