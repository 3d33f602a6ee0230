"""EPO's files: conversations in ShareGPT form, and what a row needs at each stage of the pipeline.

    raw        {"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}, ...], "score": 7}
    labelled   the same with "location": [1, 5], the messages whose strategies were critical, counted from 0
    prepared   {"conversations": [..., {"from": "gpt", "value": ..., "score": "0.98"}, ...]}: a weight for every turn

The messages alternate, the user's first and the assistant's last; the assistant's are the strategies.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence

from epo_jax.runtime.errors import InputError

DOMAINS = ('sotopia', 'webshop', 'alfworld')

# Largest score of a trajectory. SOTOPIA's is the goal rating; a reward otherwise.
BEST = {'sotopia': 10, 'webshop': 1, 'alfworld': 1}

INFO = 'dataset_info.json'


class DataError(InputError):
    """Data that cannot be found or understood as a whole; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Names of keys and roles, as LLaMA-Factory's dataset_info.json may change them."""

    messages: str = 'conversations'
    role: str = 'from'
    content: str = 'value'
    user: str = 'human'
    assistant: str = 'gpt'


@dataclasses.dataclass(frozen=True)
class Source:
    """A file of conversations and its layout."""

    path: Path
    layout: Layout = Layout()


def find_source(data: str) -> Source:
    """The file that `--data` means.

    Args:
      data: a .json or .jsonl file; or a `dataset_info.json`, or a folder with one, in LLaMA-Factory's form, with
        `:name` where it lists more than one data set; or a folder of `*_data.json` files, as EPO-RL-data is
        published, again with `:name` where there are several.

    Raises:
      DataError: there is no such file, or it is not clear which one is meant.
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
        return _choose(files, name, path, f'no {INFO} and no *_data.json')
    if path.name == INFO:
        return _choose(_read_info(path), name, path, 'no data set in ShareGPT form')
    if name is not None:
        raise DataError(f'{path} is a file of rows, so {name!r} names nothing in it')
    return Source(path)


def _choose(sources: Mapping[str, Source], name: Optional[str], where: Path, empty: str) -> Source:
    if not sources:
        raise DataError(f'{where}: {empty} in it')
    if name is None and len(sources) == 1:
        name = next(iter(sources))
    if name not in sources:
        raise DataError(f'{where} has {", ".join(sources)}; choose one as {where}:NAME'
                        + (f' ({name!r} is none of them)' if name else ''))
    source = sources[name]
    if not source.path.exists():
        raise DataError(f'{where} names {source.path}, which does not exist')
    return source


def _read_info(path: Path) -> dict[str, Source]:
    try:
        info = json.loads(path.read_text(encoding='utf-8'))
        entries = {name: entry for name, entry in info.items() if isinstance(entry, dict)}
    except (ValueError, AttributeError) as error:
        raise DataError(f'{path}: not a JSON object ({error})') from error
    sources = {}
    for name, entry in entries.items():
        if entry.get('formatting') != 'sharegpt' or 'file_name' not in entry:
            continue
        columns, tags = entry.get('columns') or {}, entry.get('tags') or {}
        try:
            sources[name] = Source(path.parent / entry['file_name'], Layout(
                columns.get('messages', 'conversations'), tags.get('role_tag', 'from'),
                tags.get('content_tag', 'value'), tags.get('user_tag', 'human'), tags.get('assistant_tag', 'gpt')))
        except (AttributeError, TypeError) as error:
            raise DataError(f"{path}: {name!r} is not in LLaMA-Factory's form ({error})") from error
    return sources


def messages(row: Mapping[str, Any], layout: Layout = Layout()) -> list[dict[str, Any]]:
    """The messages of a row, checked: at least two, in turn the user's and the assistant's, ending with the latter.

    Raises:
      ValueError: saying which message is wrong (they are counted from 0, as in `location`) and how.
    """
    found = row.get(layout.messages)
    if not isinstance(found, list):
        raise ValueError(f'no list {layout.messages!r}')
    if not found:
        raise ValueError('the conversation is empty')
    for i, message in enumerate(found):
        if not isinstance(message, dict):
            raise ValueError(f'message {i} is {type(message).__name__}, not an object')
        role, expected = message.get(layout.role), layout.assistant if i % 2 else layout.user
        if role != expected:
            raise ValueError(f'message {i} is from {role!r} where {expected!r} must follow in turn')
        if not isinstance(message.get(layout.content), str):
            raise ValueError(f'message {i} has no text {layout.content!r}')
        if message.get('index', i) != i:
            raise ValueError(f"message {i} has 'index' {message['index']!r}")
    if len(found) % 2:
        raise ValueError(f'the last message is from {layout.user!r}; a conversation ends with {layout.assistant!r}')
    return found


def trajectory_score(row: Mapping[str, Any]) -> float:
    """The score of a raw or labelled row, as it stands there (an int stays one).

    Raises:
      ValueError: there is none, or it is not a finite number.
    """
    if row.get('score') is None:
        raise ValueError('no score')
    return _finite(row['score'], "the score")


def turn_weights(found: Sequence[Mapping[str, Any]]) -> list[float]:
    """The weight of every assistant message of a prepared row.

    Raises:
      ValueError: naming the message without one, or with one that is not a finite number.
    """
    weights = []
    for i, message in enumerate(found[1::2]):
        i, score = 2 * i + 1, message.get('score')
        if score is None:
            raise ValueError(f'message {i} has no score; make a prepared file with epo_jax.prepare')
        if isinstance(score, str):
            try:
                score = float(score)
            except ValueError:
                raise ValueError(f'the score of message {i} is {score!r}, not a number') from None
        weights.append(float(_finite(score, f'the score of message {i}')))
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


def is_acknowledgement(found: Sequence[Mapping[str, Any]], layout: Layout, domain: str) -> bool:
    """Whether message 1 is the canned "OK" to the instruction that WebShop and ALFWorld begin with: no strategy."""
    return domain != 'sotopia' and found[1][layout.content].strip(' .!').lower() == 'ok' and len(found) > 2
