"""Checkpoints of a fit on any kind of data; and what would make the resumed run another run is refused."""

import hashlib
import json

import numpy as np
import pytest

import xnn
from xnn import callbacks, data, layers, losses, optimizers
from xnn.errors import OptionError
from xnn.layers import resumable_sha256, safetensors_file
from xnn.layers.files import weights_sha256
from xnn.layers.resumable_sha256 import ResumableSHA256

ROWS = 90
X = np.random.default_rng(0).normal(size=(ROWS, 3)).astype(np.float32)
Y = X[:, :1] * X[:, 1:2]


class KilledError(Exception):
    """Ends a fit as a killed process does: nothing is written after it."""


class Saver(callbacks.Callback):
    """Saves a checkpoint after some step, and ends the run two steps later."""

    bystander = True

    def __init__(self, path, at):
        self._path, self._at, self._seen = path, at, 0

    def on_step(self, history, epoch, step, loss):
        self._seen += 1
        if self._seen == self._at:
            self.trainer.save(self._path)
        if self._seen == self._at + 2:
            raise KilledError


def trainer_of(*watchers, learning_rate=0.05):
    model = xnn.Sequential(layers.Dense(3, 6), layers.Tanh(), layers.Dense(6, 1), seed=0)
    trainer = xnn.Trainer(model, losses.MSE(), optimizers.SGD(learning_rate), callbacks=[*watchers])
    for watcher in watchers:
        if isinstance(watcher, Saver):
            watcher.trainer = trainer
    return trainer


def fit(trainer, given=(X, Y), validation=(X[:20], Y[:20]), epochs=4):
    history = trainer.fit(given, validation, epochs=epochs, batch_size=16, progress=False)
    return weights_sha256(trainer.model), history.losses_sha256, history["val_loss"] if validation else None


def interrupted(path, at=8, given=(X, Y), **options):
    with pytest.raises(KilledError):
        fit(trainer_of(Saver(path, at), **options), given)


def resumed(path, **options):
    trainer = trainer_of(**options)
    trainer.resume(path)
    return trainer


def batches(epoch):
    for start in range(0, ROWS, 30):
        yield X[start : start + 30], Y[start : start + 30]


def endless():
    while True:
        yield from batches(0)


def mapped(folder):
    for name, array in (("x", X), ("y", Y)):
        np.save(folder / f"{name}.npy", array)
    return np.load(folder / "x.npy", mmap_mode="r"), np.load(folder / "y.npy", mmap_mode="r")


SOURCES = {
    "arrays": lambda folder: (X, Y),
    "memory maps": mapped,
    "shards": lambda folder: tuple(data.Shards([part[:40], part[40:]]) for part in mapped(folder)),
    "converted": lambda folder: (mapped(folder)[0], data.Shards([Y[:40].astype(int), Y[40:].astype(int)])),
    "function": lambda folder: data.Stream(batches, samples=ROWS, window=25),
    "iterable": lambda folder: data.Stream([*batches(0)], window=25),
    "iterator": lambda folder: data.Stream(endless(), samples=ROWS, window=25),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("at", [3, 8])
def test_a_fit_on_any_data_is_resumed(source, at, tmp_path):
    wanted = fit(trainer_of(), SOURCES[source](tmp_path))
    interrupted(tmp_path / "run.safetensors", at, SOURCES[source](tmp_path))
    assert fit(resumed(tmp_path / "run.safetensors"), SOURCES[source](tmp_path)) == wanted


@pytest.mark.parametrize("at", [2, 8, 14])
def test_the_second_fit_on_an_iterator_is_resumed(at, tmp_path):
    def run(stopped_at=None, resumes=False):
        stream = data.Stream(endless(), samples=ROWS, window=25)
        trainer = resumed(tmp_path / "run.safetensors") if resumes else trainer_of()
        if not resumes:
            fit(trainer, stream, epochs=2)
        if stopped_at:
            saver = Saver(tmp_path / "run.safetensors", stopped_at)
            saver.trainer, trainer.callbacks = trainer, [saver]
        return fit(trainer, stream)

    wanted = run()
    with pytest.raises(KilledError):
        run(at)
    assert run(resumes=True) == wanted


@pytest.mark.parametrize(
    "other",
    [
        lambda: data.Stream(batches, samples=ROWS, window=26),
        lambda: data.Stream([(X, Y + 1)], window=25),
        lambda: data.Stream(endless(), samples=ROWS - 1, window=25),
        lambda: (X, Y),
    ],
    ids=["windows", "numbers", "number of samples", "arrays"],
)
def test_another_stream_is_refused(other, tmp_path):
    interrupted(tmp_path / "run.safetensors", given=data.Stream(batches, samples=ROWS, window=25))
    with pytest.raises(OptionError, match="training data are not those of"):
        fit(resumed(tmp_path / "run.safetensors"), other())


@pytest.mark.parametrize(
    "other",
    [None, (X[:19], Y[:19]), (X[1:21], Y[1:21]), (X[:20], Y[:20], np.ones(20))],
    ids=["none", "fewer", "others", "weighted"],
)
def test_other_validation_data_are_refused(other, tmp_path):
    interrupted(tmp_path / "run.safetensors")
    trainer = resumed(tmp_path / "run.safetensors")
    with pytest.raises(OptionError, match="validation data are not those of"):
        fit(trainer, validation=other)
    assert fit(trainer) == fit(trainer_of())


class FailsOnce(callbacks.Callback):
    bystander = True
    failed = False

    def on_fit_start(self, history, epochs, steps_per_epoch):
        if not self.failed:
            self.failed = True
            raise KilledError


def test_a_fit_that_could_not_start_goes_on_when_it_is_called_again(tmp_path):
    interrupted(tmp_path / "run.safetensors")
    trainer = trainer_of(FailsOnce())
    trainer.resume(tmp_path / "run.safetensors")
    with pytest.raises(KilledError):
        fit(trainer)
    assert fit(trainer) == fit(trainer_of())


def test_a_checkpoint_of_a_fit_that_has_not_gone_on_is_refused(tmp_path):
    interrupted(tmp_path / "run.safetensors")
    trainer = resumed(tmp_path / "run.safetensors")
    with pytest.raises(
        OptionError, match=r"run\.safetensors is a checkpoint in the middle of a fit.*call fit"
    ):
        trainer.save(tmp_path / "other.safetensors")
    assert not (tmp_path / "other.safetensors").exists()
    fit(trainer)
    trainer.save(tmp_path / "other.safetensors")
    assert resumed(tmp_path / "other.safetensors").step == trainer.step


def enclosed(rate):
    return lambda step: rate / (1 + step)


def by_default(rate):
    return lambda step, highest=rate: highest / (1 + step)


def by_keyword(rate):
    def schedule(step, *, lowest=0.0, highest=rate):
        return max(lowest, highest / (1 + step))

    return schedule


@pytest.mark.parametrize("make", [enclosed, by_default, by_keyword])
def test_a_function_with_other_numbers_is_refused(make, tmp_path):
    interrupted(tmp_path / "run.safetensors", learning_rate=make(0.1))
    wanted = fit(trainer_of(learning_rate=make(0.1)))
    assert fit(resumed(tmp_path / "run.safetensors", learning_rate=make(0.1))) == wanted
    with pytest.raises(OptionError, match=r"learning_rate\.with\.\w+ is 0\.2, and 0\.1 in the checkpoint"):
        resumed(tmp_path / "run.safetensors", learning_rate=make(0.2))


def test_a_log_of_another_run_begins_anew(tmp_path, capsys):
    def trainer_with_log(*watchers):
        return trainer_of(callbacks.JsonLines(tmp_path / "log"), *watchers)

    with pytest.raises(KilledError):
        fit(trainer_with_log(Saver(tmp_path / "run.safetensors", 8)))
    own = (tmp_path / "log").read_text()
    for other in (None, fit):
        (tmp_path / "log").write_text(own)
        if other:
            other(trainer_with_log(), epochs=9)
        trainer = trainer_with_log()
        trainer.resume(tmp_path / "run.safetensors")
        fit(trainer)
        events = [json.loads(line)["event"] for line in (tmp_path / "log").read_text().splitlines()]
        assert events == ["start", *["epoch"] * (3 if other else 4), "end"]
        assert ("is not the one of the checkpoint, and begins anew" in capsys.readouterr().err) is bool(other)


def test_about_must_be_json(tmp_path):
    trainer = trainer_of(callbacks.Checkpoint(tmp_path, about={"made": object()}))
    with pytest.raises(OptionError, match=r"about of callbacks\.Checkpoint must be JSON values: .*object"):
        fit(trainer)


def test_a_checkpoint_is_checked_without_reading_it_into_memory(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OptionError("no memory is free")

    monkeypatch.setattr(safetensors_file, "check_memory", refuse)
    fit(trainer_of(callbacks.Checkpoint(tmp_path)))
    assert len([*tmp_path.glob("step-*")]) == 3
    with pytest.raises(OptionError, match="no memory is free"):
        trainer_of().resume(tmp_path)


def test_a_digest_folds_many_bytes_piece_by_piece(monkeypatch):
    monkeypatch.setattr(resumable_sha256, "_MOST", 2**12)
    monkeypatch.setattr(resumable_sha256, "_PIECE", 2**8)
    rng, whole, digest = np.random.default_rng(0), hashlib.sha256(), ResumableSHA256()
    for number, size in enumerate((5000, 9, 20_000, 1, 64, 3000)):
        content = rng.bytes(size)
        whole.update(content)
        digest.update(content)
        if number == 2:
            digest = ResumableSHA256.from_state(digest.state())
        assert digest.hexdigest() == digest.hexdigest() == whole.hexdigest()


def test_a_model_that_ends_in_what_the_loss_computes_is_named():
    model = xnn.Sequential(layers.Dense(3, 2), layers.Softmax(), seed=0)
    with pytest.raises(OptionError, match="which SoftmaxCrossEntropy computes itself from logits"):
        xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1))
