"""Addresses of remote models: the name of a model and the URL of an OpenAI-compatible endpoint."""

import base64
import dataclasses
import re
from typing import Optional
import urllib.parse

from epo_jax.runtime.errors import InputError
from epo_jax.runtime.secrets import is_secret_name, redact

_SCHEME = re.compile(r'[a-z][a-z0-9+.-]*://', re.IGNORECASE)
_AT_URL = re.compile(r'@(?=[a-z][a-z0-9+.-]*://)', re.IGNORECASE)
_COMPLETIONS = '/chat/completions'


@dataclasses.dataclass(frozen=True, repr=False)
class Address:
    """A model at an OpenAI-compatible endpoint, written NAME@URL.

    Attributes:
      name: what the endpoint calls the model.
      url: http or https URL, with or without /v1 and /chat/completions. It may hold a query string, as Azure's do, and
        a user with a password.
    """

    name: str
    url: str

    def __post_init__(self):
        if not self.name.strip():
            raise InputError(f'{self} does not name a model; write NAME@URL')
        try:
            parts = urllib.parse.urlsplit(self.url)
            valid = parts.scheme in ('http', 'https') and parts.hostname and parts.port != 0
        except ValueError:  # a port that is not a number, or half an IPv6 address
            valid = False
        if not valid or not self.url.isprintable() or ' ' in self.url:
            raise InputError(f'{redact(self.url)!r} is not an http or https URL')
        if parts.fragment or '#' in self.url:
            raise InputError(f'{redact(self.url)!r} has a fragment (#), which is never sent; remove it')
        names = [name for name, _ in urllib.parse.parse_qsl(parts.query, keep_blank_values=True)]
        if len(set(names)) < len(names):
            raise InputError(f'{redact(self.url)!r} names a parameter twice')

    def __str__(self) -> str:
        return f'{self.name}@{redact(self.url)}'

    def __repr__(self) -> str:
        return f'Address({str(self)!r})'

    @property
    def host(self) -> str:
        """Return the host in lower case, without user and port."""
        return urllib.parse.urlsplit(self.url).hostname or ''

    @property
    def base_url(self) -> str:
        """Return the URL to which '/chat/completions' is appended, without query string and user."""
        parts = urllib.parse.urlsplit(self.url)
        path = parts.path.rstrip('/').removesuffix(_COMPLETIONS) or '/v1'
        return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition('@')[2].lower(), path, '', ''))

    @property
    def query(self) -> dict[str, str]:
        """Return the parameters of the query string."""
        return dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.url).query, keep_blank_values=True))

    @property
    def public_url(self) -> str:
        """Return the URL without secrets, which identifies the endpoint in a record of answers."""
        query = {name: value for name, value in self.query.items() if not is_secret_name(name)}
        return self.base_url + (f'?{urllib.parse.urlencode(query)}' if query else '')

    @property
    def authorization(self) -> Optional[str]:
        """Return the header Authorization for the user and the password in the URL, or None if there are none."""
        user = self._user
        if user is None:
            return None
        name, _, password = map(urllib.parse.unquote, user.partition(':'))
        return 'Basic ' + base64.b64encode(f'{name}:{password}'.encode()).decode()

    @property
    def secrets(self) -> tuple[str, ...]:
        """Return the parts of the URL that must not be shown, in the forms in which an endpoint may repeat them."""
        found = [value for name, value in self.query.items() if value and is_secret_name(name)]
        if user := self._user:
            password = user.partition(':')[2] or user
            found += [user, password, urllib.parse.unquote(password), self.authorization.removeprefix('Basic ')]
        return tuple(found)

    @property
    def _user(self) -> Optional[str]:
        return urllib.parse.urlsplit(self.url).netloc.rpartition('@')[0] or None


def parse_address(text: str) -> Optional[Address]:
    """Return the address in 'NAME@URL', where the name may hold an '@' itself, or None if the text is none.

    Raises:
      InputError: the text holds a URL, but not an http or https URL after a name.
    """
    if _SCHEME.match(text):
        raise InputError(f'{redact(text)!r} does not name a model; write NAME@URL')
    places = list(_AT_URL.finditer(text))
    return Address(text[:places[-1].start()], text[places[-1].end():]) if places else None
