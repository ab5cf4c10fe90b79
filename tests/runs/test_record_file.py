"""Records that are written while a training runs: the same bytes, without memory, after a kill and on a full disk."""

import errno
import json
import os
import tracemalloc

import numpy as np
import pytest

import xnn
from xnn import callbacks, layers, losses, optimizers
from xnn.errors import DiskError, OptionError
from xnn.runs.digests import Digests, Recorder, read_record
from xnn.runs.record_file import RecordFile

X = np.linspace(-1, 1, 120, dtype=np.float32).reshape(40, 3)
Y = X[:, :1] * X[:, 1:2]


class KilledError(Exception):
    """Ends a fit, as a kill does."""


class Killer(callbacks.Callback):
    """Writes a checkpoint after one step, and ends the fit after another."""

    bystander = True

    def __init__(self, trainer, path, saved, dies):
        self.trainer, self.path, self.saved, self.dies = trainer, path, saved, dies

    def on_step(self, history, epoch, step, loss):
        if self.trainer.step == self.saved:
            self.trainer.save(self.path)
        if self.trainer.step == self.dies:
            raise KilledError


def trainer_of(path=None, rate=0.01):
    model = xnn.Sequential(layers.Dense(3, 6), layers.BatchNorm(6), layers.ReLU(), layers.Dense(6, 1), seed=0)
    recorder = Recorder(model, {"dataset": "toy"}, path)
    return xnn.Trainer(model, losses.MSE(), optimizers.Adam(rate), callbacks=[recorder]), recorder


def fit(trainer, epochs=4):
    return trainer.fit((X, Y), epochs=epochs, batch_size=16, progress=False).losses_sha256


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The file of a record that was kept in memory."""
    path = tmp_path_factory.mktemp("record") / "memory.jsonl"
    trainer, recorder = trainer_of()
    fit(trainer)
    recorder.record.save(path)
    return path.read_bytes()


def killed(path, checkpoint, saved=5, dies=8):
    """End a recorded training after a step, having saved it after another; then build it again and resume it."""
    trainer, recorder = trainer_of(path)
    trainer.callbacks.append(Killer(trainer, checkpoint, saved, dies))
    recorder.on_fit_end = lambda history: None  # a killed process writes no last line
    with pytest.raises(KilledError):
        fit(trainer)
    recorder.file._lines.close()
    trainer, recorder = trainer_of(path)
    trainer.resume(checkpoint)
    return trainer, recorder


def test_the_file_of_a_record_is_the_one_that_is_saved_from_memory(whole, tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(whole * 2)  # an older record, which is replaced
    trainer, recorder = trainer_of(path)
    fit(trainer)
    assert path.read_bytes() == whole
    assert (recorder.steps, recorder.record.steps, recorder.file.failure) == (12, [], None)


def test_each_step_is_in_the_file_before_the_next_one(tmp_path):
    path, seen = tmp_path / "r.jsonl", []

    class Reader(callbacks.Callback):
        def on_step(self, history, epoch, step, loss):
            seen.append(len([json.loads(line) for line in path.read_text().splitlines()]))

    trainer, _ = trainer_of(path)
    trainer.callbacks.append(Reader())
    fit(trainer)
    assert seen == list(range(3, 15))


@pytest.mark.parametrize("rest", [b"", b'["3f80'])
def test_a_killed_run_goes_on_in_the_same_record(rest, whole, tmp_path):
    path = tmp_path / "r.jsonl"
    trainer, _ = killed(path, tmp_path / "c.safetensors")
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[: 2 + 8])  # each line is whole
    with path.open("ab") as file:
        file.write(rest)
    fit(trainer)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("there", ["another record", "a shorter one", "nothing"])
def test_a_record_of_another_run_is_left_as_it_is_and_named(there, whole, tmp_path, capsys):
    path = tmp_path / "r.jsonl"
    trainer, recorder = killed(path, tmp_path / "c.safetensors")
    other = {"another record": whole.replace(b"toy", b"you").replace(b'"]', b'0"]'), "nothing": b""}
    content = other.get(there, path.read_bytes()[:700])
    path.write_bytes(content)
    wanted = fit(trainer_of(tmp_path / "else.jsonl")[0])
    assert fit(trainer) == wanted
    assert path.read_bytes() == content
    assert capsys.readouterr().err.count("is not the one of the checkpoint, and was left as it is") == 1
    assert "put that record there and resume again" in str(recorder.file.failure)


@pytest.mark.parametrize("fails", ["on_fit_start", "restore", "on_step"])
def test_a_training_that_cannot_go_on_leaves_the_record_as_it_is(fails, whole, tmp_path):
    """With an error before the record is restored; after it, the record goes on up to the error."""

    class Fails(callbacks.Callback):
        def state(self):
            return 1

        def restore(self, state):
            pass

    def build():
        trainer, recorder = trainer_of(tmp_path / "r.jsonl")
        trainer.callbacks = [Fails(), recorder] if fails == "restore" else [recorder, Fails()]
        return trainer, recorder

    trainer, recorder = build()
    trainer.callbacks.append(Killer(trainer, tmp_path / "c.safetensors", 5, 8))
    recorder.on_fit_end = lambda history: None
    with pytest.raises(KilledError):
        fit(trainer)
    recorder.file._lines.close()
    before = (tmp_path / "r.jsonl").read_bytes()

    def broken(*arguments):
        raise KilledError

    trainer, _ = build()
    trainer.resume(tmp_path / "c.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fails, fails, broken)
        with pytest.raises(KilledError):
            fit(trainer)
    if fails != "on_step":
        assert (tmp_path / "r.jsonl").read_bytes() == before
    trainer, _ = build()
    trainer.resume(tmp_path / "c.safetensors")
    fit(trainer)
    assert (tmp_path / "r.jsonl").read_bytes() == whole


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("ends_full", [True, False])
def test_on_a_full_disk_the_record_ends_and_the_training_goes_on(
    number, ends_full, whole, tmp_path, monkeypatch, capsys
):
    """Half a line is removed, and the last line is written if there is room at the end."""
    path, write, lines = tmp_path / "r.jsonl", os.write, []

    def fills_up(descriptor, content):
        lines.append(content)
        if len(lines) > 8 and (ends_full or len(lines) == 9):
            raise OSError(number, os.strerror(number))
        return write(descriptor, content[: len(content) // 2] if len(lines) == 8 else content)

    trainer, recorder = trainer_of(path)
    with monkeypatch.context() as patch:
        patch.setattr("xnn.callbacks.line_file.os.write", fills_up)
        found = fit(trainer)
    assert found == fit(trainer_of(tmp_path / "else.jsonl")[0])
    assert recorder.steps == 5
    assert path.read_bytes().startswith(b"".join(whole.splitlines(keepends=True)[: 2 + 5]))
    assert path.read_bytes().endswith(b"\n")
    said = capsys.readouterr().err
    assert f"the record {path} ends here ({os.strerror(number)}); training goes on" in said
    assert f"has 5 of 12 steps ({os.strerror(number)}): make room" in str(recorder.file.failure)
    if not ends_full:
        assert len(read_record(path).steps) == 5


def test_a_run_that_goes_on_after_a_full_disk_does_not_leave_out_steps(whole, tmp_path, monkeypatch):
    path, checkpoint, write, lines = tmp_path / "r.jsonl", tmp_path / "c.safetensors", os.write, []

    def fills_up(descriptor, content):
        lines.append(content)
        if len(lines) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, content)

    with monkeypatch.context() as patch:
        patch.setattr("xnn.callbacks.line_file.os.write", fills_up)
        trainer, recorder = killed(path, checkpoint)
    fit(trainer)
    assert read_record(path).steps == read_record_of(whole, tmp_path)[:3]
    assert isinstance(recorder.file.failure, DiskError)


def read_record_of(content, folder):
    path = folder / "whole.jsonl"
    path.write_bytes(content)
    return read_record(path).steps


def test_a_record_that_was_removed_is_written_again(whole, tmp_path):
    path = tmp_path / "r.jsonl"
    trainer, recorder = trainer_of(path)
    recorder.on_check = lambda *arguments: path.unlink(missing_ok=True)
    fit(trainer)
    assert path.read_bytes() == whole
    assert recorder.file.failure is None


def test_two_runs_do_not_write_one_record(tmp_path):
    pytest.importorskip("fcntl")
    first = RecordFile(tmp_path / "r.jsonl")
    first.begin({"format": "xnn record 1"}, [], False)
    with pytest.raises(OptionError, match="another run is writing it; choose another name"):
        fit(trainer_of(tmp_path / "r.jsonl")[0])
    first.end(0)


def test_what_cannot_be_read_again_is_no_place_for_a_record(tmp_path):
    for path in (os.devnull, tmp_path):
        with pytest.raises(OptionError, match=r"it is not a regular file|it is a folder"):
            trainer_of(path)


def test_a_long_record_takes_no_memory(tmp_path):
    file = RecordFile(tmp_path / "r.jsonl")
    file.begin({"format": "xnn record 1"}, Digests("", "", "0" * 960), False)
    tracemalloc.start()
    for _ in range(3000):
        file.add(Digests("0" * 8, "0" * 960, "0" * 960))
    file.end(3000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert file.path.stat().st_size > 5_000_000
    assert peak < 3_000_000  # a block of the digest, of 1 MB
