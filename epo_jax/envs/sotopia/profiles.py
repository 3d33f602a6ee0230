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

from epo_jax.envs.sotopia.goals import RuleError, check_rule
from epo_jax.runtime.errors import InputError

STRANGER, BY_NAME, ACQUAINTANCE, FRIEND, ROMANTIC, FAMILY = range(6)


class ProfileError(InputError):
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
      judge_text: the situation with what only the judge may know; '': there is nothing of the kind.
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
    judge_text: str = ''


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
    stories = _stories(root)
    hard = _hard(root)
    held_out = set(sorted(environments)[4::5])
    scenarios = []
    for i, combo in enumerate(_read(root, 'combo')):
        where = f'combo {combo.get("combo_id", combo.get("pk", i))}'
        env_id, people = combo.get('env_id'), combo.get('agent_ids') or ()
        if env_id not in environments:
            raise ProfileError(f'{where}: there is no environment {env_id!r} in {root}')
        if len(people) != 2 or any(p not in characters for p in people):
            raise ProfileError(f'{where}: needs two known characters, has {list(people)}')
        environment = environments[env_id]
        goals = environment.get('agent_goals') or ()
        if len(goals) != 2:
            raise ProfileError(f'environment {env_id}: needs two goals, has {len(goals)}')
        if not environment.get('scenario'):
            raise ProfileError(f'environment {env_id}: has no scenario')
        text, judge_text = (_visible(environment['scenario'], viewer) for viewer in ('', 'environment'))
        level = _relationship(environment.get('relationship', 0), env_id)
        scenarios.append(Scenario(
            id=str(combo.get('combo_id') or combo.get('pk') or f'{env_id}/{i}'),
            environment=env_id,
            text=text,
            goals=tuple(_visible(goal, f'agent_{seat}') for seat, goal in enumerate(goals)),
            goal_rules=_goal_rules(environment.get('goal_rules') or (None, None), env_id),
            relationship=level,
            story=_one_line(stories.get((frozenset(people), str(level)), '')),
            characters=tuple(characters[p] for p in people),
            category=environment.get('category') or environment.get('source') or '',
            split=_split(environment.get('split') or ('held_out' if env_id in held_out else 'train'), env_id),
            hard=bool(environment.get('hard', env_id in hard)),
            judge_text=judge_text if judge_text != text else ''))
    if not scenarios:
        raise ProfileError(f'no scenarios in {root}')
    return scenarios


def strip_tags(text: str) -> str:
    """Removes the mark-up of <extra_info>, <strategy_hint> and their like, and keeps what it encloses."""
    return re.sub(r'</?[a-z_]+(\s[^<>]*)?>', '', text)


def _visible(text: str, viewer: str) -> str:
    """Text in one line without mark-up, and without what <p viewer="..."> keeps from this viewer.

    'environment' sees everything; 'agent_0' and 'agent_1' are the seats; '' is both of them.
    """
    shown = lambda part: part[2] if viewer in (part[1], 'environment') else ''
    return _one_line(strip_tags(re.sub(r'<p viewer="([^"]*)">(.*?)</p>', shown, str(text), flags=re.DOTALL)))


def _one_line(text: str) -> str:
    return ' '.join(str(text).split())


def _stories(root) -> dict[tuple[frozenset, str], str]:
    """How two people know each other, by the pair of their ids and their relationship.

    Only what fits the scenario is told: a pair may have several relationships, and strangers have no story, though
    the exports tell of how they met.
    """
    rows = _read(root, 'relationship', optional=True)
    for i, row in enumerate(rows):
        if not (row.get('agent1_id') and row.get('agent2_id')):
            raise ProfileError(f'{_find(root, "relationship")}, row {i + 1}: agent1_id or agent2_id is missing')
    return {(frozenset((row['agent1_id'], row['agent2_id'])), str(row.get('relationship'))):
            row.get('background_story') or '' for row in rows if str(row.get('relationship')) != str(STRANGER)}


def _hard(root) -> set[str]:
    """Ids of the hard environments, where `env_splits.json` lists them."""
    path = root / 'env_splits.json'
    if not path.is_file():
        return set()
    try:
        return set(json.loads(path.read_text('utf-8')).get('sotopia_hard_env', ()))
    except (ValueError, AttributeError, TypeError) as error:
        raise ProfileError(f'{path}: {error}') from None


def _goal_rules(rules: Any, env_id: str) -> tuple[Optional[Mapping[str, Any]], Optional[Mapping[str, Any]]]:
    if len(rules) != 2:
        raise ProfileError(f'environment {env_id}: needs two goal_rules (null for a goal without), has {len(rules)}')
    try:
        for rule in filter(None, rules):
            check_rule(rule)
    except RuleError as error:
        raise ProfileError(f'environment {env_id}: {error}') from None
    return tuple(rules)


def _split(value: str, env_id: str) -> str:
    if value not in ('train', 'held_out'):
        raise ProfileError(f"environment {env_id}: split must be 'train' or 'held_out', is {value!r}")
    return value


def _relationship(value: Any, env_id: str) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = -1
    if not STRANGER <= number <= FAMILY:
        raise ProfileError(f'environment {env_id}: relationship must be 0 to 5, is {value!r}')
    return number


def _character(row: Mapping[str, Any], key: str) -> Character:
    text = lambda name: _one_line(row.get(name) or '')
    if not text('first_name'):
        raise ProfileError(f'character {key}: has no first_name')
    try:
        age = int(row.get('age') or 0)
    except (TypeError, ValueError):
        raise ProfileError(f'character {key}: age must be a number, is {row["age"]!r}') from None
    return Character(
        id=key, first_name=text('first_name'), last_name=text('last_name'), age=age,
        occupation=text('occupation'), gender=text('gender'), pronouns=text('gender_pronoun'),
        public_info=text('public_info'), personality=text('personality_and_values'), secret=text('secret'))


def _read(root, what: str, optional: bool = False) -> list[Mapping[str, Any]]:
    """The rows of the file that holds `what`, from JSON (a list) or JSONL."""
    path = _find(root, what)
    if path is None:
        if optional:
            return []
        raise ProfileError(f'{root} has no {what} file; one of these is expected: {", ".join(_names(what))}')
    try:
        text = path.read_text('utf-8')
        if path.name.endswith('.json'):
            rows = json.loads(text)
        else:  # split at line feeds only: texts may hold the other characters that end a line
            rows = [json.loads(line) for line in text.split('\n') if line.strip()]
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ProfileError(f'{path}: {error}') from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ProfileError(f'{path}: must hold a list of objects')
    return rows


def _find(root, what: str):
    """The file that holds `what`, or None."""
    return next((root / name for name in _names(what) if (root / name).is_file()), None)


def _names(what: str) -> list[str]:
    return [f'{stem}.{suffix}' for stem in _FILES[what] for suffix in ('jsonl', 'json')]


def _index(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, Mapping[str, Any]]:
    """Rows by their id."""
    index = {}
    for i, row in enumerate(rows):
        key = row.get(name) or row.get('pk')
        if not key or key in index:
            raise ProfileError(f'row {i + 1}: {name} is missing or there twice: {key!r}')
        index[key] = row
    return index
