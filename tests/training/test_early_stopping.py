"""EarlyStopping: when it ends a fit, which weights the model then has, and what it refuses."""

import json
import math
import os
import signal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import xnn
from xnn import data, layers, losses, optimizers
from xnn.callbacks import Callback, Checkpoint, EarlyStopping, JsonLines
from xnn.errors import DivergenceError, OptionError
from xnn.layers.files import weights_sha256
from xnn.runs.mlp import mlp

X, Y = data.synthetic_digits(120)
NAN = math.nan


class Scripted(Callback):
    """Gives each epoch the next of these values under a name, and keeps the weights' digest after each."""

    def __init__(self, values, name="val_loss", at=lambda epoch: None):
        self.values, self.name, self.at, self.digests = values, name, at, []

    def on_epoch_end(self, history, entry):
        entry[self.name] = self.values[len(history.epochs) - 1]
        self.digests.append(weights_sha256(self.model))
        self.at(len(history.epochs))


def trainer(*callbacks, dropout=0.0, rule=None):
    model = mlp(784, (8,), 10, "relu", dropout, (1 / 255, 0.0))
    rule = optimizers.SGD(0.1, momentum=0.9) if rule is None else rule
    return xnn.Trainer(model, losses.SoftmaxCrossEntropy(), rule, callbacks=callbacks)


def fit(t, epochs=1, **options):
    return t.fit((X, Y), epochs=epochs, progress=False, **options)


def expected(values, patience, min_delta, mode):
    """Written otherwise: the epochs that beat all before them, and the first that is so far behind the last such."""
    sign = 1 if mode == "max" else -1
    records = []
    for epoch, value in enumerate(values, 1):
        if not math.isnan(value):
            best = sign * values[records[-1] - 1] if records else None
            if best is None or sign * value - best > min_delta:
                records.append(epoch)
        if epoch - (records[-1] if records else 0) == patience:
            return records[-1] if records else 0, epoch
    return records[-1] if records else 0, len(values)


@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.25, 2.0, -1.0, math.inf, NAN]), min_size=1, max_size=12),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.25, 0.5]),
    st.sampled_from(["min", "max"]),
)
def test_best_and_last_epoch(values, patience, min_delta, mode):
    """Of any course of values."""
    stopper = EarlyStopping("number", patience, min_delta, mode)
    scripted = Scripted(values, "number")
    model = xnn.Sequential(layers.Dense(1, 1), seed=0)
    tiny = xnn.Trainer(model, losses.MSE(), optimizers.SGD(0.01), callbacks=[scripted, stopper])
    history = tiny.fit((np.ones((4, 1)), np.ones((4, 1))), epochs=len(values), progress=False)
    best, last = expected(values, patience, min_delta, mode)
    assert (stopper.best_epoch, len(history.epochs)) == (best, last)
    if best:
        assert stopper.best == values[best - 1]
    assert weights_sha256(tiny.model) == scripted.digests[(best or last) - 1]
    assert history.interrupted is False
    assert history.error == ""


@pytest.mark.sampled(8)
def test_on_every_backend(lib):
    """A real validation; the same weights as of a fit that ends at the best epoch by itself."""
    stopper = EarlyStopping(patience=2)
    t = trainer(stopper, dropout=0.3, rule=optimizers.SGD(0.5))
    held_out = data.synthetic_digits(40, seed=9)
    history = fit(t, epochs=200, validation=held_out)
    assert len(history.epochs) == stopper.best_epoch + 2 < 200
    assert history["val_loss"][stopper.best_epoch - 1] == min(history["val_loss"]) == stopper.best
    assert t.evaluate(held_out)["loss"] == stopper.best
    short = trainer(dropout=0.3, rule=optimizers.SGD(0.5))
    fit(short, epochs=stopper.best_epoch)
    assert weights_sha256(short.model) == weights_sha256(t.model)
    reason = f"val_loss has not improved on epoch {stopper.best_epoch}'s {stopper.best:.6g} in 2 epochs"
    assert history.stopped == reason


@pytest.mark.parametrize("restore", [True, False])
def test_epochs_that_run_out(restore):
    scripted = Scripted([2.0, 1.0, 3.0, 4.0])
    stopper = EarlyStopping(patience=9, restore_best=restore)
    t = trainer(scripted, stopper)
    history = fit(t, epochs=4)
    assert (stopper.best_epoch, stopper.best, history.stopped) == (2, 1.0, "")
    assert weights_sha256(t.model) == scripted.digests[1 if restore else 3]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has /dev/full")
@pytest.mark.parametrize("disk", ["roomy", "full", "without a folder"])
def test_the_best_weights_are_in_a_file_while_training_runs(disk, monkeypatch, tmp_path):
    """And in memory where that file cannot be written."""
    found, stopper = [], EarlyStopping(patience=9)
    if disk == "without a folder":
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    elif disk == "full":

        def full(**options):
            return open("/dev/full", "r+b", 0)

        monkeypatch.setattr("tempfile.TemporaryFile", full)

    def look(epoch):
        maps = {id(getattr(array, "_mmap", None)) for array in stopper._kept.values()}
        mapped = {isinstance(array, np.memmap) for array in stopper._kept.values()}
        found.append((mapped, len(maps)))

    scripted = Scripted([2.0, 1.0, 3.0, 4.0], at=look)
    t = trainer(scripted, stopper)
    fit(t, epochs=4)
    assert found == [(set(), 0), *[({disk == "roomy"}, 1)] * 3]  # each map keeps a file open
    assert weights_sha256(t.model) == scripted.digests[1]
    assert all(type(p.value) is np.ndarray for p in t.model.parameters())


def test_a_checkpoint_has_what_a_subclass_keeps(tmp_path):
    class Counts(EarlyStopping):
        def __init__(self):
            super().__init__("loss", patience=9)
            self.seen = 0

        def on_epoch_end(self, history, entry):
            super().on_epoch_end(history, entry)
            self.seen += 1

    def build():
        model = xnn.Sequential(layers.Dense(1, 1), seed=0)
        watchers = [Counts(), Checkpoint(tmp_path)]
        return xnn.Trainer(model, losses.MSE(), optimizers.SGD(0.01), callbacks=watchers)

    x = np.linspace(-1.0, 1.0, 32).reshape(-1, 1)
    build().fit((x, x), epochs=2, progress=False)
    trainer = build()
    trainer.resume(tmp_path)
    trainer.fit((x, x), epochs=3, progress=False)
    assert (trainer.callbacks[0].seen, trainer.callbacks[0].best_epoch) == (3, 3)


def test_a_second_fit_begins_anew():
    """With what the first one kept and counted forgotten; epochs are counted on, as history does."""
    scripted, stopper = Scripted([1.0, 5.0, 5.0]), EarlyStopping(patience=2)
    t = trainer(scripted, stopper)
    assert len(fit(t, epochs=9).epochs) == 3
    scripted.values = [9.0, 8.0, 8.5, 8.5, 1.0]
    history = fit(t, epochs=9)
    assert (history["epoch"], stopper.best_epoch, stopper.best) == ([4, 5, 6, 7], 5, 8.0)
    assert weights_sha256(t.model) == scripted.digests[3 + 1]


def test_nan_is_no_improvement_and_is_told():
    history = fit(trainer(Scripted([1.0, NAN, NAN]), EarlyStopping(patience=2)), epochs=9)
    assert history.stopped == "val_loss has not improved on epoch 1's 1 in 2 epochs and is NaN"
    stopper = EarlyStopping(patience=2)
    scripted = Scripted([NAN] * 9)
    t = trainer(scripted, stopper)
    history = fit(t, epochs=9)
    assert history.stopped == "val_loss was NaN in all of 2 epochs: no epoch was the best"
    assert stopper.best_epoch == 0
    assert weights_sha256(t.model) == scripted.digests[-1]
    found = fit(trainer(Scripted([NAN, 7.0, 6.0]), EarlyStopping(patience=2)), epochs=3)
    assert found.stopped == ""


def test_a_validation_that_overflows():
    """No script: weights that are finite and give infinite outputs for the samples held out."""
    held_out = np.full((4, 1), 3e38), np.zeros((4, 1))
    model = xnn.Sequential(layers.Dense(1, 1), layers.Dense(1, 1), seed=0)
    stopper = EarlyStopping(patience=1)
    t = xnn.Trainer(model, losses.MSE(), optimizers.SGD(0.01), callbacks=[stopper])
    with np.errstate(all="ignore"):
        history = t.fit((np.ones((4, 1)), np.ones((4, 1))), held_out, epochs=5, progress=False)
    assert not math.isfinite(history["val_loss"][0])
    assert len(history.epochs) == 2
    assert history.stopped


def test_parameters_of_every_kind_come_back():
    """Nested, frozen and float64 ones, and those that a callback assigns."""
    inner = xnn.Sequential(layers.Dense(3, 3, dtype="float64"), layers.Tanh())
    model = xnn.Sequential(inner, layers.Dense(3, 1, dtype="float64"), seed=0)
    inner.parameters()[0].frozen = True
    seen = []

    class Assigns(Callback):
        def on_epoch_end(self, history, entry):
            inner.parameters()[1].value = np.full(3, entry["epoch"], float)
            seen.append([p.value.copy() for p in model.parameters()])

    stopper = EarlyStopping(patience=3)
    t = xnn.Trainer(
        model, losses.MSE(), optimizers.Adam(0.1), callbacks=[Assigns(), Scripted([3, 1, 2, 2, 2]), stopper]
    )
    t.fit((np.ones((6, 3)), np.ones((6, 1))), epochs=9, progress=False)
    assert len(seen) == 5
    for parameter, value in zip(model.parameters(), seen[1], strict=True):
        assert parameter.value.dtype == np.float64
        np.testing.assert_array_equal(parameter.value, value)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_ctrl_c_is_another_end():
    """In the third epoch's end: interrupted, not stopped; the best weights come back all the same."""
    scripted = Scripted([1.0, 2.0, 3.0], at=lambda n: n == 3 and os.kill(os.getpid(), signal.SIGINT))
    t = trainer(scripted, EarlyStopping(patience=5))
    history = fit(t, epochs=9)
    assert (history.interrupted, history.stopped, len(history.epochs)) == (True, "", 3)
    assert weights_sha256(t.model) == scripted.digests[0]
    again = Scripted([1.0, 2.0], at=lambda n: n == 2 and os.kill(os.getpid(), signal.SIGINT))
    history = fit(trainer(again, EarlyStopping(patience=1)), epochs=9)
    assert (history.interrupted, bool(history.stopped)) == (False, True)


def test_a_run_that_diverges_leaves_the_best_weights():
    def explode(epoch):
        if epoch == 3:
            t.optimizer.learning_rate = 1e30

    scripted = Scripted([2.0, 1.0, 1.5, 9.0], at=explode)
    t = trainer(scripted, EarlyStopping(patience=5), rule=optimizers.SGD(0.1))
    with np.errstate(all="ignore"), pytest.raises(DivergenceError):
        fit(t, epochs=9)
    assert weights_sha256(t.model) == scripted.digests[1]


def test_any_callback_may_end_a_fit(tmp_path):
    """At the end of the epoch in which it says so; the log says it too."""

    class Budget(Callback):
        def on_step(self, history, epoch, step, loss):
            if (epoch, step) == (1, 1):
                history.stopped = "the budget is spent"

    log = tmp_path / "log.jsonl"
    t = trainer(Budget(), JsonLines(log))
    history = fit(t, epochs=9)
    assert (len(history.epochs), t.epoch, history.stopped) == (2, 2, "the budget is spent")
    assert json.loads(log.read_text().splitlines()[-1])["stopped"] == "the budget is spent"
    t.callbacks = []
    assert fit(t, epochs=2)["epoch"] == [3, 4]


@pytest.mark.parametrize(
    ("stopper", "validation", "messages"),
    [
        (EarlyStopping(), None, ("val_loss", "choose loss, accuracy", "need validation data")),
        (EarlyStopping("val_f1", mode="max"), (X, Y), ("val_f1", "loss, accuracy, val_loss, val_accuracy")),
        (EarlyStopping("train_loss"), (X, Y), ("train_loss", "loss, accuracy")),
    ],
)
def test_a_number_that_is_not_there(stopper, validation, messages):
    """Said at the first epoch's end."""
    t = trainer(stopper)
    with pytest.raises(OptionError) as caught:
        fit(t, epochs=9, validation=validation)
    assert all(message in str(caught.value) for message in messages)
    assert t.epoch == 1


@pytest.mark.parametrize("value", [None, "0.5", True, [1.0]])
def test_a_value_that_is_no_number(value):
    with pytest.raises(OptionError, match="got monitor='val_loss', which is"):
        fit(trainer(Scripted([value]), EarlyStopping()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patience": 0}, "patience must be a positive integer"),
        ({"patience": 1.5}, "patience"),
        ({"patience": True}, "patience"),
        ({"min_delta": -0.1}, "min_delta"),
        ({"min_delta": NAN}, "min_delta"),
        ({"min_delta": math.inf}, "min_delta"),
        ({"mode": "least"}, "'auto', 'min' or 'max'"),
        ({"mode": None}, "'auto', 'min' or 'max'"),
        ({"monitor": "val_bias"}, "mode='min' or mode='max'"),
        ({"monitor": 3}, "must be a name"),
    ],
)
def test_options(options, message):
    with pytest.raises(OptionError, match=message):
        EarlyStopping(**options)


def test_directions():
    for mode, names in (("min", "loss mae mse rmse"), ("max", "accuracy top5 top10 precision recall f1 r2")):
        for name in names.split():
            assert EarlyStopping(name).mode == EarlyStopping(f"val_{name}").mode == mode
    assert EarlyStopping("val_loss", mode="max").mode == "max"
