"""Settings of remote models: the group `remote` of a configuration."""

import dataclasses
import json
import math
import re
from typing import Any, Mapping, Optional

from epo_jax.agents.address import Address
from epo_jax.config import COUNT, Key, Range
from epo_jax.runtime.errors import InputError
from epo_jax.runtime.secrets import is_secret_name, read_key, redact

STRUCTURED = ('auto', 'json_object', 'off')
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_FIXED = ('model', 'messages', 'stream', 'n')  # body fields that the client sets itself
_SECRET_FIELD = re.compile(r'api_?key|secret|passw|access_?token', re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class RemoteOptions:
    """How to ask remote models. `REMOTE_KEYS` says what each field means.

    Raises:
      InputError: a value that cannot be used; the message names its key in the configuration.
    """

    key_variable: str = 'OPENAI_API_KEY'
    requests_per_minute: float = 0.0
    tokens_per_minute: float = 0.0
    concurrency: int = 32
    timeout: float = 120.0
    retries: int = 8
    backoff: float = 1.0
    longest_wait: float = 60.0
    prices: tuple[str, ...] = ()
    budget: float = 0.0
    cache: str = ''
    replay: bool = False
    headers: tuple[str, ...] = ()
    body: str = ''
    reasoning_tokens: int = 0
    structured: str = 'auto'

    def __post_init__(self):
        for name, key in REMOTE_KEYS.items():
            value = getattr(self, name)
            if not key.allows(value):
                raise InputError(f'remote.{name} must be {key.describe()}; it is {value!r}')
            if isinstance(value, tuple) and not all(isinstance(element, str) for element in value):
                raise InputError(f'each element of remote.{name} must be text')
        self.key_variables(), self.prices_by_model(), self.body_fields()
        for header in self.headers:
            _split_header(header)
        if self.replay and not self.cache:
            raise InputError('remote.replay needs remote.cache, the record of answers to replay')
        if self.budget and not self.prices:
            raise InputError('remote.budget needs remote.prices of the models')

    def key_variables(self) -> dict[str, str]:
        """Return the environment variable of the API key by host; '' stands for all other hosts."""
        variables: dict[str, str] = {}
        for item in filter(None, (item.strip() for item in self.key_variable.split(','))):
            host, _, variable = (part.strip() for part in item.rpartition('='))
            if not re.fullmatch(r'[A-Za-z_]\w*', variable) or host.lower() in variables:
                raise InputError('remote.key_variable must be the name of an environment variable, or HOST=VARIABLE '
                                 f'for each host, separated by commas; it is {_shown(self.key_variable)}')
            variables[host.lower()] = variable
        return variables

    def key_variable_of(self, address: Address) -> str:
        """Return the environment variable with the API key for an address, or '' if none is named."""
        variables = self.key_variables()
        return variables.get(address.host, variables.get('', ''))

    def api_key(self, address: Address) -> str:
        """Return the API key for an address, or '' if none is set.

        Raises:
          SecretError: the key holds a character that cannot be sent.
        """
        variable = self.key_variable_of(address)
        return read_key(variable) if variable else ''

    def prices_by_model(self) -> dict[str, tuple[float, float]]:
        """Return dollars per token of the prompt and of the completion, by the name of the model."""
        prices: dict[str, tuple[float, float]] = {}
        for text in self.prices:
            name, _, numbers = text.rpartition('=')
            try:
                prompt, completion = (float(number) for number in numbers.split(','))
            except ValueError:
                prompt = completion = math.nan
            if not name or name in prices or not all(0 <= price < math.inf for price in (prompt, completion)):
                raise InputError(f'each element of remote.prices must be NAME=INPUT,OUTPUT, with a model once and its '
                                 f'dollars per million tokens, at least 0; one is {text!r}')
            prices[name] = prompt / 1e6, completion / 1e6
        return prices

    def price(self, model: str) -> Optional[tuple[float, float]]:
        """Return dollars per token of the prompt and of the completion of a model, or None if it has no price.

        Raises:
          InputError: there is a budget, and the model has no price.
        """
        price = self.prices_by_model().get(model)
        if price is None and self.budget:
            raise InputError(f'remote.budget needs a price of {model!r}: add {model}=INPUT,OUTPUT to remote.prices')
        return price

    def body_fields(self) -> dict[str, Any]:
        """Return the fields that are added to the body of every request; null leaves a field out."""
        try:
            fields = json.loads(self.body or '{}', parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise InputError(f'remote.body must be a JSON object; it is not JSON ({error})') from None
        if not isinstance(fields, dict):
            raise InputError('remote.body must be a JSON object, such as {"top_p": 0.9}')
        if fixed := sorted(set(fields) & set(_FIXED)):
            raise InputError(f'remote.body must not set {", ".join(fixed)}, since the client does')
        if secret := sorted(filter(_SECRET_FIELD.search, fields)):
            raise InputError(f'remote.body must not hold secrets, as in {", ".join(secret)}, since it is saved with '
                             "the run; pass them in a header, as in remote.headers=('api-key: $VARIABLE',)")
        return fields

    def header_fields(self) -> tuple[dict[str, str], tuple[str, ...]]:
        """Return the headers that are added to every request, and the secrets that they hold.

        Raises:
          InputError: an environment variable is not set.
          SecretError: an environment variable holds a character that cannot be sent.
        """
        fields, secrets = {}, []
        for header in self.headers:
            name, value = _split_header(header)
            if (at := value.find('$')) >= 0:
                secret = read_key(value[at + 1:])
                if not secret:
                    raise InputError(f'remote.headers: the environment variable {value[at + 1:]} is not set')
                secrets.append(secret)
                value = value[:at] + secret
            fields[name] = value
        return fields, tuple(secrets)


def _split_header(text: str) -> tuple[str, str]:
    """Return the name and the value of a header, or raise InputError."""
    name, colon, value = (part.strip() for part in text.partition(':'))
    if not colon or not _HEADER_NAME.fullmatch(name) or not value.isascii() or not value.isprintable():
        raise InputError(f"each element of remote.headers must be 'Name: value' in ASCII; one is {_shown(text)}")
    if '$' in value and not re.fullmatch(r'[^$]*\$[A-Za-z_]\w*', value):
        raise InputError(f'remote.headers: $ begins the name of an environment variable at the end of a value, not in '
                         f'the header {name}')
    if '$' not in value and is_secret_name(name):
        raise InputError(f"remote.headers must not hold secrets, since they are saved with the run; write '{name}: "
                         "$VARIABLE' to read the value from an environment variable")
    return name, value


def _shown(text: str) -> str:
    """Return a value for an error message; it may be a key in the wrong place."""
    return repr(redact(text)) if len(text) <= 16 else 'something else'


def _refuse_constant(name: str) -> Any:
    raise ValueError(f'{name} is not a JSON number')


def _key(name: str, meaning: str, allowed: Any = None) -> Key:
    return Key(getattr(RemoteOptions, name), meaning, allowed)


REMOTE_KEYS = {
    'key_variable': _key('key_variable', 'environment variable of the API key; HOST=VARIABLE, separated by commas, '
                                         'sets that of single hosts'),
    'requests_per_minute': _key('requests_per_minute', 'most requests a minute to one address; 0 sets no limit',
                                Range(0)),
    'tokens_per_minute': _key('tokens_per_minute', 'most tokens a minute to and from one address; 0 sets no limit',
                              Range(0)),
    'concurrency': _key('concurrency', 'most simultaneous requests to one address', Range(1, 10_000)),
    'timeout': _key('timeout', 'seconds from sending a request to the last byte of its answer',
                    Range(0, 86400, above=True)),
    'retries': _key('retries', 'how often a request is repeated after a temporary failure', Range(0, 1000)),
    'backoff': _key('backoff', 'seconds before the first repetition; they double every time', Range(0, 3600)),
    'longest_wait': _key('longest_wait', 'most seconds before a repetition, also where the endpoint asks for more',
                         Range(0, 86400)),
    'prices': _key('prices', "NAME=INPUT,OUTPUT for each model: dollars per million tokens"),
    'budget': _key('budget', 'most dollars to spend, earlier runs with the same cache included; 0 sets no limit',
                   Range(0)),
    'cache': _key('cache', "folder (or file, where it ends in .sqlite) that keeps every request with its answer, so "
                           "that none is paid for twice; '' keeps none"),
    'replay': _key('replay', 'whether all answers must come from remote.cache, without a network'),
    'headers': _key('headers', "headers to add to every request, as 'Name: value' or, for secrets, "
                               "'Name: $ENVIRONMENT_VARIABLE'"),
    'body': _key('body', 'JSON object with fields to add to the body of every request; null leaves a field out'),
    'reasoning_tokens': _key('reasoning_tokens', "tokens for the reasoning of a thinking model, added to the longest "
                                                 'message', COUNT),
    'structured': _key('structured', 'how to ask for JSON where a schema is known: auto (a JSON schema, or nothing '
                                     'where the endpoint refuses it), json_object, or off', STRUCTURED),
}


def remote_options(group: Mapping[str, Any]) -> RemoteOptions:
    """Return the options in the group `remote` of a configuration."""
    values = {name: group[name] for name in REMOTE_KEYS}
    return RemoteOptions(**{name: tuple(value) if isinstance(value, (list, tuple)) else value
                            for name, value in values.items()})
