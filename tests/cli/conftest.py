"""Data sets and a trained model that the tests of commands share."""

from __future__ import annotations

import numpy as np
import pytest
from command_line import run

from xnn.data import synthetic_digits


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Data sets of 300 samples, of which 240 are for training: digits, two classes, two numbers."""
    path = tmp_path_factory.mktemp("data")
    x, y = synthetic_digits(300, seed=1)
    np.savez(path / "digits.npz", x=x, y=y)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4))
    rows = [
        f"{','.join(map(str, row))},{'yes' if row[0] + row[1] * row[2] > 0.5 else 'no'}" for row in x.tolist()
    ]
    (path / "two.csv").write_text("\n".join(["a,b,c,d,kind", *rows]) + "\n")
    np.savetxt(
        path / "numbers.csv", np.column_stack([x, x @ rng.normal(size=4)]), delimiter=",", header="a,b,c,d,y"
    )
    return path


@pytest.fixture(scope="session")
def digits(folder):
    """300 synthetic digits, of bytes."""
    return folder / "digits.npz"


@pytest.fixture(autouse=True)
def _few_synthetic_digits(monkeypatch):
    monkeypatch.setattr("xnn.data.datasets._SYNTHETIC", (600, 100, 100))


@pytest.fixture(scope="session")
def model(digits, tmp_path_factory):
    """The file of a trained classifier."""
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    words = ("--hidden", "16", "--epochs", 2, "--batch-size", 50, "--save", path, "--quiet")
    assert run("train", "--dataset", digits, *words).exit_code == 0
    return path
