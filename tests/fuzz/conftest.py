"""The fuzzers' cases: how many there are, what draws them, and the command that repeats one that failed.

A fuzzer is a test with the marker `fuzz(n)` and the argument `rng`. It runs n times, once for each case. XNN_FUZZ=20
runs 20 times as many cases. A case depends on its name alone, `test_loss_is_pytorchs[17]`, so it can be run alone.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Generator
from typing import Any

import numpy as np
import pytest

FACTOR = int(os.environ.get("XNN_FUZZ", "1"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each fuzzer its cases, counted from 0."""
    marker = metafunc.definition.get_closest_marker("fuzz")
    if marker is not None:
        (usual,) = marker.args
        metafunc.parametrize("rng", range(usual * FACTOR), indirect=True)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """The random numbers of a case."""
    return np.random.default_rng(list(request.node.name.encode()))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Generator[None, Any, Any]:
    """Add to the report of a case that failed how to run it again."""
    report = yield
    if report.failed and item.get_closest_marker("fuzz"):
        command = f"XNN_FUZZ={FACTOR} python -m pytest {shlex.quote(item.nodeid)}"
        report.sections.append(("this case again", command))
    return report
