"""Write a report of runs as one HTML file, which opens from disk and needs no network.

    python -m epo_jax.report --workdir=runs/quickstart --out=report.html
    python -m epo_jax.report --workdir=runs/seed0 runs/seed1 runs/evaluation --out=report.html

A path is the workdir of a run (online or offline), the folder of an evaluation or of recorded traffic (serve --record),
or a file of conversations (raw, labeled or prepared). Runs that differ in the seed alone get a mean and an interval.
"""

import argparse
from typing import Optional, Sequence

from epo_jax.runtime import command


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Run the command, see the module docstring."""
    parser = argparse.ArgumentParser(prog='python -m epo_jax.report', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--workdir', required=True, metavar='PATH', help='workdir of a run, or another path as above')
    parser.add_argument('more', nargs='*', metavar='PATH', help='more of them, for the same report')
    parser.add_argument('--out', default='report.html', help='HTML file to write')
    parser.add_argument('--megabytes', type=float, default=20.0,
                        help='size of the embedded episodes, at most; of more episodes, a sample is embedded')
    args = parser.parse_args(argv)
    if not args.megabytes >= 0:
        parser.error('--megabytes must not be negative')
    with command.one_line_errors():
        from epo_jax.report.page import write_report  # after the flags, so that --help does not wait for JAX
        write_report([args.workdir, *args.more], args.out, int(args.megabytes * 1e6))
    print(f'wrote {args.out}')


if __name__ == '__main__':
    command.run(main)
