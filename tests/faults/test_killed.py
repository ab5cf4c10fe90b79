"""A run that was killed at random moments and resumed ends as the run that never was."""

import random
import signal

import pytest
from campaign import CONFIGURATIONS, SIGNALS, command, killed, outcome, run

pytest.importorskip("fcntl")


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


@pytest.mark.parametrize("name", ["logged, recorded", "dropout, patience"])
def test_a_killed_run_ends_as_if_it_was_not(name, tmp_path):
    campaign(name, tmp_path, kills=3, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_hundred_kills(name, tmp_path):
    assert campaign(name, tmp_path, kills=10, seed=1) > 0
