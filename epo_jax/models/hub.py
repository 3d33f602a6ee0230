"""Models of the Hugging Face Hub by name, downloaded and cached by `huggingface_hub`.

    Qwen/Qwen2.5-0.5B-Instruct              a repository
    Qwen/Qwen2.5-0.5B-Instruct@main         one of its revisions: a branch, a tag or a commit
    Qwen/Qwen2.5-0.5B-Instruct-GGUF/qwen2.5-0.5b-instruct-q8_0.gguf    one GGUF file of a repository

The library reads the variables HF_HOME, HF_TOKEN, HF_HUB_OFFLINE and HF_ENDPOINT. Its cache lies on the disk of the
machine; a file lock lets one process of a machine download a file while the others wait for it, and an interrupted
download continues where it stopped.
"""

import dataclasses
import pathlib
import re
from typing import Optional, Sequence

from epo_jax.runtime.errors import InputError

# The files that are read. TEXT_FILES suffice to reject a model before its weights are downloaded.
TEXT_FILES = ('config.json', 'generation_config.json', 'tokenizer*', 'chat_template*', 'special_tokens_map.json',
              'added_tokens.json')
WEIGHT_FILES = ('model.safetensors', 'model-*-of-*.safetensors', 'model.safetensors.index.json')
ADAPTER_FILES = ('adapter_config.json', 'adapter_model.safetensors')

# A revision must not look like a URL: NAME@URL stands for a model behind an endpoint.
_NAME = re.compile(r'(?P<repository>\w[\w.-]*/\w[\w.-]*?)(?:/(?P<file>[\w./-]+\.gguf))?(?:@(?P<revision>\w[\w./-]*))?',
                   re.IGNORECASE | re.ASCII)


class HubError(InputError):
    """A model cannot be had from the Hub. The message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class HubName:
    """The name of a repository or of one of its GGUF files.

    Attributes:
      repository: OWNER/NAME.
      file: path of a GGUF file in the repository; None for the repository.
      revision: a branch, a tag or a commit; None for the default branch.
    """

    repository: str
    file: Optional[str] = None
    revision: Optional[str] = None

    def __str__(self) -> str:
        """Return the name as it is written in a configuration."""
        return (self.repository + (f'/{self.file}' if self.file else '')
                + (f'@{self.revision}' if self.revision else ''))


def parse(name: str) -> Optional[HubName]:
    """Return the parts of a name; None if it has another form."""
    match = _NAME.fullmatch(name)
    return HubName(**match.groupdict()) if match and '..' not in name and '--' not in match['repository'] else None


def pin(name: HubName) -> HubName:
    """Return the name with the commit that its revision stands for now, so that later files are of the same model.

    The files of the repository that hold text are downloaded.

    Raises:
      HubError: the repository cannot be read.
    """
    if name.file is not None:
        return dataclasses.replace(name, revision=fetch(name, ()).parents[name.file.count('/')].name)
    folder = _snapshot(name, TEXT_FILES + ADAPTER_FILES[:1])
    if not any((folder / file).exists() for file in ('config.json', 'adapter_config.json')):
        raise HubError(f'{name}: the repository holds no config.json, so it is not a model in the Hugging Face format; '
                       'if it holds GGUF files, name one of them as OWNER/NAME/FILE.gguf')
    return dataclasses.replace(name, revision=folder.name)


def fetch(name: HubName, patterns: Sequence[str]) -> pathlib.Path:
    """Download the files of a repository that match a pattern, unless the cache has them.

    Returns:
      The folder with the files, or the path of the GGUF file that is named.

    Raises:
      HubError: the repository cannot be read, or does not hold the file.
    """
    if name.file is None:
        return _snapshot(name, patterns)
    # All parts of a split file are downloaded.
    file = _snapshot(name, (re.sub(r'-\d{5}-of-(\d{5})', r'-?????-of-\1', name.file),)) / name.file
    if not file.exists():
        raise HubError(f'{name}: the repository {name.repository} holds no file {name.file}')
    return file


def _snapshot(name: HubName, patterns: Sequence[str]) -> pathlib.Path:
    import huggingface_hub  # takes half a second, and most runs read local files
    from huggingface_hub import constants, errors
    from huggingface_hub.utils import tqdm
    place, cache = constants.ENDPOINT, constants.HF_HUB_CACHE

    class Bar(tqdm):
        """A progress bar that appears if a download takes longer than a second."""

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs, delay=1)

    try:
        return pathlib.Path(huggingface_hub.snapshot_download(
            name.repository, revision=name.revision, allow_patterns=list(patterns), tqdm_class=Bar))
    except errors.GatedRepoError as error:
        raise HubError(f'{name}: access to this repository is restricted; accept its terms at '
                       f'{place}/{name.repository}, and set HF_TOKEN to a token of your account') from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f'{name}: the repository {name.repository} has no revision {name.revision!r}') from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(f'{str(name)!r} is neither a file or folder here nor a repository of {place} that can be read; '
                       'check the name, and set HF_TOKEN if the repository is private') from error
    except errors.HFValidationError as error:
        raise HubError(f'{str(name)!r} is neither a file or folder here nor a valid name of a repository '
                       f'({_line(error)})') from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        reason = ('HF_HUB_OFFLINE is set' if constants.HF_HUB_OFFLINE
                  else f'{place} cannot be reached ({_line(error.__cause__ or error)})')
        raise HubError(f'{str(name)!r} is neither a file or folder here nor complete in the cache {cache}, and '
                       f'{reason}') from error
    except Exception as error:  # of the library for HTTP, which is not always the same, or of the disk
        raise HubError(f'{name}: the download from {place} failed ({type(error).__name__}: {_line(error)}); the same '
                       'command continues it') from error


def _line(error: BaseException) -> str:
    """Return the first line of a message."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
