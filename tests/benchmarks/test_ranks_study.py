"""The study of training by several processes: what a turn prints, and what is computed for a cluster."""

import re
import sys
from contextlib import nullcontext
from subprocess import CompletedProcess

import pytest

from xnn.benchmarks.studies import ranks, ranks_network


def test_a_turn_prints_milliseconds(capsys):
    ranks.main(["--turn", "lenet", "4", "fast", "none"])
    assert 0.0 < float(capsys.readouterr().out) < 1e4


def test_turns_are_paired(capsys, monkeypatch):
    """One process, two together and two apart in turns: the median of each, and of the efficiencies of turns."""
    times = iter([10.0, 8.0, 5.0, 20.0, 12.5, 12.5, 12.0, 6.0, 6.0] * 2 * len(ranks.RUNS))
    commands = []

    def timed(command, name, batch, numerics, workers):
        commands.append((command, batch, workers))
        return next(times)

    monkeypatch.setattr(ranks, "_timed", timed)
    ranks.main(["--launcher", "mpirun --oversubscribe"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 2 * len(ranks.RUNS)
    assert lines[1].endswith("one   12.00, 2 together    8.00, efficiency 80 %; apart    6.00, limit 100 %")
    several = ["mpirun", "--oversubscribe", "-n", "2"]
    assert commands[:3] == [([], 1024, "none"), (several, 1024, "mpi"), (several, 512, "none")]


def test_the_slowest_of_processes_that_train_apart_counts(monkeypatch):
    done = CompletedProcess([], 0, "5.5\n7.25\n", "")
    monkeypatch.setattr(ranks.subprocess, "run", lambda *words, **how: done)
    assert ranks._timed(["mpiexec", "-n", "2"], "lenet", 4, "fast", "none") == 7.25


def test_a_turn_that_fails_says_why(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(SystemExit, match="--turn large 1024 fast none ended with 1"):
        ranks.main([])


def test_the_table_of_a_cluster(capsys):
    ranks.main(["--model"])
    title, _, *rows = capsys.readouterr().out.splitlines()
    assert title.startswith("Modelled, not measured")
    found = [[float(number) for number in re.findall(r"(\d+) %", row)] for row in rows]
    assert len(found) == 6
    for columns in zip(*found, strict=True):
        assert list(columns) == sorted(columns, reverse=True)


def test_a_network_of_limited_bandwidth(capsys, monkeypatch):
    """Half of the rows alone, and messages by the alpha and beta that were found, make the model."""
    calls = []

    def number(command, *words):
        calls.append((command, words))
        if "--ping" in words:
            return 0.001 if words[-1] == "1" else 0.041
        return 50.0 if command else 5.0

    monkeypatch.setattr(ranks_network, "_number", number)
    monkeypatch.setattr(ranks_network, "network", lambda rate: nullcontext())
    monkeypatch.setattr(ranks_network.shutil, "which", lambda word: word)
    ranks_network.main(["--rates", "800", "--repeat", "1"])
    _, rate, *lines = capsys.readouterr().out.splitlines()
    assert rate == "800 million bits a second: alpha 500 microseconds, beta 100.0 MB/s"
    weights = 784 * 1000 + 1000 * 500 + 500 * 10 + 1510
    message = 1.0 + 4.0 * weights / 100e6 * 1e3
    model = 5.0 + message
    assert lines[0] == (
        f"  batch 256, fast: half of the rows 5.0 + messages {message:.1f} = {model:.1f} modelled, 50.0 measured, "
        f"{50 / model:.2f} times as long"
    )
    assert len(lines) == 4
    assert ([], ("xnn.benchmarks.studies.ranks", "--turn", "large", "512", "exact", "none")) in calls
    assert (["mpiexec"], ("xnn.benchmarks.studies.ranks", "--turn", "large", "1024", "exact", "mpi")) in calls


def test_a_network_that_cannot_be_made_says_why(monkeypatch):
    def run(words, **options):
        return CompletedProcess(words, 1, "", "not allowed")

    monkeypatch.setattr(ranks_network.subprocess, "run", run)
    with (
        pytest.raises(SystemExit, match="ip netns add xnn-a ended with 1: not allowed"),
        ranks_network.network(100.0),
    ):
        pass


def test_what_is_not_installed_is_said_first(monkeypatch):
    monkeypatch.setattr(ranks_network.shutil, "which", lambda word: None if word == "tc" else word)
    with pytest.raises(SystemExit, match="there is no command tc"):
        ranks_network.main([])
