"""The report that a command writes when its run is finished."""

from pathlib import Path
import sys
import traceback
from typing import Union

from epo_jax.report.page import write_report
from epo_jax.runtime import hosts
from epo_jax.runtime.errors import InputError
from epo_jax.runtime.secrets import redact

REPORT_FILE = 'report.html'


def write_at_end(workdir: Union[str, Path]) -> None:
    """Write report.html in the directory of a finished run. A failure is printed and does not fail the run."""
    if not hosts.is_primary():
        return
    path = Path(workdir).absolute() / REPORT_FILE
    try:
        write_report([str(workdir)], str(path))
    except Exception as error:  # the results are saved; whatever went wrong must not hide that the run is finished
        if not isinstance(error, (InputError, OSError)):
            traceback.print_exc()
        print(redact(f'the run is finished, but its report cannot be written: {error}'), file=sys.stderr)
    else:
        print(f'report: {path}')
