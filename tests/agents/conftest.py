"""Fixtures of the tests of remote models."""

from asking import Time
import pytest


@pytest.fixture
def fake():
    return Time()
