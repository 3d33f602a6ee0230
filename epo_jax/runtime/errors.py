"""What a user is told without a traceback."""


class InputError(ValueError):
    """Something that was given (a file, a key, a flag) cannot be used; the message says what, and where."""
