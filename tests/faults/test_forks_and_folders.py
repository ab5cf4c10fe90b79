"""Processes that are forked, and programs that change the working directory, while a training writes files."""

import os

import pytest
from mutants import WANTED, fit, trainer_of

from xnn import callbacks
from xnn.errors import OptionError


def fork():
    """A process that waits. Returns the descriptor that lets it end when it is closed, and its number."""
    asleep, awake = os.pipe()
    child = os.fork()
    if not child:
        os.close(awake)
        os.read(asleep, 1)
        os._exit(0)
    os.close(asleep)
    return awake, child


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("what", ["checkpoints", "log", "both"])
def test_a_worker_that_outlives_the_training_has_no_lock(tmp_path, what):
    """As one of multiprocessing that a killed training leaves behind."""
    pytest.importorskip("fcntl")

    def watchers():
        made = {
            "log": callbacks.JsonLines(tmp_path / "log"),
            "checkpoints": callbacks.Checkpoint(tmp_path / "run"),
        }
        return made.values() if what == "both" else [made[what]]

    class Forks(callbacks.Callback):
        bystander = True

        def on_fit_start(self, history, epochs, steps_per_epoch):
            self.worker = fork()

    forks = Forks()
    assert fit(trainer_of(*watchers(), forks)) == WANTED
    again = trainer_of(*watchers())
    again.resume(tmp_path / "run")
    assert fit(again) == WANTED
    os.close(forks.worker[0])
    os.waitpid(forks.worker[1], 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_lock_outlives_the_workers(tmp_path):
    pytest.importorskip("fcntl")
    first = callbacks.Checkpoint(tmp_path)
    first.open(0, resumed=False)
    awake, child = fork()
    os.close(awake)
    os.waitpid(child, 0)
    with pytest.raises(OptionError, match="another training writes checkpoints into"):
        fit(trainer_of(callbacks.Checkpoint(tmp_path)))
    first.close()


class Moves(callbacks.Callback):
    """Changes the working directory in the first epoch, to one where the same names are of another training."""

    bystander = True

    def __init__(self, folder):
        self.folder = folder

    def on_epoch_end(self, history, entry):
        os.chdir(self.folder)


def test_a_training_stays_in_its_folder_when_the_working_directory_changes(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    for place in (there, here):
        place.mkdir()
        monkeypatch.chdir(place)
        watchers = callbacks.Checkpoint("run", every="1steps", keep=2), callbacks.JsonLines("log")
        assert fit(trainer_of(*watchers, *[Moves(there)][: place == here])) == WANTED
        files = {path.name: path.read_bytes() for path in (place / "run").iterdir()}
        if place == there:
            before = files
    assert files.keys() == before.keys()
    assert {path.name: path.read_bytes() for path in (there / "run").iterdir()} == before
    oldest = callbacks.checkpoints_in(here / "run")[1]
    for path in (here / "run").iterdir():
        if path != oldest:
            path.unlink()
    monkeypatch.chdir(here)
    again = trainer_of(callbacks.JsonLines("log"))
    again.resume("run")
    assert fit(again) == WANTED
    assert (here / "log").read_text().count('"epoch"') == (there / "log").read_text().count('"epoch"')
