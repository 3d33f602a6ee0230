"""EPO's files: conversations in ShareGPT form, and what a row holds at each stage of the pipeline.

Stages:
  raw: {"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}, ...], "score": 7}
  labeled: The same with "location": [1, 5], the indexes of the messages whose strategies were critical (from 0).
  prepared: {"conversations": [..., {"from": "gpt", "value": ..., "score": "0.98"}, ...]}, a weight for every turn;
    null for a turn that is not trained.

Messages alternate between user and assistant, the user's first and the assistant's last. The assistant's messages
are the strategies.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Collection, Mapping, Optional, Sequence, Union

from epo_jax.rewards.critical import WORDINGS
from epo_jax.runtime.errors import InputError

DOMAINS = tuple(WORDINGS)

# Largest score of a conversation: SOTOPIA's goal rating, or the reward of the environment.
BEST = {domain: words.best for domain, words in WORDINGS.items()}

INFO = 'dataset_info.json'


class DataError(InputError):
    """Data that cannot be found or used. The message says what to do."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Names of the keys and roles of a row, which LLaMA-Factory's dataset_info.json may change.

    Attributes:
      messages, role, content: keys of the messages, and of the role and the text of a message.
      user, assistant: the roles.
      unused: further declared columns, such as that of the system prompt; they must be empty, as nothing reads them.
    """

    messages: str = 'conversations'
    role: str = 'from'
    content: str = 'value'
    user: str = 'human'
    assistant: str = 'gpt'
    unused: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Source:
    """A file of conversations and its layout."""

    path: Path
    layout: Layout = Layout()


def find_source(data: str) -> Source:
    """Find the file that a `--data` flag names.

    Args:
      data: One of
        - a .json or .jsonl file;
        - a `dataset_info.json` in LLaMA-Factory's form or a folder that holds one, followed by `:NAME` if it lists
          several datasets;
        - a folder of `*_data.json` files, as EPO-RL-data is published, followed by `:NAME` if there are several.

    Raises:
      DataError: If there is no such file, or if it is ambiguous which one is meant.
    """
    path, name = Path(data), None
    if not path.exists() and ':' in data:
        path, name = Path(data.rpartition(':')[0]), data.rpartition(':')[2]
    if not path.exists():
        raise DataError(f'there is no data at {data!r}')
    if path.is_dir() and (path / INFO).exists():
        path = path / INFO
    if path.is_dir():
        files = {file.name.removesuffix('_data.json'): Source(file) for file in sorted(path.glob('*_data.json'))}
        return files[_choose(files, name, path, f'{INFO} or *_data.json file')]
    if path.name == INFO:
        entries = _read_info(path)
        name = _choose(entries, name, path, 'dataset in ShareGPT form')
        return _declared_source(path, name, entries[name])
    if name is not None:
        raise DataError(f'{path} is a single file of rows; remove :{name} from {data!r}')
    return Source(path)


def _choose(names: Collection[str], name: Optional[str], path: Path, wanted: str) -> str:
    if not names:
        raise DataError(f'{path} holds no {wanted}')
    if name is None and len(names) == 1:
        name, = names
    if name not in names:
        unknown = f' ({name!r} is not one of them)' if name else ''
        raise DataError(f'{path} has {", ".join(names)}; choose one as {path}:NAME{unknown}')
    return name


def _read_info(path: Path) -> dict[str, dict[str, Any]]:
    """Return the datasets in ShareGPT form that a dataset_info.json lists."""
    try:
        info = json.loads(path.read_text(encoding='utf-8-sig'))
        return {name: entry for name, entry in info.items()
                if isinstance(entry, dict) and entry.get('formatting') == 'sharegpt' and 'file_name' in entry}
    except (ValueError, AttributeError, RecursionError) as error:
        raise DataError(f'{path} is not a JSON object ({error})') from error


def _declared_source(path: Path, name: str, entry: Mapping[str, Any]) -> Source:
    """Return the file and the layout of a dataset of a dataset_info.json.

    Raises:
      DataError: something is declared that is not text, that is not there, or that nothing here does.
    """
    columns, tags = entry.get('columns') or {}, entry.get('tags') or {}
    if not all(isinstance(part, dict) and all(isinstance(value, (str, type(None))) for value in part.values())
               for part in (columns, tags, {'file_name': entry['file_name'] or 0})):
        raise DataError(f"{path}: {name!r} is not in LLaMA-Factory's form: file_name and all columns and tags must be "
                        'text')
    read = ('file_name', 'formatting', 'columns', 'tags')
    others = [key for key, value in entry.items() if value and key not in read]
    if others:
        raise DataError(f'{path}: {name!r} declares {", ".join(others)}, which is not supported; take it out and name '
                        'a file with the rows to use')
    file = path.parent / entry['file_name']
    if not file.is_file():
        raise DataError(f'{path} names {file}, which ' + ('is a directory' if file.is_dir() else 'does not exist'))
    unused = tuple(column for key, column in columns.items() if key != 'messages' and column)
    return Source(file, Layout(
        columns.get('messages') or 'conversations', tags.get('role_tag') or 'from', tags.get('content_tag') or 'value',
        tags.get('user_tag') or 'human', tags.get('assistant_tag') or 'gpt', unused))


def refuse_overwriting(data: Union[str, Path], *outputs: Path) -> None:
    """Check that output files can be written and do not replace the input.

    Args:
      data: The input file.
      *outputs: The files to write.

    Raises:
      DataError: If an output is the input or a directory, or if its directory does not exist.
    """
    for output in outputs:
        if output.is_dir():
            raise DataError(f'{output} is a directory; --out must name a file')
        if output.exists() and output.samefile(data):
            raise DataError(f'{output} is the input file {data}, which is never overwritten; choose another --out')
        if not output.parent.is_dir():
            raise DataError(f'cannot write {output.name}: there is no directory {output.parent}')


def messages(row: Mapping[str, Any], layout: Layout = Layout()) -> list[dict[str, Any]]:
    """Return the messages of a row after checking that they alternate from the user's to the assistant's.

    Raises:
      ValueError: If a message is wrong. The message names its index (from 0, as in `location`) and the problem.
    """
    conversation = row.get(layout.messages)
    if not isinstance(conversation, list):
        raise ValueError(f'no list {layout.messages!r}')
    if not conversation:
        raise ValueError('the conversation is empty')
    for column in layout.unused:
        if row.get(column):
            raise ValueError(f'the column {column!r}, which {INFO} declares, is not empty; only messages are read, so '
                             'move its content to the first message or take it out of the columns')
    for i, message in enumerate(conversation):
        if not isinstance(message, dict):
            raise ValueError(f'message {i} is {type(message).__name__}, not an object')
        role, expected = message.get(layout.role), layout.assistant if i % 2 else layout.user
        if role != expected:
            raise ValueError(f'message {i} is from {role!r}, but roles must alternate and {expected!r} is next')
        if not isinstance(message.get(layout.content), str):
            raise ValueError(f'message {i} has no text {layout.content!r}')
        if message.get('index', i) != i:
            raise ValueError(f"message {i} has 'index' {message['index']!r}")
    if len(conversation) % 2:
        raise ValueError(
            f'the last message is from {layout.user!r}, but a conversation ends with {layout.assistant!r}')
    return conversation


def trajectory_score(row: Mapping[str, Any]) -> float:
    """Return the score of a raw or labeled row as stored (an int stays an int).

    Raises:
      ValueError: If the row has no score or the score is not a finite number.
    """
    if row.get('score') is None:
        raise ValueError('no score')
    return _finite(row['score'], 'the score')


def turn_weights(conversation: Sequence[Mapping[str, Any]]) -> list[Optional[float]]:
    """Return the weight of every assistant message of a prepared conversation, None for one that is not trained.

    Raises:
      ValueError: If a message has no weight or the weight is not a finite number (names the message), or if no message
        is trained.
    """
    weights = []
    for i, message in enumerate(conversation[1::2]):
        i, score = 2 * i + 1, message.get('score')
        if 'score' not in message:
            raise ValueError(f'message {i} has no score; prepare the file with epo_jax.prepare first')
        if isinstance(score, str):
            try:
                score = float(score)
            except ValueError:
                raise ValueError(f'the score of message {i} is {score!r}, not a number') from None
        weights.append(None if score is None else float(_finite(score, f'the score of message {i}')))
    if all(weight is None for weight in weights):
        raise ValueError('no message has a score; prepare the file with epo_jax.prepare first')
    return weights


def _finite(value: Any, what: str):
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f'{what} is {value!r}, not a number')
    try:
        finite = math.isfinite(value)
    except OverflowError:
        finite = False
    if not finite:
        raise ValueError(f'{what} is not finite')
    return value


def is_acknowledgement(conversation: Sequence[Mapping[str, Any]], layout: Layout, domain: str) -> bool:
    """Return whether message 1 is not a strategy but the canned "OK" that WebShop and ALFWorld dialogs start with."""
    return (domain in ('webshop', 'alfworld') and conversation[1][layout.content].strip(' .!').lower() == 'ok'
            and len(conversation) > 2)


def strategy_indexes(conversation: Sequence[Mapping[str, Any]], layout: Layout, domain: str) -> tuple[int, ...]:
    """Return the indexes of the messages that are strategies."""
    first = 3 if is_acknowledgement(conversation, layout, domain) else 1
    return tuple(range(first, len(conversation), 2))
