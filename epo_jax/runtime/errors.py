"""The error that a user sees without a traceback."""


class InputError(ValueError):
    """An input (a file, a key, a flag) cannot be used; the message says which, and why."""
