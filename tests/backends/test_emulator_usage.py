"""`python -m cuda_emulator` alone and with -h: what it does, without a device."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize(("words", "code"), [(("-h",), 0), (("--help",), 0), ((), 2)])
def test_the_usage_is_on_the_right_stream(words, code):
    """Asked for, it is an output and a success; given in the place of a program's run, it is an error."""
    done = subprocess.run(
        [sys.executable, "-m", "cuda_emulator", *words],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        check=False,
    )
    shown, empty = (done.stdout, done.stderr) if code == 0 else (done.stderr, done.stdout)
    assert (done.returncode, empty) == (code, "")
    assert "python -m cuda_emulator -m xnn train" in shown
