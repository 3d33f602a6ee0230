"""EPO's conversations as a TFDS dataset, which is built and read without TensorFlow.

    python -m epo_jax.data.tfds --data=prepared.json --data_dir=tensorflow_datasets

From Python:

    from epo_jax.data import tfds as epo
    source = epo.open_source('prepared.json', 'tensorflow_datasets')    # random access: len(source), source[i]

Install the extra `data` first: pip install epo_jax[data].
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
    """Conversations of any stage of the pipeline. Features that a stage lacks are empty.

    Features of an example:
      messages: Texts that alternate between user and assistant.
      score: Score of the conversation, as text.
      location: Indexes of the selected messages.
      labelled: Whether the row has a location.
      weights: Weights of the assistant's turns, as text; '' for a turn that is not trained.
      row: Number of the row in the file.

    Scores and weights are text, as in EPO's files, because TFDS would round them to float32.
    """

    VERSION = tfds.core.Version('1.0.0')
    RELEASE_NOTES = {'1.0.0': 'First release.'}

    def __init__(self, source: Source, data_dir: str, skip_bad: bool = False):
        """Create the builder of one file.

        Args:
          source: The file and its layout.
          data_dir: Directory of TFDS. Files that differ in path, size or time stamp get separate datasets in it.
          skip_bad: Whether to skip bad rows instead of raising.
        """
        stat = source.path.stat()
        identity = f'{source.path.resolve()} {stat.st_size} {stat.st_mtime_ns}'
        name = f'{source.path.stem}_{hashlib.sha256(identity.encode()).hexdigest()[:8]}'
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
    """Return the features of a row.

    Args:
      row: A row of any stage.
      source: Its file.

    Raises:
      ValueError: If the row is bad; says why.
    """
    conversation, location = messages(row, source.layout), row.get('location')
    prepared = any('score' in message for message in conversation)
    if location is not None and (not isinstance(location, list) or any(type(i) is not int for i in location)):
        raise ValueError(f"'location' is {location!r}, not a list of numbers")
    score = row.get('score')
    if score is not None and (isinstance(score, bool) or not isinstance(score, (int, float))):
        raise ValueError(f'the score is {score!r}, not a number')
    weights = ['' if weight is None else repr(weight) for weight in turn_weights(conversation)] if prepared else []
    return {'messages': [message[source.layout.content] for message in conversation],
            'score': '' if score is None else repr(score), 'labelled': location is not None,
            'location': location or [], 'weights': weights}


def open_source(data: str, data_dir: str, skip_bad: bool = False) -> Sequence[dict[str, Any]]:
    """Open the conversations of a file for random access, after building the dataset if it does not exist yet.

    Args:
      data: The file, see `epo_jax.data.sharegpt.find_source`.
      data_dir: Directory of TFDS.
      skip_bad: Whether to skip bad rows instead of raising.

    Raises:
      DataError: If the file cannot be found.
      RowError: For the first bad row, unless bad rows are skipped.
    """
    builder = Epo(find_source(data), data_dir, skip_bad)
    builder.download_and_prepare()
    return builder.as_data_source(split='train')


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Run the command, see the module docstring."""
    parser = argparse.ArgumentParser(prog='python -m epo_jax.data.tfds', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', required=True, help='file, folder or dataset_info.json of conversations')
    parser.add_argument('--data_dir', required=True, help='directory of TFDS')
    parser.add_argument('--skip_bad', action='store_true', help='skip and count bad rows instead of stopping')
    args = parser.parse_args(argv)
    try:
        source = open_source(args.data, args.data_dir, args.skip_bad)
    except (DataError, RowError, OSError) as error:
        sys.exit(f'error: {error}')
    print(f'wrote {len(source)} conversations to {Path(args.data_dir)}')


if __name__ == '__main__':
    main()
