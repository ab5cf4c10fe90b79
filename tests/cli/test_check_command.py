"""`xnn check`: it passes here, and finds what is broken."""

from __future__ import annotations

import numpy as np
import pytest
from command_line import run

from xnn import ops
from xnn.cli import check
from xnn.files import StandardError
from xnn.ops.cases import CASES


@pytest.mark.parametrize("each", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_check_is_green(other, each, monkeypatch):
    """Of every fifth case: test_ops.py has all gradients, and .ci/full runs the command as it is."""
    cases = CASES[::each]
    monkeypatch.setattr(check, "CASES", cases)
    result = run("check", "--backend", "numpy", "--backend", other.name)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["numpy", other.name]
    told = [line for line in result.stderr.splitlines() if " checks: " in line]
    for line, before, least in zip(lines, told, (2 * len(cases), 3 * len(cases) + 1), strict=True):
        passed, failed = (int(word) for word in line.split() if word.isdigit())
        assert passed >= least
        assert failed == 0
        name = line.partition(":")[0]
        assert before.startswith(f"xnn: {name}: {passed} checks: ")  # so that nobody thinks that it hangs
        assert ("numpy does" in before) is (name != "numpy")  # why there are more of them


def test_check_counts_on_a_terminal(monkeypatch):
    monkeypatch.setattr(StandardError, "isatty", lambda self: True)
    monkeypatch.setattr(check, "CASES", CASES[:2])
    shown = run("check", "--backend", "numpy").stderr.split("\r\x1b[K")
    assert shown[1:] == [f"numpy: {n} of 4" for n in range(1, 5)] + [""]


def test_check_verbose_lists_every_op():
    out = run("check", "--backend", "numpy", "--verbose").stdout
    for case in CASES:
        assert f"ok   numpy: gradient of {case.name}:" in out


@pytest.mark.slow
def test_check_makes_a_table_of_every_ops_gradient_error(monkeypatch, other):
    monkeypatch.setattr(type(ops.exp), "backward", lambda self, xp, grad, y: (1.5 * grad * y,))
    monkeypatch.setattr(type(ops.log), "forward", lambda self, xp, x: 1 / 0)
    result = run("check", "--table", "--backend", "numpy", "--backend", other.name)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    head = next(n for n, line in enumerate(lines) if line.startswith("gradient error of"))
    assert lines[head].split()[-2:] == ["numpy", other.name]
    rows = {line.rsplit(maxsplit=2)[0]: line.split()[-2:] for line in lines[head + 1 : -2]}
    assert rows.keys() == {case.name for case in CASES if case.op is not ops.log}
    wrong = {name for name, cells in rows.items() if max(map(float, cells)) > 1e-6}
    assert wrong == {case.name for case in CASES if case.op is ops.exp}


def test_check_finds_a_broken_gradient(monkeypatch):
    right = type(ops.tanh).backward
    monkeypatch.setattr(
        type(ops.tanh), "backward", lambda self, xp, g, s: tuple(1.01 * d for d in right(self, xp, g, s))
    )
    result = run("check", "--backend", "numpy")
    assert result.exit_code == 1
    failures = [line for line in result.stdout.splitlines() if line.startswith("FAIL")]
    assert len(failures) == 1
    assert "gradient of tanh" in failures[0]
    assert "1 failed" in result.stdout


@pytest.mark.slow
def test_check_finds_backends_that_differ(monkeypatch, other):
    """The other backend computes another formula: its gradient is right for it, but NumPy does not agree."""
    right = type(ops.sigmoid).forward

    def forward(self, xp, x):
        y, saved = right(self, xp, x)
        return (y, saved) if xp is np else (y * 1.001, saved)

    monkeypatch.setattr(type(ops.sigmoid), "forward", forward)
    result = run("check", "--backend", other.name)
    assert result.exit_code == 1
    assert f"FAIL {other.name}: numpy agrees on sigmoid" in result.stdout


def test_check_goes_on_after_an_op_that_raises(monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("out of order")

    monkeypatch.setattr(type(ops.exp), "forward", broken)
    result = run("check", "--backend", "numpy")
    assert result.exit_code == 1
    assert "gradient of exp" in result.stdout
    assert "out of order" in result.stdout
    assert "gradient of tanh" not in result.stdout
