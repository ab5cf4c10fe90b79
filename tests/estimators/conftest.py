"""Runs a test file of another project in a process of its own.

This folder is not called sklearn, as the one it tests: Python would take it for scikit-learn where that is missing.
"""

import os
import re
import subprocess
import sys

import pytest


@pytest.fixture
def pytester_of(tmp_path):
    """A function of the text of a test file: how many of its tests pass, and the names of those that do not."""

    def run(text):
        (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        fixture = "import pytest\n\n@pytest.fixture\ndef global_random_seed():\n    return 42\n"
        (tmp_path / "conftest.py").write_text(fixture, encoding="utf-8")
        (tmp_path / "test_theirs.py").write_text(text, encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "-rf", "-W", "ignore", "-p", "no:cacheprovider", "."]
        variables = os.environ | {"SCIPY_ARRAY_API": "1"}  # scikit-learn 1.6 cannot be tested without it
        done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
        failed = set(re.findall(r"^FAILED \S*::(\w+)", done.stdout, re.M))
        assert done.returncode in (0, 1), done.stdout + done.stderr
        return int(re.search(r"(\d+) passed", done.stdout)[1]), failed

    return run
