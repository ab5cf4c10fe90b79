"""A folder with data, and the record of a run without fault."""

import pytest
from recorded_runs import record, save_digits


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
