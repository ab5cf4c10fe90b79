"""A folder with data, the record of a run without fault, and networks as files."""

import pytest
from recorded_runs import record, save_digits

from xnn.runs import architecture


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The folder of digits.npz."""
    path = tmp_path_factory.mktemp("verify")
    save_digits(path)
    return path


@pytest.fixture(scope="session")
def clean(folder):
    """The record of a run without fault, in exact numerics."""
    return record(folder, "clean.jsonl")


@pytest.fixture
def read(tmp_path):
    """read(text) writes the text to net.toml and reads it."""

    def of(text):
        path = tmp_path / "net.toml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return architecture.read(path)

    return of
