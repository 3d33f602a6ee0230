"""Sessions, caches and tokens against the annotated shapes of their fields."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
from jaxtyping import jaxtyped
from little_model import CONFIG, B, generate, make_keys, make_model, make_params, started_session
import pytest

from epo_jax.models.attention import Keys, Values
from epo_jax.text.tokens import pack


def matches(value, annotation):
    """Return whether an array has the annotated dtype and shape; isinstance does not accept Unions of array types."""
    return any(isinstance(value, option) for option in typing.get_args(annotation) or (annotation,))


def mismatches(struct):
    """Return the names of the fields that do not match their annotation."""
    return [field.name for field in dataclasses.fields(struct)
            if not matches(getattr(struct, field.name), field.type)]


def test_sessions_and_messages_have_the_annotated_shapes():
    model, params = make_model(), make_params()
    session = started_session(model, params)
    after, message = generate(model, params, session, make_keys(0), jnp.ones(B, bool), CONFIG)
    for value in (session, after):
        with jaxtyped('context'):  # an axis has the same size in all fields
            assert mismatches(value) == []
            assert all(matches(keys, Keys) and matches(values, Values) for keys, values in value.cache)
        with jaxtyped('context'):
            assert mismatches(value.replace(turns=value.turns[1:], logprob=value.ids)) == ['logprob', 'turns']
    with jaxtyped('context'):
        assert mismatches(message) == []


@pytest.mark.parametrize('convert', (lambda x: x, jnp.asarray), ids=('numpy', 'jax'))
def test_tokens_have_the_annotated_shapes(convert):
    tokens = jax.tree.map(convert, pack([[1, 2], [3]]))
    with jaxtyped('context'):
        assert mismatches(tokens) == []
    with jaxtyped('context'):
        assert mismatches(tokens.replace(length=tokens.length[:1])) == ['length']
