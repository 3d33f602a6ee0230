"""Load SOTOPIA profiles: situations, characters, relationships, and the combinations of them that are played.

The files have the form in which the `sotopia` package exports them: JSON lists or JSONL, with ids under their own name
or `pk`. The folder `data/` contains the set that comes with epo_jax. Four optional fields of an environment profile are
extensions: `category`, `split` ('train' or 'held_out'), `hard`, and `goal_rules` (see goals.py).
"""

import dataclasses
import importlib.resources
import json
import pathlib
import re
from typing import Any, Mapping, Optional

from epo_jax.envs.sotopia.goals import RuleError, check_rule
from epo_jax.runtime.errors import InputError

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
      text: the situation, known to both characters.
      goals: the goal of each seat without markup, known to that seat only.
      goal_rules: for each seat the rule that scores its goal (see goals.py), or None to ask the judge.
      relationship: from 0 (strangers) to 5 (family).
      story: how the two characters know each other, or ''.
      characters: the character of each seat.
      category: kind of task, or the source of the situation; evaluations report each category.
      split: 'train' or 'held_out'.
      hard: whether the situation belongs to the hard subset.
      judge_text: the situation with the parts that only the judge may read, or '' if there are none.
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


# Stems of file names by content: that of the exports, then that of the set in data/.
_FILES = {
    'environment': ('environment_profiles', 'environments'),
    'character': ('agent_profiles', 'agents'),
    'relationship': ('relationship_profiles', 'relationships'),
    'combo': ('env_agent_combo_storages', 'env_agent_combos', 'combos'),
}


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
    stories = _stories(root)
    hard = _hard(root)
    held_out = set(sorted(environments)[4::5])
    scenarios = []
    for i, combo in enumerate(_read(root, 'combo')):
        name = f'combo {combo.get("combo_id", combo.get("pk", i))}'
        env_id, people = combo.get('env_id'), combo.get('agent_ids') or ()
        if env_id not in environments:
            raise ProfileError(f'{name}: there is no environment {env_id!r} in {root}')
        if len(people) != 2 or any(p not in characters for p in people):
            raise ProfileError(f'{name}: agent_ids must name two known characters, not {list(people)}')
        environment = environments[env_id]
        goals = environment.get('agent_goals') or ()
        if len(goals) != 2:
            raise ProfileError(f'environment {env_id}: agent_goals must be two goals, not {len(goals)}')
        if not environment.get('scenario'):
            raise ProfileError(f'environment {env_id}: the field scenario is missing or empty')
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
        raise ProfileError(f'there are no scenarios in {root}: its combo file is empty')
    return scenarios


def strip_tags(text: str) -> str:
    """Remove tags such as <extra_info> and <strategy_hint>, and keep the text between them."""
    return re.sub(r'</?[a-z_]+(\s[^<>]*)?>', '', text)


def _visible(text: str, viewer: str) -> str:
    """Return a text in one line, without markup and without the <p viewer="..."> parts meant for other viewers.

    Args:
      text: the text of a profile.
      viewer: 'agent_0' or 'agent_1' for a seat, '' for what both seats may read, 'environment' for everything.
    """
    keep = lambda part: part[2] if viewer in (part[1], 'environment') else ''
    return _one_line(strip_tags(re.sub(r'<p viewer="([^"]*)">(.*?)</p>', keep, str(text), flags=re.DOTALL)))


def _one_line(text: str) -> str:
    return ' '.join(str(text).split())


def _stories(root) -> dict[tuple[frozenset, str], str]:
    """Return how two characters know each other, by (pair of ids, relationship).

    A pair may have several relationships, each with its story. The exports contain stories of strangers too; these are
    dropped.
    """
    rows = _read(root, 'relationship', optional=True)
    for i, row in enumerate(rows):
        if not (row.get('agent1_id') and row.get('agent2_id')):
            raise ProfileError(f'{_find(root, "relationship")}, row {i + 1}: agent1_id or agent2_id is missing')
    return {(frozenset((row['agent1_id'], row['agent2_id'])), str(row.get('relationship'))):
            row.get('background_story') or '' for row in rows if str(row.get('relationship')) != str(STRANGER)}


def _hard(root) -> set[str]:
    """Return the ids of the hard situations, which `env_splits.json` lists if it exists."""
    path = root / 'env_splits.json'
    if not path.is_file():
        return set()
    try:
        return set(json.loads(path.read_text('utf-8')).get('sotopia_hard_env', ()))
    except (ValueError, AttributeError, TypeError) as error:
        raise ProfileError(f'{path}: must be a JSON object with a list of ids as sotopia_hard_env ({error})') from None


def _goal_rules(rules: Any, env_id: str) -> tuple[Optional[Mapping[str, Any]], Optional[Mapping[str, Any]]]:
    if len(rules) != 2:
        raise ProfileError(f'environment {env_id}: goal_rules must be two rules, with null for a goal without one; '
                           f'there are {len(rules)}')
    try:
        for rule in filter(None, rules):
            check_rule(rule)
    except RuleError as error:
        raise ProfileError(f'environment {env_id}: {error}') from None
    return tuple(rules)


def _split(value: str, env_id: str) -> str:
    if value not in ('train', 'held_out'):
        raise ProfileError(f"environment {env_id}: split must be 'train' or 'held_out', not {value!r}")
    return value


def _relationship(value: Any, env_id: str) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = -1
    if not STRANGER <= number <= FAMILY:
        raise ProfileError(f'environment {env_id}: relationship must be a number from 0 to 5, not {value!r}')
    return number


def _character(row: Mapping[str, Any], key: str) -> Character:
    text = lambda name: _one_line(row.get(name) or '')
    if not text('first_name'):
        raise ProfileError(f'character {key}: the field first_name is missing or empty')
    try:
        age = int(row.get('age') or 0)
    except (TypeError, ValueError):
        raise ProfileError(f'character {key}: age must be a whole number, not {row["age"]!r}') from None
    return Character(
        id=key, first_name=text('first_name'), last_name=text('last_name'), age=age,
        occupation=text('occupation'), gender=text('gender'), pronouns=text('gender_pronoun'),
        public_info=text('public_info'), personality=text('personality_and_values'), secret=text('secret'))


def _read(root, kind: str, optional: bool = False) -> list[Mapping[str, Any]]:
    """Return the rows of a file.

    Args:
      root: the folder.
      kind: a key of _FILES.
      optional: return no rows if there is no such file.
    """
    path = _find(root, kind)
    if path is None:
        if optional:
            return []
        raise ProfileError(f'{root} has no {kind} file; expected one of {", ".join(_names(kind))}')
    try:
        text = path.read_text('utf-8')
        if path.name.endswith('.json'):
            rows = json.loads(text)
        else:  # not splitlines(): texts may contain other line separators such as U+2028
            rows = [json.loads(line) for line in text.split('\n') if line.strip()]
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ProfileError(f'{path}: this is not valid UTF-8 JSON: {error}') from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ProfileError(f'{path}: must be a list of JSON objects')
    return rows


def _find(root, kind: str):
    """Return the path of a kind of file, or None."""
    return next((root / name for name in _names(kind) if (root / name).is_file()), None)


def _names(kind: str) -> list[str]:
    """Return the possible names of a kind of file."""
    return [f'{stem}.{suffix}' for stem in _FILES[kind] for suffix in ('jsonl', 'json')]


def _read_by_id(root, kind: str, name: str) -> dict[str, Mapping[str, Any]]:
    """Return the rows of a kind of file by their id, which is the field `name` or `pk`."""
    by_id = {}
    for i, row in enumerate(_read(root, kind)):
        key = row.get(name) or row.get('pk')
        if not key or key in by_id:
            raise ProfileError(f'{_find(root, kind)}, row {i + 1}: {name} must be present and unique, not {key!r}')
        by_id[key] = row
    return by_id
