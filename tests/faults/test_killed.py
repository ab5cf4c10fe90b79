"""A run that was killed at random moments and resumed ends as the run that never was."""

import random
import signal
import time

import pytest
from campaign import CONFIGURATIONS, SIGNALS, Forker, command, killed, outcome, run

pytest.importorskip("fcntl")
pytest.importorskip("scipy")


def campaign(name, folder, kills, seed):
    """Kill a run some times, let it end, and compare. Returns how many kills came before its end."""
    chance, whole, broken = random.Random(f"{name} {seed}"), folder / "whole", folder / "broken"
    whole.mkdir()
    broken.mkdir()
    line = command(name, broken)
    wanted = outcome(run(command(name, whole, checkpoints=False)), whole)
    came = 0
    for _ in range(kills):
        number = chance.choice(SIGNALS)
        code, complaints = killed(line, chance, number, after=3.0)
        # CPython ends by SIGINT if the signal came while an import executed a string of code.
        assert code in (0, -number, 128 + number, -signal.SIGINT), (code, number, complaints)
        assert "damaged" not in complaints
        came += code != 0
    assert outcome(run(line), broken) == wanted
    return came


@pytest.fixture(scope="module")
def forker():
    made = Forker()
    yield made
    made.close()


@pytest.mark.parametrize(
    "name", ["logged, recorded", "dropout, patience", "augmented, weighted", "lbfgs", "normalized"]
)
def test_twenty_kills(name, forker, tmp_path):
    """Four kills of each of five configurations, in the first half and the second half of what is left."""
    chance, whole, broken = random.Random(name), tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    began = time.perf_counter()
    wanted = outcome(forker.run(command(name, whole, checkpoints=False), whole), whole)
    seconds, line = time.perf_counter() - began, command(name, broken)
    for kill in range(4):
        number = chance.choice(SIGNALS)
        code, complaints = forker.killed(line, broken, number, after=seconds * chance.uniform(0.1, 0.8))
        assert code in (0, -number, 128 + number), (kill, code, complaints)
        assert "damaged" not in complaints
    assert outcome(forker.run(line, broken), broken) == wanted


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_hundred_kills(name, tmp_path):
    assert campaign(name, tmp_path, kills=10, seed=1) > 0
