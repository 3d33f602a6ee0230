"""SOTOPIA's profiles: scenarios, characters, relationships, and who plays which scenario.

Read as the `sotopia` package exports them (JSON lists or JSONL, ids under their own name or `pk`); the package
ships a set of its own in `data/`. Four fields of a scenario are ours and optional: `category`, `split` ('train'
or 'held_out'), `hard`, and `goal_rules` (see rewards/outcome.py).
"""

import dataclasses
import importlib.resources
import json
import pathlib
import re
from typing import Any, Mapping, Optional, Sequence

from epo_jax.envs.sotopia.goals import check_rule

STRANGER, BY_NAME, ACQUAINTANCE, FRIEND, ROMANTIC, FAMILY = range(6)


class ProfileError(ValueError):
    """A profile file is missing, malformed or inconsistent."""


@dataclasses.dataclass(frozen=True)
class Character:
    """One person who can be played."""

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
        return f'{self.first_name} {self.last_name}'.strip()


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One episode to be played: a situation, two goals, two people.

    Attributes:
      id: of this combination; environment: of the situation.
      text: the situation, known to both.
      goals: what each seat wants, tags removed, known to that seat only.
      goal_rules: for each seat None or a rule that scores the outcome.
      relationship: 0 stranger ... 5 family.
      story: how the two know each other, or ''.
      characters: who sits in each seat.
      category, split, hard: for choosing and reporting.
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


# File names by what they hold: those of the exports, then our own.
_FILES = {
    'environment': ('environment_profiles', 'environments'),
    'character': ('agent_profiles', 'agents'),
    'relationship': ('relationship_profiles', 'relationships'),
    'combo': ('env_agent_combo_storages', 'env_agent_combos', 'combos'),
}


def load_scenarios(folder: str = '') -> list[Scenario]:
    """Reads every scenario of a folder ('' : the set that comes with the package).

    Environments without a `split` of their own: where a folder holds `env_splits.json`, its `sotopia_hard_env`
    are marked hard; every fifth environment by order of id is held out.

    Raises:
      ProfileError: what is wrong, in which file and row.
    """
    root = pathlib.Path(folder) if folder else importlib.resources.files('epo_jax.envs.sotopia') / 'data'
    environments = _index(_read(root, 'environment'), 'env_id')
    characters = {k: _character(row, k) for k, row in _index(_read(root, 'character'), 'agent_id').items()}
    stories = {frozenset((row['agent1_id'], row['agent2_id'])): row.get('background_story') or ''
               for row in _read(root, 'relationship', optional=True)}
    splits = root / 'env_splits.json'
    hard = set(json.loads(splits.read_text('utf-8')).get('sotopia_hard_env', ())) if splits.is_file() else set()
    held_out = set(sorted(environments)[4::5])
    scenarios = []
    for i, combo in enumerate(_read(root, 'combo')):
        where = f'combo {combo.get("combo_id", combo.get("pk", i))}'
        env_id, people = combo.get('env_id'), combo.get('agent_ids', ())
        if env_id not in environments:
            raise ProfileError(f'{where}: there is no environment {env_id!r} in {root}')
        if len(people) != 2 or any(p not in characters for p in people):
            raise ProfileError(f'{where}: needs two known characters, has {list(people)}')
        environment = environments[env_id]
        goals = environment.get('agent_goals', ())
        if len(goals) != 2:
            raise ProfileError(f'environment {env_id}: needs two goals, has {len(goals)}')
        scenarios.append(Scenario(
            id=str(combo.get('combo_id') or combo.get('pk') or f'{env_id}/{i}'),
            environment=env_id,
            text=_one_line(environment['scenario']),
            goals=tuple(_one_line(strip_tags(goal)) for goal in goals),
            goal_rules=tuple(environment.get('goal_rules') or (None, None)),
            relationship=_relationship(environment.get('relationship', 0), env_id),
            story=_one_line(stories.get(frozenset(people), '')),
            characters=tuple(characters[p] for p in people),
            category=environment.get('category') or environment.get('source') or '',
            split=environment.get('split') or ('held_out' if env_id in held_out else 'train'),
            hard=bool(environment.get('hard', env_id in hard))))
        for rule in filter(None, scenarios[-1].goal_rules):
            check_rule(rule)
    if not scenarios:
        raise ProfileError(f'no scenarios in {root}')
    return scenarios


def strip_tags(text: str) -> str:
    """Removes the mark-up of <extra_info>, <strategy_hint> and their like, and keeps what it encloses."""
    return re.sub(r'</?[a-z_]+(\s[^<>]*)?>', '', text)


def _one_line(text: str) -> str:
    return ' '.join(str(text).split())


def _relationship(value: Any, env_id: str) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = -1
    if not STRANGER <= number <= FAMILY:
        raise ProfileError(f'environment {env_id}: relationship must be 0 to 5, is {value!r}')
    return number


def _character(row: Mapping[str, Any], key: str) -> Character:
    if not row.get('first_name'):
        raise ProfileError(f'character {key}: has no first_name')
    text = lambda name: _one_line(row.get(name) or '')
    return Character(
        id=key, first_name=text('first_name'), last_name=text('last_name'), age=int(row.get('age') or 0),
        occupation=text('occupation'), gender=text('gender'), pronouns=text('gender_pronoun'),
        public_info=text('public_info'), personality=text('personality_and_values'), secret=text('secret'))


def _read(root, what: str, optional: bool = False) -> list[Mapping[str, Any]]:
    """The rows of the file that holds `what`, from JSON (a list) or JSONL."""
    names = [f'{stem}.{suffix}' for stem in _FILES[what] for suffix in ('jsonl', 'json')]
    for name in names:
        path = root / name
        if path.is_file():
            break
    else:
        if optional:
            return []
        raise ProfileError(f'{root} has no {what} file; one of these is expected: {", ".join(names)}')
    try:
        if name.endswith('.json'):
            rows = json.loads(path.read_text('utf-8'))
        else:
            rows = [json.loads(line) for line in path.read_text('utf-8').splitlines() if line.strip()]
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ProfileError(f'{path}: {error}') from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ProfileError(f'{path}: must hold a list of objects')
    return rows


def _index(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, Mapping[str, Any]]:
    """Rows by their id."""
    index = {}
    for i, row in enumerate(rows):
        key = row.get(name) or row.get('pk')
        if not key or key in index:
            raise ProfileError(f'row {i + 1}: {name} is missing or there twice: {key!r}')
        index[key] = row
    return index
