"""A TFDS data set of EPO's conversations, which can be built and read without TensorFlow.

    python -m epo_jax.data.tfds --data=prepared.json --data_dir=tensorflow_datasets

    import tensorflow_datasets as tfds
    from epo_jax.data import tfds as epo
    source = epo.open_source('prepared.json', 'tensorflow_datasets')    # random access: len(source), source[i]

Needs the extra `data`: pip install epo_jax[data].
"""

import argparse
import hashlib
from pathlib import Path
import sys
from typing import Any, Iterator, Optional, Sequence

import numpy as np
import tensorflow_datasets as tfds

from epo_jax.data.rows import BadRows, RowError, read_rows
from epo_jax.data.sharegpt import DataError, Source, find_source, messages, turn_weights


class Epo(tfds.core.GeneratorBasedBuilder):
    """Conversations of any stage; what a stage does not have is empty.

    Features of an example: `messages` (texts, in turn the user's and the assistant's), `score` of the conversation,
    `location` (messages selected), `labelled` (whether there is a location), `weights` of the assistant's turns and
    `row`, its number in the file. Scores and weights are text, as EPO's files have it: TFDS keeps float32 only.
    """

    VERSION = tfds.core.Version('1.0.0')
    RELEASE_NOTES = {'1.0.0': 'The first.'}

    def __init__(self, source: Source, data_dir: str, skip_bad: bool = False):
        """`source`: the file; data sets of different files, by path, size and time, are kept apart in `data_dir`."""
        stat = source.path.stat()
        mark = f'{source.path.resolve()} {stat.st_size} {stat.st_mtime_ns}'
        name = f'{source.path.stem}_{hashlib.sha256(mark.encode()).hexdigest()[:8]}'
        self._source, self.bad = source, BadRows(skip_bad)
        super().__init__(data_dir=data_dir, file_format='array_record', config=tfds.core.BuilderConfig(
            name=name, version='1.0.0', description=f'Conversations from {source.path.name}.'))

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict({
            'messages': tfds.features.Sequence(tfds.features.Text()), 'score': tfds.features.Text(),
            'labelled': np.bool_, 'location': tfds.features.Sequence(np.int64),
            'weights': tfds.features.Sequence(tfds.features.Text()), 'row': np.int64}))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {'train': self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for span, row in read_rows(self._source.path, self.bad):
            try:
                example = to_example(row, self._source)
            except ValueError as error:
                self.bad.add(RowError(self._source.path, span.number, str(error)))
                continue
            yield span.number, example | {'row': span.number}


def to_example(row: dict[str, Any], source: Source) -> dict[str, Any]:
    """The features of a row. Raises ValueError: it is bad; says why."""
    found, location = messages(row, source.layout), row.get('location')
    prepared = any('score' in message for message in found)
    if location is not None and (not isinstance(location, list) or any(type(i) is not int for i in location)):
        raise ValueError(f"'location' is {location!r}, not a list of numbers")
    score = row.get('score')
    if score is not None and (isinstance(score, bool) or not isinstance(score, (int, float))):
        raise ValueError(f'the score is {score!r}, not a number')
    weights = [repr(weight) for weight in turn_weights(found)] if prepared else []
    return {'messages': [message[source.layout.content] for message in found],
            'score': '' if score is None else repr(score), 'labelled': location is not None,
            'location': location or [], 'weights': weights}


def open_source(data: str, data_dir: str, skip_bad: bool = False) -> Sequence[dict[str, Any]]:
    """The conversations of a file by random access; the data set is built first where it is not there yet.

    Args:
      data: as for `find_source`; data_dir: where TFDS keeps its files.

    Raises:
      DataError, RowError: the input is bad.
    """
    builder = Epo(find_source(data), data_dir, skip_bad)
    builder.download_and_prepare()
    return builder.as_data_source(split='train')


def main(argv: Optional[Sequence[str]] = None) -> None:
    """The command; see the module."""
    parser = argparse.ArgumentParser(prog='python -m epo_jax.data.tfds', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', required=True, help='a file, or see epo_jax/data/sharegpt.py')
    parser.add_argument('--data_dir', required=True, help='where TFDS keeps its files')
    parser.add_argument('--skip_bad', action='store_true', help='leave bad rows out instead of stopping')
    args = parser.parse_args(argv)
    try:
        source = open_source(args.data, args.data_dir, args.skip_bad)
    except (DataError, RowError, OSError) as error:
        sys.exit(f'error: {error}')
    print(f'{len(source)} conversations in {Path(args.data_dir)}')


if __name__ == '__main__':
    main()
