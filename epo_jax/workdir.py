"""The workdir of a run: who uses it, and how a run leaves it when a signal asks it to stop."""

import contextlib
from pathlib import Path
from typing import Callable, Iterator

from ml_collections import ConfigDict

from epo_jax.config import check_workdir, open_workdir
from epo_jax.runtime import hosts
from epo_jax.runtime.checkpoint import Checkpoints
from epo_jax.runtime.errors import Stopped
from epo_jax.runtime.locks import claim, directory
from epo_jax.runtime.machine import write_machine
from epo_jax.runtime.metrics import cut_metrics
from epo_jax.runtime.stopping import StopSignals


@contextlib.contextmanager
def own_workdir(workdir: Path, config: ConfigDict, may_differ: tuple[str, ...]) -> Iterator[Callable[[], None]]:
    """Claim a workdir and check its files; of several hosts, the first one does so for all of them.

    Args:
      workdir: the directory of the run, which is created. If nothing is written to it, it is removed afterwards.
      config: the validated configuration.
      may_differ: as in `config.check_workdir`.

    Yields:
      A function that saves the configuration and notes the machine. Call it when the inputs of the run have been read.

    Raises:
      InUseError: another process uses the workdir.
      UnwritableError: the workdir cannot be written.
      ConfigError: the workdir holds a run with another configuration, or without one.
      LineError: metrics.jsonl is damaged.
    """
    primary = [0] if hosts.is_primary() else []
    with contextlib.ExitStack() as stack:
        def check(_: int) -> None:
            stack.enter_context(directory(workdir))
            stack.enter_context(claim(workdir))
            check_workdir(workdir, config, may_differ)
            cut_metrics(workdir / 'metrics.jsonl')

        hosts.share(primary, check)

        def save(_: int) -> None:
            open_workdir(workdir, config, may_differ)
            write_machine(workdir)

        yield lambda: hosts.share(primary, save)


def stop_if_requested(signals: StopSignals, checkpoints: Checkpoints) -> None:
    """Stop a run if a signal has reached any of its processes, which must call this together.

    Raises:
      Stopped: a signal arrived; all saves are on disk.
    """
    if hosts.any_process(signals.requested):
        checkpoints.wait()
        raise Stopped('the state is saved, and the same command continues the run')
