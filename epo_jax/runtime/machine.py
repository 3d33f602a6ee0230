"""What a run ran on: devices, versions, the commit of this package, and the command."""

from importlib import metadata
import json
import os
from pathlib import Path
import platform
import shlex
import subprocess
import sys
from typing import Any, Optional

import jax

import epo_jax
from epo_jax.runtime.files import write_atomically
from epo_jax.runtime.secrets import redact

MACHINE_FILE = 'machine.json'
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'transformers', 'numpy')
ROOT = Path(epo_jax.__file__).parent


def write_machine(workdir: Path) -> None:
    """Write what the run in a directory runs on; a resumed run replaces it."""
    write_atomically(workdir / MACHINE_FILE, json.dumps(describe(), indent=1) + '\n')


def describe() -> dict[str, Any]:
    """Return devices, versions, commit and command as JSON; None for what is unknown."""
    devices = jax.devices()
    return {
        'backend': jax.default_backend(), 'devices': len(devices), 'device': devices[0].device_kind,
        'processes': jax.process_count(), 'cores': os.cpu_count(), 'system': platform.platform(),
        'python': platform.python_version(), 'epo_jax': epo_jax.__version__, 'commit': commit(),
        'versions': {name: metadata.version(name) for name in PACKAGES},
        'command': command(sys.argv)}


def commit() -> Optional[str]:
    """Return the commit of this package, with '+' if files differ from it; None if it is not from git."""
    try:
        direct = metadata.distribution('epo_jax').read_text('direct_url.json')
        if direct and (found := json.loads(direct).get('vcs_info', {}).get('commit_id')):
            return found
    except (metadata.PackageNotFoundError, ValueError):
        pass

    def git(*arguments: str) -> str:
        return subprocess.run(['git', '-C', str(ROOT.parent), *arguments], capture_output=True, text=True, check=True,
                              timeout=10).stdout.strip()

    try:
        if Path(git('rev-parse', '--show-toplevel')) != ROOT.parent.resolve():
            return None  # the package lies in somebody else's repository
        return git('rev-parse', 'HEAD') + ('+' if git('status', '--porcelain', '--untracked-files=no') else '')
    except (OSError, subprocess.SubprocessError):
        return None


def command(argv: list[str]) -> Optional[str]:
    """Return the command of this package that was run, without secrets; None if another program imported it."""
    path = Path(argv[0]).resolve() if argv and argv[0] else Path()
    if not path.is_relative_to(ROOT) or path.suffix != '.py':
        return None
    module = '.'.join(path.relative_to(ROOT.parent).with_suffix('').parts).removesuffix('.__main__')
    return redact(shlex.join(['python', '-m', module, *argv[1:]]))
