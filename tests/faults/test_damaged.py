"""Damaged, hostile and foreign checkpoints: each is refused in one line, and the one before it is used."""

import errno
import os
import re
import shutil
import stat
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path

import mutants
import pytest
from mutants import WANTED, campaign, check, fit, resigned, trainer_of

from xnn import callbacks
from xnn.errors import CorruptFileError, OptionError


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder with checkpoints of a run that was not finished, and the bytes of the last one."""
    folder = tmp_path_factory.mktemp("good") / "checkpoints"
    trainer = trainer_of(callbacks.Checkpoint(folder, every="4steps"))
    fit(trainer, epochs=4)
    return folder, callbacks.checkpoints_in(folder)[0].read_bytes()


def test_mutants_are_refused_or_the_run_is_right(good, tmp_path):
    """Without a digest that fits they are refused; with one, what they say is data and not code."""
    found = Counter(campaign(good[1], tmp_path / "mutant.safetensors", 180, 80))
    assert sum(found.values()) == 261
    assert found["refused"] >= 175
    assert found["the right run"] >= 1
    assert found["ended by an error"] == 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux counts it")
def test_mutants_take_no_more_memory_than_the_file(tmp_path):
    """In a process that may not have more."""
    program = Path(mutants.__file__)
    done = subprocess.run(
        [sys.executable, str(program), "100"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith("100 mutated checkpoints: ")
    assert int(re.search(r"([\d,]+) kB of memory at most", done.stdout)[1].replace(",", "")) < 20_000


@pytest.mark.parametrize("name", ["epoch", "step"])
@pytest.mark.parametrize("number", [-1, 2**63, 2**70, 1.0, True])
def test_numbers_of_epochs_and_steps_that_no_run_has(good, tmp_path, name, number):
    """Random streams are numbered by them, as uint64."""
    changed = resigned(good[1], lambda head, about: about.update({name: number}))
    assert check(tmp_path / "hostile.safetensors", changed, True) == "refused"


def test_a_gigabyte_of_metadata_is_refused_without_reading_it(tmp_path):
    path = tmp_path / "giant.safetensors"
    with open(path, "wb") as file:
        file.write(
            (2**30 - 8).to_bytes(8, "little") + b'{"__metadata__":{"file_sha256":"' + b"0" * 64 + b'"}}'
        )
        file.truncate(2**30)
    tracemalloc.start()
    with pytest.raises(CorruptFileError, match=r"giant.safetensors is not a readable .safetensors file"):
        trainer_of().resume(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


@pytest.mark.parametrize("odd", [[], 5, {}, [{"$ref": "layers.1"}]], ids=str)
def test_a_model_without_its_layers_is_refused(odd, good, tmp_path):
    def change(head, about):
        (model,) = [part for part in about["state"].values() if "layers" in part]
        model["layers"] = odd

    assert check(tmp_path / "hostile.safetensors", resigned(good[1], change), True) == "refused"


@pytest.mark.parametrize("folded", [2**70, -64, 63])
def test_a_digest_of_an_impossible_length_is_refused(folded, good, tmp_path):
    def change(head, about):
        about["fit"]["history"]["digest"]["folded"] = folded

    assert check(tmp_path / "hostile.safetensors", resigned(good[1], change), True) == "refused"


def test_a_newer_version_is_named(good, tmp_path):
    path = tmp_path / "newer.safetensors"
    path.write_bytes(resigned(good[1], lambda head, about: about.update(format=7)))
    with pytest.raises(CorruptFileError, match=r"has the format 7, this xnn reads 1: update xnn"):
        trainer_of().resume(path)


def test_the_checkpoint_before_a_damaged_one_is_used_and_the_run_is_the_run(good, tmp_path, capsys):
    folder = tmp_path / "checkpoints"
    shutil.copytree(good[0], folder)
    newest, second, *_ = callbacks.checkpoints_in(folder)
    newest.write_bytes(newest.read_bytes()[:-9])
    for _ in range(2):
        trainer = trainer_of(callbacks.Checkpoint(folder, every="4steps", keep=9))
        found = trainer.resume(folder)
        said = capsys.readouterr().err
    assert found == second
    assert said.count("\n") == 1
    assert f"{newest} is not" in said or f"{newest} does not match" in said
    assert f"{second.name} is used" in said
    assert fit(trainer) == WANTED
    assert newest.with_name(f"{newest.name}.old").exists()


@pytest.mark.parametrize("keep", [1, 3])
def test_files_that_were_given_up_go_when_there_are_as_many_new_ones(keep, good, tmp_path):
    """A training that went back to an older checkpoint renames the later ones."""
    folder, there = tmp_path / "checkpoints", []
    shutil.copytree(good[0], folder)
    given_up = [f"{path.name}.old" for path in callbacks.checkpoints_in(folder) if "step" in path.name]
    oldest = shutil.copy(folder / given_up[-1].removesuffix(".old"), tmp_path / "back.safetensors")
    assert len(given_up) == 3

    class Look(callbacks.Callback):
        bystander = True

        def on_step(self, history, epoch, step, loss):
            saver.wait()
            there.append(len([name for name in given_up if (folder / name).exists()]))

    saver = callbacks.Checkpoint(folder, every="1steps", keep=keep)
    trainer = trainer_of(saver, Look())
    trainer.resume(oldest)
    assert fit(trainer) == WANTED
    assert there[: keep + 2] == [2] * keep + [0, 0]  # the oldest one is not later than the training


def test_where_all_are_damaged_nothing_is_begun_afresh(good, tmp_path, capsys):
    folder = tmp_path / "checkpoints"
    shutil.copytree(good[0], folder)
    for path in callbacks.checkpoints_in(folder):
        path.write_bytes(b"")
    with pytest.raises(
        CorruptFileError, match=r"no checkpoint in .* can be read: remove them to begin afresh"
    ):
        trainer_of().resume(folder)
    assert len(capsys.readouterr().err.splitlines()) == 4


def test_an_empty_folder_begins_afresh(tmp_path):
    trainer = trainer_of(callbacks.Checkpoint(tmp_path / "new"))
    assert trainer.resume(tmp_path / "new") is None
    assert trainer.resume(tmp_path / "none") is None
    assert fit(trainer) == WANTED


def test_a_folder_with_later_checkpoints_is_not_overwritten(good, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(good[0], folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(
        OptionError, match=r"holds step-000000012\.safetensors, later than this training's step 0"
    ):
        fit(trainer_of(callbacks.Checkpoint(folder)))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


class Worsens(callbacks.Callback):
    """Makes the fourth epoch the best one."""

    def on_epoch_end(self, history, entry):
        if entry["epoch"] == 4:
            self.model[3].weight.value = self.model[3].weight.value * 50.0


@pytest.mark.parametrize(("slowest", "kept"), [(0.0, 4), (1e9, None)])
def test_the_best_epoch_is_kept_whatever_every_says_if_there_is_time(slowest, kept, tmp_path, monkeypatch):
    monkeypatch.setattr(
        callbacks.Checkpoint, "slowest", property(lambda self: slowest, lambda *_: None), raising=False
    )
    fit(trainer_of(Worsens(), callbacks.Checkpoint(tmp_path, every="9h")))
    names = ["best.safetensors", "lock", "step-000000018.safetensors"]
    assert sorted(os.listdir(tmp_path)) == names[0 if kept else 1 :]
    if kept:
        best = trainer_of(Worsens())
        best.resume(tmp_path / "best.safetensors")
        assert best.epoch == kept


@pytest.mark.parametrize("keep", [1, 3])
def test_the_last_ones_and_the_best_are_kept(keep, tmp_path):
    fit(trainer_of(Worsens(), callbacks.Checkpoint(tmp_path, keep=keep)))
    steps = [f"step-{3 * epoch:09d}.safetensors" for epoch in range(7 - keep, 7)]
    assert sorted(os.listdir(tmp_path)) == ["best.safetensors", "lock", *steps]
    best = trainer_of(Worsens())
    best.resume(tmp_path / "best.safetensors")
    assert best.epoch == 4


#: A call that fails on the way of a checkpoint to the disk, and the error.
FAILS = {
    "full": ("fsync", errno.ENOSPC),
    "over its quota": ("fsync", errno.EDQUOT),
    "broken": ("fsync", errno.EIO),
    "read-only": ("open", errno.EROFS),
    "forbidden": ("open", errno.EACCES),
    "busy": ("replace", errno.EBUSY),
}


class Breaks(callbacks.Callback):
    """Makes a folder unwritable, or removes it, after the second epoch, and mends it after the fourth."""

    bystander = True

    def __init__(self, folder, how):
        self.folder, self.how = folder, how

    def on_epoch_end(self, history, entry):
        self.checkpoint.wait()
        broken, mended = entry["epoch"] == 2, entry["epoch"] == 4
        if self.how == "removed":
            shutil.rmtree(self.folder) if broken else self.folder.mkdir(exist_ok=True) if mended else None
            return
        name, number = FAILS[self.how]
        if broken:
            self.before = getattr(os, name)

            def fails(first, *others, **options):
                path = getattr(first, "name", "") if name != "fsync" else ".xnn-"
                if path.startswith(".xnn-") and (name != "fsync" or stat.S_ISREG(os.fstat(first).st_mode)):
                    raise OSError(number, os.strerror(number))
                return self.before(first, *others, **options)

            setattr(os, name, fails)
        elif mended:
            setattr(os, name, self.before)


@pytest.mark.parametrize("how", ["removed", *FAILS])
def test_training_goes_on_where_checkpoints_cannot_be_written(how, tmp_path, capsys, monkeypatch):
    for name in ("fsync", "open", "replace"):
        monkeypatch.setattr(os, name, getattr(os, name))  # put back at the end
    why = os.strerror(errno.ENOENT if how == "removed" else FAILS[how][1])
    folder = tmp_path / "checkpoints"
    breaks = Breaks(folder, how)
    breaks.checkpoint = callbacks.Checkpoint(folder, keep=2)
    trainer = trainer_of(breaks, breaks.checkpoint)
    assert fit(trainer) == WANTED
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert all(why in line and "training goes on" in line for line in said)
    assert (
        "there is no other one" in said[0]
        if how == "removed"
        else "step-000000003.safetensors, stays" in said[0]
    )
    assert not [path for path in folder.iterdir() if path.name.startswith(".xnn-")]
    again = trainer_of()
    again.resume(folder)
    assert fit(again) == WANTED


def test_two_trainings_in_one_folder(tmp_path):
    pytest.importorskip("fcntl")
    first = callbacks.Checkpoint(tmp_path)
    first.open(0, resumed=False)
    with pytest.raises(OptionError, match="another training writes checkpoints into"):
        fit(trainer_of(callbacks.Checkpoint(tmp_path)))
    first.close()
    assert fit(trainer_of(callbacks.Checkpoint(tmp_path))) == WANTED


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OptionError, match="no permission; choose another folder"):
        callbacks.Checkpoint(tmp_path)
    tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": "5"}, "every must be such as '1epoch', '500steps' or '10min', got '5'"),
        ({"every": "0steps"}, "every must be"),
        ({"every": 5}, "every must be"),
        ({"keep": 0}, "keep must be a positive integer"),
    ],
)
def test_options_are_checked(options, message, tmp_path):
    with pytest.raises(OptionError, match=message):
        callbacks.Checkpoint(tmp_path, **options)


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match=r"file is a file; choose another folder"):
        callbacks.Checkpoint(tmp_path / "file")
