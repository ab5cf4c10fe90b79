"""Fixtures of the tests of recorded values."""

import pytest

import xnn


@pytest.fixture(params=["fast", "exact"])
def mode(request):
    """The test runs in both numerics."""
    with xnn.numerics(request.param):
        yield request.param
