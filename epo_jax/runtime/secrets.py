"""API keys: read and checked where they enter, and left out of everything that is printed or written."""

import os
import re
import urllib.parse

from epo_jax.runtime.errors import InputError

HIDDEN = '***'
# A password may hold characters that should have been escaped.
_PASSWORD = re.compile(r'(\b[a-zA-Z][\w+.-]*://)(?:[^/?#\s\'"]*|[^/?#\s\'":@]*:[^\s\'"]*)@')
_SECRET_NAME = r'[\w.-]*(?:key|token|secret|passw|signature|\bsig|credential|auth|\bpwd)[\w.-]*'
_PARAMETER = re.compile(rf'([?&;]{_SECRET_NAME}=)[^&;#\s\'"]+', re.IGNORECASE)
_HEADER = re.compile(r'\b(Bearer|Basic)(\s+)[\w.~+/=-]{8,}')


class SecretError(InputError):
    """An API key that cannot be sent; the message does not repeat it."""


def read_key(variable: str) -> str:
    """Return the API key in an environment variable, without surrounding blanks; '' if it is not set.

    Raises:
      SecretError: it holds a character that no header of HTTP may hold.
    """
    key = os.environ.get(variable, '').strip()
    for position, character in enumerate(key):
        if not '!' <= character <= '~':
            raise SecretError(f'the API key in ${variable} has a character that is not allowed in a key, '
                              f'U+{ord(character):04X} at position {position}; set the variable again')
    return key


def is_secret_name(name: str) -> bool:
    """Return whether a parameter or header of this name holds a secret."""
    return re.fullmatch(_SECRET_NAME, name, re.IGNORECASE) is not None


def redact(text: str, *secrets: str) -> str:
    """Return text without secrets: passwords and keys in URLs, authorization headers, and the given secrets."""
    for secret in secrets:
        for spelling in (secret, urllib.parse.quote(secret, safe='')) if secret else ():
            text = text.replace(spelling, HIDDEN)
    text = _PASSWORD.sub(rf'\1{HIDDEN}@', text)
    text = _PARAMETER.sub(rf'\1{HIDDEN}', text)
    return _HEADER.sub(rf'\1\2{HIDDEN}', text)
