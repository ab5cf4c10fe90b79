"""Checks before training whose result may differ from rank to rank end all ranks in the same way."""

import shutil
from collections import namedtuple

import pytest
from trainings import digits, mlp

import xnn
from xnn import callbacks, layers, losses, optimizers
from xnn.backends.ranks.threads import in_threads
from xnn.errors import DeviceMemoryError, DiskError

Usage = namedtuple("Usage", "total used free")


def errors_of(size, make):
    """The class and the text of the error with which each rank's fit ends."""

    def work(ranks):
        trainer = make(ranks.rank)
        with pytest.raises((DiskError, DeviceMemoryError)) as caught:
            trainer.fit(digits(), epochs=2, progress=False)
        return caught.type, str(caught.value)

    return in_threads(size, work)


@pytest.fixture
def falling(monkeypatch):
    """A disk with another number of free bytes whenever it is asked; the numbers that it gave."""
    asked = []

    def usage(path):
        asked.append(3000 - 1000 * len(asked))
        return Usage(2**40, 2**40, asked[-1])

    monkeypatch.setattr(shutil, "disk_usage", usage)
    return asked


@pytest.mark.parametrize("size", [2, 3])
def test_a_disk_without_room_for_one_checkpoint_is_said_by_rank_0(size, falling, tmp_path):
    # The text of a checkpoint has another length on each rank, since only rank 0 keeps the state of the log.
    first, *others = errors_of(
        size,
        lambda rank: mlp(
            callbacks=[callbacks.Checkpoint(tmp_path / "run"), callbacks.JsonLines(tmp_path / "log")]
        ),
    )
    assert first[0] is DiskError
    assert "and 3 kB are free there" in first[1]
    assert others == [first] * (size - 1)
    assert falling == [3000]


def test_a_disk_that_will_be_full_is_said_once(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**40, 2**40, 50_000))
    in_threads(
        2,
        lambda ranks: mlp(callbacks=[callbacks.Checkpoint(tmp_path)]).fit(digits(), progress=False),
    )
    assert capsys.readouterr().err.count("the disk will be full before the training ends") == 1


@pytest.mark.parametrize("short", [{1}, {0, 1}])
def test_memory_that_is_short_on_some_ranks_ends_all_alike(short, monkeypatch):
    trainers = {}

    def check(trainer, batches):
        if trainer.rank in short:
            raise DeviceMemoryError(f"numpy: {trainer.rank + 1} MiB are free")

    def make(rank):
        trainers[rank] = mlp()
        return trainers[rank]

    monkeypatch.setattr("xnn.training.trainer.check_room", check)
    found = errors_of(3, make)
    first = min(short)
    assert found == [(DeviceMemoryError, f"rank {first} of 3: numpy: {first + 1} MiB are free")] * 3
    assert all(trainer.step == 0 for trainer in trainers.values())


def test_what_all_ranks_notice_is_said_once(tmp_path, capsys):
    """A damaged checkpoint, no epochs that are left to train, and a Rescale that loses digits."""

    def train(ranks=None):
        far = layers.Rescale(1.0, 30_000.0)
        model = xnn.Sequential(far, layers.Dense(20, 4), seed=0)
        watchers = [callbacks.Checkpoint(tmp_path)]
        rest = losses.SoftmaxCrossEntropy(), optimizers.SGD(1e-9)
        trainer = xnn.Trainer(model, *rest, callbacks=watchers, numerics="exact")
        trainer.resume(tmp_path)
        trainer.fit(digits(), epochs=2, progress=False)

    train()
    (tmp_path / "step-000000099.safetensors").write_bytes(b"no checkpoint")
    capsys.readouterr()
    in_threads(3, train)
    said = capsys.readouterr().err
    for line in (
        "step-000000099.safetensors",
        "in float32, which has about 7 digits",
        "nothing is left to do",
    ):
        assert said.count(line) == 1, said
