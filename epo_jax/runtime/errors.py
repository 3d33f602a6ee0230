"""Errors that commands print in one line, without a traceback, and the exit statuses of commands."""

# A command that was finished exits with 0, and a wrong command line of argparse with 2. A signal that ends a process
# before Python handles it shows as 128 plus its number.
FAILED = 1         # an input cannot be used
CANNOT_WRITE = 74  # EX_IOERR of sysexits.h: files cannot be written, for example because the disk is full
STOPPED = 75       # EX_TEMPFAIL of sysexits.h: stopped by SIGTERM or SIGINT; the same command continues


class InputError(ValueError):
    """An input (a file, key or flag) cannot be used; the message names it and says why."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says what went wrong in which iteration."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be saved or restored; the message names it and says what is wrong."""


class DamagedError(CheckpointError):
    """The files of a checkpoint are damaged or cannot be read."""


class SaveError(CheckpointError):
    """A checkpoint cannot be saved."""


class Stopped(Exception):
    """A signal stopped unfinished work; the message says how to continue it."""
