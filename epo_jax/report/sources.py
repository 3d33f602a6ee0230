"""What a path holds that a report can show."""

import dataclasses
import json
from pathlib import Path
import re
from typing import Any, Iterator, Mapping, Optional

from ml_collections import ConfigDict

from epo_jax import runs
from epo_jax.config import CONFIG_FILE
from epo_jax.data.rows import BadRows, read_rows
from epo_jax.data.sharegpt import INFO, DataError, Layout, find_source
from epo_jax.runtime.errors import InputError
from epo_jax.runtime.files import stream_jsonl
from epo_jax.runtime.machine import MACHINE_FILE
from epo_jax.serve.recording import ADVISED, OBSERVED

LARGEST = 1 << 29  # bytes of episodes that are read at most; of longer runs, evenly spaced iterations are read


class ReportError(InputError):
    """A path that holds nothing to report on, or a damaged file."""


@dataclasses.dataclass(frozen=True)
class EpisodeFile:
    """A file of episodes.

    Attributes:
      path: the file.
      label: what it is called in the report, such as 'iteration 3'.
      iteration: number of the iteration whose episodes it holds, or after which they were played; None if unknown.
      layout: names in its rows, for conversations in ShareGPT form; None for records of episodes.
    """

    path: Path
    label: str
    iteration: Optional[int] = None
    layout: Optional[Layout] = None

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the records or rows.

        Raises:
          LineError, RowError: one is damaged.
        """
        if self.layout is None:
            yield from (row for row in stream_jsonl(self.path) if 'turns' in row)  # others say what the file is of
        else:
            yield from (row for _, row in read_rows(self.path, BadRows(skip=False)))


@dataclasses.dataclass(frozen=True)
class Source:
    """What one path holds; what it lacks is empty or None.

    Attributes:
      name: of the path.
      path: the path.
      kind: what it is, for the reader of the report.
      config: of the run or evaluation.
      metrics: one dict for each iteration or step, with 'iteration'; all other values are numbers.
      evaluations: the JSON of every evaluation by name, the final one first.
      files: the files of episodes that are read.
      skipped: number of files of episodes that are not read, because there are too many.
      machine: what the run noted about its machine, see `runtime.machine`.
    """

    name: str
    path: Path
    kind: str
    config: Optional[ConfigDict] = None
    metrics: tuple[dict[str, float], ...] = ()
    evaluations: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    files: tuple[EpisodeFile, ...] = ()
    skipped: int = 0
    machine: Optional[Mapping[str, Any]] = None


def read_source(path: str, largest: int = LARGEST) -> Source:
    """Return what a path holds, without its episodes.

    Args:
      path: the workdir of a run, the folder of an evaluation or of recorded traffic, or a file of conversations in any
        form that `data.sharegpt.find_source` finds.
      largest: bytes of episodes to read at most.

    Raises:
      ReportError: there is nothing to report on, or a file is damaged.
      LineError: a line of metrics.jsonl is damaged.
    """
    folder = Path(path)
    name = folder.resolve().name
    if folder.is_dir() and (folder / CONFIG_FILE).exists():
        return _run(folder, name, largest)
    if folder.is_dir() and not (folder / INFO).exists():
        files = tuple(EpisodeFile(file, file.stem.replace('_', ' '), layout=Layout())
                      for stem in (ADVISED, OBSERVED) for file in sorted(folder.glob(f'{stem}_*.jsonl')))
        if files:
            return Source(name, folder, 'recorded traffic', files=files)
    try:
        found = find_source(path)
    except DataError as error:
        raise ReportError(
            f'{path} holds nothing to report on ({error}); give the workdir of a run, the folder of an evaluation or '
            'of recorded traffic, or a file of conversations') from error
    return Source(found.path.name, found.path, 'conversations',
                  files=(EpisodeFile(found.path, found.path.stem, layout=found.layout),))


def _run(folder: Path, name: str, largest: int) -> Source:
    config = runs.read_config(str(folder))
    metrics = _metrics(folder / 'metrics.jsonl')
    evaluations = {path.stem: _read_json(path) for path in sorted(folder.glob('evaluation*.json'))}
    files, skipped = _fewer(list(_episode_files(folder, config)), largest)
    if runs.is_offline(config):
        kind = 'offline run'
    else:
        kind = 'training run' if metrics or (folder / 'checkpoints').exists() or not evaluations else 'evaluation'
    machine = folder / MACHINE_FILE
    return Source(name, folder, kind, config, metrics, evaluations, tuple(files), skipped,
                  _read_json(machine) if machine.exists() else None)


def _episode_files(folder: Path, config: ConfigDict) -> Iterator[EpisodeFile]:
    """Yield the files of episodes in the order in which they were played."""
    def order(path: Path) -> tuple[float, str]:
        number = re.search(r'\d+', path.stem)
        return (int(number[0]) if number else float('inf'), path.stem)

    last = config.get('iterations')
    for path in sorted((folder / 'episodes').glob('*.jsonl'), key=order):
        if match := re.fullmatch(r'(iteration|evaluation)_(\d+)', path.stem):
            number = int(match[2])
            yield EpisodeFile(path, f'iteration {number}' if match[1] == 'iteration' else
                              f'evaluation after {number}', number)
        elif path.stem == 'evaluation':
            yield EpisodeFile(path, 'evaluation', last)
        elif path.stem == 'evaluation.partial':
            yield EpisodeFile(path, 'evaluation (unfinished)', last)


def _fewer(files: list[EpisodeFile], largest: int) -> tuple[list[EpisodeFile], int]:
    """Return evenly spaced files that fit, always with all evaluations and the first and last iteration.

    Returns:
      The files, and how many are left out.
    """
    sizes = {file.path: file.path.stat().st_size for file in files}
    iterations = [file for file in files if file.path.stem.startswith('iteration')]
    chosen, every = files, 1
    while sum(sizes[file.path] for file in chosen) > largest and every < len(iterations):
        every *= 2
        kept = {file.path for i, file in enumerate(iterations) if i % every == 0 or i == len(iterations) - 1}
        chosen = [file for file in files if file not in iterations or file.path in kept]
    return chosen, len(files) - len(chosen)


def _metrics(path: Path) -> tuple[dict[str, float], ...]:
    """Return the metrics by iteration; of several lines of an iteration, later ones replace earlier ones."""
    if not path.exists():
        return ()
    merged: dict[int, dict[str, float]] = {}
    for row in stream_jsonl(path):
        try:
            values = {name: float(value) for name, value in row.items()}
            merged.setdefault(int(values['iteration']), {}).update(values)
        except (KeyError, TypeError, ValueError) as error:
            raise ReportError(f'{path}: a line is not a line of metrics: {json.dumps(row)[:80]}') from error
    return tuple(merged[number] for number in sorted(merged))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding='utf-8'))
        if isinstance(value, dict):
            return value
        problem = f'it holds {type(value).__name__}, not an object'
    except (OSError, ValueError) as error:
        problem = str(error)
    raise ReportError(f'{path} is damaged ({problem}); remove it, or write it again with the command that made it')
