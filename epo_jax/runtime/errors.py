"""The errors that commands print without a traceback."""


class InputError(ValueError):
    """An input (a file, key or flag) cannot be used; the message names it and says why."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says what went wrong in which iteration."""
