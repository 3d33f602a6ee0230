"""Addresses of remote models."""

import pytest

from epo_jax.agents.address import parse_address
from epo_jax.runtime.errors import InputError


@pytest.mark.parametrize('text, name, url', [
    ('gpt-4o@https://api.openai.com/v1', 'gpt-4o', 'https://api.openai.com/v1'),
    ('Qwen/Qwen3-8B@http://localhost:8000', 'Qwen/Qwen3-8B', 'http://localhost:8000'),
    ('a@b@http://me:pw@host/v1?x=1', 'a@b', 'http://me:pw@host/v1?x=1'), ('m@HTTPS://Host/v1', 'm', 'HTTPS://Host/v1')])
def test_addresses(text, name, url):
    address = parse_address(text)
    assert (address.name, address.url) == (name, url) and 'pw' not in f'{address} {address!r} {[address]}'


@pytest.mark.parametrize('text', ['', 'smollm2', 'OWNER/NAME@main', 'C:/models/x', 'folder@v1', 'x/y@r/file.gguf'])
def test_other_names_of_models_are_no_addresses(text):
    assert parse_address(text) is None


@pytest.mark.parametrize('text', ['m@ftp://host', 'm@http://', 'm@http://:80', 'm@http://host:port', 'm@http://[::1', '@http://h',
                                  'http://host', 'https://me:SECRET@host/v1', 'm@http://h/a b', 'm@http://h/#x',
                                  'm@http://h\n', 'm@http://h?a=1&a=2', 'm@ftp://me:SECRET@h?api_key=SECRET',
                                  'm@http://me:SEC/RET@host'])
def test_bad_addresses_are_named_without_their_secrets(text):
    with pytest.raises(InputError) as error:
        parse_address(text)
    assert 'SEC' not in str(error.value) and '\n' not in str(error.value)
