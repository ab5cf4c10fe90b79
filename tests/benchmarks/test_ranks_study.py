"""The study of training by several processes: what a turn prints, and what is computed for a cluster."""

import re
import sys

import pytest

from xnn.benchmarks.studies import ranks


def test_a_turn_prints_milliseconds(capsys):
    ranks.main(["--turn", "lenet", "4", "fast"])
    assert 0.0 < float(capsys.readouterr().out) < 1e4


def test_turns_are_paired(capsys, monkeypatch):
    """One process and two in turns: the median of each, and of the efficiencies of pairs."""
    times = iter([10.0, 8.0, 20.0, 12.5, 12.0, 6.0] * 2 * len(ranks.RUNS))
    commands = []

    def timed(command, name, batch, numerics):
        commands.append(command)
        return next(times)

    monkeypatch.setattr(ranks, "_timed", timed)
    ranks.main(["--launcher", "mpirun --oversubscribe"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 2 * len(ranks.RUNS)
    assert lines[1].endswith("one    12.00, 2 together     8.00, efficiency 80 %")
    assert commands[:2] == [[], ["mpirun", "--oversubscribe", "-n", "2"]]


def test_a_turn_that_fails_says_why(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(SystemExit, match="--turn large 1024 fast ended with 1"):
        ranks.main([])


def test_the_table_of_a_cluster(capsys):
    ranks.main(["--model"])
    title, _, *rows = capsys.readouterr().out.splitlines()
    assert title.startswith("Modelled, not measured")
    found = [[float(number) for number in re.findall(r"(\d+) %", row)] for row in rows]
    assert len(found) == 6
    for columns in zip(*found, strict=True):
        assert list(columns) == sorted(columns, reverse=True)
