"""A run that was killed at random moments and resumed ends as the run that never was; campaign.py has a hundred."""

import random
import time

import pytest
from campaign import SIGNALS, Forker, command, outcome

pytest.importorskip("fcntl")
pytest.importorskip("scipy")


@pytest.fixture(scope="module")
def forker():
    made = Forker()
    yield made
    made.close()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("logged, recorded", marks=pytest.mark.slow),
        "dropout, patience",
        pytest.param("augmented, weighted", marks=pytest.mark.slow),
        pytest.param("lbfgs", marks=pytest.mark.slow),
        pytest.param("normalized", marks=pytest.mark.slow),
    ],
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
