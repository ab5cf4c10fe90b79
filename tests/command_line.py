"""What the tests of commands share."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from xnn.cli import main


def run(*args):
    """Run a command in this process. Any exception but SystemExit would be a traceback, and is raised."""
    result = CliRunner().invoke(main, [str(a) for a in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def command(*args, **options):
    """Run a command in a process of its own."""
    words = [sys.executable, "-m", "xnn", *map(str, args)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, **options)


def one_json(result):
    """The object on the only line of standard output, as strict JSON: without NaN."""
    assert result.exit_code == 0, result.output
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def refused(result, code, *messages):
    """Check the exit code, an empty standard output, and one line of error with these texts (after click's usage)."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line and not line.startswith(("Usage: ", "Try "))]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith(("xnn: ", "Error: "))
    assert all(message in lines[0] for message in messages), lines[0]
