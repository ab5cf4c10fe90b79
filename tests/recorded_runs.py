"""Records of a small run, with and without a planted fault, for the tests of records and of xnn verify."""

import numpy as np
import pytest
from command_line import run
from planted import plant

from xnn.data import synthetic_digits

RUN = ("--hidden", "16", "--batch-size", 50)  # 240 rows: four steps of 50 and one of 40 an epoch
OPS = ("--kernels", "ops", "--threads", 1)
SIDE = "kernels=ops,threads=1"


def save_digits(folder):
    """Write digits.npz: 300 synthetic digits, of which 240 are for training."""
    x, y = synthetic_digits(300, seed=1)
    np.savez(folder / "digits.npz", x=x, y=y)


def record(folder, name, *options, numerics="exact", code=0):
    """The file of a run of two epochs."""
    path = folder / name
    words = ("--dataset", folder / "digits.npz", *RUN, *OPS, "--epochs", 2, "--numerics", numerics, "--json")
    result = run("train", *words, "--record", path, *options)
    assert result.exit_code == code, result.output
    return path


def faulty(folder, fault, **options):
    """The record of the same run with a fault planted in it."""
    with pytest.MonkeyPatch.context() as patch:
        plant(fault, patch.setattr)
        return record(folder, f"{fault.replace(' ', '-')}.jsonl", **options)


def refused(result, code, *messages):
    assert result.exit_code == code, result.output
    assert "all bits agree" not in result.output
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith(("xnn: ", "Error: "))
    assert all(message in line for message in messages), line
