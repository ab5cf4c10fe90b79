"""Fixtures: every test that takes `lib` runs on each backend that works here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from xnn.backends import Backend, available_backends, backend, use_backend
from xnn.data import on_disk
from xnn.errors import XnnError

_REASONS = available_backends()


@pytest.fixture(params=list(_REASONS))
def lib(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """A backend, made current for the test."""
    if _REASONS[request.param]:
        pytest.skip(_REASONS[request.param])
    with backend(request.param) as chosen:
        yield chosen


@pytest.fixture(autouse=True)
def _clean_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test sees the developer's XNN_ variables (but the data's home) or another test's use_backend."""
    for name in ("XNN_BACKEND", "XNN_NUMERICS"):
        monkeypatch.delenv(name, raising=False)
    yield
    use_backend(None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs the real data where they are not."""
    try:
        found = on_disk()
    except XnnError:
        found = {}
    if not {"mnist", "boston"} <= found.keys():
        skip = pytest.mark.skip(reason="no MNIST and Boston files: set XNN_DATA_HOME")
        for item in items:
            if "data" in item.keywords:
                item.add_marker(skip)
